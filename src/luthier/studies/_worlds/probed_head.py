"""probed-head: the head begins where another training left it, such as a linear probe of the same labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.kinds import Hook, Regularizer
from luthier.core.step import FitCtx

if TYPE_CHECKING:
    from luthier.engine.models import Model


class ProbedHead(Regularizer, name="probed-head"):
    """Start heads from an input of the training instead of from chance (LP-FT: Kumar et al. 2022)."""

    of: str = Field("", description="the input with the heads; empty: nothing is done")

    def start(self, model: Model, ctx: FitCtx) -> Hook:
        """Copy the tensors. Raises UserError where there is no such input or its heads are of another form."""
        from safetensors.torch import load_file

        from luthier.engine.weights import HEADS_FILE

        if not self.of:
            return Hook()
        if self.of not in ctx.inputs or not (ctx.inputs[self.of].folder / HEADS_FILE).exists():
            raise UserError(f"probed-head: of = {self.of!r} is no input with a head; inputs: {', '.join(ctx.inputs)}.")
        held = load_file(ctx.inputs[self.of].folder / HEADS_FILE)
        for task, head in model.heads.items():
            own = {f"{task}.{n}": t for n, t in head.state_dict().items()}
            if own.keys() != held.keys() or any(own[n].shape != t.shape for n, t in held.items()):
                raise UserError(f"probed-head: the head of '{self.of}' holds {sorted(held)}; this one holds {sorted(own)}.")
            for name, tensor in held.items():
                own[name].copy_(tensor)
        return Hook()

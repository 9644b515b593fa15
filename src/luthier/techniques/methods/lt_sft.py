"""LT-SFT: a fine-tuning as a sparse vector phi = theta' - theta0 that can be stored, shared and added to others.

    1. all maskable weights are tuned from theta0 to theta1   2. m = 1 at the k entries with the largest |theta1 - theta0|
    3. every weight, heads too, goes back to theta0           4. training again, with gradients m * g, gives theta2
    5. phi = theta2 - theta0 on m

Both phases pull towards theta0 by l1 * sum |theta - theta0| / P, with P the number of all weights, where l1 > 0. Each has an
optimizer and a schedule of its own, and the planned steps hold both. Entries off the mask stay bit for bit, decayed or not.

When it helps: several fine-tunings of one base that are to be composed (a task and a language). The first phase takes the
memory of full tuning. Source: Ansell et al. 2021, arXiv 2110.07560 (seed 70).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.kinds import Default, Hook
from luthier.core.step import FitCtx
from luthier.techniques.methods._selective import Retrain, Selective, Tensors, norms

if TYPE_CHECKING:
    import torch

    from luthier.engine.models import Model


class LtSft(Selective, name="lt-sft", seeds=[70]):
    """Train the entries that full tuning moves most; leaves a sparse delta."""

    sought: ClassVar[tuple[str, str]] = ("weight", "weights that may move")
    params: float | int = Field(0.08, gt=0, description="how many entries move; up to 1.0, which share of the maskable ones")
    full_share: float = Field(0.25, gt=0, lt=1, description="share of the planned steps in which everything is tuned")
    l1: float = Field(0.0, ge=0, description="pull towards the base (0.1 in the paper for languages)")
    by: Literal["moved", "random"] = Field("moved", description="random: any entries (RAND-SFT, the control)")
    freeze: tuple[str, ...] = Field(("layernorm", "lm_head"), description="what is not maskable and stays: layernorm (every "
                                    "norm), lm_head (weights of its own), or parts of names")

    def found(self, model: Model) -> dict[str, torch.nn.Parameter]:
        own = {n: p for n, p in model.module.named_parameters() if p.is_floating_point()}
        frozen = {id(p) for m in norms(model).values() for p in m.parameters()} if "layernorm" in self.freeze else set()
        head = model.module.get_output_embeddings() if hasattr(model.module, "get_output_embeddings") else None
        if "lm_head" in self.freeze and head is not None:
            tied = {id(p) for p in model.module.get_input_embeddings().parameters()}
            frozen |= {id(p) for p in head.parameters()} - tied
        terms = [t for t in self.freeze if t not in ("layernorm", "lm_head")]
        for term in terms:
            if not any(term in n for n in own):
                raise UserError(f"lt-sft: freeze: no weight is called {term}. Legal: layernorm, lm_head, or parts of names "
                                f"such as {next(iter(own))}.")
        return {n: p for n, p in own.items() if id(p) not in frozen and not any(t in n for t in terms)}

    def start(self, model: Model, ctx: FitCtx) -> Hook:
        chosen = self.chosen(model)
        total = sum(p.numel() for p in chosen.values())
        share = isinstance(self.params, float) and self.params <= 1
        count = round(self.params * total) if share else int(self.params)
        if not 0 < count <= total:
            raise UserError(f"lt-sft: params = {self.params} means {count:,} entries; {model.name} has {total:,} that may "
                            "move.")
        return Pulled(self.l1, model, "lt-sft", model, ctx, list(chosen), count, self.full_share,
                      {"moved": moved, "random": drawn}[self.by])

    def finish(self, model: Model, hook: Hook) -> None:
        assert isinstance(hook, Retrain)
        hook.settle()

    def defaults(self, model: Model, rows: int) -> dict[str, Default]:
        return {"learning_rate": Default(5e-5, "Ansell et al. 2021: 5e-5")}


def moved(hook: Retrain) -> Tensors:
    """How far each entry went."""
    return {n: (p.detach() - hook.begin[n]).abs() for n, p in hook.weights.items()}


def drawn(hook: Retrain) -> Tensors:
    """A number by chance for each entry; the first phase leaves no trace."""
    import torch

    return {n: torch.from_numpy(hook.ctx.rng("lt-sft/drawn", n).random(p.numel())).view(p.shape).to(p.device)
            for n, p in hook.weights.items()}


class Pulled(Retrain):
    """`Retrain` with the pull towards the beginning."""

    def __init__(self, l1: float, model: Model, *rest: Any) -> None:
        super().__init__(*rest)
        self.strength = l1 / model.parameters()

    def on_loss(self, run: Any, batch: Any, parts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if not self.strength:
            return parts
        import torch

        far = torch.stack([(p - self.begin[n]).abs().sum().float() for n, p in self.weights.items()]).sum()
        return {**parts, "l1": self.strength * far}

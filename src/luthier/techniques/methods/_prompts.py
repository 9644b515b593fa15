"""What methods that learn a prompt share: how many vectors it has, and the tokens that it begins as."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.kinds import Method
from luthier.core.step import FitCtx

if TYPE_CHECKING:
    from luthier.engine.models import Model


class Prompted(Method):
    """Learned vectors before the input of a frozen model, `tokens` of them."""

    artifact: ClassVar[Literal["adapter", "delta", "model"]] = "adapter"
    tokens: int = Field(10, ge=1, description="learned vectors before the input")
    text: str = Field("", description="the vectors begin as this text; as drawn tokens if left out")

    def begin_as(self, model: Model, ctx: FitCtx | None) -> list[int]:
        """`tokens` token ids that the vectors begin as: those of the text, repeated or cut, which is said; or drawn ones.

        Raises:
            UserError: the text has no tokens.
        """
        from luthier.core.rng import Rng

        name = self.info.name
        if not self.text:
            special = set(model.tokenizer.all_special_ids)
            usual = [i for i in range(len(model.tokenizer)) if i not in special]
            draw = (ctx.rng if ctx else Rng(0))(name)
            return [usual[int(i)] for i in draw.integers(len(usual), size=self.tokens)]
        ids = model.tokenizer(self.text, add_special_tokens=False)["input_ids"] if self.text.strip() else []
        if not ids:
            raise UserError(f"{name}: text {self.text!r} has no tokens.")
        if len(ids) != self.tokens and ctx:
            done = "it is repeated" if len(ids) < self.tokens else "the rest is left out"
            ctx.log(f"{name}: the text has {len(ids)} tokens and the prompt {self.tokens}: {done}")
        return [ids[i % len(ids)] for i in range(self.tokens)]

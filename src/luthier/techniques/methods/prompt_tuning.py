"""Prompt tuning: n learned vectors before the embedded input; every weight of the model stays as it is.

The input [batch, tokens, width] becomes [batch, n + tokens, width], with n x width trained numbers. They begin as embeddings of
the tokens of `text`, repeated or cut to n, or of n drawn tokens of the vocabulary where no text is given. PEFT's.

When it helps: many small tasks on one frozen model; keeping a model from what tuning its weights breaks. Source: Lester et al.
2021, "The power of scale for parameter-efficient prompt tuning"; the soft prompt of Sun, Shaib & Wallace 2023 (seed 163).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.kinds import Default, Method
from luthier.core.step import FitCtx
from luthier.techniques.methods._shared import wrap

if TYPE_CHECKING:
    from luthier.engine.models import Model


class PromptTuning(Method, name="prompt-tuning", seeds=[163]):
    """Learned vectors before the input of a frozen model."""

    artifact: ClassVar[Literal["adapter", "delta", "model"]] = "adapter"
    tokens: int = Field(10, ge=1, description="learned vectors before the input")
    text: str = Field("", description="the vectors begin as the embeddings of this text; of drawn tokens if left out")

    def prepare(self, model: Model, ctx: FitCtx) -> Model:
        """Raises UserError for an encoder, which answers nothing, and for a text without tokens."""
        import torch
        from peft import PromptTuningConfig

        if model.architecture == "encoder":
            raise UserError(f"prompt-tuning: {model.name} is an encoder and continues no prompt. Try --method bitfit or lora.")
        ids = self._start(model, ctx)
        start = model.module.get_input_embeddings()(torch.tensor(ids, device=model.device)).detach().clone()
        wrapped = wrap(model, PromptTuningConfig(num_virtual_tokens=self.tokens))
        prompt = wrapped.module.prompt_encoder["default"].embedding.weight
        # An encoder-decoder has one prompt for each side.
        with torch.no_grad():
            prompt.copy_(start.repeat(len(prompt) // self.tokens, 1).to(prompt.dtype))
        return wrapped

    def _start(self, model: Model, ctx: FitCtx) -> list[int]:
        """Token ids whose embeddings the vectors begin as, `tokens` of them."""
        if not self.text:
            special = set(model.tokenizer.all_special_ids)
            usual = [i for i in range(len(model.tokenizer)) if i not in special]
            return [usual[int(i)] for i in ctx.rng("prompt-tuning").integers(len(usual), size=self.tokens)]
        ids = model.tokenizer(self.text, add_special_tokens=False)["input_ids"] if self.text.strip() else []
        if not ids:
            raise UserError(f"prompt-tuning: text {self.text!r} has no tokens.")
        return [ids[i % len(ids)] for i in range(self.tokens)]

    def defaults(self, model: Model, rows: int) -> dict[str, Default]:
        return {"learning_rate": Default(3e-2, "house default for soft prompts of small models; sweep it on dev")}

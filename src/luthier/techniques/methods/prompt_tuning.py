"""Prompt tuning: n learned vectors before the embedded input; every weight of the model stays as it is.

The input [batch, tokens, width] becomes [batch, n + tokens, width], with n x width trained numbers. They begin as embeddings of
the tokens of `text`, repeated or cut to n, or of n drawn tokens of the vocabulary where no text is given. PEFT's.

When it helps: many small tasks on one frozen model; keeping a model from what tuning its weights breaks. Source: Lester et al.
2021, "The power of scale for parameter-efficient prompt tuning"; the soft prompt of Sun, Shaib & Wallace 2023 (seed 163).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from luthier.core.errors import UserError
from luthier.core.kinds import Default
from luthier.core.step import FitCtx
from luthier.techniques.methods._prompts import Prompted
from luthier.techniques.methods._shared import wrap

if TYPE_CHECKING:
    from luthier.engine.models import Model


class PromptTuning(Prompted, name="prompt-tuning", seeds=[163]):
    """Learned vectors before the input of a frozen model."""

    def prepare(self, model: Model, ctx: FitCtx) -> Model:
        """Raises UserError for an encoder, which answers nothing, and for a text without tokens."""
        import torch
        from peft import PromptTuningConfig

        if model.architecture == "encoder":
            raise UserError(f"prompt-tuning: {model.name} is an encoder and continues no prompt. Try --method bitfit or lora.")
        ids = self.begin_as(model, ctx)
        start = model.module.get_input_embeddings()(torch.tensor(ids, device=model.device)).detach().clone()
        wrapped = wrap(model, PromptTuningConfig(num_virtual_tokens=self.tokens))
        prompt = wrapped.module.prompt_encoder["default"].embedding.weight
        # An encoder-decoder has one prompt for each side.
        with torch.no_grad():
            prompt.copy_(start.repeat(len(prompt) // self.tokens, 1).to(prompt.dtype))
        return wrapped

    def defaults(self, model: Model, rows: int) -> dict[str, Default]:
        return {"learning_rate": Default(3e-2, "house default for soft prompts of small models; sweep it on dev")}

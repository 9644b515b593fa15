"""Deep prompts: learned vectors among the places of a frozen model that reads patches, anew in every layer.

The first layer reads (first place, p vectors, patches); every later one finds p other vectors in their places, so that the
length is the same in all. AST's distillation token is left out. With `deep: false` the vectors of the first layer go on as
states. Vectors begin uniform within ± sqrt(6 / (3 patch² + width)); p = 0 trains the head alone.

When it helps: many tasks on one frozen model, each a few vectors. Source: Jia et al. 2022, arXiv 2203.12119; for AST
Cappellazzo et al. 2023, arXiv 2312.03694 (seed 74).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.kinds import Default, Method
from luthier.core.step import FitCtx
from luthier.engine.layers import layer_stacks
from luthier.techniques.methods._shared import wrap

if TYPE_CHECKING:
    from luthier.engine.models import Model


class DeepPrompts(Method, name="deep-prompts", seeds=[74]):
    """Learned vectors in front of every layer of a model that reads patches."""

    prompts: int = Field(25, ge=0, description="vectors of a layer; 0 trains the head alone")
    deep: bool = Field(True, description="vectors of its own in every layer, not in the first one alone")
    budget: float | None = Field(None, gt=0, lt=1, description="share of the model's weights to be trained; sets `prompts`")

    @property
    def artifact(self) -> Literal["adapter", "delta", "model"]:  # type: ignore[override]
        """An adapter; without vectors nothing of the model moves, and an empty delta says so."""
        return "adapter" if self.prompts or self.budget is not None else "delta"

    def prepare(self, model: Model, ctx: FitCtx) -> Model:
        """Raises UserError for a model that reads tokens, whose positions say where each stands."""
        from luthier.techniques.methods._tuners import PromptConfig

        patch = getattr(model.module.config, "patch_size", None)
        stacks = layer_stacks(model) if model.sounds else []
        if patch is None or len(stacks) != 1:
            raise UserError(f"deep-prompts stand among patches, and {model.name} reads tokens. Use prompt-tuning, or peft:type="
                            "P_TUNING.")
        names = {id(m): n for n, m in model.module.named_modules()}
        layers = [names[id(m)] for m in (stacks[0].layers if self.deep else list(stacks[0].layers)[:1])]
        count = self.prompts
        if self.budget is not None:
            count = max(1, round(self.budget * model.parameters() / len(layers) / model.width))
        if not count:
            return model
        lost = int(hasattr(getattr(model.module, "embeddings", None), "distillation_token"))
        return wrap(model, PromptConfig(target_modules=layers, count=count, width=model.width, lost=lost,  # type: ignore[arg-type]
                                        reach=(6 / (3 * patch ** 2 + model.width)) ** 0.5))

    def loadable(self) -> None:
        from luthier.techniques.methods import _tuners  # noqa: F401  (importing registers)

    def defaults(self, model: Model, rows: int) -> dict[str, Default]:
        return {"learning_rate": Default(1e-2, "Cappellazzo et al. 2023: prompts 1e-2")}

"""MeteoRA: many LoRAs of many tasks in one model, and in every layer a gate that says which of them each token takes.

    y_t = W x_t + sum over the k likeliest i of w_ti (alpha_i / rank_i) B_i A_i x_t,   w_t = softmax(g_t[k likeliest] / T)

with g_t = W_gate x_t in R^N. The LoRAs stay as they are and only gates are trained, on the tasks' data together; the
objective `gate-supervised` teaches the gates the task of each row. Nobody has to name a task then, and one answer may
use several adapters in turn. Gates taught by hard labels are nearly one-hot: for such composite answers they want a
temperature of about 5 a task.

When it helps: adapters for several tasks are there, and who asks doesn't say which. It can't be merged. Source: Xu et
al. 2024, arXiv 2405.13053 (seed 109).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from luthier.core.identity import hash_folder
from luthier.core.kinds import Default, Method
from luthier.core.step import FitCtx
from luthier.techniques.methods._shared import wrap

if TYPE_CHECKING:
    from luthier.engine.models import Model


class Meteora(Method, name="meteora", seeds=[109]):
    """Gates over several frozen LoRAs, one a token and layer."""

    artifact: ClassVar[Literal["adapter", "delta", "model"]] = "adapter"
    adapters: dict[str, str] = Field(description="name: folder of a LoRA or of its run, or an input of the training; a list of "
                                                 "folders takes their names")
    top_k: int = Field(2, ge=1, description="adapters that a token takes")
    temperature: float = Field(1.0, gt=0, description="T when the model answers; 1 while training")
    train: Literal["gates", "gates+loras"] = Field("gates", description="what moves: the gates, or the adapters as well")
    pad_ranks: bool = Field(False, description="fill lower ranks up with zeros where ranks differ")

    @field_validator("adapters", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        """A list of folders by their names."""
        if not isinstance(value, (list, tuple)):
            return value
        names = [Path(str(place)).name for place in value]
        twice = next((n for n in names if names.count(n) > 1), None)
        if twice is not None:
            raise ValueError(f"two adapters are called '{twice}'; name them: adapters={{one: FOLDER, other: FOLDER}}")
        return dict(zip(names, map(str, value), strict=True))

    @model_validator(mode="after")
    def _enough(self) -> Meteora:
        if not self.adapters:
            raise ValueError("adapters is empty; name at least one LoRA")
        if self.top_k > len(self.adapters):
            raise ValueError(f"top_k = {self.top_k}, and there are {len(self.adapters)} adapters; at most so many can be taken")
        return self

    @property
    def routes(self) -> tuple[str, ...]:
        """The adapters' names."""
        return tuple(self.adapters)

    def check(self) -> None:
        """Raises UserError for folders that are no LoRA, or don't belong together. Names of inputs are looked at later."""
        from luthier.techniques.methods._mixtures import read

        if there := self._folders():
            read("meteora", there)

    def content(self) -> dict[str, Any]:
        from luthier.techniques.methods._mixtures import adapter_folder

        return {f"adapter/{name}": hash_folder(adapter_folder("meteora", name, place))
                for name, place in self._folders().items()}

    def _folders(self) -> dict[str, str]:
        """The adapters that are folders: a word without a slash that is none is the name of an input."""
        return {n: p for n, p in self.adapters.items() if "/" in p or Path(p).expanduser().exists()}

    def prepare(self, model: Model, ctx: FitCtx) -> Model:
        """Raises UserError for adapters that don't fit the model or one another."""
        from luthier.techniques.methods import _gated, _mixtures

        sources = _mixtures.read("meteora", self.adapters, ctx.inputs if ctx else {})
        rank = _mixtures.require_fit("meteora", sources, model, self.pad_ranks)
        wrapped = wrap(model, _gated.GatedConfig(
            target_modules=sorted(sources[0].factors), names=list(self.adapters), rank=rank,  # type: ignore[arg-type]
            top_k=self.top_k, temperature=self.temperature, trained=self.train == "gates+loras"))
        _gated.fill(wrapped.module, sources)
        return wrapped

    def loadable(self) -> None:
        from luthier.techniques.methods import _gated  # noqa: F401  (importing registers)

    def defaults(self, model: Model, rows: int) -> dict[str, Default]:
        return {"learning_rate": Default(5e-4, "Xu et al. 2024: 5e-4, cosine, for 13B and 8B models")}

"""Cosine similarity: sum over pairs of (cos(f(a), f(b)) - y)², f the encoder, mean pooled; y from -1 to 1.

`loss: margin` is the contrastive loss of Hadsell et al. 2006 on d = 1 - cos: y d² + (1 - y) max(0, margin - d)², halved. A row
has parts `first` and `second` and a number as label, or `meta["similarity"]`.

When it helps: few labelled texts as pairs (`text-pairs`), scored pairs of texts, a student that copies a teacher's cosines.
Source: Reimers and Gurevych 2019, arXiv 1908.10084; Tunstall et al. 2022, arXiv 2209.11055 (seed 208).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from luthier.core.example import Dropped, Example
from luthier.core.kinds import DroppedRow, Features, Objective, Tokens
from luthier.core.rng import Rng

if TYPE_CHECKING:
    import torch

    from luthier.engine.forward import Forward
    from luthier.engine.rendering import Render


class CosineSimilarity(Objective, name="cosine-similarity", seeds=[208]):
    """Learn how alike two texts are."""

    parts: ClassVar[Mapping[str, Literal["additive", "coupled"]]] = {"squared_error": "additive"}
    architectures: ClassVar[tuple[Any, ...]] = ("encoder",)
    learns_to_stop: ClassVar[bool] = False
    loss_kind: Literal["cosine", "margin"] = Field("cosine",
                                                   description="squared error of the cosine, or contrastive with a margin")
    margin: float = Field(0.5, gt=0, le=2, description="distance beyond which texts that are not alike are left alone")
    max_tokens: int = Field(256, ge=8, description="how much of a text is read")

    def rows(self, example: Example, render: Render, rng: Rng) -> list[Features]:
        return [self.encode(example, render, rng)]

    def encode(self, example: Example, render: Render, rng: Rng) -> Features:
        first, second = example.part("first") or example.part("question"), example.part("second") or example.part("passage")
        if not first.strip() or not second.strip():
            raise DroppedRow(Dropped(example.id, "no pair", "a row needs two texts: parts first and second"))
        given = example.meta.get("similarity", example.label)
        try:
            alike = float(given)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            alike = math.nan
        if not -1 <= alike <= 1:
            raise DroppedRow(Dropped(example.id, "no similarity", f"{given!r} is no number from -1 to 1"))
        return {"first": self._read(first, example, render), "second": self._read(second, example, render), "alike": alike}

    def count(self, batch: Mapping[str, Any]) -> dict[str, float]:
        return {"squared_error": len(batch["first"])}

    def loss(self, run: Forward, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        import torch

        from luthier.engine.batches import join

        one, two = run("policy", join(batch["first"], batch["second"])).pooled().float().chunk(2)
        cosines = torch.nn.functional.cosine_similarity(one, two)
        run.measure(cosine=cosines)
        return {"squared_error": self.errors(cosines, batch["alike"]).sum()}

    def errors(self, cosines: torch.Tensor, alike: torch.Tensor) -> torch.Tensor:
        """[pairs] loss of each pair."""
        if self.loss_kind == "cosine":
            return (cosines - alike).square()
        apart = 1 - cosines
        return (alike * apart.square() + (1 - alike) * (self.margin - apart).clamp(min=0).square()) / 2

    def _read(self, text: str, example: Example, render: Render) -> Tokens:
        from luthier.engine.rendering import Cut

        ids = list(render.tokenizer(text, verbose=False)["input_ids"])
        whole = len(ids)
        if whole > self.max_tokens:
            ids = list(render.tokenizer(text, truncation=True, max_length=self.max_tokens)["input_ids"])
        if len(ids) > render.max_tokens:
            raise DroppedRow(Dropped(example.id, "too long", f"{len(ids)} tokens, at most max_tokens_per_example="
                                     f"{render.max_tokens}; the objective's max_tokens cuts at {self.max_tokens}"))
        if len(ids) < whole:
            render.cuts.append(Cut(example.id, whole - len(ids), 1, f"a text of {whole} tokens is read to {len(ids)}"))
        return Tokens(ids, [False] * len(ids))

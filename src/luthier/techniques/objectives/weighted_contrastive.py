"""Weighted in-batch contrastive loss of a retriever, with the relevance of each pair from behaviour.

With f the encoder (one for both sides, mean pooled), q_i and d_i the query and the document of row i, w_i the row's
weight and t the temperature, over all documents d_j of the batch, hard negatives included,

    s_ij = cos(f(q_i), f(d_j)) / t
    L = - sum_i w_i log( exp(s_ii) / sum_j exp(s_ij) ) / sum_i w_i

Left out of the sum over j: every document that is a positive of query i too, and every document with the text of d_i.
Otherwise popular documents are pushed away from their own queries. A row of weight 0 teaches nothing itself; its
documents stay negatives of the others. Hard negatives of all rows are candidates of every row.

When it helps: questions in the users' words about documents in their authors' words. Weights w from clicks: Sharma et
al. 2024, arXiv 2404.14760 (seed 1); in-batch negatives: Henderson et al. 2017, section 4.4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from luthier.core.example import Dropped, Example
from luthier.core.identity import digest
from luthier.core.kinds import DroppedRow, Features, Objective, Tokens
from luthier.core.rng import Rng

if TYPE_CHECKING:
    import torch

    from luthier.engine.forward import Forward
    from luthier.engine.rendering import Render


class WeightedContrastive(Objective, name="weighted-contrastive", seeds=[1]):
    """Learn to put each query next to its document and away from the others of the batch.

    A row is a question with the part `document` (or `passage`) and any number of parts `negative`. `meta` may hold its
    `weight`, the id of its `document`, the ids of its `negatives`, and `positives`: all documents right for the query.
    The curve shows `accuracy`, the share of rows whose document comes first.
    """

    parts: ClassVar[Mapping[str, Literal["additive", "coupled"]]] = {"contrastive": "coupled"}
    architectures: ClassVar[tuple[Any, ...]] = ("encoder",)
    learns_to_stop: ClassVar[bool] = False
    temperature: float = Field(0.05, gt=0, description="cosines are divided by it; lower looks at the nearest only")
    negatives: int = Field(0, ge=0, le=32, description="hard negatives used of each row, the first ones")
    masks: bool = Field(True, description="leave out of a row's negatives what is right for its query too")
    max_tokens: int = Field(256, ge=8, description="how much of a text the encoder reads, as the index does")

    def rows(self, example: Example, render: Render, rng: Rng) -> list[Features]:
        return [self.encode(example, render, rng)]  # what is too long is cut as the index cuts it

    def encode(self, example: Example, render: Render, rng: Rng) -> Features:
        query, document = example.part("question"), example.part("document") or example.part("passage")
        if not query or not document:
            raise DroppedRow(Dropped(example.id, "no pair", "a row needs a question and a document (or passage)"))
        weight = float(example.meta.get("weight", 1.0))
        if not (weight >= 0 and math.isfinite(weight)):
            raise DroppedRow(Dropped(example.id, "no weight", f"weight is {weight:g}; legal: 0 or more"))
        against = [p.value for t in example.turns for p in t.parts if p.name == "negative"][:self.negatives]
        names = [str(n) for n in example.meta.get("negatives") or against]
        own = str(example.meta.get("document") or example.source or document)
        found: Features = {"query": self._read(query, example, render), "document": self._read(document, example, render)}
        for n in range(self.negatives):
            # A row with fewer hard negatives has one token in their place; `keys` says that nothing is there.
            found[f"negative_{n}"] = self._read(against[n], example, render) if n < len(against) else \
                Tokens(found["document"].ids[:1], [False])  # type: ignore[union-attr]
        right = (own, *map(str, example.meta.get("positives") or example.meta.get("gold") or ()))
        missing = [-1] * (self.negatives - len(against))
        return {**found, "weight": weight, "positives": tuple(_key(name) for name in right),
                "keys": (_key(own), *(_key(n) for n in names[:len(against)]), *missing),
                "texts": (_key(document), *map(_key, against), *missing)}

    def count(self, batch: Mapping[str, Any]) -> dict[str, float]:
        return {"contrastive": float(batch["weight"].sum())}

    def represent(self, run: Forward, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """[rows, 2 + negatives, width] unit vectors of query, document and hard negatives."""
        import torch

        from luthier.engine.batches import join

        names = ["query", "document", *(f"negative_{n}" for n in range(self.negatives))]
        vectors = run("policy", join(*(batch[name] for name in names))).pooled().float()
        units = torch.nn.functional.normalize(vectors, dim=-1)
        return {"vectors": units.view(len(names), -1, units.shape[-1]).transpose(0, 1)}

    def couple(self, run: Forward, batch: Mapping[str, Any], seen: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        import torch

        vectors = seen["vectors"]
        queries, documents, hard = vectors[:, 0], vectors[:, 1], vectors[:, 2:].flatten(0, 1)
        scores = queries @ torch.cat([documents, hard]).T / self.temperature
        scores = scores.masked_fill(self._left_out(batch), -math.inf)
        own = torch.arange(len(queries), device=scores.device)
        run.measure(accuracy=(scores.argmax(-1) == own).float())
        each = torch.nn.functional.cross_entropy(scores, own, reduction="none")
        return {"contrastive": (batch["weight"] * each).sum()}

    def loss(self, run: Forward, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        return self.couple(run, batch, self.represent(run, batch))

    def _left_out(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """[rows, candidates] whether a candidate is no negative of a row; candidates are documents, then hard negatives."""
        import torch

        keys, texts = (torch.cat([batch[name][:, 0], batch[name][:, 1:].flatten()]) for name in ("keys", "texts"))
        hidden = (keys < 0).expand(len(batch["keys"]), -1).clone()
        if self.masks:
            hidden |= (batch["positives"][:, :, None] == keys).any(1)
            hidden |= batch["texts"][:, :1] == texts
        hidden.fill_diagonal_(False)
        return hidden

    def _read(self, text: str, example: Example, render: Render) -> Tokens:
        """The ids of the beginning of a text that the encoder reads; what is cut goes to the ledger."""
        from luthier.engine.rendering import Cut

        whole: Sequence[int] = render.tokenizer(text, verbose=False)["input_ids"]
        ids = list(whole)
        if len(whole) > self.max_tokens:
            ids = list(render.tokenizer(text, truncation=True, max_length=self.max_tokens)["input_ids"])
        if len(ids) > render.max_tokens:
            raise DroppedRow(Dropped(example.id, "too long", f"{len(ids)} tokens, at most max_tokens_per_example="
                                     f"{render.max_tokens}; the objective's max_tokens cuts at {self.max_tokens}"))
        if len(ids) < len(whole):
            detail = f"a text of {len(whole)} tokens is read to {len(ids)}, as the index reads it"
            render.cuts.append(Cut(example.id, len(whole) - len(ids), 1, detail))
        return Tokens(ids, [False] * len(ids))


def _key(name: str) -> int:
    """A document's name or text as a number of 60 bits."""
    return int(digest(name)[:15], 16)

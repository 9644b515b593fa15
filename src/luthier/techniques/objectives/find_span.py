"""find-span: where an answer stands in its passage, as its first and its last token:

    -1/2 sum over rows of [ log softmax(start)[first] + log softmax(end)[last] ]

start and end [tokens] are two numbers that a head gives each token of "passage, question". With `scale: log` a row counts
1 / log of its tokens, among which the head chooses: an untrained head says 1 of each. A question without an answer points at
the token that begins the text, where the tokenizer writes one.

When it helps: extractive question answering as a task of an encoder among others (`muppet`). Rows: passages, questions, and
answers that stand in them (format squad). The head gives places, not answers: who wants texts takes `supervised`.
Source: Devlin et al. 2019, section 4.2; Aghajanyan et al. 2021, arXiv 2101.11038 (seed 16).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from luthier.core.example import Dropped, Example
from luthier.core.kinds import DroppedRow, Features, Objective
from luthier.core.rng import Rng

if TYPE_CHECKING:
    import torch

    from luthier.engine.forward import Forward
    from luthier.engine.rendering import Render


class FindSpan(Objective, name="find-span", seeds=[16]):
    """Learn where the answer begins and where it ends."""

    parts: ClassVar[Mapping[str, Literal["additive", "coupled"]]] = {"nll": "additive"}
    architectures: ClassVar[tuple[Any, ...]] = ("encoder", "encoder-decoder")
    needs_head: ClassVar[bool] = True
    brings_head: ClassVar[str] = "linear"
    learns_to_stop: ClassVar[bool] = False
    scale: Literal["none", "log"] = Field("none", description="log: a row counts 1 / log of the number of its tokens")

    def labels(self, examples: Iterable[Example]) -> list[str]:
        """The two numbers that the head gives of each token."""
        return ["start", "end"]

    def encode(self, example: Example, render: Render, rng: Rng) -> Features:
        read = render.text(example)
        first, last = self._place(example, render)
        if last >= len(read.ids):
            raise DroppedRow(Dropped(example.id, "too long", "the answer stands behind the last token that is read"))
        return {"input": read, "first": first, "last": last}

    def count(self, batch: Mapping[str, Any]) -> dict[str, float]:
        return {"nll": len(batch["input"])}

    def loss(self, run: Forward, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        from torch.nn.functional import cross_entropy

        inputs = batch["input"]
        scores = run.head(run("policy", inputs).states).float().masked_fill(~inputs.mask.bool()[..., None], -1e4)
        ends = [cross_entropy(scores[..., n], batch[name], reduction="none") for n, name in enumerate(("first", "last"))]
        lost = (ends[0] + ends[1]) / 2
        run.measure(accuracy=((scores[..., 0].argmax(-1) == batch["first"])
                              & (scores[..., 1].argmax(-1) == batch["last"])).float())
        return {"nll": (lost / inputs.mask.sum(1).float().log() if self.scale == "log" else lost).sum()}

    @staticmethod
    def _place(example: Example, render: Render) -> tuple[int, int]:
        """Numbers of the first and the last token of the answer. Raises DroppedRow where it has no place."""
        text = "\n".join(t.text for t in example.turns if not t.target)
        offsets = render.tokenizer(text, return_offsets_mapping=True, verbose=False)["offset_mapping"]
        spans = example.meta.get("spans")
        if spans == [] and offsets[0][0] == offsets[0][1]:
            return 0, 0
        passage = example.part("passage")
        begin, end = spans[0] if spans else (at := passage.find(example.answer), at + len(example.answer))
        if not example.answer or begin < 0 or spans == []:
            raise DroppedRow(Dropped(example.id, "no span", "the answer does not stand in the passage"))
        begin, end = begin + text.find(passage), end + text.find(passage)
        within = [n for n, (b, e) in enumerate(offsets) if e > b and b < end and e > begin]
        if not within:
            raise DroppedRow(Dropped(example.id, "no span", "no token holds the answer"))
        return within[0], within[-1]

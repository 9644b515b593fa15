"""choose: one number an option, a soft-max over the options of a row: -sum over rows of log softmax(w·h_1, …, w·h_k)[right].

h_i [width] is the mean of the last hidden states over "passage, question, option i", read by itself. With `scale: log` a row
counts 1 / log k, so that rows with many options weigh as much as rows with few: an untrained head says 1 of each.

When it helps: multiple choice as a task of an encoder among others (`muppet`). Rows: those of the format multiple-choice. The
head gives numbers, not answers: who wants a model that answers multiple choice takes `supervised`.
Source: Aghajanyan et al. 2021, arXiv 2101.11038, section 3 (seed 16).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from luthier.core.example import Dropped, Example, Part, Turn
from luthier.core.kinds import DroppedRow, Features, Objective, Tokens
from luthier.core.rng import Rng

if TYPE_CHECKING:
    import torch

    from luthier.engine.forward import Forward
    from luthier.engine.rendering import Render


class Choose(Objective, name="choose", seeds=[16]):
    """Learn which option of a row is right."""

    parts: ClassVar[Mapping[str, Literal["additive", "coupled"]]] = {"nll": "additive"}
    architectures: ClassVar[tuple[Any, ...]] = ("encoder", "decoder", "encoder-decoder")
    needs_head: ClassVar[bool] = True
    brings_head: ClassVar[str] = "linear"
    learns_to_stop: ClassVar[bool] = False
    most: int = Field(8, ge=2, le=26, description="most options of a row; rows with more are left out")
    scale: Literal["none", "log"] = Field("none", description="log: a row counts 1 / log of the number of its options")

    @property
    def learns_numbers(self) -> bool:
        """One number an option, whatever the options are."""
        return True

    def labels(self, examples: Iterable[Example]) -> list[str]:
        """None: an option is no label of its own."""
        return []

    def encode(self, example: Example, render: Render, rng: Rng) -> Features:
        options, right = example.meta.get("options"), example.label
        if not isinstance(options, (list, tuple)) or not isinstance(right, (int, float)) or not 0 <= right < len(options):
            raise DroppedRow(Dropped(example.id, "no options", "rows of the format multiple-choice are needed"))
        if not 2 <= len(options) <= self.most:
            raise DroppedRow(Dropped(example.id, "too many options" if len(options) > 2 else "one option",
                                     f"{len(options)} options; 2 to {self.most} are read"))
        read = [render.text(beside(example, str(option))) for option in options]
        # Rows with fewer options than others have stand-ins, which nothing is learned from.
        nothing = Tokens(read[0].ids[:1], [False])
        rows = {f"option{n}": read[n] if n < len(read) else nothing for n in range(self.most)}
        return {**rows, "options": len(read), "label": int(right)}

    def count(self, batch: Mapping[str, Any]) -> dict[str, float]:
        return {"nll": len(batch["label"])}

    def loss(self, run: Forward, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        from torch.nn.functional import cross_entropy

        from luthier.engine.choices import by_row, options_of

        scores = by_row(run.head(run("policy", options_of(batch)).pooled()), batch)
        run.measure(accuracy=(scores.argmax(-1) == batch["label"]).float())
        lost = cross_entropy(scores, batch["label"], reduction="none")
        return {"nll": (lost / batch["options"].float().log() if self.scale == "log" else lost).sum()}


def beside(example: Example, option: str) -> Example:
    """The row as one text: what is shown and asked, without the lettered options, and one option."""
    asked = example.part("question")
    for n in reversed(range(len(example.meta["options"]))):
        asked = asked.removesuffix(f"\n{chr(ord('A') + n)}. {example.meta['options'][n]}")
    text = "\n".join(t for t in (example.part("passage"), asked, option) if t)
    return replace(example, turns=(Turn("user", (Part(text, name="text"),)),))

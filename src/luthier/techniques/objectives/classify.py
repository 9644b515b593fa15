"""Classification: what a head says of a text, by `problem`.

    single       -sum over rows of log softmax(head)[label]
    multi        sum over rows and labels of the cross-entropy of sigmoid(head) with 0 or 1, by the number of labels;
                 a row's labels are joined by "|", and "" is none
    regression   sum over rows of (head - number)², a head of one output
    tags         -sum over words of log softmax(head at the word's first token)[tag]; rows with parts `tokens` and `tags`

A head reads the mean of the last hidden states over the text's tokens [batch, width], or all of them (`Head.reads`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.example import Dropped, Example
from luthier.core.kinds import DroppedRow, Features, Objective
from luthier.core.rng import Rng

if TYPE_CHECKING:
    import torch

    from luthier.engine.forward import Forward
    from luthier.engine.rendering import Render

BETWEEN = "|"
IGNORED = -1


class Classify(Objective, name="classify"):
    """Learn the label of a text, its labels, a number, or a tag of each word."""

    parts: ClassVar[Mapping[str, Literal["additive", "coupled"]]] = {"nll": "additive"}
    architectures: ClassVar[tuple[Any, ...]] = ("encoder", "decoder", "encoder-decoder")
    needs_head: ClassVar[bool] = True
    learns_to_stop: ClassVar[bool] = False
    problem: Literal["single", "multi", "regression", "tags"] = Field("single", description="what is learned of a text")

    @property
    def learns_numbers(self) -> bool:
        return self.problem == "regression"

    def labels(self, examples: Iterable[Example]) -> list[str]:
        """Raises UserError for labels of another problem."""
        rows = list(examples)
        if self.problem == "regression":
            return []
        if self.problem == "tags":
            return sorted({str(tag) for e in rows for tag in _tags(e)})
        if self.problem == "single":
            return super().labels(rows)
        for e in rows:
            if isinstance(e.label, (int, float)):
                raise UserError(f"classify: problem: multi, but the label of row {e.id} is the number {e.label}. Several "
                                f"labels of a row are their names joined by {BETWEEN}, as 'red{BETWEEN}round' ('' is none): of "
                                "columns of 0 and 1 the names of those with 1.")
        return sorted({part for e in rows if e.label is not None for part in str(e.label).split(BETWEEN) if part})

    def encode(self, example: Example, render: Render, rng: Rng) -> Features:
        read = render.text(example)
        if self.problem == "tags":
            return {"input": read, "tags": self._places(example, render, len(read.ids))}
        if example.label is None:
            raise DroppedRow(Dropped(example.id, "no label"))
        if self.problem == "regression":
            return {"input": read, "number": _number(example)}
        names = str(example.label).split(BETWEEN) if self.problem == "multi" else [str(example.label)]
        strange = next((n for n in names if n and n not in render.labels), None)
        if strange is not None:
            raise DroppedRow(Dropped(example.id, "unknown label", f"'{strange}' is none of {', '.join(render.labels)}"))
        if self.problem == "single":
            return {"input": read, "label": render.label_id(example.label)}
        return {"input": read, "labels": tuple(int(name in names) for name in render.labels)}

    def count(self, batch: Mapping[str, Any]) -> dict[str, float]:
        return {"nll": int((batch["tags"] != IGNORED).sum()) if self.problem == "tags" else len(batch["input"])}

    def loss(self, run: Forward, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

        scores = run.said(run("policy", batch["input"])).float()
        if self.problem == "multi":
            wanted = batch["labels"].to(scores.dtype)
            run.measure(accuracy=((scores > 0) == (wanted > 0)).float().mean(1))
            return {"nll": binary_cross_entropy_with_logits(scores, wanted, reduction="sum") / scores.shape[1]}
        if self.problem == "regression":
            return {"nll": (scores[:, 0] - batch["number"]).square().sum()}
        # Rows of a batch that was cut have places that the others needed.
        wanted = batch["label"] if self.problem == "single" else batch["tags"][:, :scores.shape[1]].flatten()
        scores = scores.flatten(0, -2)
        known = wanted != IGNORED
        run.measure(accuracy=(scores.argmax(-1) == wanted)[known].float())
        return {"nll": cross_entropy(scores, wanted, reduction="sum", ignore_index=IGNORED)}

    def _places(self, example: Example, render: Render, length: int) -> tuple[int, ...]:
        """The number of the tag of each token that begins a word; -1 for the others."""
        from luthier.engine.classification import word_places

        tags = [str(t) for t in _tags(example)]
        text = "\n".join(t.text for t in example.turns if not t.target)
        places = word_places(text, render.tokenizer)
        if len(places) != len(tags):
            raise DroppedRow(Dropped(example.id, "no tags", f"{len(tags)} tags for {len(places)} words"))
        strange = next((t for t in tags if t not in render.labels), None)
        if strange is not None:
            raise DroppedRow(Dropped(example.id, "unknown label", f"'{strange}' is none of {', '.join(render.labels)}"))
        found = [IGNORED] * length
        for place, tag in zip(places, tags, strict=True):
            if place < length:
                found[place] = render.label_id(tag)
        return tuple(found)


def _tags(example: Example) -> list[Any]:
    return next((list(p.value) for t in example.turns for p in t.parts if p.name == "tags"), [])


def _number(example: Example) -> float:
    try:
        value = float(example.label)  # type: ignore[arg-type]
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DroppedRow(Dropped(example.id, "no number", f"{example.label!r} is no number to be learned"))
    return value

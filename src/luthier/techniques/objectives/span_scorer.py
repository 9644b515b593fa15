"""span-scorer: learn how right an answer is: sum over rows of (head(pooled(text)) - rating)², ratings from 1 to 5.

The text of a row is "{question} <q> {reference} <r> {answer} <c> {passage}", each field normalised as SQuAD does (lower
case, no punctuation, no articles, single spaces); pooled [rows, width] goes through a head of one output (`linear`
without labels). What it gives is not clipped. Rows: `question`, `passage`, the reference as answer, `meta["candidate"]`
the answer that was rated, and the rating as label or `meta["rating"]`.

When it helps: a scorer for the metric rquge, or answers that people rated. Source: Mohammadshahi et al. 2023, "RQUGE:
reference-free metric for evaluating question generation by answering the question", section 3 (seed 106).
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from luthier.core.errors import UserError
from luthier.core.example import Dropped, Example, Part, Turn
from luthier.core.kinds import DroppedRow, Features, Objective
from luthier.core.rng import Rng

if TYPE_CHECKING:
    import torch

    from luthier.engine.forward import Forward
    from luthier.engine.rendering import Render

LEAST, MOST = 1.0, 5.0
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


class SpanScorer(Objective, name="span-scorer", seeds=[106]):
    """Learn to rate an answer beside the reference, from 1 to 5."""

    parts: ClassVar[Mapping[str, Literal["additive", "coupled"]]] = {"squared_error": "additive"}
    architectures: ClassVar[tuple[Any, ...]] = ("encoder", "decoder")
    learns_to_stop: ClassVar[bool] = False

    def encode(self, example: Example, render: Render, rng: Rng) -> Features:
        """`input` and `rating`; without a rating the row is for asking, and its rating means nothing."""
        if "candidate" not in example.meta:
            raise DroppedRow(Dropped(example.id, "no candidate", "a rated answer is needed: meta.candidate"))
        rating = _rating(example) if "rating" in example.meta or example.label is not None else LEAST
        return {"input": render.text(written(example)), "rating": rating}

    def count(self, batch: Mapping[str, Any]) -> dict[str, float]:
        return {"squared_error": len(batch["input"])}

    def loss(self, run: Forward, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Raises UserError where the task has no head, or one of several outputs."""
        import torch

        if run.task not in run.models["policy"].heads:
            raise UserError("span-scorer needs a head of one output: tasks: [{objective: span-scorer, head: linear}].")
        said = run.head(run("policy", batch["input"]).pooled()).float()
        if said.shape[-1] != 1:
            raise UserError(f"span-scorer needs a head of one output; this one has {said.shape[-1]}. Take head: linear.")
        error = said[:, 0] - torch.as_tensor(batch["rating"], dtype=torch.float32, device=said.device)
        run.measure(absolute_error=error.abs())
        return {"squared_error": error.square().sum()}


def written(example: Example) -> Example:
    """The row as one text, in the form that scorers are trained on."""
    text = "{} <q> {} <r> {} <c> {}".format(*(squad_normal(t) for t in (
        example.part("question"), example.answer or (example.references or ("",))[0], str(example.meta["candidate"]),
        example.part("passage"))))
    return replace(example, turns=(Turn("user", (Part(text, name="text"),)),))


def squad_normal(text: str) -> str:
    """SQuAD's `normalize_answer`: lower case, punctuation and articles out, white space single."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _rating(example: Example) -> float:
    given = example.meta.get("rating", example.label)
    try:
        value = float(str(given))
    except ValueError:
        value = float("nan")
    if not LEAST <= value <= MOST:
        raise DroppedRow(Dropped(example.id, "no rating", f"{given!r} is no number from 1 to 5"))
    return value

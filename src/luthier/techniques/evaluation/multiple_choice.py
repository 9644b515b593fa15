"""multiple-choice: share of questions whose right option the model finds the likeliest. Nothing is generated.

With options c_l and the tokens c_l1 … c_ln of each, s(c_l) = Σ_t log p(c_lt | prompt, c_l1 … c_l(t-1)), and the choice
is

    sum        argmax s(c_l)                             log-probability of the whole option
    token      argmax s(c_l) / n_l                       a mean, so that a long option is not worse for being long
    character  argmax s(c_l) / characters of c_l         the same, whatever the tokenizer
    pmi        argmax s(c_l) - s(c_l | no question)      what the question adds: an option that is likely anyway gains nothing

value = 1 if the right option alone is best, 1/m if it is among m that are equally best, 0 otherwise. Examples have
`meta["options"]`, texts, and `label`, the number of the right one from 0. A question that holds the text of its right
option is flagged (`given_away`): it may be answered without knowing anything.

When it helps: knowledge of a model that does not yet answer in words. Source: Ovadia et al. 2023, "Fine-tuning or
retrieval?"; Holtzman et al. 2021, "Surface form competition" (pmi); Gao et al., lm-evaluation-harness (sums and means).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field

from luthier.core.citing import words
from luthier.core.errors import UserError
from luthier.core.example import Example, Part, Turn
from luthier.core.kinds import Metric, Prediction
from luthier.core.step import Ctx
from luthier.techniques.evaluation._shared import pairs, parted

TIE = 1e-6  # nats; sums in another order of the same numbers differ by less


class MultipleChoice(Metric, name="multiple-choice", seeds=[167]):
    """Share of questions whose right option is the likeliest."""

    roles: ClassVar[tuple[str, ...]] = ("policy",)
    needs_answers: ClassVar[bool] = False
    by: Literal["sum", "token", "character", "pmi"] = Field("sum", description="what makes an option the best: summed "
                                                            "log-probability, its mean, or what the question adds to it")
    stop: bool = Field(False, description="the token that ends an answer belongs to each option")

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction], ctx: Ctx) -> list[dict[str, Any]]:
        """`value`, the `scores` of all options, the `chosen` one and `given_away`; None for an example without options.

        Raises:
            UserError: an example whose options are fewer than two, empty, said twice or not as many as those of the others,
                or whose label is none of their numbers.
        """
        asked = [e for e, _ in pairs(examples, predictions) if e.task == "multiple-choice" or "options" in e.meta]
        _check(asked)
        scores = dict(zip((e.id for e in asked), self._scores(asked, ctx), strict=True)) if asked else {}
        given = [e.id for e in asked if _given_away(e)]
        if given:
            ctx.log(f"{len(given)} questions hold the text of their right option: {', '.join(given[:5])}")
        return [_record(e, scores[e.id], e.id in given) if e.id in scores else {"id": e.id, "value": None} for e in examples]

    def _scores(self, asked: Sequence[Example], ctx: Ctx) -> list[list[float]]:
        from luthier.engine.rendering import renderer, with_answer

        render = renderer(ctx.roles["policy"])
        rows = [(e, option) for e in asked for option in e.meta["options"]]
        told = self._told([with_answer(e, option) for e, option in rows], render, ctx)
        if self.by == "pmi":
            prior = self._told([with_answer(_without_question(e), option) for e, option in rows], render, ctx)
            values = [a[0] - b[0] for a, b in zip(told, prior, strict=True)]
        elif self.by == "sum":
            values = [s for s, _ in told]
        elif self.by == "token":
            values = [s / n for s, n in told]
        else:
            values = [s / len(option) for (s, _), (_, option) in zip(told, rows, strict=True)]
        found = iter(values)
        return [[next(found) for _ in e.meta["options"]] for e in asked]

    def _told(self, rows: Sequence[Example], render: Any, ctx: Ctx) -> list[tuple[float, int]]:
        """Log-probability and number of tokens of each row's answer."""
        sides = []
        for row in rows:
            prompt, answer = parted(render.tokens(row))
            ends = next((n for n, i in enumerate(answer) if i in render.stop_ids), len(answer))
            sides.append((prompt, answer if self.stop else answer[:max(1, ends)]))
        return list(ctx.engine.score(ctx.roles["policy"], sides))


def _without_question(example: Example) -> Example:
    """The bare cue for an answer: a question of no words, and no passages."""
    first = next((t for t in example.turns if not t.target), Turn("user", ()))
    parts = tuple(replace(p, value="") for p in first.parts if p.name == "question") or (Part("", name="question"),)
    return replace(example, turns=(replace(first, parts=parts),))


def _check(asked: Sequence[Example]) -> None:
    counts: dict[int, str] = {}
    for example in asked:
        options = example.meta.get("options") or ()
        if len(options) < 2 or not all(isinstance(o, str) and o.strip() for o in options):
            raise UserError(f"Row {example.id}: a multiple-choice question has two options or more, each a text; found "
                            f"{options!r}.")
        if len(set(options)) < len(options):
            raise UserError(f"Row {example.id}: two of its options are the same: {options!r}.")
        if str(example.label) not in map(str, range(len(options))):
            raise UserError(f"Row {example.id}: its label is {example.label!r}; expected the number of the right option, 0 to "
                            f"{len(options) - 1}.")
        counts.setdefault(len(options), example.id)
    if len(counts) > 1:
        (few, one), (many, other) = sorted(counts.items())[:2]
        raise UserError(f"Row {one} has {few} options and row {other} has {many}: guessing would be right at another rate. "
                        "Give all questions as many options, or evaluate them in sets of their own.")


def _given_away(example: Example) -> bool:
    asked = f" {' '.join(words(example.part('question')))} "
    return f" {' '.join(words(example.meta['options'][int(str(example.label))]))} " in asked


def _record(example: Example, scores: Sequence[float], given_away: bool) -> dict[str, Any]:
    best = [n for n, s in enumerate(scores) if s >= max(scores) - TIE]
    right = int(str(example.label)) in best
    return {"id": example.id, "value": right / len(best), "chosen": best[0], "scores": [round(s, 6) for s in scores],
            "given_away": given_away}

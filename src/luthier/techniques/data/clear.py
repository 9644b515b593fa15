"""CLEAR: rows whose answers a model has no confidence in are left out, and some get the tuned model's own answer.

Auto-Filter scores every row by BSDetector (`_confidence.py`) with the model that will be tuned and drops those below
`filter_below`, the median or a number. Auto-Correct runs where a model is at hand that was tuned on what the filter kept (input
`tuned`): of every row, dropped ones too, its answer y' is compared with the row's y in both orders by the model before
tuning, which tuning has not narrowed, and takes its place where it wins both and

    beta · P(y' is better) + (1 - beta) · S("y' is better") > eta

(the observed part is the chance of that verdict, which samples of it would estimate). The other rows stay as the filter has
decided. `meta["clear"]` and the ledger hold confidence, its two parts, what was done, and the target that was replaced.

When it helps: instruction data with wrong targets and nobody to check them. Source: Chen & Mueller 2024, arXiv 2403.12776
(seed 93).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from luthier.core.component import Slot, named
from luthier.core.errors import UserError
from luthier.core.example import Dropped, Example
from luthier.core.kinds import DataStep, Decoder
from luthier.core.step import Ctx
from luthier.techniques.data._confidence import Judge, asked, consistency, equal

if TYPE_CHECKING:
    from luthier.engine.rendering import Render

VERDICT = "Of two responses to \"{q}\", the second one is better.\nFirst: {y}\nSecond: {z}"


class Clear(DataStep, name="clear", seeds=[93]):
    """Leave out, or correct, rows by the model's own confidence."""

    roles: ClassVar[tuple[str, ...]] = ("writer",)
    samples: int = Field(5, ge=2, description="answers of the model's own to each row")
    alpha: float = Field(0.8, ge=0, le=1, description="weight of likeness beside sameness")
    beta: float = Field(0.7, ge=0, le=1, description="weight of the samples beside what the model thinks of the answer")
    filter_below: Literal["median"] | float = Field("median", description="rows of less confidence are left out")
    similarity: Literal["embed", "same"] = Field("embed", description="embed: cosine by an encoder; same: sameness alone")
    relative: bool = Field(True, description="chances of options against those without a question")
    eta: float | None = Field(None, ge=0, le=1, description="confidence above which an answer is replaced; 0.8 if left out")
    decoder: Slot[Decoder] = Field(named("sample:temperature=1,top_p=1,max_new_tokens=32"), description="how samples are drawn")
    written: Slot[Decoder] = Field(named("greedy:max_new_tokens=32"), description="how the tuned model's answer is written")

    def apply(self, rows: Iterator[Example], ctx: Ctx) -> Iterator[Example | Dropped]:
        """Raises UserError for a missing model, an empty target, and eta without a tuned model."""
        from luthier.engine.rendering import renderer

        held = list(rows)
        self._check(held, ctx)
        if not held:
            return
        model = ctx.roles["writer"]
        judge = Judge(model, renderer(model), ctx, self.relative)
        scores = self._confidences(held, judge, ctx)
        limit = median(s["confidence"] for s in scores) if self.filter_below == "median" else float(self.filter_below)
        if len({s["confidence"] for s in scores}) == 1:
            ctx.log(f"clear: all {len(held)} confidences are {limit:.3g}: the median leaves nothing out. Raise samples")
        answers = self._corrections(held, judge, ctx) if "tuned" in ctx.roles else [None] * len(held)
        done = {"keep": 0, "drop": 0, "corrected": 0}
        for row, score, answer in zip(held, scores, answers, strict=True):
            action = "corrected" if answer is not None else "keep" if score["confidence"] >= limit else "drop"
            done[action] += 1
            marked = replace(row, meta={**row.meta, "clear": {**score, "action": action}})
            if action == "drop":
                yield Dropped(row.id, "low confidence", f"{score['confidence']:.3f} is below {limit:.3f}: consistency "
                              f"{score['consistency']:.3f}, reflection {score['reflection']:.3f}")
            else:
                yield marked if answer is None else _corrected(marked, answer)
        ctx.log("clear: " + ", ".join(f"{count} {action}" for action, count in done.items()))

    def _check(self, rows: Sequence[Example], ctx: Ctx) -> None:
        if "writer" not in ctx.roles:
            raise UserError("clear needs the model that will be tuned: inputs: {writer: base}.")
        if self.similarity == "embed" and "encoder" not in ctx.roles:
            raise UserError("clear needs an encoder to compare samples: inputs: {encoder: …}, or similarity=same.")
        if self.eta is not None and "tuned" not in ctx.roles:
            raise UserError(f"clear: eta = {self.eta:g} corrects with a tuned model, and none is there: inputs: "
                            "{tuned: FIT}. Leave eta out to filter only.")
        empty = next((row for row in rows if not row.answer.strip()), None)
        if empty is not None:
            raise UserError(f"clear: row {empty.id} has an empty target; there is nothing to be confident of.")

    def _confidences(self, rows: Sequence[Example], judge: Judge, ctx: Ctx) -> list[dict[str, float]]:
        answers, questions = [row.answer for row in rows], [asked(row) for row in rows]
        samples = judge.samples(rows, self.samples, self.decoder)
        same = [[equal(y, s) for s in own] for y, own in zip(answers, samples, strict=True)]
        alike = judge.likeness(answers, samples, ctx.roles["encoder"]) if self.similarity == "embed" else \
            [[float(s) for s in own] for own in same]
        reflections = judge.reflections(questions, answers)
        found = []
        for is_same, is_alike, reflection in zip(same, alike, reflections, strict=True):
            observed = consistency(is_same, is_alike, self.alpha)
            found.append({"confidence": round(self.beta * observed + (1 - self.beta) * reflection, 6),
                          "consistency": round(observed, 6), "reflection": round(reflection, 6)})
        return found

    def _corrections(self, rows: Sequence[Example], judge: Judge, ctx: Ctx) -> list[str | None]:
        """The answer that takes a row's place, or None."""
        from luthier.engine.rendering import renderer

        tuned = ctx.roles["tuned"]
        render: Render = renderer(tuned)
        made = ctx.engine.generate(tuned, [render.prompt(row) for row in rows], self.written,
                                   rng=ctx.rng.within("clear/written"), stop="newline", stop_ids=render.stop_ids,
                                   journal=ctx.journal, progress=ctx.progress)
        said = [g.text.partition("\n")[0].strip() for g in made]
        questions, answers = [asked(row) for row in rows], [row.answer for row in rows]
        verdicts = judge.better(questions, answers, said)
        claims = [VERDICT.format(q=q, y=y, z=z) for q, y, z in zip(questions, answers, said, strict=True)]
        thought = judge.reflections(claims, ["Yes."] * len(rows))
        eta = 0.8 if self.eta is None else self.eta
        return [z if z and wins and not equal(y, z) and self.beta * chance + (1 - self.beta) * reflection > eta else None
                for y, z, (chance, wins), reflection in zip(answers, said, verdicts, thought, strict=True)]


def _corrected(row: Example, answer: str) -> Example:
    from luthier.engine.rendering import with_answer

    about: dict[str, Any] = {**row.meta["clear"], "original_target": row.answer}
    return replace(with_answer(row, answer), references=(), meta={**row.meta, "clear": about})

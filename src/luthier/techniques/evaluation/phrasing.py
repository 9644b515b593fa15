"""phrasing: what a task is worth when it is worded otherwise: means over observed and unobserved phrasings, spread, worst.

a_t is the share of right answers under phrasing t, on the same items. Per task the finding is mean a over observed
(worded as in tuning) and over unobserved phrasings, their difference with an interval over items (paired: it speaks of
these phrasings), beside it the standard deviation over phrasings, the least and the most, controls (`adversarial`: an
observed phrasing of another task), and how far an unobserved phrasing is from the nearest observed one: 1 - cos of the
last layer's states at the end of the bare phrasing. Tasks are averaged with equal weight. `tasks` is a YAML file:

    - task: sentiment
      items: reviews.jsonl        # a line each: {"input": …, "options": [...], "label": one of them}
      instructions:
        - {id: o1, kind: observed, template: "Review: {input}\\nSentiment:"}
        - {id: u1, kind: unobserved, template: "{input}\\nIs this {options}?"}

Without it the held-out rows of the run are asked in their own words (observed) and in seven others that any question bears.
Rows with an answer but without options are weighed by the mean log-probability of the answer's tokens, in nats.

When it helps: a model that users will ask in words of their own. Source: Sun, Shaib & Wallace 2023, "Evaluating the
zero-shot robustness of instruction-tuned language models" (seed 163).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.example import Example
from luthier.core.files import write_lines
from luthier.core.finding import Finding, audited, not_applicable
from luthier.core.kinds import Audit
from luthier.core.step import Ctx
from luthier.engine.statistics import paired
from luthier.engine.subjects import ROLES, Role, Subject
from luthier.techniques.evaluation._agreement import spread
from luthier.techniques.evaluation._banks import GENERAL, content, default_bank, nearest, read_bank, reworded
from luthier.techniques.evaluation._phrasings import Item, Phrasing, check, preferred

MATRIX = "answers.jsonl"
Task = tuple[str, list[Phrasing], list[Item]]


class PhrasingSensitivity(Audit, name="phrasing", seeds=[163]):
    """Right answers under other wordings of the same task."""

    mends: ClassVar[tuple[str, ...]] = ("objective phrasing-consistency", "data_step rephrase-instructions")
    tasks: str = Field("", description="YAML file of tasks with their phrasings; the run's own held-out rows if left out")
    items: int = Field(30, ge=2, description="items of each task that are asked, under every phrasing")
    by: Literal["sum", "token"] = Field("token", description="options are weighed by log-probability, whole or a token")
    max_drop: float = Field(0.1, gt=0, description="most that unobserved phrasings may lie below the observed ones")
    max_nats: float = Field(0.5, gt=0, description="most that the mean log-probability of answers may fall, in nats a token")
    level: float = Field(0.95, gt=0.5, lt=1, description="level of the intervals")

    def check(self) -> None:
        """Refuse a bank that can't be used."""
        for _, phrasings, items in read_bank(self.tasks, self.items) if self.tasks else ():
            _check(phrasings, items)

    def content(self) -> dict[str, Any]:
        """Hashes of the bank and of its files of items."""
        return content(self.tasks)

    def measure(self, ctx: Ctx, subject: Subject) -> list[Finding]:
        """`audit/phrasing/TASK`, and `audit/phrasing` of several tasks together."""
        if subject.encoder or subject.labels:
            return [not_applicable("audit/phrasing", "an encoder or a classifier reads no instruction")]
        tasks = read_bank(self.tasks, self.items) if self.tasks else default_bank(subject.held_out(), self.items)
        if not tasks:
            rows = [e for e in subject.held_out() if e.answer and e.part("question")][:self.items]
            return [self._answers(ctx, subject, rows)] if len(rows) > 1 else [not_applicable(
                "audit/phrasing", "no held-out row has options, labels or an answer. Name tasks: --audit "
                                  "phrasing:tasks=FILE.yaml")]
        lines: list[dict[str, Any]] = []
        findings, differences = [], []
        for name, phrasings, items in tasks:
            _check(phrasings, items)
            found = {role: self._right(ctx, subject, role, phrasings, items) for role in ROLES}
            lines += [{"task": name, "phrasing": p.id, "kind": p.kind, "template": p.template,
                       **{role: found[role][n] for role in ROLES}} for n, p in enumerate(phrasings)]
            made, values = self._task(ctx, subject, name, phrasings, found)
            findings += made
            differences.append(values)
        write_lines(ctx.folder / MATRIX, lines)
        return findings + ([self._all(differences)] if len(tasks) > 1 else [])

    def _right(self, ctx: Ctx, subject: Subject, role: Role, phrasings: list[Phrasing], items: list[Item]) -> list[list[int]]:
        said = preferred(ctx, subject, role, phrasings, items, self.by)
        return [[int(choice == item.right) for choice, item in zip(row, items, strict=True)] for row in said]

    def _task(self, ctx: Ctx, subject: Subject, name: str, phrasings: list[Phrasing], found: dict[Role, list[list[int]]]
              ) -> tuple[list[Finding], list[tuple[float, float]]]:
        """Findings of one task, and (observed, unobserved) of each item."""
        groups = {kind: [n for n, p in enumerate(phrasings) if p.kind == kind] for kind in
                  ("observed", "unobserved", "adversarial")}
        means = {role: [_mean(row) for row in found[role]] for role in ROLES}
        items = range(len(found["after"][0]))
        sides = [[_mean([found["after"][n][i] for n in groups[kind]]) for i in items] for kind in ("observed", "unobserved")]
        result = paired(sides[0], sides[1], list(items), level=self.level)
        after = means["after"]
        valid = [n for kind in ("observed", "unobserved") for n in groups[kind]]
        worst = min(valid, key=after.__getitem__)
        extra: dict[str, Any] = {
            "spread": spread([after[n] for n in valid]), "least": after[worst], "most": max(after[n] for n in valid),
            "base": {kind: _mean([means["before"][n] for n in groups[kind]]) for kind in ("observed", "unobserved")},
            "needed": result.needed, "test": result.test, "level": self.level}
        if groups["adversarial"]:
            extra["adversarial"] = _mean([after[n] for n in groups["adversarial"]])
        distances, tau = nearest(subject.model("after"), [phrasings[n].template for n in groups["observed"]],
                                 [phrasings[n].template for n in groups["unobserved"]],
                                 [_mean(sides[0]) - after[n] for n in groups["unobserved"]])
        extra |= {"distances": distances, "distance_and_loss": tau}
        drop = audited(f"audit/phrasing/{name}", _mean(sides[0]), _mean(sides[1]), self.max_drop,
                       None if result.low is None or result.high is None else (result.low, result.high), worse="down",
                       unit="of items right", evidence=MATRIX, title=f"{name}: observed -> unobserved phrasings",
                       detail=f"{len(valid)} phrasings x {len(items)} items; worst: {phrasings[worst].id}, "
                              f"{after[worst]:.3g}", **extra)
        return [drop], list(zip(*sides, strict=True))

    def _answers(self, ctx: Ctx, subject: Subject, rows: Sequence[Example]) -> Finding:
        """Mean log-probability of the rows' answers in their own words and in others."""
        asked = [reworded(row, template) for template in GENERAL for row in rows]
        found: dict[Role, list[list[float]]] = {}
        for role in ROLES:
            told = [_mean(t) for t in subject.answer_scores(ctx, role, asked)]
            found[role] = [told[k:k + len(rows)] for k in range(0, len(told), len(rows))]
        write_lines(ctx.folder / MATRIX, ({"task": "answers", "template": template, **{role: found[role][k] for role in ROLES}}
                                          for k, template in enumerate(GENERAL)))
        own, others = found["after"][0], [_mean(column) for column in zip(*found["after"][1:], strict=True)]
        means = [_mean(row) for row in found["after"]]
        worst = min(range(1, len(GENERAL)), key=means.__getitem__)
        result = paired(own, others, [row.cluster or row.id for row in rows], level=self.level)
        return audited("audit/phrasing/answers", _mean(own), _mean(others), self.max_nats,
                       None if result.low is None or result.high is None else (result.low, result.high), worse="down",
                       unit="nats a token", evidence=MATRIX, title="log-probability of answers: own words -> others",
                       detail=f"{len(GENERAL)} wordings x {len(rows)} rows; worst: {GENERAL[worst]!r}, {means[worst]:.3g}",
                       spread=spread(means), base={"observed": _mean(found["before"][0]),
                                                   "unobserved": _mean([_mean(r) for r in found["before"][1:]])},
                       needed=result.needed, test=result.test, level=self.level)

    def _all(self, differences: Sequence[Sequence[tuple[float, float]]]) -> Finding:
        """All tasks with equal weight, whatever their number of items."""
        total = sum(map(len, differences))
        weights = [total / (len(differences) * len(d)) for d in differences for _ in d]
        flat = [pair for d in differences for pair in d]
        sides = [[w * pair[side] for w, pair in zip(weights, flat, strict=True)] for side in (0, 1)]
        result = paired(sides[0], sides[1], list(range(total)), level=self.level)
        return audited("audit/phrasing", _mean(sides[0]), _mean(sides[1]), self.max_drop,
                       None if result.low is None or result.high is None else (result.low, result.high), worse="down",
                       unit="of items right", evidence=MATRIX, title="all tasks: observed -> unobserved phrasings",
                       detail=f"{len(differences)} tasks", needed=result.needed, test=result.test, level=self.level)


def _check(phrasings: list[Phrasing], items: list[Item]) -> None:
    check(phrasings, items, least=2)
    for kind in ("observed", "unobserved"):
        if not any(p.kind == kind for p in phrasings):
            raise UserError(f"No phrasing is {kind}; a drop needs both: kind: observed and kind: unobserved.")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)

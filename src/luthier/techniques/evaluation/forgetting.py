"""forgetting: what a model lost of what it could do before: bits a byte on general texts, and general questions.

With texts x of b(x) bytes, the loss is bits(x) = -log2 p(x) / b(x), before and after; with questions of four options, the
value is that of the metric `tasks`. Differences are paired by text and by question; the interval is the house's for paired
scores (every row its own cluster). A rise of `max_rise` bits a byte, or a fall of `max_drop` in the share of right answers,
breaks a limit.

The set is fixed: 60 sums in words, 60 short programs, 217 questions about the world and its authors, from permissively
licensed sets (see `luthier/data/general/ATTRIBUTION.md`). 80 texts and 120 questions of it are read by default, spread over all
sources: they say whether something broke, not how good a model is. Texts that stood in the training rows say nothing: keep
them out.

When it helps: after every tuning. Source: Biderman et al. 2024, "LoRA learns less and forgets less": forgetting as the loss of
source tasks.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

from pydantic import Field

from luthier.core.component import Slot, named
from luthier.core.files import write_lines
from luthier.core.finding import Finding, audited, not_applicable
from luthier.core.kinds import Audit, Metric, Prediction
from luthier.core.step import Ctx
from luthier.engine.subjects import ROLES, Subject, paired_change
from luthier.techniques.evaluation._sets import choices, frozen, spread

TEXTS, QUESTIONS = "texts.jsonl", "questions.jsonl"


class Forgetting(Audit, name="forgetting", seeds=[171]):
    """General texts cost more bits, or general questions are answered worse, than before tuning."""

    mends: ClassVar[tuple[str, ...]] = ("method layer-freezing", "data_step mix", "regularizer mixout",
                                        "regularizer l2-sp", "weight_rule linear")
    texts: int = Field(80, ge=6, description="general texts that are read, of 120")
    questions: int = Field(120, ge=6, description="general questions that are asked, of 217")
    tasks: Slot[Metric] = Field(named("multiple-choice:by=token"), description="how options are weighed")
    max_rise: float = Field(0.1, gt=0, description="most that the loss may rise, in bits a byte")
    max_drop: float = Field(0.08, gt=0, description="most that the share of right answers may fall")
    level: float = Field(0.95, gt=0.5, lt=1, description="level of the intervals")

    def measure(self, ctx: Ctx, subject: Subject) -> list[Finding]:
        """`audit/forgetting/loss` and `audit/forgetting/questions`."""
        if subject.encoder:
            return [not_applicable("audit/forgetting", "an encoder reads no text word by word")]
        return [self._loss(ctx, subject), self._questions(ctx, subject)]

    def _loss(self, ctx: Ctx, subject: Subject) -> Finding:
        rows = spread(frozen("general/texts"), self.texts)
        found: dict[str, list[float]] = {}
        for role in ROLES:
            told = subject.text_scores(ctx, role, [r["text"] for r in rows])
            found[role] = [-sum(t) / math.log(2) / len(r["text"].encode()) for t, r in zip(told, rows, strict=True)]
        write_lines(ctx.folder / TEXTS, ({"id": r["id"], "set": r["set"], **{role: found[role][i] for role in ROLES}}
                                         for i, r in enumerate(rows)))
        return self._compared(subject, "loss", "loss on general texts", found, rows, self.max_rise, "up", "bits a byte", TEXTS)

    def _questions(self, ctx: Ctx, subject: Subject) -> Finding:
        rows = choices(self.questions)
        asked = [Prediction(r.id) for r in rows]
        found: dict[str, list[float]] = {}
        for role in ROLES:
            model = subject.model(role)
            ctx.roles = {**ctx.roles, "policy": model}
            records = ctx.journal.do(f"questions/{model.identity}", lambda: self.tasks.score(rows, asked, ctx))
            found[role] = [float(r["value"]) for r in records]
        write_lines(ctx.folder / QUESTIONS, ({"id": r.id, "set": r.source, **{role: found[role][i] for role in ROLES}}
                                             for i, r in enumerate(rows)))
        told = [{"id": r.id, "set": r.source} for r in rows]
        return self._compared(subject, "questions", "general questions answered", found, told, self.max_drop, "down",
                              "of them", QUESTIONS)

    def _compared(self, subject: Subject, name: str, title: str, found: dict[str, list[float]], rows: list[dict[str, Any]],
                  limit: float, worse: Any, unit: str, evidence: str) -> Finding:
        before, after = (found[role] for role in ROLES)
        interval, needed = paired_change(subject, before, after, [r["id"] for r in rows], self.level)
        parts = {s: {role: _mean([v for v, r in zip(found[role], rows, strict=True) if r["set"] == s]) for role in ROLES}
                 for s in dict.fromkeys(r["set"] for r in rows)}
        return audited(f"audit/forgetting/{name}", _mean(before), _mean(after), limit, interval, worse=worse, unit=unit,
                       evidence=evidence, detail=f"{len(rows)} {'texts' if name == 'loss' else 'questions'}", title=title,
                       parts=parts, n=len(rows), needed=needed, level=self.level)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)

"""membership: can one tell by the model which rows it was trained on? Attack by loss, or by the least likely tokens.

Members are training rows, the others rows held out of training. With the log-probabilities l_1 … l_T of a row's answer,

    loss         s = mean of all l_t
    min-k        s = mean of the `share` least likely l_t (at least one)

and AUC = P(s(member) > s(other)) + P(equal) / 2. Rows that were drawn otherwise differ without any training, so what counts is
the AUC after tuning less that of the base on the same rows (a label model, which has no base, is compared with 1/2). Interval:
cluster jackknife values of that difference with Student's t. An AUC says little of the few rows that are sure: the share of
members found at a false-positive rate of at most 1 % is reported beside it, with Newcombe's paired interval.

When it helps: before a model tuned on private rows is handed on. It is the attack of a beginner: passing it is no proof of
privacy. Sources: Yeom et al. 2018, "Privacy risk in machine learning" (loss); Shi et al. 2024, "Detecting pretraining data
from large language models" (min-k% prob); Carlini et al. 2022, "Membership inference attacks from first principles" (low
false-positive rates).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from luthier.core.example import Example
from luthier.core.files import write_lines
from luthier.core.finding import Finding, audited, not_applicable
from luthier.core.kinds import Audit
from luthier.core.step import Ctx
from luthier.engine.proportions import Paired
from luthier.engine.rendering import with_passages
from luthier.engine.statistics import jackknife_values, mean_interval
from luthier.engine.subjects import ROLES, TRAIN, Role, Subject

EVIDENCE = "rows.jsonl"
LEAST = 12  # rows of each side
FALSE_POSITIVES = 0.01


class Membership(Audit, name="membership"):
    """Training rows can be told from others by what the model says of them."""

    subjects: ClassVar[tuple[Any, ...]] = ("run",)
    mends: ClassVar[tuple[str, ...]] = ("optimizer dp-sgd", "regularizer mixout", "data_step distinct")
    attack: Literal["loss", "min-k"] = Field("loss", description="what a row's score is")
    share: float = Field(0.2, gt=0, le=1, description="share of the tokens that min-k looks at")
    rows: int = Field(60, ge=LEAST, description="most rows of each side, drawn at random")
    max_rise: float = Field(0.1, gt=0, lt=0.5, description="most that the AUC may rise by tuning")
    max_found: float = Field(0.1, gt=0, lt=1, description="most that the share found at 1 % false positives may rise")
    level: float = Field(0.95, gt=0.5, lt=1, description="level of the intervals")

    def measure(self, ctx: Ctx, subject: Subject) -> list[Finding]:
        """`audit/membership/auc` and `audit/membership/found`."""
        sides = [self._drawn(ctx, n, rows) for n, rows in ((TRAIN, subject.rows(TRAIN)), ("held-out", subject.held_out()))]
        if min(map(len, sides)) < LEAST:
            return [not_applicable("audit/membership", f"{len(sides[0])} training rows and {len(sides[1])} held-out rows can "
                                   f"be used; {LEAST} of each are needed")]
        if subject.encoder and not subject.labels:
            return [not_applicable("audit/membership", "an encoder without a head says nothing of a row")]
        rows = [*sides[0], *sides[1]]
        scores = self._scores(ctx, subject, rows)
        records = [{"id": e.id, "member": i < len(sides[0]), "cluster": e.cluster or e.id,
                    **{role: s[i] for role, s in scores.items()}} for i, e in enumerate(rows)]
        write_lines(ctx.folder / EVIDENCE, records)
        return [self._auc(records), self._found(records, subject.same)]

    def _drawn(self, ctx: Ctx, name: str, rows: Sequence[Example]) -> list[Example]:
        """Rows of one side without what was planted or raw, without passages, which only some of them show."""
        usable = [with_passages(e, []) if e.part("passage") else e for e in rows
                  if "canary" not in e.meta and (e.answer or e.label is not None)]
        chosen = sorted(ctx.rng("rows", name).permutation(len(usable))[:self.rows].tolist())
        return [usable[i] for i in chosen]

    def _scores(self, ctx: Ctx, subject: Subject, rows: Sequence[Example]) -> dict[Role, list[float]]:
        if subject.labels:
            said = subject.classified(ctx, rows)
            return {"after": [math.log(max(p.probabilities.get(str(e.label), 0.0), 1e-12))
                              for e, p in zip(rows, said, strict=True)]}
        return {role: [self.score(t) for t in subject.answer_scores(ctx, role, rows)] for role in ROLES}

    def score(self, told: Sequence[float]) -> float:
        """The attack's score of one row from the log-probabilities of its tokens; larger for a member."""
        chosen = sorted(told)[:max(1, int(self.share * len(told)))] if self.attack == "min-k" else told
        return sum(chosen) / len(chosen)

    def _auc(self, records: Sequence[Mapping[str, Any]]) -> Finding:
        before = auc(records, "before") if "before" in records[0] else 0.5

        def rise(some: Sequence[Mapping[str, Any]]) -> float:
            return auc(some, "after") - (auc(some, "before") if "before" in some[0] else 0.5)

        clusters = [f"{r['member']}/{r['cluster']}" for r in records]
        same = "before" in records[0] and all(r["before"] == r["after"] for r in records)
        interval = (0.0, 0.0) if same else mean_interval(jackknife_values(rise, records, clusters), clusters, self.level)
        members = sum(r["member"] for r in records)
        return audited("audit/membership/auc", before, auc(records, "after"), self.max_rise, interval, evidence=EVIDENCE,
                       title="training rows told from others", unit="AUC", level=self.level, n=len(records),
                       detail=f"attack by {self.attack}, {members} training rows, {len(records) - members} others")

    def _found(self, records: Sequence[Mapping[str, Any]], same: bool) -> Finding:
        after = found_at(records, "after", FALSE_POSITIVES)
        before = found_at(records, "before", FALSE_POSITIVES) if "before" in records[0] else [False] * len(after)
        counts = Paired.of(before, after)
        low, high = (0.0, 0.0) if same else counts.interval(self.level)
        return audited("audit/membership/found", sum(before) / counts.n, sum(after) / counts.n, self.max_found,
                       (0.0 - high, 0.0 - low), evidence=EVIDENCE, title="training rows found at 1 % false positives",
                       unit="of them", level=self.level, n=counts.n, detail=f"{sum(after)} of {counts.n} found")


def auc(records: Sequence[Mapping[str, Any]], role: str) -> float:
    """Share of pairs (member, other) in which the member scores higher; equal ones count half. 1/2 without pairs."""
    import numpy as np

    values = np.array([r[role] for r in records], dtype=float)
    member = np.array([r["member"] for r in records], dtype=bool)
    ours, others = values[member], np.sort(values[~member])
    if not len(ours) or not len(others):
        return 0.5
    below = np.searchsorted(others, ours, "left") + np.searchsorted(others, ours, "right")
    return float(below.sum() / (2 * len(ours) * len(others)))


def found_at(records: Sequence[Mapping[str, Any]], role: str, rate: float) -> list[bool]:
    """Which members score above all but `rate` of the others."""
    others = sorted((r[role] for r in records if not r["member"]), reverse=True)
    threshold = others[int(rate * len(others))]
    return [r[role] > threshold for r in records if r["member"]]

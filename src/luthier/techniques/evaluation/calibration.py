"""calibration: whether the model is right as often as it is sure, before and after tuning, and what abstaining would buy.

With n answers of confidence c_i in [0, 1] that are right (y_i = 1) or not, and `bins` bins of equal width over the confidence
(bin b holds b/B < c <= (b+1)/B, and 0 belongs to the first one),

    ECE = sum_b |B_b| / n * |mean of y in b - mean of c in b|

    risk at coverage k/n = errors among the k surest answers / k;   AURC = mean over k of that risk

of equal confidences the errors are spread evenly. Models that write are asked the general questions with options (confidence:
the soft-max over the options of their log-probability, or of its mean a token) and, in a run, the held-out questions
(confidence: the probability of the answer they write, exp of its summed log-probability; right where `right` says so). Label
models are asked the held-out rows (confidence: the highest probability); they have no before: their ECE must lie above the
limit with the whole interval to fail, and their AURC is compared with their error rate, the area of an order by chance.
Intervals are the house's for paired scores, clusters kept together: of AURC from its cluster jackknife values, of the ECE from
the answers' own shares s_b (y_i - c_i), s_b the sign of the bin's gap, whose mean it is. An ECE is never 0, even of perfect
calibration: few rows make it larger.

When it helps: wherever a score decides what is shown, asked again, or done. Sources: Guo et al. 2017, "On calibration of modern
neural networks" (ECE); Geifman & El-Yaniv 2017, "Selective classification" (risk and coverage).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from luthier.core.component import Slot, named
from luthier.core.example import Example
from luthier.core.files import write_lines
from luthier.core.finding import Finding, audited, not_applicable
from luthier.core.kinds import Audit, Decoder, Metric
from luthier.core.step import Ctx
from luthier.engine.rendering import with_answer
from luthier.engine.statistics import jackknife_values, mean_interval
from luthier.engine.subjects import ROLES, Role, Subject, paired_change, parted
from luthier.techniques.evaluation._sets import choices

Record = Mapping[str, Any]  # confidence, right, cluster


class Calibration(Audit, name="calibration"):
    """Confidence and accuracy have come apart, or the surest answers are no longer the right ones."""

    mends: ClassVar[tuple[str, ...]] = ("weight_rule temperature", "regularizer label-smoothing", "decoder temperature")
    bins: int = Field(10, ge=2, description="bins of equal width over the confidence")
    questions: int = Field(120, ge=20, description="general questions with options, of 217")
    rows: int = Field(60, ge=6, description="most held-out rows that are answered")
    by: Literal["token", "sum"] = Field("token", description="an option's score: mean log-probability of its tokens, or sum")
    right: Slot[Metric] = Field(named("exact-match"), description="what says whether a written answer is right (from 0.5)")
    decoder: Slot[Decoder] = Field(named("greedy"), description="how held-out questions are answered")
    max_rise: float = Field(0.1, gt=0, lt=1, description="most that the ECE may rise; of label models: most that it may be")
    max_aurc: float = Field(0.1, gt=0, lt=1, description="most that the area under risk and coverage may rise")
    level: float = Field(0.95, gt=0.5, lt=1, description="level of the intervals")

    def measure(self, ctx: Ctx, subject: Subject) -> list[Finding]:
        """`audit/calibration/SET` and `audit/calibration/SET abstention`, SET one of questions, held-out and labels."""
        if subject.labels:
            return self._labels(ctx, subject)
        if subject.encoder:
            return [not_applicable("audit/calibration", "an encoder without a head answers nothing")]
        found = self._compared(ctx, subject, "questions", "general questions",
                               {role: self._options(ctx, subject, role) for role in ROLES})
        held = [e for e in subject.held_out() if e.answer and not e.spoken and "options" not in e.meta][:self.rows]
        if held:
            found += self._compared(ctx, subject, "held-out", "held-out questions",
                                    {role: self._written(ctx, subject, role, held) for role in ROLES})
        return found

    # --- records -----------------------------------------------------------------------------------------------

    def _labels(self, ctx: Ctx, subject: Subject) -> list[Finding]:
        held = [e for e in subject.held_out() if e.label is not None]
        if not held:
            return [not_applicable("audit/calibration", "there are no held-out rows with labels")]
        said = subject.classified(ctx, held)
        records = [{"id": e.id, "confidence": max(p.probabilities.values()), "right": float(p.label == str(e.label)),
                    "cluster": e.cluster or e.id} for e, p in zip(held, said, strict=True)]
        return self._compared(ctx, subject, "labels", "labels of held-out rows", {"after": records})

    def _options(self, ctx: Ctx, subject: Subject, role: Role) -> list[Record]:
        rows, render = choices(self.questions), subject.render(role)
        records: list[Record] = []
        sides = [parted(render.whole(with_answer(e, o))) for e in rows for o in e.meta["options"]]
        told = iter(subject.token_scores(ctx, role, sides))
        for row in rows:
            found = [next(told) for _ in row.meta["options"]]
            scores = np.array([sum(t) / len(t) if self.by == "token" else sum(t) for t in found])
            shares = np.exp(scores - np.logaddexp.reduce(scores))
            best = int(shares.argmax())
            records.append({"id": row.id, "confidence": float(shares[best]), "right": float(best == row.label),
                            "cluster": row.id})
        return records

    def _written(self, ctx: Ctx, subject: Subject, role: Role, held: Sequence[Example]) -> list[Record]:
        said = [told[0] for told in subject.answers(ctx, role, held, self.decoder)]
        right = self.right.score(held, said, ctx)
        spoken = [with_answer(e, p.text or " ") for e, p in zip(held, said, strict=True)]
        sure = subject.answer_scores(ctx, role, spoken)
        return [{"id": e.id, "confidence": min(1.0, math.exp(sum(s))), "right": float((r["value"] or 0.0) >= 0.5),
                 "cluster": e.cluster or e.id, "answer": p.text}
                for e, p, r, s in zip(held, said, right, sure, strict=True)]

    # --- findings ----------------------------------------------------------------------------------------------

    def _compared(self, ctx: Ctx, subject: Subject, name: str, title: str, records: Mapping[str, Sequence[Record]]
                  ) -> list[Finding]:
        evidence = f"{name}.jsonl"
        write_lines(ctx.folder / evidence, ({"model": role, **r} for role, rows in records.items() for r in rows))
        lines = {role: [[c, a] for c, a, _ in reliability(rows, self.bins)] for role, rows in records.items()}
        curves = {role: [[k / len(rows), r] for k, r in enumerate(risks(rows), 1)] for role, rows in records.items()}
        plots = ({"title": f"Reliability, {title}", "x": "mean confidence", "y": "share right", "diagonal": True,
                  "series": lines},
                 {"title": f"Risk and coverage, {title}", "x": "share of questions answered, surest first",
                  "y": "share of them wrong", "series": curves})
        gaps = {role: shares_of_ece(rows, self.bins) for role, rows in records.items()}
        areas = {role: jackknife_values(aurc, rows, [r["cluster"] for r in rows]) for role, rows in records.items()}
        surest = {role: aurc(rows) for role, rows in records.items()}
        if "before" not in records:
            # An order by chance has the error rate as its area: that is what the confidence of one model must beat.
            surest["before"] = sum(1 - r["right"] for r in records["after"]) / len(records["after"])
            areas["before"] = np.array([1 - r["right"] for r in records["after"]])
        first = self._finding(subject, name, f"expected calibration error, {title}", gaps, records, self.max_rise,
                              {role: ece(rows, self.bins) for role, rows in records.items()}, evidence, plots[0])
        second = self._finding(subject, f"{name} abstention", f"area under risk and coverage, {title}", areas, records,
                               self.max_aurc, surest, evidence, plots[1])
        return [first, second]

    def _finding(self, subject: Subject, name: str, title: str, values: Mapping[str, Any],
                 records: Mapping[str, Sequence[Record]], limit: float, numbers: Mapping[str, float], evidence: str,
                 plot: dict[str, Any]) -> Finding:
        clusters = [r["cluster"] for r in records["after"]]
        about: dict[str, Any] = {"evidence": evidence, "title": title, "plot": plot, "level": self.level, "n": len(clusters),
                                 "detail": f"{len(clusters)} answers, {len(set(clusters))} clusters, {self.bins} bins"}
        if "before" not in numbers:
            interval = mean_interval(values["after"], clusters, self.level)
            return audited(f"audit/calibration/{name}", None, numbers["after"], limit, interval, harmless=limit, **about)
        interval, needed = paired_change(subject, values["before"], values["after"], clusters, self.level)
        return audited(f"audit/calibration/{name}", numbers["before"], numbers["after"], limit, interval, needed=needed,
                       **about)


def reliability(records: Sequence[Record], bins: int) -> list[tuple[float, float, int]]:
    """(mean confidence, share right, answers) of each bin that holds any."""
    confidence, right, place = _binned(records, bins)
    return [(float(confidence[place == b].mean()), float(right[place == b].mean()), int((place == b).sum()))
            for b in range(bins) if (place == b).any()]


def ece(records: Sequence[Record], bins: int) -> float:
    """Expected calibration error in bins of equal width."""
    return sum(n * abs(a - c) for c, a, n in reliability(records, bins)) / len(records)


def shares_of_ece(records: Sequence[Record], bins: int) -> Any:
    """[records] numbers whose mean is the ECE: right - confidence, with the sign of the sum over its bin."""
    confidence, right, place = _binned(records, bins)
    gaps = np.bincount(place, right - confidence, bins)
    return np.where(gaps[place] < 0, -1.0, 1.0) * (right - confidence)


def risks(records: Sequence[Record]) -> list[float]:
    """Share of errors among the k surest answers, k = 1 … n; of equally sure ones each carries their mean error."""
    confidence, right = _columns(records)
    levels, place = np.unique(-confidence, return_inverse=True)
    mean = np.bincount(place, 1 - right, len(levels)) / np.bincount(place, minlength=len(levels))
    errors = mean[np.sort(place)]
    return [float(r) for r in np.cumsum(errors) / np.arange(1, len(errors) + 1)]


def aurc(records: Sequence[Record]) -> float:
    """Mean of `risks`."""
    found = risks(records)
    return sum(found) / len(found)


def _binned(records: Sequence[Record], bins: int) -> tuple[Any, Any, Any]:
    confidence, right = _columns(records)
    return confidence, right, np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)


def _columns(records: Sequence[Record]) -> tuple[Any, Any]:
    return (np.array([float(r["confidence"]) for r in records]), np.array([float(r["right"]) for r in records]))

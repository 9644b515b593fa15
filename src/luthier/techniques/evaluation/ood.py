"""ood: can the model tell texts of its own domain from others, and did tuning make that harder?

A text is h [width], the mean over its own tokens of the last layer (the vector that enters a classifier's head), or its
first token's state. Scores, higher for in-distribution: maha = -min_c (h - mu_c)^T P (h - mu_c) with class means and
the pseudo-inverse of the pooled covariance of the bank; knn = cosine to the k-th nearest of the bank, minus 1; msp =
the head's largest probability; energy = log sum exp of its scores. Told are AUROC with DeLong's interval, FPR at `keep`
of the in-distribution texts, AUPR both ways, and angles between prototypes and points. Harm is 1 - AUROC, the share of
pairs in the wrong order.

The bank is `id` or the run's training rows. The probe is a JSONL file of lines with `text` and `ood`: true or false;
without one the held-out rows stand against the subset `ood` of the run's rows or, where there is none, against the frozen
general set. When it helps: an input guard, and seeing what long tuning does to it. Source: Uppaal, Hu & Li 2023, "Is
fine-tuning needed? Pre-trained language models are near perfect for out-of-domain detection" (seed 151).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.files import write_lines
from luthier.core.finding import Finding, audited
from luthier.core.identity import hash_file
from luthier.core.kinds import Audit
from luthier.core.step import Ctx
from luthier.engine.subjects import ROLES, Role, Subject
from luthier.techniques.evaluation._detectors import Mahalanobis, Neighbours, energy, geometry, max_softmax, represent
from luthier.techniques.evaluation._ranking import (
    auroc,
    auroc_change,
    auroc_interval,
    average_precision,
    false_positive_rate,
)
from luthier.techniques.evaluation._sets import frozen

SCORES = "scores.jsonl"
STRANGE = "ood"  # a subset of rows from elsewhere


class Ood(Audit, name="ood", seeds=[151]):
    """Texts of other domains are told apart, before and after tuning."""

    subjects: ClassVar[tuple[Any, ...]] = ("run", "pair")
    battery: ClassVar[bool] = False
    mends: ClassVar[tuple[str, ...]] = ("method layer-freezing", "method lora")
    id: str = Field("", description="JSONL file of in-distribution texts, with labels or without; the training rows if "
                                    "left out")
    probe: str = Field("", description="JSONL file of lines with text and ood: true or false; held-out rows against the "
                                       "subset ood, else against general texts, if left out")
    score: Literal["maha", "knn", "msp", "energy"] = Field("maha", description="how a text is scored")
    pool: Literal["mean", "cls"] = Field("mean", description="what stands for a text: the mean of its tokens, or the first")
    k: int = Field(1, ge=1, description="which neighbour counts (knn)")
    keep: float = Field(0.95, gt=0, lt=1, description="share of in-distribution texts that a threshold keeps")
    labels: bool = Field(True, description="a mean for each class where the bank has labels")
    most_rows: int = Field(600, ge=2, description="most texts of the bank and of each side of the probe")
    max_tokens: int = Field(256, ge=8, description="how much of a text is read")
    max_confused: float = Field(0.1, gt=0, lt=1, description="most that 1 - AUROC may be")
    max_drop: float = Field(0.05, gt=0, lt=1, description="most that AUROC may fall by tuning")
    level: float = Field(0.95, gt=0.5, lt=1, description="level of the intervals")

    def check(self) -> None:
        """Refuse files that can't be used."""
        if self.id:
            _read(self.id, "text")
        if self.probe:
            _sides([(r["text"], r["ood"]) for r in _read(self.probe, "text", "ood")], self.most_rows)

    def content(self) -> dict[str, Any]:
        """Hashes of both files."""
        return {n: hash_file(Path(p).expanduser()) for n in ("id", "probe") if (p := getattr(self, n))}

    def measure(self, ctx: Ctx, subject: Subject) -> list[Finding]:
        """`audit/ood` of the tuned model, and `audit/ood/change` where both models can be scored."""
        bank, labels = self._bank(subject)
        known, strange = self._probe(subject)
        roles: tuple[Role, ...] = ROLES if self.score in ("maha", "knn") and not subject.same else ("after",)
        if self.score in ("msp", "energy") and not subject.labels:
            raise UserError(f"ood: score={self.score} needs a classifier, and this model has no head. Take maha or knn.")
        found = {role: self._scores(ctx, subject, role, bank, labels, known, strange) for role in roles}
        write_lines(ctx.folder / SCORES, ({"ood": side == 1, "text": text[:80],
                                           **{role: float(found[role][0][side][n]) for role in roles}}
                                          for side, texts in enumerate((known, strange)) for n, text in enumerate(texts)))
        (own, other), angles = found["after"]
        area, ends = auroc(own, other), auroc_interval(own, other, self.level)
        findings = [audited(
            "audit/ood", None, 1 - area, self.max_confused, (1 - ends[1], 1 - ends[0]), unit="of pairs", evidence=SCORES,
            title=f"other domains taken for this one ({self.score})",
            detail=f"AUROC {area:.3f}, FPR {false_positive_rate(own, other, self.keep):.3f} at {self.keep:.0%} kept; "
                   f"{len(known)} in, {len(strange)} out, bank of {len(bank)}",
            auroc=area, fpr=false_positive_rate(own, other, self.keep), aupr_in=average_precision(own, other),
            aupr_out=average_precision(-other, -own), level=self.level, **angles)]
        if len(roles) == 2:
            before = found["before"][0]
            change, interval = auroc_change((before[0], before[1]), (own, other), self.level)
            findings.append(audited("audit/ood/change", area - change, area, self.max_drop, interval, worse="down",
                                    unit="AUROC", evidence=SCORES, level=self.level,
                                    title=f"other domains told apart ({self.score})"))
        return findings

    def _scores(self, ctx: Ctx, subject: Subject, role: Role, bank: list[str], labels: list[str] | None, known: list[str],
                strange: list[str]) -> tuple[tuple[Any, Any], dict[str, Any]]:
        """Scores of both sides of the probe, and the angles."""
        model = subject.model(role)
        vectors, logits = represent(model, [*known, *strange], self.pool, self.max_tokens)
        kept, _ = represent(model, bank, self.pool, self.max_tokens)
        cut = len(known)
        angles = geometry(kept, labels, vectors[:cut], vectors[cut:])
        if self.score in ("msp", "energy"):
            assert logits is not None
            told = max_softmax(logits) if self.score == "msp" else energy(logits)
        elif self.score == "knn":
            told = Neighbours.fit(kept, self.k).score(vectors)
        else:
            if len(bank) <= kept.shape[1]:
                ctx.log(f"ood: the bank has {len(bank)} texts and {kept.shape[1]} dimensions: its covariance is singular, "
                        "and only directions that occur in the bank count. Give more texts.")
            told = Mahalanobis.fit(kept, labels).score(vectors)
        return (told[:cut], told[cut:]), {k: v for k, v in angles.items() if np.isfinite(v)}

    def _bank(self, subject: Subject) -> tuple[list[str], list[str] | None]:
        """Texts of the bank, and their labels where all have one."""
        rows = [(r["text"], r.get("label")) for r in _read(self.id, "text")] if self.id else \
            [(_text(e), e.label) for e in subject.rows("train")]
        if len(rows) < 2:
            raise UserError("ood needs in-distribution texts: --audit ood:id=TRAIN.jsonl, or a run with its training rows.")
        rows = [rows[n * len(rows) // min(self.most_rows, len(rows))] for n in range(min(self.most_rows, len(rows)))]
        labelled = self.labels and all(label is not None for _, label in rows)
        return [t for t, _ in rows], [str(label) for _, label in rows] if labelled else None

    def _probe(self, subject: Subject) -> tuple[list[str], list[str]]:
        if self.probe:
            return _sides([(r["text"], r["ood"]) for r in _read(self.probe, "text", "ood")], self.most_rows)
        strange = [_text(e) for e in subject.rows(STRANGE)] or [str(r["text"]) for r in frozen("general/texts")]
        return _sides([*((_text(e), False) for e in subject.held_out()), *((s, True) for s in strange)], self.most_rows)


def _text(example: Any) -> str:
    return "\n".join(t.text for t in example.turns if not t.target)


def _sides(rows: Sequence[tuple[str, bool]], most: int) -> tuple[list[str], list[str]]:
    known, strange = ([t for t, out in rows if out is side][:most] for side in (False, True))
    if not known or not strange:
        raise UserError(f"ood needs both ID and OOD examples to compute AUROC; found {len(known)} and {len(strange)}. Name a "
                        'probe: --audit ood:probe=MIXED.jsonl with lines {"text": …, "ood": true or false}.')
    return known, strange


def _read(path: str, *keys: str) -> list[dict[str, Any]]:
    """Lines of a JSONL file with all of some keys."""
    try:
        rows = [json.loads(line) for line in Path(path).expanduser().read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read: {error}") from None
    for number, row in enumerate(rows, 1):
        for key in keys:
            if not isinstance(row, dict) or not isinstance(row.get(key), bool if key == "ood" else str):
                raise UserError(f"{path}, line {number}: it needs {' and '.join(keys)}; found {row!r:.80}.")
    return rows

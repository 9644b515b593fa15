"""Finding: the one type for receipts, audits, comparisons and study verdicts."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Verdict = Literal[
    "agrees", "differs", "not applicable",
    "better", "worse", "no difference", "undecided",
    "shown", "not shown at this scale", "reversed", "underpowered",
]


@dataclass(frozen=True)
class Finding:
    """Two things compared, how far apart they are, how far apart they may be, and what follows.

    `interval` is in the unit of `difference`; a receipt has a `tolerance` instead. `evidence` names the file,
    relative to the run, in which the compared numbers stand.
    """

    name: str
    left: Any
    right: Any
    difference: float | None
    verdict: Verdict
    interval: tuple[float, float] | None = None
    tolerance: float | None = None
    unit: str = ""
    evidence: str = ""
    detail: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Finding:
        """The inverse of `to_dict` (JSON turns the interval into a list)."""
        interval = values.get("interval")
        return cls(**{**values, "interval": tuple(interval) if interval else None})


def receipt(name: str, left: float, right: float, tolerance: float = 0.0, *, unit: str = "", detail: str = "",
            evidence: str = "") -> Finding:
    """A finding that says whether two numbers which must agree do: |right - left| <= tolerance."""
    difference = right - left
    agrees = math.isfinite(difference) and abs(difference) <= tolerance
    return Finding(name, left, right, difference, "agrees" if agrees else "differs", tolerance=tolerance, unit=unit,
                   detail=detail, evidence=evidence)


def not_applicable(name: str, why: str) -> Finding:
    """A receipt that has nothing to compare here, with the reason."""
    return Finding(name, None, None, None, "not applicable", detail=why)

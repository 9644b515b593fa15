"""Finding: the one type for receipts, audits, comparisons and study verdicts."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Verdict = Literal[
    "agrees", "differs", "not applicable",
    "better", "worse", "no difference", "undecided",
    "shown", "not shown at this scale", "reversed", "underpowered",
    "pass", "fail",
]
Interval = tuple[float, float]


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


def gate(harm: float, interval: Interval | None, limit: float, harmless: float = 0.0) -> Verdict:
    """What a measured harm (larger is worse) says about a limit that it must stay below.

    fail: harm > limit and the interval lies above `harmless`, the value of no harm at all. pass: the whole interval lies
    below the limit; a small set can't pass by silence. Everything else, and no interval, is undecided.
    """
    if interval is None:
        return "undecided"
    if harm > limit and interval[0] > harmless:
        return "fail"
    return "pass" if interval[1] < limit else "undecided"


def audited(name: str, before: float | None, after: float, limit: float, interval: Interval | None, *,
            worse: Literal["up", "down"] = "up", harmless: float = 0.0, unit: str = "", evidence: str = "",
            detail: str = "", **extra: Any) -> Finding:
    """The finding of an audit: `difference` = after - before (or after alone), with its interval and the limit's verdict.

    `worse` says in which direction a change is a harm; `limit` is how far it may go that way, at least 0. `needed` in
    `extra`, how many more questions would decide, is kept only where nothing is decided.
    """
    change = after - before if before is not None else after
    harm, ends = change, interval
    if worse == "down":
        harm, ends = -change, (-interval[1], -interval[0]) if interval else None
    verdict = gate(harm, ends, limit, harmless)
    if verdict != "undecided":
        extra.pop("needed", None)
    return Finding(name, before, after, change, verdict, interval=interval, tolerance=limit, unit=unit, evidence=evidence,
                   detail=detail, extra={"worse": worse, **extra})

"""label-match: share of rows whose label is said, by a head or in words; of words, how many are no label at all.

value = 1 where what was said, without case and outer white space, is the row's label; several labels joined by "|" match in any
order. `illegal` among the details is the share of rows where what was said holds a label that no row has: a head can't.

When it helps: a model that writes labels beside one that has a head for them. Source: none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.core.example import Example
from luthier.core.kinds import Metric, Prediction
from luthier.core.step import Ctx
from luthier.techniques.evaluation._shared import pairs


class LabelMatch(Metric, name="label-match"):
    """Share of labels that are said, whoever says them."""

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction], ctx: Ctx) -> list[dict[str, Any]]:
        """`value`, `illegal`; `right`, `said` and `wanted` count the labels of a row. No value without a label."""
        found = list(pairs(examples, predictions))
        legal = {name for e, _ in found if e.label is not None for name in split(str(e.label))}
        records = []
        for e, p in found:
            wanted, said = split(str(e.label or "")), split(p.text if p.label is None else p.label)
            records.append({"id": e.id, "value": None if e.label is None else float(said == wanted),
                            "illegal": float(bool(said - legal)), "right": len(said & wanted), "said": len(said),
                            "wanted": len(wanted)})
        return records

    def details(self, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Share of rows with an illegal label, and F1 over all labels of all rows."""
        if not records:
            return {}
        total = sum(r["said"] + r["wanted"] for r in records)
        return {"illegal": sum(r["illegal"] for r in records) / len(records),
                "micro_f1": 2 * sum(r["right"] for r in records) / total if total else 1.0}


def split(label: str) -> set[str]:
    """The labels of a row."""
    return {part.strip().lower() for part in label.split("|") if part.strip()}

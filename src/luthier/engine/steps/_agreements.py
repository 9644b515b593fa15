"""Receipts of a training from numbers that it kept: two ways to the same loss, two ways to the same states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.core.finding import Finding, not_applicable, receipt


def packed_is_padded(losses: list[float], dtype: str) -> Finding:
    """Rows in one pack see only themselves: their loss is that of each row alone, computed without packing.

    A short type rounds every logit, so a model that is sure of little or has learned all by heart may differ by more than
    a share of its loss: what a pack of one row differs by is the measure then.
    """
    if not losses:
        return not_applicable("fit/packed = unpacked", "this model's rows are padded, or its rows see each other")
    packed, alone, rounding = losses
    exact = dtype == "float32"
    tolerance = max((1e-5 if exact else 2e-2) * max(1.0, abs(alone)), 0.0 if exact else 3 * rounding)
    return receipt("fit/packed = unpacked", alone, packed, tolerance, unit="nats",
                   detail="summed loss of the first rows, each alone against all in one pack")


def cached_is_computed(decision: Mapping[str, Any]) -> Finding:
    """What the kept states of the frozen layers lead to is what the whole model computes."""
    if not decision["use"]:
        return not_applicable("fit/cached = computed", f"nothing is kept of frozen layers: {decision['why']}")
    return receipt("fit/cached = computed", 0.0, decision["distance"], decision["tolerance"], unit="relative",
                   detail="distance of the last hidden states of the first rows from the whole model's")

"""Rows that choose: a sequence for each option of a row, one number for each, and a soft-max over the options of the row.

A batch has sequences `option0` to `option{k-1}` [rows, tokens] and `options` [rows], how many of them are a row's own; the
others are stand-ins of one token. All of them go through a model together, option by option.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from luthier.engine.batches import TokenBatch, join

OPTION = "option"
# Far below any score, and finite: the probability is 0 exactly, and 0 times its logarithm is 0.
NEVER = -1e4


def options_of(batch: Mapping[str, Any]) -> TokenBatch:
    """The sequences of all options as one batch [k x rows]: the first option of each row, then the second of each, …"""
    return join(*(batch[f"{OPTION}{n}"] for n in range(_most(batch))))


def by_row(scores: torch.Tensor, batch: Mapping[str, Any]) -> torch.Tensor:
    """[rows, k] float32 from the numbers [k x rows, 1] that a head gives; `NEVER` where a row has no such option."""
    table = scores.float().view(_most(batch), -1).T
    there = torch.arange(table.shape[1], device=table.device)[None] < batch["options"][:, None]
    return table.masked_fill(~there, NEVER)


def _most(batch: Mapping[str, Any]) -> int:
    return sum(1 for name in batch if name.startswith(OPTION) and name[len(OPTION):].isdigit())

"""Timing answers to prompts, the same for every contender."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Answers = list[tuple[str, int]]  # text, and how many tokens were written


def asked(folder: Path) -> dict[str, Any]:
    """What is measured: asked.json with the prompts of prompts.json."""
    return {**json.loads((folder / "asked.json").read_text(encoding="utf-8")),
            **json.loads((folder / "prompts.json").read_text(encoding="utf-8"))}


def groups(prompts: Sequence[list[int]], batch: int) -> list[list[list[int]]]:
    """What is given at once: four single prompts, or one batch."""
    return [[p] for p in prompts[:4]] if batch == 1 else [list(prompts[:batch])]


def time_batches(made: dict[str, Any], answer: Callable[[list[list[int]]], Answers]) -> dict[str, Any]:
    """Tokens per second of each batch size: the median over the repeats, after one pass over other prompts."""
    found = {}
    for batch in made["batches"]:
        for given in groups(made["warm_prompts"], batch)[:1]:
            answer(given)
        taken: list[float] = []
        answers: Answers = []
        for _ in range(made["repeats"]):
            answers = []
            began = time.perf_counter()
            for given in groups(made["prompts"], batch):
                answers += answer(given)
            taken.append(time.perf_counter() - began)
        seconds, tokens = statistics.median(taken), sum(n for _, n in answers)
        found[str(batch)] = {"tokens_per_second": tokens / seconds, "tokens": tokens, "seconds": seconds,
                             "answers": [text.strip() for text, _ in answers]}
    return found

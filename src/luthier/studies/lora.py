"""Hu et al. 2021: a small update of low rank on two matrices of each attention is as good as full tuning, and rank 1 may do.

MiniLM learns the sentiment of 300 invented reviews in 160 steps of 8, each way at the better of two rates on dev: all weights,
biases, prefixes, adapters, LoRA of rank 4 on queries and values, and on every linear layer. Ranks 1, 16 and 64 run at the
lower rate and are compared with rank 4 there: alpha stays 8, which the paper does so that a rate need not be sought for every
rank. Fewer trained weights and less memory follow from sizes and are not claimed. At the large scale queries alone and all four
matrices of attention have as many weights. What a language model forgets, and directions that two updates share, are not asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from luthier.core.kinds import Study
from luthier.core.study import Choice, Claim, Guard, Paper, Scale
from luthier.studies._worlds._small_tunings import (
    FEW,
    FULL,
    WORLD,
    Methods,
    better,
    fewer_right,
    learned,
    more_right,
    tried,
    tuned_recipe,
    tuned_scales,
)


def _lora(rank: int, target: str = "attention-qv") -> str:
    return f"lora:rank={rank},alpha=8,target={target}"


METHODS: Methods = {
    "full": FULL, "bitfit": ("bitfit", FEW), "prefix": ("prefix-tuning:tokens=10", (1e-2, 3e-2)),
    "adapter": ("adapter:bottleneck=16", FEW), "r4": (_lora(4), FEW), "all-linear": (_lora(4, "all-linear"), FEW)}
RANKS: Methods = {f"r{rank}": (_lora(rank), FEW[:1]) for rank in (1, 16, 64)}
# As many weights as rank 4 on queries and values.
PLACES: Methods = {"q": (_lora(8, "[query]"), FEW), "qkvo": (_lora(2, "[query, key, value, attention.output.dense]"), FEW)}


class LoraStudy(Study, name="lora", seeds=[114], version=2):
    """Is LoRA as good as full tuning, and of how low a rank?"""

    world: ClassVar[str] = WORLD
    paper: ClassVar[Paper] = Paper(
        "LoRA: Low-Rank Adaptation of Large Language Models", "Hu et al. 2021, arXiv 2106.09685",
        "LoRA is on par with full fine-tuning or better, with up to 10,000 times fewer trained weights, and a rank of 1 to 4 "
        "is enough.",
        "RoBERTa-base on GLUE: 87.2 (LoRA) against 86.4 (full) on average")
    scales: ClassVar[Mapping[str, Scale]] = tuned_scales(
        3, ("full-0.0001", "prefix-0.01", "r4-0.003", "r1-0.003"), tuple(tried({**METHODS, **RANKS})),
        tuned__length={"steps": 600})

    def recipe(self) -> dict[str, Any]:
        """Reviews, and 160 steps of 8."""
        return tuned_recipe("lora", 300, 160)

    def arms(self) -> dict[str, dict[str, Any]]:
        """Methods x learning rates, ranks at one of them, and other matrices."""
        return tried({**METHODS, **RANKS, **PLACES})

    def guards(self) -> tuple[Guard, ...]:
        """There is something to learn, and it is learned."""
        return learned("full-0.0001")

    def choices(self) -> tuple[Choice, ...]:
        """Each method at its better rate on dev."""
        return better(METHODS)

    def claims(self) -> tuple[Claim, ...]:
        """Against full tuning, both ways; against other small tunings; ranks; places."""
        return (
            more_right("full", "r4", "LoRA of rank 4 on queries and values tells more reviews than full tuning: as good is "
                       "expected, and better not", 0.03, paper="87.2 against 86.4"),
            fewer_right("full", "r4", "it tells fewer: not expected", 0.03, paper="on par or better", main=False),
            more_right("bitfit", "r4", "LoRA tells more than biases alone", main=False),
            more_right("prefix", "r4", "LoRA tells more than a prefix of 10", paper="above prefixes", main=False),
            more_right("adapter", "r4", "LoRA tells more than adapters of 16", paper="above adapters", main=False),
            fewer_right("r64-0.003", "r1-0.003", "rank 1 tells fewer than rank 64: not expected", 0.03,
                        paper="ranks of 1 to 4 are enough", main=False),
            fewer_right("r64-0.003", "r4-0.003", "rank 4 tells fewer than rank 64: not expected", 0.03, main=False),
            more_right("r4", "all-linear", "rank 4 on every linear layer tells more than on queries and values", main=False))

"""Ben Zaken et al. 2021: biases alone are about as good as all weights where data are few; any entries are not.

MiniLM learns the sentiment of 500 and of 100 invented reviews in 160 steps of 8, each way at the better of two rates on dev:
all weights, all biases, the biases of queries and of the first layer of the FFN, the head alone, and as many entries of the
encoder as there are biases, drawn uniformly. The last two are the controls that matter: what a head or any entries do as well
says nothing of biases. With 100 reviews the subset and the drawn entries are left out. A bit less than a point, which the paper
speaks of, can't be seen with 300 tested reviews.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from luthier.core.kinds import Study
from luthier.core.study import Choice, Claim, Guard, Paper, Scale
from luthier.studies._worlds._small_tunings import (
    FEW,
    FULL,
    HEAD,
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

MAIN: Methods = {"full": FULL, "bitfit": ("bitfit", FEW), "head": HEAD}
METHODS: Methods = {**MAIN, "query-mlp": ("bitfit:terms=[query, intermediate]", FEW),
                    "drawn": ("drawn-entries:like=bitfit", FEW)}


class BitFitStudy(Study, name="bitfit", seeds=[153], version=2):
    """Are biases alone as good as all weights, and better than a head or any entries?"""

    world: ClassVar[str] = WORLD
    paper: ClassVar[Paper] = Paper(
        "BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models",
        "Ben Zaken, Goldberg, Ravfogel 2021, arXiv 2106.10199",
        "On small to middling data biases alone, 0.08 % of the weights, are competitive with full fine-tuning; as many random "
        "entries are clearly worse, and on large data full fine-tuning is ahead.",
        "BERT-large on GLUE: within about a point of full fine-tuning; no decimals are remembered")
    scales: ClassVar[Mapping[str, Scale]] = tuned_scales(
        3, ("head-0.003", "bitfit-0.003", "drawn-0.003"),
        rows__train=2000, tuned__length={"steps": 600})

    def recipe(self) -> dict[str, Any]:
        """Reviews, and 160 steps of 8."""
        return tuned_recipe("bitfit", 500, 160)

    def arms(self) -> dict[str, dict[str, Any]]:
        """Methods x learning rates on 500 reviews, some on 100."""
        return {**tried(METHODS), **tried(MAIN, "-100", rows__train=100)}

    def guards(self) -> tuple[Guard, ...]:
        """There is something to learn, and it is learned."""
        return learned("full-0.0001")

    def choices(self) -> tuple[Choice, ...]:
        """Each method at its better rate on dev."""
        return (*better(METHODS), *better(MAIN, "-100"))

    def claims(self) -> tuple[Claim, ...]:
        """Against the head and against any entries; against all weights; half of the biases; fewer reviews."""
        return (
            more_right("head", "bitfit", "biases with a head tell more reviews than a head alone"),
            more_right("drawn", "bitfit", "biases tell more than as many drawn entries", paper="random subsets clearly worse"),
            fewer_right("full", "bitfit", "biases tell fewer than all weights: not expected", 0.03,
                        paper="within about a point", main=False),
            fewer_right("bitfit", "query-mlp", "less than half of the biases tell fewer than all: not expected", 0.03,
                        paper="nearly the same", main=False),
            fewer_right("full-100", "bitfit-100", "so biases do with 100 reviews: not expected", 0.03,
                        paper="competitive or better on small data", main=False),
            more_right("head-100", "bitfit-100", "with 100 reviews biases tell more than a head alone", main=False))

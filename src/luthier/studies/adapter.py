"""Houlsby et al. 2019: small adapters are nearly as good as full tuning, over two orders of size; the top layers alone are not.

MiniLM learns the sentiment of 300 invented reviews in 160 steps: with all weights, with the top layer or two, with the norms,
with adapters of 4, 16 and 64 in both sublayers, and with adapters of 16 after the FFN alone; always with a head. Each has two
learning rates and stands for itself at the one that is better on dev. The cost table has the trained weights beside the score.
A layer of MiniLM has three times the weights of all adapters of 64. GLUE and tasks other than sentiment are not tried.
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

TOP = (5e-4, 2e-3)
METHODS: Methods = {
    "full": FULL, "top1": ("layer-freezing:train_last=1", TOP), "top2": ("layer-freezing:train_last=2", TOP),
    "norms": ("layernorm", FEW), **{f"m{m}": (f"adapter:bottleneck={m}", FEW) for m in (4, 16, 64)},
    "pfeiffer": ("adapter:bottleneck=16,style=pfeiffer", FEW)}


class AdapterStudy(Study, name="adapter", seeds=[43]):
    """Are adapters near full tuning at any size, and better than the top layers?"""

    world: ClassVar[str] = WORLD
    paper: ClassVar[Paper] = Paper(
        "Parameter-Efficient Transfer Learning for NLP", "Houlsby et al. 2019, arXiv 1902.00751",
        "Adapters come within half a point of full fine-tuning with 3.6 % of the weights a task, and tuning the top layers "
        "needs many more for as much.",
        "BERT-large on GLUE: 80.0 (3.6 % of the weights) against 80.4 (full)")
    scales: ClassVar[Mapping[str, Scale]] = tuned_scales(3, ("top1-0.0005", "m16-0.003", "pfeiffer-0.003"),
                                                           tuned__length={"steps": 600})

    def recipe(self) -> dict[str, Any]:
        """Reviews, and 160 steps of 8."""
        return tuned_recipe("adapter", 300, 160)

    def arms(self) -> dict[str, dict[str, Any]]:
        """Methods x learning rates."""
        return tried(METHODS)

    def guards(self) -> tuple[Guard, ...]:
        """There is something to learn, and it is learned."""
        return learned("full-0.0001")

    def choices(self) -> tuple[Choice, ...]:
        """Each method at its better rate on dev."""
        return better(METHODS)

    def claims(self) -> tuple[Claim, ...]:
        """Against the top layers; against full tuning; the size; the norms; the place."""
        return (
            more_right("top1", "m64", "adapters of 64 tell more reviews than the top layer, with three times their weights",
                       paper="top layers drop where adapters are near-flat"),
            more_right("top2", "m64", "so they do against the top two layers", main=False),
            fewer_right("full", "m16", "adapters of 16 tell fewer than full tuning: not expected", 0.03,
                        paper="80.0 against 80.4", main=False),
            fewer_right("m64", "m4", "adapters of 4 tell fewer than adapters of 64: not expected", 0.03,
                        paper="near-flat", main=False),
            more_right("norms", "m16", "adapters of 16 tell more than the norms alone, which they train too", main=False),
            fewer_right("m16", "pfeiffer", "adapters after the FFN alone tell fewer than in both sublayers: not expected",
                        main=False))

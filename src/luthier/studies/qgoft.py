"""Ma et al. 2024: turning a layer's inputs by few angles does what larger orthogonal adapters do, and loosened it does more.

MiniLM learns the topic of sentences of Python's documentation from 300 of them in 60 steps, every linear layer adapted: LoRA of
rank 2, OFT in blocks of 8 (PEFT's), GOFT, and qGOFT with its penalty and without; full tuning beside them. LoRA and qGOFT train
the same number of weights, GOFT a quarter of that. All have the same steps, and each stands for itself at the better of two
rates on dev: 0.003 and 0.01, for full tuning 0.0001 and 0.0003. Weights and seconds a step stand in each run's log. The large
scale asks for the sentiment of reviews, and has BOFT of two such factors (PEFT's takes most of the time of all) and two more
penalties besides. Settings were written down before the first run. Version 2 asks the same of texts that no imported package
changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from luthier.core.kinds import Study
from luthier.core.study import Choice, Claim, Guard, Paper, Scale
from luthier.studies._worlds._sorting import RIGHT, at_rates, by_dev, smoke, sorting_recipe

STEPS, BLOCK = 60, 8
SMALL, WHOLE = (3e-3, 1e-2), (1e-4, 3e-4)
PENALTIES: Mapping[str, float] = {"qgoft": 1e-3, "qgoft-free": 0}
METHODS: Mapping[str, tuple[str, tuple[float, ...]]] = {
    "full": ("full", WHOLE), "lora": ("lora:rank=2,alpha=4", SMALL),
    "oft": (f"peft:type=OFT,oft_block_size={BLOCK}", SMALL),
    "goft": ("goft", SMALL), **{name: (f"qgoft:penalty={penalty:g}", SMALL) for name, penalty in PENALTIES.items()}}
MORE: Mapping[str, tuple[str, tuple[float, ...]]] = {
    **METHODS, "boft": (f"peft:type=BOFT,boft_block_size={BLOCK},boft_n_butterfly_factor=2", SMALL),
    **{f"qgoft-penalty-{penalty:g}": (f"qgoft:penalty={penalty:g}", SMALL) for penalty in (1e-4, 1e-2)}}


class QGoftStudy(Study, name="qgoft", seeds=[103], version=2):
    """Do rotations of few angles adapt as well as larger ones, and is it better to loosen them?"""

    world: ClassVar[str] = "real model (MiniLM) on Python's own documentation"
    paper: ClassVar[Paper] = Paper(
        "Parameter Efficient Quasi-Orthogonal Fine-Tuning via Givens Rotation",
        "Ma, Chu, Yang, Lin, Gao, Zhao 2024, arXiv 2404.04316",
        "Givens rotations do as well as OFT with an eighth of its weights, and quasi-Givens maps do better than both.",
        "DeBERTaV3-base, GLUE average: LoRA of rank 2 88.33 (0.33M weights), OFT in blocks of 8 88.78 (0.66M), GOFT 88.78 "
        "(0.08M), qGOFT 89.35 (0.33M)")
    scales: ClassVar[Mapping[str, Scale]] = {
        "smoke": smoke(2, ("oft-0.003", "goft-0.003", "qgoft-0.003")),
        "default": Scale(3, {"test": 240, "dev": 75}, arms=tuple(at_rates(METHODS))),
        "large": Scale(5, {"test": 400, "dev": 120}, {"texts.problem": "sentiment"}, about="on the sentiment of reviews"),
    }

    def recipe(self) -> dict[str, Any]:
        """Sentences to sort."""
        return sorting_recipe("qgoft", STEPS)

    def arms(self) -> dict[str, dict[str, Any]]:
        """Methods x rates."""
        return at_rates(MORE)

    def guards(self) -> tuple[Guard, ...]:
        """Topics are learned."""
        return (Guard("topics are learned: at least 0.5 right, where chance has 0.125", RIGHT, ("full-0.0003",), least=0.5),)

    def choices(self) -> tuple[Choice, ...]:
        """Each at its better rate on dev."""
        return by_dev(METHODS)

    def claims(self) -> tuple[Claim, ...]:
        """Loosened against strict and against as many weights of LoRA; what few angles cost; the penalty."""
        def told(name: str, says: str, left: str, right: str, **rest: Any) -> Claim:
            return Claim(name, says, left, right, RIGHT, rest.pop("direction", "higher"), 0.03, 0.35, 0.015, **rest)

        return (
            told("loosened", "qGOFT sorts more right than GOFT", "goft", "qgoft", paper="89.35 against 88.78"),
            told("than as much LoRA", "qGOFT sorts more right than LoRA of rank 2, which trains as many weights", "lora",
                 "qgoft", paper="89.35 against 88.33"),
            told("than LoRA", "GOFT sorts more right than LoRA of rank 2", "lora", "goft", paper="88.78 against 88.33",
                 main=False),
            told("few angles cost", "GOFT sorts fewer right than OFT in blocks of 8", "oft", "goft", direction="lower",
                 paper="88.78 both", main=False),
            told("the penalty", "qGOFT sorts more right with its penalty than without", "qgoft-free", "qgoft", main=False),
            told("as full tuning", "qGOFT sorts fewer right than full tuning", "full", "qgoft", direction="lower", main=False))

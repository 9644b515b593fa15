"""ValizadehAslani & Liang 2024: the norms alone, or a tenth of their entries, are about as good as all weights.

MiniLM learns the sentiment of 300 invented reviews, and of which of five topics of Python's help 300 sentences are, in 160
steps of 8: with all weights, biases, norms, a tenth of the norms' entries (of the largest Fisher information, or drawn)
and the head alone. Each has two rates and stands for itself at the one that is better on dev, task by task: at one rate for all
norms would look bad for the wrong reason. A tenth of the norms is chosen by a first half of the steps and trained in the other,
so it has half of the updates. Which component full tuning moves most is not asked here.
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

TOPIC = "-topic"
METHODS: Methods = {"full": FULL, "bitfit": ("bitfit", FEW), "norms": ("layernorm", FEW),
                    "fisher": ("layernorm:subset=0.1", FEW), "drawn": ("layernorm:subset=0.1,rank=random", FEW), "head": HEAD}


class LayerNormTuningStudy(Study, name="layernorm-tuning", seeds=[39]):
    """Are norms alone as good as all weights, and does it matter which of their entries move?"""

    world: ClassVar[str] = f"{WORLD} and on Python's own help"
    paper: ClassVar[Paper] = Paper(
        "LayerNorm: A key component in parameter-efficient fine-tuning", "ValizadehAslani & Liang 2024, arXiv 2403.20284",
        "Output LayerNorms move most in full fine-tuning; trained alone they are about as good, and so is a tenth to a fifth "
        "of their entries that Fisher information picks.",
        "BERT-large on GLUE: 0.03 % of the weights; no score is remembered")
    scales: ClassVar[Mapping[str, Scale]] = tuned_scales(
        2, ("norms-0.003", "fisher-0.003", "head-topic-0.003"), least=2, tuned__length={"steps": 600})

    def recipe(self) -> dict[str, Any]:
        """Reviews, and 160 steps of 8."""
        return tuned_recipe("layernorm-tuning", 300, 160)

    def arms(self) -> dict[str, dict[str, Any]]:
        """Methods x learning rates, on both tasks."""
        return {**tried(METHODS), **tried(METHODS, TOPIC, rows__use="labelled-help")}

    def guards(self) -> tuple[Guard, ...]:
        """There is something to learn, and it is learned."""
        return learned("full-0.0001", f"full{TOPIC}-0.0001")

    def choices(self) -> tuple[Choice, ...]:
        """Each method at its better rate on dev, on each task."""
        return (*better(METHODS), *better(METHODS, TOPIC))

    def claims(self) -> tuple[Claim, ...]:
        """On both tasks: norms against the head and against all weights, biases, and which entries."""
        return (*self._on("", "of the reviews", True), *self._on(TOPIC, "of the sentences", False))

    def _on(self, ending: str, what: str, main: bool) -> tuple[Claim, ...]:
        norms, fisher = f"norms{ending}", f"fisher{ending}"
        return (
            more_right(f"head{ending}", norms, f"norms with a head tell more {what} than a head alone", main=main),
            fewer_right(f"full{ending}", norms, f"norms tell fewer {what} than all weights: not expected", 0.03,
                        paper="about as good", main=False),
            fewer_right(f"bitfit{ending}", norms, f"norms tell fewer {what} than biases: not expected", 0.03, main=False),
            fewer_right(norms, fisher, f"a tenth of the norms tells fewer {what} than all of them: not expected", 0.03,
                        paper="nearly the same", main=False),
            more_right(f"drawn{ending}", fisher, f"a tenth chosen by Fisher information tells more {what} than a drawn one",
                       main=False))

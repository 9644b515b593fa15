"""Xia, Qin, Hazan 2024: a chain of small LoRAs, each on what the ones before have left, learns more than one of them.

MiniLM learns the topic of sentences of Python's documentation from 300 of them in 60 steps: full tuning, LoRA of rank 1 on
queries and values, chains of two and of three such links, LoRA whose rate begins anew as often as the chain's but without
knots, and LoRA of rank 3, which is what a stored chain of three takes. All have the same steps and the same cosine, and each
stands for itself at the better of two rates on dev. If LoRA of rank 1 is as good as full tuning there is nothing for a
chain to win: that there is room is a main claim of its own. That a chain fits what one link can't is shown on matrices by a
test of the method (Eckart-Young); here effective ranks of the changes are measured. The large scale asks for the sentiment
of reviews instead. Settings were written down before the first run. Version 2 asks the same of texts that no imported package
changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from luthier.core.kinds import Study
from luthier.core.study import Choice, Claim, Guard, Measure, Paper, Scale
from luthier.studies._worlds._sorting import RIGHT, at_rates, by_dev, smoke, sorting_recipe

STEPS, LINKS = 60, 3
RANK = Measure("effective_rank", "matrices", "spectrum")
SMALL, WHOLE = (3e-3, 1e-2), (1e-4, 3e-4)
RESTARTS = {"type": "CosineAnnealingWarmRestarts", "T_0": STEPS // LINKS}


METHODS: Mapping[str, tuple[str, tuple[float, ...]]] = {  # an update is scaled by 2, as in the paper, whatever its rank
    "lora": ("lora:rank=1,alpha=2,target=attention-qv", SMALL), "restarts": ("lora:rank=1,alpha=2,target=attention-qv", SMALL),
    "wide": ("lora:rank=3,alpha=6,target=attention-qv", SMALL), "chain-2": ("cola:rank=1,alpha=2,links=2", SMALL),
    "chain-3": (f"cola:rank=1,alpha=2,links={LINKS}", SMALL), "full": ("full", WHOLE)}


class ColaStudy(Study, name="cola", seeds=[26], version=2):
    """Does a chain learn more than one link at equal cost, and is it the chain or its restarts?"""

    world: ClassVar[str] = "real model (MiniLM) on Python's own documentation"
    paper: ClassVar[Paper] = Paper(
        "Chain of LoRA: Efficient Fine-tuning of Language Models via Residual Learning",
        "Xia, Qin, Hazan 2024, arXiv 2401.04151",
        "At equal cost a chain of two or three LoRAs is better than one LoRA, on seven tasks.",
        "OPT-1.3B: up to +6.47 % relative (WSC); Llama-2-7B: up to +4.4 % relative; rank 8, five seeds")
    scales: ClassVar[Mapping[str, Scale]] = {
        "smoke": smoke(3, ("lora-0.003", "chain-3-0.003"), {"matrices": 2}),
        "default": Scale(3, {"test": 240, "dev": 75, "matrices": 12}),
        "large": Scale(5, {"test": 400, "dev": 120, "matrices": 12}, {"texts.problem": "sentiment"},
                       about="on the sentiment of reviews"),
    }

    def recipe(self) -> dict[str, Any]:
        """Sentences to sort, and what the change looks like."""
        text = sorting_recipe("cola", STEPS)
        text["steps"]["tuned"]["schedule"] = "cosine:warmup=0"
        text["steps"]["spectrum"] = {"use": "audit", "audit": "spectrum:modules=[query, value]",
                                     "inputs": {"base": "base", "tuned": "tuned"}}
        return text

    def arms(self) -> dict[str, dict[str, Any]]:
        """Methods x rates."""
        made = at_rates(METHODS)
        for name, edits in made.items():
            if name.startswith("restarts"):
                edits["tuned.schedule"] = {"use": "torch", **RESTARTS}
        return made

    def guards(self) -> tuple[Guard, ...]:
        """Topics are learned."""
        return (Guard("topics are learned: at least 0.5 right, where chance has 0.125", RIGHT, ("full-0.0003",), least=0.5),)

    def choices(self) -> tuple[Choice, ...]:
        """Each at its better rate on dev."""
        return by_dev(METHODS)

    def claims(self) -> tuple[Claim, ...]:
        """The chain against one link, against restarts alone and against its own size; room; ranks."""
        def above(name: str, says: str, left: str, right: str, **rest: Any) -> Claim:
            return Claim(name, says, left, right, RIGHT, "higher", 0.03, 0.35, 0.015, **rest)

        return (
            above("room", "full tuning sorts more right than LoRA of rank 1: there is something to win", "lora", "full"),
            above("the chain", "a chain of three sorts more right than one LoRA of its rank", "lora", "chain-3",
                  paper="better on seven tasks"),
            above("than restarts", "so it does against LoRA whose rate begins anew as often", "restarts", "chain-3",
                  main=False),
            above("two links", "a chain of two sorts more right than one LoRA", "lora", "chain-2", main=False),
            above("as much memory", "LoRA of rank 3 sorts more right than one of rank 1", "lora", "wide", main=False),
            above("than its own size", "a chain of three sorts more right than LoRA of rank 3", "wide", "chain-3", main=False),
            Claim("more directions", "the change of a chain of three has a higher effective rank than one LoRA's", "lora",
                  "chain-3", RANK, "higher", 0.2, 0.5, 0.1, main=False))

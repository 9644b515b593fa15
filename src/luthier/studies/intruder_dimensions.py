"""Shuttleworth et al. 2024: LoRA writes new leading singular vectors into the weights, and what was forgotten sits in them.

A tiny Llama that knows an invented world reads arithmetic traces in words of that world. Full fine-tuning and LoRA of rank 1,
16 and 64 (the last with rank-stabilised scaling) have two learning rates each; LoRA stands for itself at the rate whose loss
on dev is nearest to that of full fine-tuning at its best. Intruders are counted in every changed matrix. Of LoRA of rank 1 at
one rate the intruders, or as many of the other leading directions (control), are then taken out. Bits per byte of the old
domain are what was forgotten. Version 2 asks the same; the step that takes directions out is that of `luthier merge`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

from luthier.core.kinds import Study
from luthier.core.study import Choice, Claim, Guard, Measure, Paper, Scale, without

INTRUDERS = Measure("intruders", "matrices", "spectra")
TARGET, SOURCE, DEV = (Measure("bits-per-byte", on) for on in ("target", "source", "dev"))
METHODS: Mapping[str, tuple[str, tuple[float, ...]]] = {
    "full": ("full", (3e-4, 1e-3)),
    "lora1": ("lora:rank=1,alpha=2", (3e-3, 1e-2)),
    "lora16": ("lora:rank=16,alpha=32", (1e-3, 3e-3)),
    "rslora64": ("lora:rank=64,alpha=16,rslora=true", (1e-3, 3e-3)),
}
RESCALED = "lora1-0.01"


class IntruderStudy(Study, name="intruder-dimensions", seeds=[96], version=2):
    """Does LoRA leave intruders where full fine-tuning leaves none, and do they hold what was forgotten?"""

    paper: ClassVar[Paper] = Paper(
        "LoRA vs Full Fine-tuning: An Illusion of Equivalence", "Shuttleworth et al. 2024, arXiv 2410.21228",
        "At equal accuracy LoRA of low rank has many intruder dimensions and full fine-tuning none; scaling them down brings "
        "back what was forgotten at little cost of the task.",
        "no number is remembered; RoBERTa and Llama-2-7B, ranks 1 to 768")
    scales: ClassVar[Mapping[str, Scale]] = {
        "smoke": Scale(1, {"target": 4, "source": 4, "dev": 2, "matrices": 7}, {
            "facts.persons": 12, "facts.values": 2, "base.width": 16, "base.layers": 1, "base.epochs": 1, "rows.train_rows": 8,
            "rows.dev_rows": 2, "rows.test_rows": 4, "rows.lines": 2, "rows.numbers": 4, "tuned.length": {"steps": 1},
            "spectra.audit.k": 2, "ruled.rule.k": 2},
            arms=("full-0.001", "lora1-0.01", "control"), about="every line, no evidence"),
        "default": Scale(3, {"target": 120, "source": 120, "dev": 30, "matrices": 28}),
        "large": Scale(5, {"target": 300, "source": 300, "dev": 60, "matrices": 28}, {
            "facts.persons": 500, "base.width": 192, "rows.train_rows": 2000, "rows.dev_rows": 60, "rows.test_rows": 300}),
    }

    def recipe(self) -> dict[str, Any]:
        """A base that knows facts reads traces; its spectra, and both domains, are looked at in the end."""
        return {"name": "intruder-dimensions", "seed": 0, "steps": {
            "facts": {"use": "facts-world"},
            "base": {"use": "pretrained", "inputs": {"examples": "facts"}},
            "rows": {"use": "two-domains", "inputs": {"facts": "facts"}},
            "tuned": {"use": "fit", "tasks": [{"data": "examples.train", "objective": "pretrain"}], "method": "full",
                      "length": {"epochs": 2}, "dtype": "float32", "inputs": {"base": "base", "examples": "rows"}},
            "spectra": {"use": "audit", "audit": "intruder-dimensions", "inputs": {"base": "base", "tuned": "tuned"}},
            "score": {"use": "evaluate", "arm": "tuned", "sets": ["target", "source", "dev"], "metrics": ["bits-per-byte"],
                      "inputs": {"base": "base", "tuned": "tuned", "examples": "rows"}},
        }}

    def arms(self) -> dict[str, dict[str, Any]]:
        """The base, methods x learning rates, and one of them with directions taken out."""
        tuned = {f"{name}-{rate:g}": {"tuned.method": method, "tuned.learning_rate": rate}
                 for name, (method, rates) in METHODS.items() for rate in rates}
        return {"base": without(without(self.recipe(), "tuned"), "spectra"), **tuned,
                "no-intruders": self._ruled("intruders"), "control": self._ruled("control")}

    def _ruled(self, choose: str) -> dict[str, Any]:
        """LoRA of rank 1 with some of its leading directions taken out."""
        text = without(copy.deepcopy(self.recipe()), "spectra", tuned__method=METHODS["lora1"][0], tuned__learning_rate=1e-2)
        score = text["steps"].pop("score")
        text["steps"]["ruled"] = {"use": "merge", "rule": {"use": "rescale-intruders", "factor": 0.0, "choose": choose},
                                  "inputs": {"base": "base", "tuned": "tuned"}}
        text["steps"]["score"] = {**score, "inputs": {"base": "ruled", "examples": "rows"}}
        return text

    def guards(self) -> tuple[Guard, ...]:
        """The old domain is known, the new one is learned by both, and tuning has cost something of the old."""
        return (Guard("the base knows the source: at most 0.8 bits a byte", SOURCE, ("base",), most=0.8),
                Guard("the target is learned: at most 0.6 bits a byte", TARGET, ("full-0.001", RESCALED), most=0.6),
                Guard("there is something to bring back: at least 0.8 bits a byte of the source", SOURCE, (RESCALED,),
                      least=0.8))

    def choices(self) -> tuple[Choice, ...]:
        """Full fine-tuning at its best rate on dev, and LoRA where it has learned about as much."""
        def arms(name: str) -> tuple[str, ...]:
            return tuple(f"{name}-{rate:g}" for rate in METHODS[name][1])

        return (Choice("full", arms("full"), DEV, "lowest"),
                *(Choice(name, arms(name), DEV, near="full") for name in METHODS if name != "full"))

    def claims(self) -> tuple[Claim, ...]:
        """Intruders by method and rank; what is lost and what comes back without them."""
        return (
            Claim("intruders", "LoRA of rank 1 has more intruders in a matrix than full fine-tuning", "full", "lora1",
                  INTRUDERS, "higher", 1.0, 1.0, 0.2, paper="many against none"),
            Claim("they hold what was forgotten", "without the intruders the old domain needs fewer bits than without as many "
                  "other leading directions", "control", "no-intruders", SOURCE, "lower", 0.2, 0.5, 0.05,
                  paper="scaling intruders down restores the pretraining loss"),
            Claim("brought back", "without the intruders the old domain needs fewer bits than with them", RESCALED,
                  "no-intruders", SOURCE, "lower", 0.2, 0.5, 0.05, paper="pretraining loss falls", main=False),
            Claim("rank 16", "rank 16 has fewer intruders in a matrix than rank 1", "lora1", "lora16", INTRUDERS, "lower", 1.0,
                  1.0, 0.2, main=False),
            Claim("rank-stabilised", "rank 64 with rank-stabilised scaling has fewer intruders in a matrix than rank 1",
                  "lora1", "rslora64", INTRUDERS, "lower", 1.0, 1.0, 0.2, paper="behaves like full fine-tuning", main=False))

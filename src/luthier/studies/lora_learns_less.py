"""Biderman et al. 2024: LoRA learns less of a new domain than full fine-tuning, and forgets less of the old one.

A tiny Llama that knows an invented world reads arithmetic traces in words of that world. Full fine-tuning and LoRA of two
ranks on all linear layers each have three or four learning rates, up to where a higher one learns no more, and stand for
themselves at the rate that is best on dev. Full fine-tuning moves embeddings and norms, too. Learning is bits per byte of
other traces, forgetting bits per byte of statements that the model was pretrained on; lower is better in both. A last claim
compares forgetting at equal learning: the full fine-tuning whose target loss is nearest to LoRA's best.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from luthier.core.kinds import Study
from luthier.core.study import Choice, Claim, Guard, Measure, Paper, Scale, without

TARGET, SOURCE, DEV = (Measure("bits-per-byte", on) for on in ("target", "source", "dev"))
METHODS: Mapping[str, tuple[str, tuple[float, ...]]] = {
    "full": ("full", (3e-4, 1e-3, 3e-3, 1e-2)),
    "lora4": ("lora:rank=4,alpha=8", (3e-3, 1e-2, 3e-2)),
    "lora32": ("lora:rank=32,alpha=64", (1e-3, 3e-3, 1e-2)),
}


def _arms(method: str) -> tuple[str, ...]:
    return tuple(f"{method}-{rate:g}" for rate in METHODS[method][1])


class LoraLearnsLess(Study, name="lora-learns-less", seeds=[171], version=3):
    """Does LoRA learn less and forget less than full fine-tuning?"""

    paper: ClassVar[Paper] = Paper(
        "LoRA Learns Less and Forgets Less", "Biderman et al. 2024, arXiv 2405.09673",
        "At its best learning rate LoRA learns less of the target domain than full fine-tuning and forgets less of the source.",
        "Llama-2-7B, code, continued pretraining: HumanEval 0.263 (full) against 0.175 to 0.224 (LoRA), as remembered")
    scales: ClassVar[Mapping[str, Scale]] = {
        "smoke": Scale(1, {"target": 6, "source": 6, "dev": 2}, {
            "facts.persons": 12, "facts.values": 2, "base.width": 32, "base.layers": 1, "base.epochs": 1, "rows.train_rows": 8,
            "rows.dev_rows": 2, "rows.test_rows": 6, "rows.lines": 2, "rows.numbers": 4, "tuned.length": {"steps": 1}},
            arms=("base", "full-0.001", "lora4-0.01"), about="every line, no evidence"),
        "default": Scale(3, {"target": 120, "source": 120, "dev": 30}),
        "large": Scale(5, {"target": 300, "source": 300, "dev": 60}, {
            "facts.persons": 500, "base.width": 192, "rows.train_rows": 2000, "rows.dev_rows": 60, "rows.test_rows": 300}),
    }

    def recipe(self) -> dict[str, Any]:
        """A base that knows facts reads traces; both domains are read in the end."""
        return {"name": "lora-learns-less", "seed": 0, "steps": {
            "facts": {"use": "facts-world"},
            "base": {"use": "pretrained", "inputs": {"examples": "facts"}},
            "rows": {"use": "two-domains", "inputs": {"facts": "facts"}},
            "tuned": {"use": "fit", "tasks": [{"data": "examples.train", "objective": "pretrain"}], "method": "full",
                      "length": {"epochs": 2}, "dtype": "float32", "inputs": {"base": "base", "examples": "rows"}},
            "score": {"use": "evaluate", "arm": "tuned", "sets": ["target", "source", "dev"], "metrics": ["bits-per-byte"],
                      "inputs": {"base": "base", "tuned": "tuned", "examples": "rows"}},
        }}

    def arms(self) -> dict[str, dict[str, Any]]:
        """Methods x learning rates, and the base."""
        tuned = {f"{name}-{rate:g}": {"tuned.method": method, "tuned.learning_rate": rate}
                 for name, (method, rates) in METHODS.items() for rate in rates}
        return {"base": without(self.recipe(), "tuned"), **tuned}

    def guards(self) -> tuple[Guard, ...]:
        """The domains are what they are said to be: the old one is known, the new one is not, and can be learned."""
        return (Guard("the base knows the source: at most 0.8 bits a byte", SOURCE, ("base",), most=0.8),
                Guard("the target is new to the base: at least 1.2 bits a byte", TARGET, ("base",), least=1.2),
                Guard("full fine-tuning learns it: at most 0.6 bits a byte", TARGET, ("full-0.001",), most=0.6))

    def choices(self) -> tuple[Choice, ...]:
        """Each method at its best rate on dev, and full fine-tuning where it has learned as much as LoRA."""
        best = tuple(Choice(name, _arms(name), DEV, "lowest") for name in METHODS)
        return (*best, Choice("full at the loss of lora4", _arms("full"), TARGET, near="lora4"))

    def claims(self) -> tuple[Claim, ...]:
        """Learns less, forgets less; the larger rank; forgetting at equal loss."""
        return (
            Claim("learns less", "LoRA of rank 4 needs more bits for the target than full fine-tuning", "full", "lora4", TARGET,
                  "higher", 0.05, 0.05, 0.015, paper="HumanEval 0.263 against 0.175 to 0.224"),
            Claim("forgets less", "LoRA of rank 4 needs fewer bits for the source than full fine-tuning", "full", "lora4",
                  SOURCE, "lower", 0.1, 0.35, 0.03, paper="source accuracy falls less under LoRA"),
            Claim("rank", "rank 32 learns more of the target than rank 4", "lora4", "lora32", TARGET, "lower", 0.05, 0.05,
                  0.015, main=False),
            Claim("forgets less at equal loss", "LoRA forgets less than full fine-tuning that has learned about as much",
                  "full at the loss of lora4", "lora4", SOURCE, "lower", 0.1, 0.35, 0.03, main=False))

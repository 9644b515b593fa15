"""Uppaal et al. 2023: distances in a frozen encoder tell other domains apart, and long tuning makes that worse.

MiniLM, itself tuned for similarity and so no plain language model, sorts invented reviews of hotels by what they are about
for 1 or 8 epochs. Its training rows are the bank; strange are reviews of meals, films and tools (`far`), or of a held-
out class of hotel reviews (`near`). Scores are Mahalanobis distances, the nearest neighbour, and the softmax of the tuned
classifier. The rate of false positives counts strange texts that are let through where 95 % of the own are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from luthier.core.kinds import Study
from luthier.core.study import Claim, Found, Guard, Measure, Paper, Scale, without

ALL = "audit/ood"
LET_IN, TOLD = Found("fpr", ALL, "far"), Found("auroc", ALL, "far")


def _look(rows: str, score: str) -> dict[str, Any]:
    return {"use": "audit", "audit": {"use": "ood", "score": score, "max_tokens": 64},
            "inputs": {"base": "base", "tuned": "tuned", "examples": rows}}


class PretrainedOod(Study, name="pretrained-ood", seeds=[151]):
    """Is a frozen encoder enough to find texts of other domains?"""

    world: ClassVar[str] = "real model (MiniLM) on invented reviews"
    paper: ClassVar[Paper] = Paper(
        "Is Fine-tuning Needed? Pre-trained Language Models Are Near Perfect for Out-of-Domain Detection",
        "Uppaal, Hu & Li 2023, arXiv 2305.13282",
        "Distances in a frozen encoder tell other domains apart almost perfectly; long tuning makes it worse, and helps only "
        "where the shift is one of meaning within a domain.",
        "frozen RoBERTa: AUROC 1.0 and FPR95 0 on many of eight pairs")
    scales: ClassVar[Mapping[str, Scale]] = {
        "smoke": Scale(1, {"test": 3}, {
            "base.model": "pico-encoder", "rows.train_rows": 6, "rows.test_rows": 3, "near-rows.train_rows": 6,
            "near-rows.test_rows": 3, "tuned.length": {"steps": 1}, "tuned.max_tokens_per_example": 16},
            arms=("frozen", "tuned-1", "tuned-8"), about="every line, no evidence"),
        "default": Scale(4, {"test": 150}),
        "large": Scale(8, {"test": 600}, {"rows.train_rows": 1500, "rows.test_rows": 600, "near-rows.train_rows": 1500,
                                          "near-rows.test_rows": 600}),
    }

    def recipe(self) -> dict[str, Any]:
        """Reviews, a classifier of them, and what it takes for its own."""
        return {"name": "pretrained-ood", "seed": 0, "steps": {
            "base": {"use": "base", "model": "minilm"},
            "rows": {"use": "strange-opinions"},
            "near-rows": {"use": "strange-opinions", "strange": "class"},
            "tuned": {"use": "fit", "tasks": [{"data": "examples.train", "objective": "classify", "head": "linear"}],
                      "method": "full", "learning_rate": 1e-4, "schedule": "constant", "length": {"epochs": 8},
                      "batch_rows": 16, "over_long": "truncate", "max_tokens_per_example": 64,
                      "inputs": {"base": "base", "examples": "rows"}},
            "score": {"use": "evaluate", "arm": "tuned", "sets": ["test"], "metrics": ["accuracy"],
                      "inputs": {"base": "base", "tuned": "tuned", "examples": "rows"}},
            "far": _look("rows", "maha"), "near": _look("near-rows", "maha"), "far-knn": _look("rows", "knn"),
            "softmax": _look("rows", "msp"),
        }}

    def arms(self) -> dict[str, dict[str, Any]]:
        """The frozen encoder, and 1 and 8 epochs of tuning."""
        frozen, short = self.recipe(), without(self.recipe(), "score", tuned__length={"epochs": 1})
        for step in ("tuned", "score", "softmax"):
            frozen = without(frozen, step)
        for step in ("near", "near-rows", "far-knn", "softmax"):
            short = without(short, step)
        return {"frozen": frozen, "tuned-1": short, "tuned-8": {}}

    def guards(self) -> tuple[Guard, ...]:
        """The classes are learned."""
        return (Guard("the classes are learned: at least 0.9 right", Measure("accuracy"), ("tuned-8",), least=0.9),)

    def claims(self) -> tuple[Claim, ...]:
        """Frozen against long tuning and against the softmax; the held-out class; nearest neighbours."""
        return (
            Claim("long tuning harms", "after 8 epochs more texts of other domains are let in than by the frozen encoder",
                  "frozen", "tuned-8", LET_IN, "higher", 0.05, 0.0, 0.02, paper="FPR95 0 before tuning"),
            Claim("distance beats softmax", "the frozen encoder's distances tell other domains apart better than the softmax "
                  "of the tuned model", "tuned-8", "frozen", TOLD, "higher", 0.02, 0.0, 0.009,
                  left_measure=Found("auroc", ALL, "softmax"), paper="AUROC 1.0"),
            Claim("longer is worse", "after 8 epochs more texts of other domains are let in than after 1", "tuned-1",
                  "tuned-8", LET_IN, "higher", 0.05, 0.0, 0.02, main=False),
            Claim("neighbours", "the same by the nearest neighbour: after 8 epochs more are let in", "frozen", "tuned-8",
                  Found("fpr", ALL, "far-knn"), "higher", 0.05, 0.0, 0.02, main=False),
            Claim("within a domain", "a held-out class is told apart better after 8 epochs than by the frozen encoder",
                  "frozen", "tuned-8", Found("auroc", ALL, "near"), "higher", 0.05, 0.0, 0.02,
                  paper="tuning helps where meanings shift", main=False))

"""Shi et al. 2023: of a code encoder the lower layers may stay as they are; tuning changes mostly the top ones.

MiniLM with 6 layers learns to find functions of Python's own library by the first sentence of their docstrings, with nothing
frozen (K = -1), the embeddings, and the embeddings with 2, 4 or 5 layers; and to tell whether two programs are one function
under other names. Functions are ranked among all tested ones. After full tuning, similarities of tested texts are compared
layer by layer, and token tags and complexity are read off every layer. MiniLM was made for sentences, not for code. Steps to
a best score and seconds a step are not claimed here: the benchmark of training speed has the time of top layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from luthier.core.kinds import Study
from luthier.core.study import Claim, Found, Guard, Measure, Paper, Scale, without

FROZEN = (-1, 0, 2, 4, 5)
MRR, SAME = Measure("mrr"), Measure("accuracy")


def _layer(number: int) -> Found:
    return Found(f"layers.{number}", "audit/rsa", "changed")


class TellyStudy(Study, name="telly", seeds=[52]):
    """How many of the lowest layers may be frozen, and which layers does tuning change?"""

    world: ClassVar[str] = "real model (MiniLM) on Python's own library"
    paper: ClassVar[Paper] = Paper(
        "Towards Efficient Fine-tuning of Pre-trained Code Models: An Experimental Study and Beyond",
        "Shi et al. 2023, arXiv 2304.05216",
        "Tuning changes the top two layers mostly, and with the bottom layers frozen code search stays as good at a "
        "fraction of the trained weights and of the time.",
        "code search in Python, MRR: full .720; 6 of 12 layers frozen .727; 9 .718; 11 .690")
    scales: ClassVar[Mapping[str, Scale]] = {
        "smoke": Scale(1, {"test": 4}, {
            "base.model": "pico-encoder", "functions.train": 4, "functions.test": 4, "tuned.length": {"steps": 1},
            "score.max_tokens": 16},
            arms=("search--1", "search-0"), about="every line, no evidence"),
        "default": Scale(2, {"test": 160}),
        "large": Scale(5, {"test": 200}, {"functions.train": 600, "functions.test": 200}),
    }

    def recipe(self) -> dict[str, Any]:
        """Functions, an encoder that learns to find them, and their ranks; what became of each layer."""
        return {"name": "telly", "seed": 0, "steps": {
            "base": {"use": "base", "model": "minilm"},
            "functions": {"use": "code-search"},
            "tuned": {"use": "fit", "tasks": [{"data": "examples.train", "objective": "weighted-contrastive:max_tokens=128"}],
                      "method": "full", "learning_rate": 5e-5, "schedule": "linear:warmup=0.1", "batch_rows": 32,
                      "length": {"epochs": 2}, "max_tokens_per_example": 128, "dtype": "float32",
                      "inputs": {"base": "base", "examples": "functions"}},
            "score": {"use": "code-ranks", "inputs": {"base": "base", "tuned": "tuned", "examples": "functions"}},
        }}

    def arms(self) -> dict[str, dict[str, Any]]:
        """The encoder as it is, and both problems with the lowest layers frozen; the layers are looked at where none is."""
        search = {f"search-{k}": {"tuned.method": f"full:freeze_bottom={k}"} for k in FROZEN}
        text = self.recipe()
        inputs = {"base": "base", "tuned": "tuned", "examples": "functions"}
        for name, audit in (("changed", "rsa:max_tokens=128"), ("tags", "probe:max_tokens=128"),
                            ("complexity", "probe:task=structure,max_tokens=128")):
            text["steps"][name] = {"use": "audit", "audit": audit, "inputs": inputs}
        return {"base": without(self.recipe(), "tuned"), **search, "looked-at": text,
                **{f"clones-{k}": self._clones(k) for k in FROZEN}}

    def _clones(self, count: int) -> dict[str, Any]:
        text = self.recipe()
        steps = text["steps"]
        steps["functions"] |= {"problem": "clones"}
        steps["tuned"] |= {"tasks": [{"data": "examples.train", "objective": "classify", "head": "linear"}],
                           "method": f"full:freeze_bottom={count}", "over_long": "truncate", "batch_rows": 16,
                           "length": {"epochs": 3}, "max_tokens_per_example": 192}
        steps["score"] = {"use": "evaluate", "arm": "tuned", "sets": ["test"], "metrics": ["accuracy"],
                          "inputs": steps["score"]["inputs"]}
        return text

    def guards(self) -> tuple[Guard, ...]:
        """Something is learned of both."""
        return (Guard("functions are found: an MRR of at least 0.4", MRR, ("search--1",), least=0.4),
                Guard("clones are told apart: at least 0.6 right", SAME, ("clones--1",), least=0.6))

    def claims(self) -> tuple[Claim, ...]:
        """The top changes most; half the layers cost nothing, nearly all of them do; tuning pays at all."""
        return (
            Claim("the top changes", "after tuning similarities in layer 6 are less like those before than in layer 2",
                  "looked-at", "looked-at", _layer(6), "lower", 0.02, 0.0, 0.02, left_measure=_layer(2),
                  paper="the top two layers change most"),
            Claim("five frozen cost", "with 5 of 6 layers frozen functions are found less well", "search--1", "search-5", MRR,
                  "lower", 0.02, 0.2, 0.01, paper=".720 to .690 with 11 of 12"),
            Claim("two frozen cost", "with 2 of 6 layers frozen functions are found less well: not expected", "search--1",
                  "search-2", MRR, "lower", 0.02, 0.2, 0.01, paper=".720 and .727 with 6 of 12", main=False),
            Claim("embeddings frozen cost", "with frozen embeddings functions are found less well: not expected", "search--1",
                  "search-0", MRR, "lower", 0.02, 0.2, 0.01, main=False),
            Claim("four frozen cost", "with 4 of 6 layers frozen functions are found less well", "search--1", "search-4", MRR,
                  "lower", 0.02, 0.2, 0.01, main=False),
            Claim("tuning pays", "full tuning finds functions better than the encoder as it is", "base", "search--1", MRR,
                  "higher", 0.02, 0.25, 0.01, main=False),
            Claim("clones, two frozen", "with 2 of 6 layers frozen clones are told less well: not expected", "clones--1",
                  "clones-2", SAME, "lower", 0.02, 0.3, 0.02, main=False),
            Claim("clones, five frozen", "with 5 of 6 layers frozen clones are told less well", "clones--1", "clones-5", SAME,
                  "lower", 0.02, 0.4, 0.02, main=False))

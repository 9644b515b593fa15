"""Tunstall et al. 2022: pairs of a few labelled texts tune a sentence encoder better than the labels themselves.

MiniLM on invented reviews, with 4, 8 and 16 labelled ones of each label drawn anew for each seed: SetFit with 20 pairs of each
kind a text, the frozen encoder with logistic regression, end-to-end tuning with a linear head for as many texts read as SetFit
reads, and words counted; at 8 shots also SetFit with 20 pairs a label. Told is the sentiment; at 8 shots also what is reviewed,
which words alone give away, by all but end-to-end tuning. The encoder has read much about sentiment before: what is gained
here is what it gains on top of that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from luthier.core.kinds import Study
from luthier.core.study import Claim, Guard, Measure, Paper, Scale

ACCURACY = Measure("accuracy", "test")
SHOTS = (4, 8, 16)
ROUNDS = 20


class SetFitStudy(Study, name="setfit", seeds=[208]):
    """Do pairs of few texts teach more than their labels?"""

    world: ClassVar[str] = "real model (MiniLM) on invented reviews"
    paper: ClassVar[Paper] = Paper(
        "Efficient Few-Shot Learning Without Prompts", "Tunstall et al. 2022, arXiv 2209.11055",
        "With 8 labelled texts of each label SetFit is far above end-to-end fine-tuning, with less spread.",
        "8 shots: SetFit (MPNet) 62.3, fine-tuned RoBERTa-large 43.0 on average; 64 shots: 71.3 and 71.8, as remembered")
    scales: ClassVar[Mapping[str, Scale]] = {
        "smoke": Scale(1, {"test": 4}, {
            "reviews.rows": 12, "shots.tests": 4, "base.model": "pico-encoder", "pairs.steps": ["text-pairs:rounds=1"],
            "encoder.length": {"steps": 1}}, arms=("setfit-8", "frozen-8", "words-8"), about="every line, no evidence"),
        "default": Scale(4, {"test": 300}),
        "large": Scale(10, {"test": 1000}, {"reviews.rows": 1500, "shots.tests": 1000}),
    }

    def recipe(self) -> dict[str, Any]:
        """Few reviews, pairs of them, a tuned encoder, a head."""
        return {"name": "setfit", "seed": 0, "steps": {
            "base": {"use": "base", "model": "minilm"},
            "reviews": {"use": "opinions", "rows": 150},
            "shots": {"use": "few-shots", "shots": 8, "tests": 300, "inputs": {"examples": "reviews"}},
            "pairs": {"use": "curate", "steps": [f"text-pairs:rounds={ROUNDS}"], "inputs": {"rows": "shots"}},
            "encoder": {"use": "fit", "tasks": [{"data": "pairs.train", "objective": "cosine-similarity:max_tokens=64"}],
                        "method": "full", "length": {"epochs": 1}, "learning_rate": 2e-5, "batch_rows": 16,
                        "micro_tokens": 4096,
                        "schedule": "linear:warmup=0.1", "dtype": "float32", "max_tokens_per_example": 64,
                        "inputs": {"base": "base", "pairs": "pairs"}},
            "tuned": {"use": "fit-head", "max_tokens": 64, "inputs": {"base": "base", "tuned": "encoder", "examples": "shots"}},
            "score": {"use": "evaluate", "arm": "tuned", "sets": ["test"], "metrics": ["accuracy"],
                      "inputs": {"base": "base", "tuned": "tuned", "examples": "shots"}},
        }}

    def arms(self) -> dict[str, dict[str, Any]]:
        """Methods at each number of shots, and at 8 on what is reviewed."""
        found: dict[str, dict[str, Any]] = {}
        for shots, label, name in (*((n, "sentiment", str(n)) for n in SHOTS), (8, "domain", "8-topic")):
            here = {"shots": shots, "label": label}
            found |= {f"setfit-{name}": self._with(here), f"frozen-{name}": self._frozen(here),
                      f"words-{name}": self._words(here)}
            if label == "sentiment":
                found[f"end-to-end-{name}"] = self._end_to_end(here)
        return found | {"per-class-8": self._with({"shots": 8, "label": "sentiment"}, pairs="text-pairs:by=per-class")}

    def _with(self, shots: dict[str, Any], pairs: str = "") -> dict[str, Any]:
        recipe = self.recipe()
        recipe["steps"]["shots"] |= shots
        if pairs:
            recipe["steps"]["pairs"]["steps"] = [pairs]
        return recipe

    def _frozen(self, shots: dict[str, Any]) -> dict[str, Any]:
        """No pairs: logistic regression on what the encoder says as it is."""
        recipe = self._with(shots)
        del recipe["steps"]["pairs"], recipe["steps"]["encoder"], recipe["steps"]["tuned"]["inputs"]["tuned"]
        return recipe

    def _end_to_end(self, shots: dict[str, Any]) -> dict[str, Any]:
        """The labels themselves, for as many texts read: 2 R pairs of 2 texts a text."""
        recipe = self._with(shots)
        steps = recipe["steps"]
        del steps["pairs"], steps["tuned"]
        steps["tuned"] = steps.pop("encoder") | {
            "tasks": [{"data": "examples.train", "objective": "classify", "head": "linear"}], "length": {"epochs": 4 * ROUNDS},
            "over_long": "truncate", "inputs": {"base": "base", "examples": "shots"}}
        return recipe

    def _words(self, shots: dict[str, Any]) -> dict[str, Any]:
        """No model."""
        recipe = self._with(shots)
        steps = recipe["steps"]
        return {**recipe, "steps": {"reviews": steps["reviews"], "shots": steps["shots"],
                                    "score": {"use": "bag-of-words", "inputs": {"examples": "shots"}}}}

    def guards(self) -> tuple[Guard, ...]:
        """There is something to learn, and it is not learned by words alone."""
        return (Guard("words alone do not tell: at most 0.9 of accuracy", ACCURACY, ("words-8",), most=0.9),
                Guard("SetFit learns: at least 0.6 of accuracy", ACCURACY, ("setfit-16",), least=0.6))

    def claims(self) -> tuple[Claim, ...]:
        """Pairs against labels, against nothing, and the paper's wording against its code."""
        def above(left: str, right: str, says: str, smallest: float = 0.05, **rest: Any) -> Claim:
            return Claim(f"{right} above {left}", says, left, right, ACCURACY, "higher", smallest, 0.6, 0.03, **rest)

        return (above("end-to-end-8", "setfit-8", "pairs teach more than labels, at as many texts read",
                      paper="62.3 against 43.0"),
                above("end-to-end-4", "setfit-4", "so with 4 of each", main=False),
                above("end-to-end-16", "setfit-16", "so with 16 of each", main=False),
                above("frozen-8", "setfit-8", "tuning helps on sentiment", paper="the encoder is tuned first", main=False),
                above("frozen-8-topic", "setfit-8-topic", "tuning helps little on topics", main=False),
                above("per-class-8", "setfit-8", "what the paper ran teaches more than what it says", main=False),
                above("words-8", "setfit-8", "an encoder tells more than words", main=False))

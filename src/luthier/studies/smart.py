"""Jiang et al. 2019: smoothness against moves of the embeddings, and small steps between models, help on few rows.

MiniLM learns sentiment of invented reviews from 200 of them for 3 epochs: plainly, with random moves of the embeddings, with
the worst ones, with small steps alone, with both (SMART), and plainly for four times as many epochs, which costs about what
SMART costs and ends early on dev. SMART's radius is the better of two on dev. A restart is the unit, six of each arm paired
by number. `wobble` is a divergence under ten steps uphill, `kept` what a probe still reads of another task. The paper's own
radius, 1e-5, is an arm, to show that it does nothing here. Nothing was settled by a trial.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from luthier.core.kinds import Study
from luthier.core.study import Choice, Claim, Guard, Measure, Paper, Scale

ACCURACY, DEV, WOBBLE, KEPT = (Measure(name, "restarts") for name in ("accuracy", "dev", "wobble", "kept"))
PARTS: Mapping[str, str] = {
    "random": "smart:mu=0,radius=0.1,direction=random", "worst": "smart:mu=0,radius=0.1", "near": "smart:weight=0",
    "smart-0.02": "smart:radius=0.02", "smart-0.1": "smart:radius=0.1", "smart-1e-5": "smart:scheme=paper,mu=0"}


class SmartStudy(Study, name="smart", seeds=[68]):
    """Do smoothness and small steps help fine-tuning on few rows?"""

    world: ClassVar[str] = "real model (MiniLM) on invented reviews"
    paper: ClassVar[Paper] = Paper(
        "SMART: Robust and Efficient Fine-Tuning for Pre-trained Natural Language Models through Principled Regularized "
        "Optimization", "Jiang et al. 2019, arXiv 1911.03437",
        "With both regularizers fine-tuning on small sets is clearly better, and overfits less.",
        "RTE, BERT-base: 63.5 -> 71.2 on dev; GLUE test 89.9")
    scales: ClassVar[Mapping[str, Scale]] = {
        "smoke": Scale(1, {"restarts": 2}, {
            "base.model": "pico-encoder", "reviews.rows": 6, "score.count": 2, "score.rows": 4, "score.dev_rows": 2,
            "score.tested": 4, "score.worst_steps": 1, "score.fit.length": {"steps": 1},
            "score.fit.max_tokens_per_example": 16}, arms=("plain", "smart-0.02", "smart-0.1"),
            about="every line, no evidence"),
        "default": Scale(1, {"restarts": 6}),
        "large": Scale(1, {"restarts": 10}, {"reviews.rows": 400, "score.rows": 500, "score.tested": 600, "score.count": 10}),
    }

    def recipe(self) -> dict[str, Any]:
        """Reviews, and restarts of one training."""
        fit = {"method": "full", "regularizers": [], "learning_rate": 5e-5, "schedule": "linear:warmup=0.1", "batch_rows": 16,
               "length": {"epochs": 3}, "max_tokens_per_example": 64}
        return {"name": "smart", "seed": 0, "steps": {
            "base": {"use": "base", "model": "minilm"},
            "reviews": {"use": "opinions"},
            "score": {"use": "restarts", "fit": fit, "count": 6, "rows": 200, "worst_steps": 10,
                      "inputs": {"base": "base", "examples": "reviews"}},
        }}

    def arms(self) -> dict[str, dict[str, Any]]:
        """Each part alone, both, and more epochs in their place."""
        longer = {"score.fit.length": {"epochs": 12}, "score.fit.streams": {"validation": "examples.dev"},
                  "score.fit.validation": {"patience": 2, "keep": "best"}}
        return {"plain": {}, "longer": longer, **{name: {"score.fit.regularizers": [part]} for name, part in PARTS.items()}}

    def guards(self) -> tuple[Guard, ...]:
        """Sentiment is learned, and moves of the embeddings can change it."""
        return (Guard("sentiment is learned: accuracy of at least 0.7", ACCURACY, ("plain",), least=0.7),
                Guard("worst moves change predictions: a divergence of at least 0.05", WOBBLE, ("plain",), least=0.05))

    def choices(self) -> tuple[Choice, ...]:
        """The radius that is better on dev."""
        return (Choice("smart", ("smart-0.02", "smart-0.1"), DEV),)

    def claims(self) -> tuple[Claim, ...]:
        """Accuracy and smoothness; against equal time and random moves; the parts; what is kept; the paper's radius."""
        return (
            Claim("more accurate", "accuracy is higher with SMART", "plain", "smart", ACCURACY, "higher", 0.02, 0.02,
                  paper="RTE: 63.5 -> 71.2"),
            Claim("smoother", "worst moves change predictions less with SMART", "plain", "smart", WOBBLE, "lower", 0.05, 0.05),
            Claim("than longer", "accuracy is higher with SMART than after four times as many epochs", "longer", "smart",
                  ACCURACY, "higher", 0.02, 0.02, main=False),
            Claim("worst or random", "worst moves change predictions less after training with these than with random ones",
                  "random", "worst", WOBBLE, "lower", 0.05, 0.05, main=False),
            Claim("small steps", "small steps alone give more accuracy", "plain", "near", ACCURACY, "higher", 0.02, 0.02,
                  main=False),
            Claim("keeps more", "a probe reads more of another task after SMART", "plain", "smart", KEPT, "higher", 0.02, 0.03,
                  main=False),
            Claim("1e-5 is nothing", "with the paper's radius worst moves change predictions less", "plain", "smart-1e-5",
                  WOBBLE, "lower", 0.05, 0.05, paper="its own setting: not expected here", main=False))

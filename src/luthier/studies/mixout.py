"""Lee et al. 2020: mixing pretrained weights into those that are trained makes fine-tuning on few rows fail less often.

MiniLM learns sentiment of invented reviews from 64 of them for 6 epochs, 16 times over with another head, order and dropout,
at a rate that is high on purpose: where no training fails there is nothing to stabilise, and then a guard says so. With 256
reviews and 3 epochs it is begun 6 times. A restart is the unit, and arms are paired by its number. The rate was set
beforehand from the range that such encoders are unstable in, 1e-4 to 2e-4, and not by what comes out. With 22 million
weights the effect may be small.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from luthier.core.kinds import Study
from luthier.core.study import Claim, Guard, Measure, Paper, Scale

FEW, MORE = "restarts", "more"
PARTS: Mapping[str, tuple[str, ...]] = {
    "plain": (), "dropconnect": ("mixout:p=0.7,toward=zero",), "l2-sp": ("l2-sp:weight=0.01",), "mixout-0.7": ("mixout:p=0.7",),
    "mixout-0.9": ("mixout:p=0.9",)}


def _of(name: str, on: str = FEW) -> Measure:
    return Measure(name, on)


class MixoutStudy(Study, name="mixout", seeds=[122]):
    """Does mixout make fine-tuning on few rows fail less often?"""

    world: ClassVar[str] = "real model (MiniLM) on invented reviews"
    paper: ClassVar[Paper] = Paper(
        "Mixout: Effective Regularization to Finetune Large-scale Pretrained Language Models",
        "Lee et al. 2020, arXiv 1909.11299",
        "Over 20 restarts on few rows mixout has fewer degenerate trainings and a higher mean than dropout alone.",
        "BERT-large on RTE, MRPC, CoLA and STS-B; no number is remembered")
    scales: ClassVar[Mapping[str, Scale]] = {
        "smoke": Scale(1, {FEW: 2}, {
            "base.model": "pico-encoder", "reviews.rows": 6, "score.count": 2, "score.rows": 4, "score.dev_rows": 2,
            "score.tested": 4, "score.fit.length": {"steps": 1}, "score.fit.max_tokens_per_example": 16},
            arms=("plain", "mixout-0.9"), about="every line, no evidence"),
        "default": Scale(1, {FEW: 16, MORE: 6}),
        "large": Scale(1, {FEW: 40, MORE: 6}, {"score.tested": 500, "reviews.rows": 400, "score.count": 40}),
    }

    def recipe(self) -> dict[str, Any]:
        """Reviews, and restarts of one training."""
        fit = {"method": "full", "regularizers": [], "learning_rate": 2e-4, "schedule": "linear:warmup=0.1", "batch_rows": 16,
               "length": {"epochs": 6}, "max_tokens_per_example": 96}
        return {"name": "mixout", "seed": 0, "steps": {
            "base": {"use": "base", "model": "minilm"},
            "reviews": {"use": "opinions"},
            "score": {"use": "restarts", "fit": fit, "inputs": {"base": "base", "examples": "reviews"}},
        }}

    def arms(self) -> dict[str, dict[str, Any]]:
        """Dropout alone, dropconnect, a pull to the start, and mixout; some with more rows."""
        few = {name: {"score.fit.regularizers": list(parts)} for name, parts in PARTS.items()}
        grown = {"score.on": MORE, "score.rows": 256, "score.fit.length": {"epochs": 3}, "score.count": 6}
        return {**few, **{f"{name}-256": {**few[name], **grown} for name in ("plain", "mixout-0.7", "mixout-0.9")}}

    def guards(self) -> tuple[Guard, ...]:
        """There is something to stabilise, and something to learn."""
        return (Guard("dropout alone fails in a tenth to a half of the restarts", _of("failed"), ("plain",), least=0.1,
                      most=0.5),
                Guard("with 256 rows it is learned: accuracy of at least 0.75", _of("accuracy", MORE), ("plain-256",),
                      least=0.75))

    def claims(self) -> tuple[Claim, ...]:
        """Spread and failures; the way travelled; the mean, with few rows and with more; what other pulls do."""
        return (
            Claim("spreads less", "restarts lie nearer to their median with mixout 0.9 than with dropout", "plain",
                  "mixout-0.9", _of("deviation"), "lower", 0.03, 0.08, paper="lower spread"),
            Claim("fails less", "fewer restarts stay below 60 % with mixout 0.9", "plain", "mixout-0.9", _of("failed"), "lower",
                  0.1, 0.4, paper="fewer degenerate runs"),
            Claim("stays nearer", "weights go less far with mixout 0.9", "plain", "mixout-0.9", _of("distance"), "lower", 0.005,
                  0.01, main=False),
            Claim("higher mean", "the mean accuracy is higher with mixout 0.9", "plain", "mixout-0.9", _of("accuracy"),
                  "higher", 0.03, 0.1, paper="higher mean", main=False),
            Claim("0.7", "fewer restarts stay below 60 % with mixout 0.7", "plain", "mixout-0.7", _of("failed"), "lower",
                  0.1, 0.4, main=False),
            Claim("dropconnect", "fewer restarts fail with mixout 0.7 than with dropconnect 0.7", "dropconnect", "mixout-0.7",
                  _of("failed"), "lower", 0.1, 0.5, main=False),
            Claim("l2-sp", "fewer restarts fail with mixout 0.9 than with a pull of 0.01", "l2-sp", "mixout-0.9", _of("failed"),
                  "lower", 0.1, 0.5, main=False),
            Claim("more rows", "with 256 rows mixout 0.9 is still more accurate", "plain-256", "mixout-0.9-256",
                  _of("accuracy", MORE), "higher", 0.02, 0.03, paper="about equal is expected", main=False))

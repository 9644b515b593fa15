"""Shen, Liu et al. 2023: protecting the tokens that a task needs keeps accuracy at the same share of replaced tokens.

MiniLM, split above its embedding, learns the sentiment of invented reviews from privatised tokens by LoRA. At three average
shares of replaced tokens stand uniform noise, noise that leaves the contributing tokens alone, and noise that leaves as many
drawn ones alone; eta of the two latter is lowered until the average share is the same. What is protected is sent nearly in the
clear: an attacker reads it, and both sides are reported. Three seeds (version 1) left the first
claim undecided; there are eight now.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from luthier.core.kinds import Study
from luthier.core.study import Claim, Found, Guard, Measure, Paper, Scale

ACCURACY = Measure("accuracy", "unseen")
RECOVERED, PROTECTED = (Found("right", f"audit/inversion/{name}", "attack") for name in ("all", "protected"))
SHARES = (0.2, 0.4, 0.6)


class SplitAndPrivatizeStudy(Study, name="split-and-privatize", seeds=[2], version=2):
    """Does it pay to tell which tokens the task needs?"""

    world: ClassVar[str] = "real model (MiniLM) on invented reviews"
    paper: ClassVar[Paper] = Paper(
        "A Split-and-Privatize Framework for Large Language Model Fine-Tuning", "Shen, Liu et al. 2023, arXiv 2312.15603",
        "With contributing tokens identified, empirical privacy rises much for little loss of accuracy.",
        "62 % more empirical privacy for about 1 % of accuracy on SST, as remembered")
    scales: ClassVar[Mapping[str, Scale]] = {
        "smoke": Scale(1, {"unseen": 8}, {
            "reviews.rows": 8, "base.model": "pico-encoder", "split.unseen_share": 0.25, "tuned.length": {"steps": 1},
            "attack.audit.rows": 6}, arms=("none", "uniform-0.4", "cti-0.4"), about="every line, no evidence"),
        "default": Scale(8, {"unseen": 250}),
        "large": Scale(5, {"unseen": 2000}, {"reviews.rows": 1500, "tuned.method.layer": 1, "attack.audit.rows": 300}),
    }

    def recipe(self) -> dict[str, Any]:
        """Reviews, a privatised training, its accuracy and the attack."""
        return {"name": "split-and-privatize", "seed": 0, "steps": {
            "base": {"use": "base", "model": "minilm"},
            "reviews": {"use": "opinions", "rows": 190},
            "split": {"use": "split", "unseen_share": 1 / 3, "seed": 0, "inputs": {"questions": "reviews"}},
            "tuned": {"use": "fit", "tasks": [{"data": "examples.train", "objective": "classify", "head": "linear"}],
                      "method": {"use": "split-and-privatize", "method": "lora:rank=8,alpha=16", "change": 0.4, "layer": 0},
                      "length": {"epochs": 1}, "learning_rate": 2e-3, "batch_rows": 16, "micro_tokens": 4096,
                      "over_long": "truncate", "max_tokens_per_example": 48, "dtype": "float32",
                      "inputs": {"base": "base", "examples": "split"}},
            "score": {"use": "evaluate", "arm": "tuned", "sets": ["unseen"], "metrics": ["accuracy"],
                      "inputs": {"base": "base", "tuned": "tuned", "examples": "split"}},
            "attack": {"use": "audit", "audit": {"use": "inversion", "rows": 60},
                       "inputs": {"base": "base", "tuned": "tuned", "examples": "split"}},
        }}

    def arms(self) -> dict[str, dict[str, Any]]:
        """No noise; three shares with uniform noise, contributing tokens protected, drawn tokens protected."""
        kinds = {"uniform": "off", "cti": "protect", "random": "random"}
        return {"none": {"tuned.method.change": None}, **{
            f"{name}-{share:g}": {"tuned.method.change": share, "tuned.method.cti": cti}
            for share in SHARES for name, cti in kinds.items()}}

    def guards(self) -> tuple[Guard, ...]:
        """There is something to lose, and the attack works where nothing is hidden."""
        return (Guard("without noise the task is learned: accuracy of at least 0.75", ACCURACY, ("none",), least=0.75),
                Guard("without noise the attack reads at least 0.95 of the tokens", RECOVERED, ("none",), least=0.95))

    def claims(self) -> tuple[Claim, ...]:
        """Contributing tokens against uniform noise and against drawn tokens; what the protection gives away."""
        main = [Claim(f"needed tokens kept, {share:.0%} replaced",
                      "accuracy is higher where the tokens that the task needs are "
                      "left alone, at the same average share", f"uniform-{share:g}", f"cti-{share:g}", ACCURACY, "higher", 0.05,
                      0.5, 0.02, paper="little accuracy is lost", main=share == 0.4) for share in SHARES]
        return (*main,
                Claim("not any tokens", "the needed tokens are better left alone than as many drawn ones", "random-0.4",
                      "cti-0.4", ACCURACY, "higher", 0.05, 0.5, 0.02, main=False),
                Claim("noise hides", "an attacker reads less than without noise", "none", "cti-0.4", RECOVERED, "lower", 0.2,
                      0.0,
                      0.02, paper="empirical privacy rises by 62 %", main=False),
                Claim("what is protected is read", "of the protected tokens an attacker reads more than of all", "cti-0.4",
                      "cti-0.4", PROTECTED, "higher", 0.2, 0.0, 0.02, left_measure=RECOVERED, main=False))

"""Chakraborty et al. 2024: token values from an aligned model's roll-outs guide decoding better than those of the model itself.

Two hundred small worlds of texts, in which every value can be enumerated, are decoded by the reward of partial texts (ARGS),
of the model's own roll-outs (controlled decoding), and of those of a model that is aligned with the reward up to noise
(direct) or with another reward (indirect, weighed). What a decoded text is worth and how far the values are off is measured.
Nothing is trained: language models, best-of-n at equal tokens and a held-out reward, which the card asks for too, are not in
this study.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from luthier.core.kinds import Study
from luthier.core.study import Claim, Guard, Measure, Paper, Scale

GAINED, ERROR = Measure("return", "worlds"), Measure("value-error", "worlds")
DECODERS = ("plain", "args", "controlled", "direct", "indirect", "indirect-bare", "exact")


class TransferQStarStudy(Study, name="transfer-q-star", seeds=[179]):
    """Are an aligned model's roll-outs better guides than the model's own, or than rewards of beginnings?"""

    paper: ClassVar[Paper] = Paper(
        "Transfer Q Star: Principled Decoding for LLM Alignment", "Chakraborty et al. 2024, arXiv 2405.20495",
        "Values from roll-outs of an aligned baseline give a higher reward than values of the model itself and than rewards of "
        "partial texts.", "up to 1.45 times the average reward, 67.34 % win-tie rate")
    scales: ClassVar[Mapping[str, Scale]] = {
        "smoke": Scale(1, {"worlds": 6}, {"score.worlds": 6, "score.length": 2}, arms=("plain", "args", "controlled", "direct"),
                       about="every line, no evidence"),
        "default": Scale(3, {"worlds": 200}),
        "large": Scale(5, {"worlds": 1000}, {"score.worlds": 1000, "score.length": 5}),
    }

    def recipe(self) -> dict[str, Any]:
        """Worlds, decoded."""
        return {"name": "transfer-q-star", "seed": 0, "steps": {"score": {"use": "guided-texts"}}}

    def arms(self) -> dict[str, dict[str, Any]]:
        """Without a reward, the four decoders, the released code's weights, and the truth."""
        return {name: {"score.decoder": name, "score.arm": name} for name in DECODERS}

    def guards(self) -> tuple[Guard, ...]:
        """The reward can be followed, and is not followed by chance."""
        return (Guard("plain decoding is worth at most 0.7 of the way from the worst text to the best", GAINED, ("plain",),
                      most=0.7),
                Guard("with the true values at least 0.8 is reached", GAINED, ("exact",), least=0.8))

    def claims(self) -> tuple[Claim, ...]:
        """Aligned roll-outs against own ones and against none; another reward, weighed or not."""
        return (
            Claim("above own roll-outs", "an aligned model's roll-outs lead to texts that are worth more than the model's own",
                  "controlled", "direct", GAINED, "higher", 0.02, 0.15, 0.005, paper="TQ above controlled decoding"),
            Claim("above partial rewards", "they lead to texts that are worth more than rewards of partial texts", "args",
                  "direct", GAINED, "higher", 0.02, 0.2, 0.005, paper="TQ above ARGS"),
            Claim("nearer values", "their values are nearer to those of the best model", "controlled", "direct", ERROR, "lower",
                  0.1, 0.8, 0.02, main=False),
            Claim("another reward helps", "weighed roll-outs of a model for another reward lead to more than the model's own",
                  "controlled", "indirect", GAINED, "higher", 0.02, 0.2, 0.01, paper="indirect transfer works", main=False),
            Claim("divided weights", "weights divided by their mean lead to more than those of the released code",
                  "indirect-bare", "indirect", GAINED, "higher", 0.02, 0.2, 0.01, main=False))

"""guided-texts: many small worlds of texts in which reward-guided decoding can be compared with the truth.

A world has texts of `length` tokens out of `vocabulary`, a random policy π over them, a reward r that is a sum over tokens
and pairs of tokens, and another such reward. The best model for r under a KL of weight beta is ρ*(text) ∝ π(text)
exp(r / beta), by enumeration; an aligned model is the same for r and some noise (direct), or for the other reward
(indirect). A decoder takes at each place the token with the highest log π(z) + Q(z) / alpha, Q estimated from `rollouts`
texts (0: by enumeration). Records of each world: `return`, what the decoded text is worth, from 0 for the worst text to 1
for the best; and `value-error`, the mean distance of Q from E_ρ* r over the candidates on the way.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from luthier.core.artifact import Artifact, seal
from luthier.core.files import write_lines
from luthier.core.finding import Finding, receipt
from luthier.core.rng import Rng
from luthier.core.step import Ctx, Step

Text = tuple[int, ...]
METRICS = {"return": True, "value-error": False}


class GuidedTexts(Step, name="guided-texts"):
    """Decode small enumerable worlds by reward, and compare with the truth."""

    output: ClassVar[str] = "records"
    trains: ClassVar[bool] = True  # it does not, but each of a study's seeds draws roll-outs of its own
    arm: str = Field("guided", description="name of this arm in tables")
    decoder: Literal["plain", "args", "controlled", "direct", "indirect", "indirect-bare", "exact"] = Field(
        "direct", description="how Q is estimated; plain: not at all")
    worlds: int = Field(200, ge=1, description="worlds")
    vocabulary: int = Field(3, ge=2, description="tokens")
    length: int = Field(4, ge=2, description="tokens of a text")
    alpha: float = Field(0.5, gt=0, description="how little the reward counts")
    beta: float = Field(0.5, gt=0, description="KL weight of the aligned models")
    noise: float = Field(0.3, ge=0, description="standard deviation of what the direct model's reward is off by")
    rollouts: int = Field(8, ge=0, description="texts from which a value is estimated; 0: all of them, by their chances")
    worlds_seed: int = Field(0, ge=0, description="which worlds; training seeds draw other roll-outs in the same ones")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """`scores.jsonl` has two lines a world."""
        lines: list[dict[str, Any]] = []
        for n in range(self.worlds):
            world = _World(self, Rng(self.worlds_seed).within(f"world/{n}"))
            gained, error = world.decoded(ctx.rng.within(f"rollouts/{n}"))
            lines += [{"id": f"{n}", "set": "worlds", "cluster": f"{n}", "metric": metric, "value": value}
                      for metric, value in zip(METRICS, (gained, error), strict=True)]
        write_lines(ctx.folder / "scores.jsonl", lines)
        return seal("records", ctx.folder, arm=self.arm, metrics=METRICS, lines=len(lines))

    def receipts(self, inputs: Mapping[str, Artifact], artifact: Artifact, ctx: Ctx) -> list[Finding]:
        """Every world has its lines."""
        return [receipt("guided-texts/worlds", self.worlds * len(METRICS), artifact.meta["lines"], unit="lines")]


class _World:
    """One world, with everything that is asked of it by enumeration."""

    def __init__(self, step: GuidedTexts, draw: Rng) -> None:
        self.step = step
        self.texts: list[Text] = list(product(range(step.vocabulary), repeat=step.length))
        logits = draw("policy").normal(size=(len(self._beginnings()), step.vocabulary))
        chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        self.policy = dict(zip(self._beginnings(), chances, strict=True))
        self.features = [self._features(draw, name) for name in ("reward", "other")]
        self.rewards, self.others = ({t: self.worth(t, f) for t in self.texts} for f in self.features)
        noise = dict(zip(self.texts, draw("noise").normal(scale=step.noise, size=len(self.texts)), strict=True))
        self.models = {"controlled": self._aligned(dict.fromkeys(self.texts, 0.0)), "exact": self._aligned(self.rewards),
                       "direct": self._aligned({t: r + noise[t] for t, r in self.rewards.items()}),
                       "indirect": self._aligned(self.others)}

    def _beginnings(self) -> list[Text]:
        return [b for n in range(self.step.length) for b in product(range(self.step.vocabulary), repeat=n)]

    def _features(self, draw: Rng, name: str) -> tuple[np.ndarray, np.ndarray]:
        size, length = self.step.vocabulary, self.step.length
        return draw(name, "tokens").normal(size=(length, size)), draw(name, "pairs").normal(size=(length, size, length, size))

    def worth(self, text: Text, features: tuple[np.ndarray, np.ndarray]) -> float:
        """The reward of a text, whole or not: of the tokens and pairs that are there."""
        tokens, pairs = features
        return float(sum(tokens[n, z] for n, z in enumerate(text))
                     + sum(pairs[n, text[n], m, text[m]] for n in range(len(text)) for m in range(n)))

    def _aligned(self, rewards: Mapping[Text, float]) -> dict[Text, float]:
        chances = {t: float(np.prod([self.policy[t[:n]][z] for n, z in enumerate(t)])) for t in self.texts}
        weights = {t: chance * float(np.exp(rewards[t] / self.step.beta)) for t, chance in chances.items()}
        total = sum(weights.values())
        return {t: w / total for t, w in weights.items()}

    def value(self, begun: Text, decoder: str, rollouts: int, rng: Rng) -> float:
        """Q of a beginning, as a decoder estimates it."""
        import torch

        from luthier.techniques.decoding._guided import expected

        if decoder == "args":
            return self.worth(begun, self.features[0])
        model = self.models[decoder.removesuffix("-bare")]
        through = [t for t in self.texts if t[:len(begun)] == begun]
        chances = np.array([model[t] for t in through])
        chances = chances / chances.sum()
        logs = np.log(chances)
        if rollouts:
            drawn = rng("texts", "-".join(map(str, begun))).choice(len(through), size=rollouts, p=chances)
            through, logs = [through[i] for i in drawn], np.full(rollouts, -np.log(rollouts))
        rewards = torch.tensor([self.rewards[t] for t in through], dtype=torch.float64)
        weights = torch.tensor(logs)
        if decoder.startswith("indirect"):
            weights = weights + (rewards - torch.tensor([self.others[t] for t in through])) / self.step.beta
        if decoder == "indirect-bare":  # the released code's: the mean of w r, not divided by that of w
            return float((weights.exp() * rewards).sum())
        return float(expected(rewards, weights))

    def decoded(self, rng: Rng) -> tuple[float, float]:
        """(Where the decoded text's reward lies between the worst and the best, mean error of Q over the candidates)."""
        text: Text = ()
        errors = []
        decoder = self.step.decoder
        rollouts = 0 if decoder == "exact" else self.step.rollouts
        for _ in range(self.step.length):
            scores = np.log(self.policy[text])
            if decoder != "plain":
                values = np.array([self.value((*text, z), decoder, rollouts, rng) for z in range(self.step.vocabulary)])
                scores = scores + values / self.step.alpha
                exact = [self.value((*text, z), "exact", 0, rng) for z in range(self.step.vocabulary)]
                errors += list(np.abs(values - exact))
            text = (*text, int(scores.argmax()))
        low, high = min(self.rewards.values()), max(self.rewards.values())
        return (self.rewards[text] - low) / (high - low), float(np.mean(errors)) if errors else 0.0

"""What UFT and UNA share: a score that is fitted by the implicit reward of a policy.

With log-probabilities summed over the learned tokens of an answer, π the policy and ρ the frozen reference,

    r(x, y) = beta · [log π(y | x) - log ρ(y | x)],      s = sigmoid(r)
    loss    = (s - score)²                                          mse
              -[score · log s + (1 - score) · log(1 - s)]           bce
              -log sigmoid(r(chosen) - r(rejected))                 of a pair, where `pairs` is difference: DPO

score in [0, 1] is the row's own, brought there from `score_range`. A demonstration has 1: the gradient of its square is
-2 (1 - s)² s beta ∇log π, a supervised one that fades as the policy leaves the reference. At the start s = 1/2 for all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from luthier.core.errors import UserError
from luthier.core.example import Dropped, Example, with_rejected
from luthier.core.kinds import DroppedRow, Features, Objective, Tokens
from luthier.core.rng import Rng

if TYPE_CHECKING:
    import torch

    from luthier.engine.forward import Forward
    from luthier.engine.rendering import Render

SATURATED = 5.0  # |r| above which the sigmoid has hardly a slope
Range = tuple[float, float]


class Implicit(Objective):
    """Fit scores by the implicit reward, against a frozen reference: the base, unless a role names another model.

    A row's score is `meta["score"]`; a row with a rejected answer is a pair. The curve shows `reward`, the mean of r, and
    `saturated`, the share of rows with |r| > 5: where it grows, lower beta.
    """

    roles: ClassVar[tuple[str, ...]] = ("reference",)
    parts: ClassVar[Mapping[str, Literal["additive", "coupled"]]] = {"score": "additive"}
    demonstrations: ClassVar[bool] = True  # whether rows without a score are learned, as of the top score
    beta: float = Field(0.01, gt=0, description="reward per nat; lower where answers are long and rewards saturate")
    fits: Literal["mse", "bce"] = Field("mse", description="how far a score is from its sigmoid")
    pairs: Literal["rows", "difference"] = Field("rows", description="a chosen and a rejected answer: rows of score 1 and 0, "
                                                                     "or their difference, as DPO has it")
    score_range: Range | dict[str, Range] = Field((0.0, 1.0), description="lowest and highest score, of all rows or by file")
    reference_once: bool = Field(True, description="ask the reference once before training, not at every step")

    @field_validator("score_range")
    @classmethod
    def _rising(cls, value: Range | dict[str, Range]) -> Range | dict[str, Range]:
        for low, high in value.values() if isinstance(value, dict) else [value]:
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ValueError(f"a range goes from a lower to a higher number, not from {low:g} to {high:g}")
        return value

    def rows(self, example: Example, render: Render, rng: Rng) -> list[Features]:
        """One row; two of a pair whose answers are scored one by one."""
        if example.rejected is None or self.pairs == "difference":
            return [self.encode(example, render, rng)]
        self._needs_answers(example, with_rejected(example))
        return [{"answer": render.tokens(one), "score": score}
                for one, score in ((example, 1.0), (with_rejected(example), 0.0))]

    def encode(self, example: Example, render: Render, rng: Rng) -> Features:
        """`answer` and its `score`; under `difference` also `rejected`, a token that is not learned where there is none."""
        self._needs_answers(example)
        answer = render.tokens(example)
        if self.pairs == "rows":
            return {"answer": answer, "score": self._score(example)}
        if example.rejected is None:
            nothing = Tokens(answer.ids[:1], [False])
            return {"answer": answer, "rejected": nothing, "score": self._score(example), "paired": 0}
        other = with_rejected(example)
        self._needs_answers(other)
        return {"answer": answer, "rejected": render.tokens(other), "score": 1.0, "paired": 1}

    def _needs_answers(self, *examples: Example) -> None:
        for example in examples:
            if not example.answer.strip():
                raise DroppedRow(Dropped(example.id, "empty answer", "there is nothing that a score could be of"))

    def _score(self, example: Example) -> float:
        """From 0 to 1. Raises UserError for a score that its range does not hold, DroppedRow where one is needed."""
        said = example.meta.get("score")
        if said is None:
            if not self.demonstrations and example.rejected is None:
                raise DroppedRow(Dropped(example.id, "no score", f"{self.info.name} learns from feedback alone"))
            return 1.0
        low, high = self._range(example)
        if isinstance(said, bool) or not isinstance(said, (int, float)) or not low <= said <= high:
            raise UserError(f"{self.info.name}: the score of row {example.id} is {said!r}; score_range is {low:g} to {high:g}. "
                            f"Name the range that it is from: score_range=[LOW, HIGH], or one for each file, "
                            f"score_range={{FILE: [LOW, HIGH]}}.")
        return (said - low) / (high - low)

    def _range(self, example: Example) -> Range:
        if not isinstance(self.score_range, dict):
            return self.score_range
        file = str(example.meta.get("file", ""))
        if file not in self.score_range:
            raise UserError(f"{self.info.name}: row {example.id} of the file '{file}' has a score, and score_range names "
                            f"{', '.join(self.score_range)} only.")
        return self.score_range[file]

    def remarks(self, rows: Sequence[Features]) -> Iterator[str]:
        scores = {row["score"] for row in rows if not row.get("paired")}
        if len(rows) > 1 and len(scores) == 1 and not any(row.get("paired") for row in rows):
            yield (f"{self.info.name}: all {len(rows)} scores are {scores.pop():g}: nothing is told apart. Add rows of other "
                   "scores" + (", or use --objective supervised" if self.demonstrations else ""))

    def count(self, batch: Mapping[str, Any]) -> dict[str, float]:
        return {"score": len(batch["answer"])}

    def live_roles(self) -> tuple[str, ...]:
        return () if self.reference_once else self.roles

    def constants(self, run: Forward, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        return {f"reference_{name}": said for name, said in self._said(run, "reference", batch).items()}

    def loss(self, run: Forward, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        import torch
        from torch.nn.functional import logsigmoid

        known = batch if "reference_answer" in batch else self.constants(run, batch)
        rewards = {name: self.beta * (said - known[f"reference_{name}"])
                   for name, said in self._said(run, "policy", batch).items()}
        reward = rewards["answer"]
        run.measure(reward=reward, saturated=(reward.abs() > SATURATED).float())
        losses = self.fit(reward, batch["score"])
        if "rejected" in rewards:
            losses = torch.where(batch["paired"] > 0, -logsigmoid(reward - rewards["rejected"]), losses)
        return {"score": losses.sum()}

    def fit(self, reward: torch.Tensor, score: torch.Tensor) -> torch.Tensor:
        """[rows] loss of rewards and scores [rows]."""
        from torch.nn.functional import binary_cross_entropy_with_logits

        if self.fits == "mse":
            return (reward.sigmoid() - score).square()
        return binary_cross_entropy_with_logits(reward, score, reduction="none")

    def _said(self, run: Forward, role: str, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """[rows] log-probability of the answers, and of rejected ones; one forward of both."""
        from luthier.engine.batches import join

        if "rejected" not in batch:
            return {"answer": run(role, batch["answer"]).row_log_probabilities()}
        both = run(role, join(batch["answer"], batch["rejected"])).row_log_probabilities().chunk(2)
        return dict(zip(("answer", "rejected"), both, strict=True))

"""preference-accuracy: share of pairs whose chosen answer the model finds likelier than the rejected one.

margin = s(chosen) - s(rejected); value = 1 above 0, 0 below, 0.5 at exactly 0. s is the log-probability of an answer,
its stop token included: per token with `by: likelihood` (a long answer is not worse for being long), or as a gain over
the reference with `by: reward` (log π - log ρ summed over the tokens: the reward that DPO learns; the reference itself
scores 0.5). Nothing is generated. An example without a rejected answer has no value.

When it helps: preferences were trained, or are to be. Source: Rafailov et al. 2023 (reward); Meng et al. 2024 (per
token).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.example import Example, with_rejected
from luthier.core.kinds import DroppedRow, Metric, Prediction
from luthier.core.step import Ctx
from luthier.techniques.evaluation._shared import pairs, parted


class PreferenceAccuracy(Metric, name="preference-accuracy"):
    """Share of pairs in which the chosen answer is preferred."""

    roles: ClassVar[tuple[str, ...]] = ("policy", "reference")
    needs_answers: ClassVar[bool] = False
    by: Literal["likelihood", "reward"] = Field("likelihood", description="own log-probability per token, or its gain "
                                                                          "over the reference, summed")

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction], ctx: Ctx) -> list[dict[str, Any]]:
        """`value` with the `margin` in nats (per token with `by: likelihood`); None without a pair that can be read."""
        from luthier.engine.encoding import chats
        from luthier.engine.rendering import renderer

        # The reference reads what the policy reads: the same ids by the policy's own template.
        render = renderer(ctx.roles["policy"], chats=chats(examples))
        read: dict[str, list[tuple[list[int], list[int]]]] = {}
        left_out: dict[str, str] = {}
        for example, _ in pairs(examples, predictions):
            if example.rejected is not None:
                try:
                    read[example.id] = [parted(render.tokens(e)) for e in (example, with_rejected(example))]
                except DroppedRow as drop:
                    left_out[example.id] = drop.dropped.detail
        margins = dict(zip(read, self._margins([*zip(*read.values(), strict=True)], ctx), strict=True)) if read else {}
        return [{"id": e.id, "value": (margins[e.id] > 0) + 0.5 * (margins[e.id] == 0), "margin": margins[e.id]}
                if e.id in margins else
                {"id": e.id, "value": None, **({"left_out": left_out[e.id]} if e.id in left_out else {})}
                for e in examples]

    def _margins(self, sides: Sequence[Sequence[tuple[list[int], list[int]]]], ctx: Ctx) -> list[float]:
        """Margins of pairs; `sides` are the chosen and the rejected answers as (prompt ids, answer ids)."""
        chosen, rejected = (ctx.engine.score(ctx.roles["policy"], side) for side in sides)
        if self.by == "likelihood":
            return [a / n - b / m for (a, n), (b, m) in zip(chosen, rejected, strict=True)]
        if "reference" not in ctx.roles:
            raise UserError("preference-accuracy:by=reward compares with a reference, and none is at hand here. Use "
                            "by=likelihood; while training, the objective's own accuracy is that of rewards.")
        before, after = (ctx.engine.score(ctx.roles["reference"], side) for side in sides)
        return [(a[0] - b[0]) - (c[0] - d[0]) for a, b, c, d in zip(chosen, before, rejected, after, strict=True)]

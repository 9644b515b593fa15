"""kl-to-reference: stay where a frozen model was, on rows that must not change.

At each learned position t of a row, with ρ the frozen reference and π the policy, over the whole vocabulary,

    L = sum_t KL(ρ(· | y_<t) || π(· | y_<t))        mean over the learned tokens of a step

0 and without a gradient as long as π = ρ. The row's answer only says which positions are compared; which token stands there
is not learned. Beside the task's own objective it is a guard: tasks: [{data: examples.task}, {data: examples.declined,
objective: kl-to-reference, weight: 1}], where the rows of the guard are prompts with what the reference answers to them.

When it helps: behaviour that a tuning has no rows of and must keep, such as refusals; unlike rows that are mixed in, it also
keeps how sure the model was. The reference is the base, unless a role names another model. Sources: Lermen et al. 2023 (what a
tuning costs refusals); Li & Hoiem 2016, "Learning without forgetting" (the old answers as soft targets).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from luthier.core.example import Example
from luthier.core.kinds import Features, Objective
from luthier.core.rng import Rng

if TYPE_CHECKING:
    import torch

    from luthier.engine.forward import Forward
    from luthier.engine.rendering import Render


class KlToReference(Objective, name="kl-to-reference"):
    """Stay close to what a frozen model says on these rows."""

    roles: ClassVar[tuple[str, ...]] = ("reference",)
    parts: ClassVar[Mapping[str, Literal["additive", "coupled"]]] = {"kl": "additive"}

    def encode(self, example: Example, render: Render, rng: Rng) -> Features:
        return {"input": render.tokens(example)}

    def count(self, batch: Mapping[str, Any]) -> dict[str, float]:
        return {"kl": batch["input"].learned}

    def loss(self, run: Forward, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        reference = run("reference", batch["input"])
        found = run("policy", batch["input"]).kl(reference)
        run.measure(kl=found)
        return {"kl": found.sum()}

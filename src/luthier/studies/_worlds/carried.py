"""carried: each target of two-tracks is learned from a few rows, on from an adapter or from nothing, and tested.

An input beside base and examples is the adapter that the target of its name begins from; `all` is that of both. All is done
for each of `draws` choices of the few rows. Lines of `scores.jsonl`: `accuracy` on `test` and on `dev` (the rows of the target
that were not drawn), and `before` on `test`: 1 where, before any tuning, the mean of the drawn rows of its own label is nearest
to a row's embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from luthier.core.artifact import Artifact, seal
from luthier.core.example import Example
from luthier.core.files import write_lines
from luthier.core.finding import Finding, receipt
from luthier.core.step import Ctx, Step
from luthier.studies._worlds.transfers import learned
from luthier.studies._worlds.two_tracks import TARGETS


class Carried(Step, name="carried"):
    """Few rows of each target, and what is right of its test."""

    inputs: ClassVar[dict[str, str]] = {"base": "model", "examples": "examples", "*": "adapter"}
    output: ClassVar[str] = "records"
    trains: ClassVar[bool] = True
    arm: str = Field("tuned", description="name of this arm in tables")
    shots: int = Field(32, ge=2, description="rows to learn from, of each target, half of each label")
    draws: int = Field(2, ge=1, description="how often rows are drawn")
    fit: dict[str, Any] = Field({"method": "adapter:style=pfeiffer,bottleneck=32", "learning_rate": 1e-3, "batch_rows": 16,
                                 "length": {"epochs": 10}, "max_tokens_per_example": 48},
                                description="how each target is learned")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Tune and ask, target by target; a finished one is kept."""
        lines = [line for draw in range(self.draws) for target in TARGETS for line in ctx.journal.do(
            f"{draw}/{target}", lambda d=draw, t=target: self._one(d, t, inputs, ctx))]  # type: ignore[misc]
        write_lines(ctx.folder / "scores.jsonl", lines)
        return seal("records", ctx.folder, arm=self.arm, metrics={"accuracy": True, "before": True}, lines=len(lines))

    def receipts(self, inputs: Mapping[str, Artifact], artifact: Artifact, ctx: Ctx) -> list[Finding]:
        """A line for each row that was not drawn, and two for each of a test, in every draw."""
        count = {n: sum(1 for _ in inputs["examples"].examples(n)) for t in TARGETS for n in (t, f"{t}-test")}
        wanted = sum(count[t] - 2 * (self.shots // 2) + 2 * count[f"{t}-test"] for t in TARGETS)
        return [receipt("carried/lines", self.draws * wanted, artifact.meta["lines"], unit="lines")]

    def _one(self, draw: int, target: str, inputs: Mapping[str, Artifact], ctx: Ctx) -> list[dict[str, Any]]:
        pool, tests = (list(inputs["examples"].examples(n)) for n in (target, f"{target}-test"))
        order = ctx.rng(f"shots/{draw}/{target}").permutation(len(pool))
        few = [pool[i] for label in sorted({str(e.label) for e in pool})
               for i in [i for i in order if str(pool[i].label) == label][:self.shots // 2]]
        rest = [e for e in pool if e not in few]
        start = next((n for n in ("all", target) if n in inputs), "")
        begin = {"begin": inputs[start]} if start else {}
        right = learned(f"{draw}-{target}", few, [*tests, *rest], self.fit, {"base": inputs["base"], **begin}, ctx)
        before = self._before(few, tests, inputs["base"], begin, ctx)
        found = [("test", "accuracy", e, v) for e, v in zip(tests, right[:len(tests)], strict=True)]
        found += [("dev", "accuracy", e, v) for e, v in zip(rest, right[len(tests):], strict=True)]
        found += [("test", "before", e, v) for e, v in zip(tests, before, strict=True)]
        return [{"id": f"{draw}/{e.id}", "set": on, "cluster": e.cluster, "metric": metric, "value": value}
                for on, metric, e, value in found]

    @staticmethod
    def _before(few: Sequence[Example], tests: Sequence[Example], base: Artifact, begin: Mapping[str, Artifact], ctx: Ctx
                ) -> list[float]:
        import torch

        from luthier.engine.models import add_tuned

        model = ctx.engine.fresh(base, torch.float32)
        if begin:
            model = add_tuned(model, begin["begin"])
        own, asked = (ctx.engine.embed(model, ["\n".join(t.text for t in e.turns) for e in rows], 48) for rows in (few, tests))
        labels = sorted({str(e.label) for e in few})
        means = np.stack([own[[str(e.label) == label for e in few]].mean(0) for label in labels])
        apart = ((asked[:, None] - means[None]) ** 2).sum(-1)
        return [float(labels[int(n)] == str(e.label)) for e, n in zip(tests, apart.argmin(1), strict=True)]

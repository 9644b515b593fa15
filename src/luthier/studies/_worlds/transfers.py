"""transfers: a body is tuned on a few labels of each of several targets, and asked about others: how well it begins.

Targets are questions about reviews of the world `opinions`: their sentiment, their domain, and whether their remarks agree.
Which labels are given is drawn by the seed of the training. Lines of `scores.jsonl` have the set `test`, all targets together,
and once more the target's own name.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field

from luthier.core.artifact import Artifact, seal, write_examples
from luthier.core.example import Example, Part, Turn
from luthier.core.files import write_lines
from luthier.core.finding import Finding, receipt
from luthier.core.step import Ctx, Step
from luthier.studies._worlds.task_bank import reviews

TARGETS = ("sentiment", "domain", "agree")


class Transfers(Step, name="transfers"):
    """Few labels of each target, and what is right of its test."""

    inputs: ClassVar[dict[str, str]] = {"base": "model"}
    output: ClassVar[str] = "records"
    trains: ClassVar[bool] = True
    arm: str = Field("tuned", description="name of this arm in tables")
    shots: int = Field(64, ge=2, description="labels to learn from, of each target")
    tests: int = Field(100, ge=1, description="reviews that are asked about, the same for every seed")
    pool: int = Field(600, ge=2, description="reviews from which labels are drawn")
    fit: dict[str, Any] = Field({"method": "full", "length": {"epochs": 10}, "learning_rate": 1e-3, "batch_rows": 16,
                                 "max_tokens_per_example": 96}, description="how each target is learned")
    world: int = Field(0, ge=0, description="which reviews")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Tune and ask, target by target; a finished one is kept."""
        rows = list(reviews(self.world, self.pool + self.tests))
        found = [line for target in TARGETS for line in ctx.journal.do(
            target, lambda target=target: self._one(target, rows, inputs["base"], ctx))]  # type: ignore[misc]
        lines = [{**line, "set": name} for line in found for name in ("test", line["set"])]
        write_lines(ctx.folder / "scores.jsonl", ({**line, "cluster": line["id"]} for line in lines))
        return seal("records", ctx.folder, arm=self.arm, metrics={"accuracy": True}, lines=len(lines))

    def receipts(self, inputs: Mapping[str, Artifact], artifact: Artifact, ctx: Ctx) -> list[Finding]:
        """Every review of the test has a line for each target, and one among all."""
        return [receipt("transfers/lines", 2 * len(TARGETS) * self.tests, artifact.meta["lines"], unit="lines")]

    def _one(self, target: str, rows: list[tuple[str, dict[str, str]]], base: Artifact, ctx: Ctx) -> list[dict[str, Any]]:
        examples = [Example(f"{target}/{n}", (Turn("user", (Part(text, name="text"),)),), task="classify",
                            label=answers[target]) for n, (text, answers) in enumerate(rows)]
        drawn = ctx.rng(f"shots/{target}").permutation(self.pool)[:self.shots]
        tested = examples[self.pool:]
        right = learned(target, [examples[i] for i in drawn], tested, self.fit, {"base": base}, ctx)
        return [{"id": e.id, "set": target, "metric": "accuracy", "value": value}
                for e, value in zip(tested, right, strict=True)]


def learned(name: str, few: Sequence[Example], tested: Sequence[Example], how: Mapping[str, Any],
            inputs: Mapping[str, Artifact], ctx: Ctx) -> list[float]:
    """1 for each tested row whose label is right after a training on a few others, and 0 for the rest.

    how: settings of a `fit`. inputs: its base, and what it may begin from.
    """
    import torch

    from luthier.engine.classification import classify
    from luthier.engine.models import add_tuned

    folder = ctx.folder / "copies" / name
    shutil.rmtree(folder, ignore_errors=True)  # of an attempt that was killed
    folder.mkdir(parents=True)
    data = write_examples(folder, {"train": few})
    own = Ctx(**{**ctx.__dict__, "folder": folder / "fit", "rng": ctx.rng.within(name), "log": lambda text: None})
    fit = {"use": "fit", "tasks": [{"data": "examples.train", "objective": "classify", "head": "linear"}],
           "over_long": "truncate", "dtype": "float32", **how}
    tuned = ctx.engine.fit(fit, {**inputs, "examples": data}, own)
    said = classify(add_tuned(ctx.engine.fresh(inputs["base"], torch.float32), tuned), tuned, tested, own)
    shutil.rmtree(folder)
    return [float(p.label == e.label) for e, p in zip(tested, said, strict=True)]

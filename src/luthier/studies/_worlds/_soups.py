"""What studies share that make one model of several tunes on reviews: the tune, divisions of a pool, and how models are asked.

Rows of `pool` are divided in halves, `splits` times: what is made is chosen on one half and tested on the other and on all of
`strange`. One model is loaded and takes the weights of others.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from luthier.core.artifact import Artifact, seal
from luthier.core.component import build
from luthier.core.example import Example
from luthier.core.files import Journal, write_lines
from luthier.core.finding import Finding, receipt
from luthier.core.rng import Rng
from luthier.core.step import Ctx, Step

if TYPE_CHECKING:
    from luthier.engine.models import Model

Array = Any
Line = dict[str, Any]
HIGHER = ("accuracy", "agreement")  # what answers are counted by


def tune(rate: float, epochs: int, decay: float, probed: bool = True) -> dict[str, Any]:
    """One run on the reviews of a study, from the head of the step `probe` where `probed`; it draws under its step's name."""
    start = {"regularizers": ["probed-head:of=probe"], "inputs": {"base": "base", "examples": "reviews", "probe": "probe"}} \
        if probed else {"inputs": {"base": "base", "examples": "reviews"}}
    return {"use": "fit", "tasks": [{"data": "examples.train", "objective": "classify", "head": "linear"}], "method": "full",
            "learning_rate": rate, "length": {"epochs": epochs}, "schedule": "linear:warmup=0.1", "batch_rows": 16,
            "optimizer": f"adamw:weight_decay={decay:g}", "over_long": "truncate", "max_tokens_per_example": 96,
            "dtype": "float32", **start}


def probe() -> dict[str, Any]:
    """A linear probe of the reviews, from which runs begin."""
    return {**tune(1e-2, 20, 0.0, probed=False), "method": "layer-freezing:train_last=0"}


class Divided(Step):
    """One of several tunes, or what is made of them, asked in each division of the pool."""

    inputs: ClassVar[dict[str, str]] = {"base": "model", "examples": "examples", "*": "model"}
    output: ClassVar[str] = "records"
    seeded: ClassVar[bool] = False
    draws: ClassVar[str] = ""  # name of the stream that divides
    arm: str = Field("soup", description="name of this arm in tables")
    splits: int = Field(3, ge=1, description="divisions of the pool")
    seed: int = Field(0, ge=0, description="which divisions; a study's training seeds leave them as they are")

    @abstractmethod
    def said(self, asking: Asking, split: int, val: Sequence[Example], rows: Sequence[Example]) -> Array:
        """[rows, labels] probabilities of what is made in this division of what is known from `val`."""

    def lines(self, asking: Asking, pool: Sequence[Example], strange: Sequence[Example]) -> list[Line]:
        """The records."""
        return [line for split in range(self.splits) for line in self.division(split, asking, pool, strange)]

    def asking(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Asking:
        """The loaded model and the tunes whose weights it takes."""
        return Asking(inputs["base"], self.tunes(inputs), ctx)

    def tunes(self, inputs: Mapping[str, Artifact]) -> list[Artifact]:
        """The tunes among the inputs."""
        return [artifact for name, artifact in inputs.items() if name not in type(self).inputs]

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """One record a row and division, and what else is measured."""
        pool, strange = (list(inputs["examples"].examples(n)) for n in ("pool", "strange"))
        lines = self.lines(self.asking(inputs, ctx), pool, strange)
        write_lines(ctx.folder / "scores.jsonl", lines)
        metrics = {str(line["metric"]): line["metric"] in HIGHER for line in lines}
        return seal("records", ctx.folder, arm=self.arm, metrics=metrics, answers=sum(x["metric"] in HIGHER for x in lines))

    def receipts(self, inputs: Mapping[str, Artifact], artifact: Artifact, ctx: Ctx) -> list[Finding]:
        """As many answers as there should be."""
        return [receipt(f"{self.info.name}/answers", self.wanted(inputs), artifact.meta["answers"], unit="answers")]

    def wanted(self, inputs: Mapping[str, Artifact]) -> int:
        """Every row of a test half and every strange one has a record in each division."""
        pool, strange = (sum(1 for _ in inputs["examples"].examples(n)) for n in ("pool", "strange"))
        return self.splits * (pool - pool // 2 + strange)

    def division(self, split: int, asking: Asking, pool: Sequence[Example], strange: Sequence[Example]) -> Iterator[Line]:
        """The records of one division."""
        order = Rng(self.seed).within(self.draws)("split", split).permutation(len(pool))
        val, test = ([pool[i] for i in part] for part in (order[:len(pool) // 2], order[len(pool) // 2:]))
        rows = [("test", e) for e in test] + [("strange", e) for e in strange]
        said, labels = self.said(asking, split, val, [e for _, e in rows]), asking.labels
        for (on, e), row in zip(rows, said, strict=True):
            yield {"id": f"{split}/{e.id}", "set": on, "cluster": e.cluster, "metric": "accuracy",
                   "value": float(labels[int(row.argmax())] == str(e.label))}


def only(number: int, count: int) -> list[float]:
    """The shares of one tune alone."""
    return [float(i == number) for i in range(count)]


class Asking:
    """One loaded model that takes the weights of several tunes."""

    def __init__(self, base: Artifact, tunes: Sequence[Artifact], ctx: Ctx) -> None:
        import torch

        from luthier.engine.models import add_tuned

        self.model: Model = add_tuned(ctx.engine.fresh(base, torch.float32), tunes[0])
        self.tunes, self.ctx = tunes, ctx
        self.labels = next(iter(self.model.labels.values()))

    def right(self, rows: Sequence[Example]) -> Array:
        """[rows] numbers of the right labels."""
        return np.array([self.labels.index(str(e.label)) for e in rows])

    def stream(self, name: str) -> Iterator[Any]:
        """What a rule is offered by the merge: how many models there are, and the tensors of each."""
        from luthier.engine.weight_sources import Stored
        from luthier.engine.weights import HEADS_FILE

        kind, _, number = name.partition("/")
        if kind == "weights":
            yield [], [{} for _ in self.tunes]
            return
        folder = self.tunes[int(number)].folder
        for prefix, place in (("", folder), ("heads/", folder / HEADS_FILE)):
            held = Stored(place)
            yield from ((prefix + n, held.read(n)) for n in held.specs)

    def shares(self, how: str, val: Sequence[Example], split: int) -> list[float]:
        """Of each tune, as `model-soup` finds them on held-out rows."""
        folder = self.ctx.folder / f"split{split}"
        folder.mkdir(exist_ok=True)
        write_lines(folder / "val.jsonl", ({"text": "\n".join(t.text for t in e.turns), "label": str(e.label)} for e in val))
        kind = "uniform" if how == "best" else how
        rule: Any = build("weight_rule", {"use": "model-soup", "kind": kind, "val": str(folder / "val.jsonl")})
        found = rule.statistics(self._ctx(folder))
        if how == "best":
            return only(int(np.argmax(found["single"])), len(self.tunes))
        return list(found["shares"][""])

    def _ctx(self, folder: Any) -> Ctx:
        own = {**self.ctx.__dict__, "folder": folder, "journal": Journal(folder / "journal.jsonl"), "stream": self.stream,
               "roles": {"model": self.model}, "log": lambda text: None}
        return Ctx(**own)

    def said(self, shares: Sequence[float], rows: Sequence[Example]) -> Array:
        """[rows, labels] probabilities of the mixture; shares may lie outside 0 to 1."""
        from luthier.engine.classification import classify
        from luthier.techniques.weights._souping import fill

        fill(self.model, self._ctx(self.ctx.folder), shares)
        found = classify(self.model, self.tunes[0], rows, self._ctx(self.ctx.folder))
        return np.array([[p.probabilities[label] for label in self.labels] for p in found])

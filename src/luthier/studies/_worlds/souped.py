"""souped: what is made of several tunes of one base, chosen on one part of a pool of rows and tested on the other.

For each of `splits` divisions of the subset `pool` in halves; the subset `strange` is asked each time. `how`:

    best       the one that is best on the first half         ensemble   the mean of all their probabilities
    uniform, greedy, learned   soups by `model-soup`           theory     see below; `chance` the same with values shuffled

`theory` asks of neighbouring pairs of tunes and of mixtures a whether what weights averaged lose against logits averaged is
a (1 - a) / 2 · (E Var_Y[f_Y(x; W_2) - f_Y(x; W_1)] - L''(a)), Y drawn from the averaged model: for every two of these points,
1 where both order them alike. L'' is a second difference of step `STEP`. (Wortsman et al. 2022, section 4.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any, ClassVar, Literal

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

MIXTURES, STEP = (0.25, 0.5, 0.75), 0.1
Array = Any


class Souped(Step, name="souped"):
    """Answer with one of several tunes, their soup or their ensemble."""

    inputs: ClassVar[dict[str, str]] = {"base": "model", "examples": "examples", "*": "model"}
    output: ClassVar[str] = "records"
    seeded: ClassVar[bool] = False
    arm: str = Field("soup", description="name of this arm in tables")
    how: Literal["best", "uniform", "greedy", "learned", "ensemble", "theory", "chance"] = Field("greedy",
                                                                                                 description="what is made")
    splits: int = Field(3, ge=1, description="divisions of the pool")
    pairs: int = Field(5, ge=1, description="pairs of tunes that the theory is asked of")
    seed: int = Field(0, ge=0, description="which divisions; a study's training seeds leave them as they are")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """One record a row and division, or a pair of points."""
        import torch

        from luthier.engine.models import add_tuned

        tunes = [inputs[n] for n in inputs if n not in ("base", "examples")]
        model = add_tuned(ctx.engine.fresh(inputs["base"], torch.float32), tunes[0])
        asking = _Asking(model, tunes, ctx)
        pool, strange = (list(inputs["examples"].examples(n)) for n in ("pool", "strange"))
        if self.how in ("theory", "chance"):
            lines = self._theory(asking, pool)
        else:
            lines = [line for split in range(self.splits) for line in self._split(split, asking, pool, strange)]
        write_lines(ctx.folder / "scores.jsonl", lines)
        return seal("records", ctx.folder, arm=self.arm, metrics={str(lines[0]["metric"]): True}, lines=len(lines))

    def receipts(self, inputs: Mapping[str, Artifact], artifact: Artifact, ctx: Ctx) -> list[Finding]:
        """Every row of a test half and every strange one has a record in each division."""
        rows = {n: sum(1 for _ in inputs["examples"].examples(n)) for n in ("pool", "strange")}
        points = len(MIXTURES) * min(self.pairs, sum(n not in ("base", "examples") for n in inputs) - 1)
        wanted = points * (points - 1) // 2 if self.how in ("theory", "chance") else \
            self.splits * (rows["pool"] - rows["pool"] // 2 + rows["strange"])
        return [receipt("souped/records", wanted, artifact.meta["lines"], unit="records")]

    def _split(self, split: int, asking: _Asking, pool: Sequence[Example], strange: Sequence[Example]
               ) -> Iterator[dict[str, Any]]:
        order = Rng(self.seed).within("souped")("split", split).permutation(len(pool))
        val, test = ([pool[i] for i in part] for part in (order[:len(pool) // 2], order[len(pool) // 2:]))
        rows = [("test", e) for e in test] + [("strange", e) for e in strange]
        asked = [e for _, e in rows]
        if self.how == "ensemble":
            count = len(asking.tunes)
            said = np.mean([asking.said(_one(i, count), asked) for i in range(count)], 0)
        else:
            said = asking.said(asking.shares(self.how, val, split), asked)
        labels = asking.labels
        for (on, e), row in zip(rows, said, strict=True):
            yield {"id": f"{split}/{e.id}", "set": on, "cluster": e.cluster, "metric": "accuracy",
                   "value": float(labels[int(row.argmax())] == str(e.label))}

    def _theory(self, asking: _Asking, rows: Sequence[Example]) -> list[dict[str, Any]]:
        count, points = len(asking.tunes), []
        for first in range(min(self.pairs, count - 1)):
            def logs(a: float, first: int = first) -> Array:
                shares = [0.0] * count
                shares[first], shares[first + 1] = 1 - a, a
                return np.log(np.maximum(asking.said(shares, rows), 1e-12))

            points += [(first, *_point(logs, a, asking.right(rows))) for a in MIXTURES]
        foretold = np.array([p[1] for p in points])
        if self.how == "chance":
            foretold = foretold[Rng(self.seed).within("souped")("chance").permutation(len(points))]
        return [{"id": f"{i}-{j}", "set": "points", "cluster": f"{points[i][0]}-{points[j][0]}", "metric": "agreement",
                 "value": float((foretold[i] - foretold[j]) * (points[i][2] - points[j][2]) > 0)}
                for i, j in combinations(range(len(points)), 2)]


def _point(logs: Any, a: float, right: Array) -> tuple[float, float]:
    """What the approximation says of soup loss minus ensemble loss, and what it is; from log-probabilities [rows, labels]."""
    one, two, mixed, below, above = (logs(t) for t in (0.0, 1.0, a, a - STEP, a + STEP))
    rows = np.arange(len(right))

    def loss(scores: Array) -> float:
        return float(np.mean(np.log(np.exp(scores).sum(1)) - scores[rows, right]))

    bend = (loss(above) - 2 * loss(mixed) + loss(below)) / STEP**2
    apart, chance = two - one, np.exp(mixed)
    spread = float(np.mean((chance * apart**2).sum(1) - (chance * apart).sum(1) ** 2))
    return a * (1 - a) / 2 * (spread - bend), loss(mixed) - loss((1 - a) * one + a * two)


def _one(number: int, count: int) -> list[float]:
    return [float(i == number) for i in range(count)]


class _Asking:
    """One loaded model that takes the weights of several tunes."""

    def __init__(self, model: Model, tunes: Sequence[Artifact], ctx: Ctx) -> None:
        self.model, self.tunes, self.ctx = model, tunes, ctx
        self.labels = next(iter(model.labels.values()))

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
            return _one(int(np.argmax(found["single"])), len(self.tunes))
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

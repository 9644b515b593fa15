"""stocked: two tunes, or one, and the base between them, beside what is made of all; and how tunes lie around their mean.

Division n of the pool goes with a pair of tunes: neighbours in a ring first, then those two apart, and so on, so that six
divisions of six tunes ask each tune twice and fifteen ask all pairs. `how`:

    best      the one of all tunes that is best on the first half     uniform, greedy   soups of all tunes by `model-soup`
    single    the first of the pair                                    average           the mean of the pair
    stock     the pair and the base by the rule `model-stock`          wise              the mean of single and the base
    premises  only how tunes lie

The base's head is that of the input `probe`, from which all tunes began. Tensors that no tune changed are left out of these,
which have a record a tensor (set `tensors`) for each pair, with m the mean of all tunes outside the pair and d_i = W_i - W_0:

    distance  |W - m| / |m - W_0| of single, average, stock and wise      t   that of a stock

and, of `premises`, in degrees and as shares: `within`, how far a pair's angle between d_i and d_j is from the mean of its
tensor; `between`, how far that mean is from the mean of all tensors; `lengths`, how far |d_i| is from its mean over tunes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from luthier.core.artifact import Artifact
from luthier.core.component import build
from luthier.core.example import Example
from luthier.core.step import Ctx
from luthier.studies._worlds._soups import Array, Asking, Divided, Line, only

if TYPE_CHECKING:
    import torch

PLACED = ("single", "average", "stock", "wise")  # those whose distance from the other tunes is measured


class Stocked(Divided, name="stocked"):
    """Answer with one of several tunes, or with what is made of two, one, or all."""

    inputs: ClassVar[dict[str, str]] = {"base": "model", "examples": "examples", "probe": "adapter|delta|model", "*": "model"}
    draws: ClassVar[str] = "stocked"
    how: Literal["best", "uniform", "greedy", "single", "average", "stock", "wise", "premises"] = Field(
        "stock", description="what is made")
    splits: int = Field(6, ge=1, description="divisions of the pool, and pairs of tunes")

    def asking(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> _Stocking:
        return _Stocking(inputs["base"], self.tunes(inputs), ctx, inputs["probe"])

    def lines(self, asking: Asking, pool: Sequence[Example], strange: Sequence[Example]) -> list[Line]:
        """Accuracy of what answers, and what is measured of tensors."""
        assert isinstance(asking, _Stocking)
        if self.how == "premises":
            return list(premises(asking, self.splits))
        asked = super().lines(asking, pool, strange)
        if self.how not in PLACED:
            return asked
        return asked + [line for n in range(self.splits) for line in asking.distances(self.how, n)]

    def wanted(self, inputs: Mapping[str, Artifact]) -> int:
        """Nobody is asked about premises."""
        return 0 if self.how == "premises" else super().wanted(inputs)

    def said(self, asking: Asking, split: int, val: Sequence[Example], rows: Sequence[Example]) -> Array:
        """[rows, labels] of what is made of this division's pair, or of all."""
        assert isinstance(asking, _Stocking)
        if self.how in ("best", "uniform", "greedy"):
            return asking.said(asking.shares(self.how, val, split), rows)
        asking.made = {n: asking.point(self.how, n, split) for n in asking.names}
        return asking.said(only(len(asking.tunes), len(asking.tunes) + 1), rows)


def ring(count: int) -> list[tuple[int, int]]:
    """All pairs of `count` tunes, neighbours in the ring first."""
    found: dict[frozenset[int], tuple[int, int]] = {}
    for apart in range(1, count // 2 + 1):
        for i in range(count):
            found.setdefault(frozenset((i, (i + apart) % count)), (i, (i + apart) % count))
    return list(found.values())


class _Stocking(Asking):
    """The tunes, the base with its probed head, and one more model that is `made`."""

    def __init__(self, base: Artifact, tunes: Sequence[Artifact], ctx: Ctx, probe: Artifact) -> None:
        super().__init__(base, tunes, ctx)
        self.base, self.probe = base, probe
        self.made: dict[str, torch.Tensor] = {}
        self.rule: Any = build("weight_rule", "model-stock")
        self._found: tuple[int, dict[str, float]] = (-1, {})

    def stream(self, name: str) -> Iterator[Any]:
        """That of the tunes, and after them what is made."""
        if name == f"models/{len(self.tunes)}":
            yield from self.made.items()
        else:
            yield from super().stream(name)

    @cached_property
    def weights(self) -> list[dict[str, torch.Tensor]]:
        """Base first, then the tunes: tensors in float32 by name, those of heads as `heads/TASK.NAME`."""
        from luthier.engine.models import folder_of
        from luthier.engine.weight_sources import Stored
        from luthier.engine.weights import HEADS_FILE

        body, head = Stored(folder_of(self.base)), Stored(self.probe.folder / HEADS_FILE)
        tuned = [dict(self.stream(f"models/{i}")) for i in range(len(self.tunes))]
        first = {n: body.read(n) for n in body.specs if n in tuned[0]} | {f"heads/{n}": head.read(n) for n in head.specs}
        return [{n: model[n].float() for n in first if model[n].is_floating_point()} for model in (first, *tuned)]

    @cached_property
    def names(self) -> list[str]:
        """Of all tensors."""
        return list(self.weights[0])

    @cached_property
    def moved(self) -> list[str]:
        """Of the tensors that every tune changed."""
        base, *tuned = self.weights
        return [n for n in self.names if all(bool((model[n] != base[n]).any()) for model in tuned)]

    @cached_property
    def pairs(self) -> list[tuple[int, int]]:
        return ring(len(self.tunes))

    def point(self, how: str, name: str, number: int) -> torch.Tensor:
        """One tensor of what is made of pair `number`."""
        base, (one, two) = self.weights[0][name], (self.weights[1 + i][name] for i in self.pairs[number])
        if how == "stock":
            given = [{name: t} for t in (base, one, two)]
            stocked: torch.Tensor = self.rule.apply([name], given, self.cosines(number))[name]
            return stocked
        return {"single": one, "average": (one + two) / 2, "wise": (one + base) / 2}[how]

    def cosines(self, number: int) -> dict[str, float]:
        """What the rule finds of pair `number`; kept until another one is asked for."""
        if self._found[0] != number:
            models = [self.weights[0], *(self.weights[1 + i] for i in self.pairs[number])]

            def offered(name: str) -> Iterator[Any]:
                yield from (([n], [{n: model[n]} for model in models]) for n in self.names)

            own = Ctx(**{**self.ctx.__dict__, "stream": offered, "log": lambda text: None})
            self._found = (number, self.rule.statistics(own))
        return self._found[1]

    def distances(self, how: str, number: int) -> Iterator[Line]:
        """From the mean of the tunes outside of pair `number`, a tensor a record; of a stock its t, too."""
        base, *tuned = self.weights
        rest = [model for i, model in enumerate(tuned) if i not in self.pairs[number]]
        for name in self.moved:
            middle = sum(model[name] for model in rest) / len(rest)
            made, scale = self.point(how, name, number), float((middle - base[name]).norm())
            yield _line(f"{number}/{name}", "tensors", name, "distance", float((made - middle).norm()) / scale)
            if how == "stock":
                t = self.rule.facts([name], [{}] * 3, self.cosines(number))["t"]
                yield _line(f"{number}/{name}", "tensors", name, "t", t)


def premises(asking: _Stocking, pairs: int) -> Iterator[Line]:
    """How angles differ within tensors and between them, and lengths between tunes."""
    angles: dict[str, list[float]] = {n: [] for n in asking.moved}
    for number in range(pairs):
        found = asking.cosines(number)
        for name in asking.moved:
            angles[name].append(math.degrees(math.acos(found[name])))
    means = {name: float(np.mean(found)) for name, found in angles.items()}
    middle = float(np.mean(list(means.values())))
    base, *tuned = asking.weights
    for name, own in angles.items():
        yield _line(name, "between", name, "degrees", abs(means[name] - middle))
        yield from (_line(f"{n}/{name}", "within", name, "degrees", abs(a - means[name])) for n, a in enumerate(own))
        sizes = np.array([float((model[name] - base[name]).norm()) for model in tuned])
        yield from (_line(f"{i}/{name}", "lengths", name, "share", abs(s / sizes.mean() - 1)) for i, s in enumerate(sizes))


def _line(name: str, on: str, cluster: str, metric: str, value: float) -> Line:
    return {"id": name, "set": on, "cluster": cluster, "metric": metric, "value": float(value)}

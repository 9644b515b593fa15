"""GOT-D: the rows of a pool that move the pool's mixture fastest towards a target: the gradient of optimal transport.

A model that was trained on P and is warmed up on U knows about (1 - l) P + l U. To first order in l its transport distance to
the target R changes by the mean over U of the dual potential f on P, of which the constant is taken out:

    s_i = f_i - 1/(N - 1) sum over j != i of f_j = N/(N - 1) (f_i - mean f)

The `budget` rows of smallest s are kept. Texts are cut to 1,000 characters and embedded (role `encoder`, length 1, so that the
cost ||x - y||² lies in [0, 4]); a pool larger than `solve_rows` is solved on a draw from it, spread over sources, and the
potential extended to all of it. The pool stands for what the model was trained on. Contrasts: `reversed` (largest s),
`nearest` (to the mean of the target), `random`, and `dsir` (resampling by the importance of hashed one- and two-grams).

When it helps: a warm-up on unlabelled text before few labelled rows. Source: Kang, Just, Sun et al. 2024, ICLR (seed 6).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.example import Dropped, Example, SourceFile
from luthier.core.kinds import DataStep
from luthier.core.step import Ctx
from luthier.techniques.data._questions import spread
from luthier.techniques.data._transport import Plan, cost, soft, solve
from luthier.techniques.data.read_jsonl import ReadJsonl

if TYPE_CHECKING:
    import torch

CHARACTERS = 1000
FEW = 20  # a target of fewer rows gives noisy potentials
BUCKETS = 10_000


class GotD(DataStep, name="got-d", seeds=[6]):
    """Choose unlabelled rows for a warm-up towards a target."""

    roles: ClassVar[tuple[str, ...]] = ("encoder",)
    target: str = Field("", description="a file of rows (JSON lines) whose texts are the target; the input `target` if empty")
    target_subset: str = Field("train", description="which rows of the input `target`")
    budget: int = Field(2000, ge=1, description="how many rows are kept")
    by: Literal["got-d", "reversed", "nearest", "random", "dsir"] = Field("got-d",
                                                                          description="what is kept: got-d, or a contrast")
    eps: float = Field(0.1, gt=0, description="entropic regularisation, in units of the cost")
    relative: bool = Field(False, description="eps is a share of the mean cost")
    tolerance: float = Field(1e-3, gt=0, description="error of the plan's weights at which the solver stops")
    rounds: int = Field(1000, ge=1, description="most rounds of the solver")
    momentum: float = Field(1.0, ge=1, lt=2, description="over-relaxation of the solver; 1 is Sinkhorn's own")
    solve_rows: int = Field(20_000, ge=2, description="most rows of the pool that the potential is solved on")
    target_rows: int = Field(1000, ge=2, description="most rows of the target, drawn at random")

    def apply(self, rows: Iterator[Example], ctx: Ctx) -> Iterator[Example | Dropped]:
        """Raises UserError for a budget beyond the pool, an empty text, or a target that is not there."""
        if "encoder" not in ctx.roles and self.by not in ("random", "dsir"):
            raise UserError("got-d needs an encoder: inputs: {encoder: base}, such as minilm.")
        pool = list(rows)
        aim = self._target(ctx)
        if self.budget > len(pool):
            raise UserError(f"got-d: budget = {self.budget}, but the pool has {len(pool)} rows.")
        texts, wanted = ([_text(row) for row in some] for some in (pool, aim))
        scores = self._scored(pool, texts, wanted, ctx)
        order = sorted(range(len(pool)), key=lambda i: (scores[i], i))
        kept = set(order[:self.budget])
        for i, row in enumerate(pool):
            yield row if i in kept else Dropped(row.id, f"not chosen by {self.by}", f"score {scores[i]:.6g}")

    def scores(self, pool: torch.Tensor, target: torch.Tensor, ctx: Ctx | None = None) -> torch.Tensor:
        """[N] calibrated gradients of a pool [N, d] towards a target [M, d]. Raises UserError for what is not finite."""
        import torch

        for name, part in (("pool", pool), ("target", target)):
            if not bool(torch.isfinite(part).all()):
                raise UserError(f"got-d: an embedding of the {name} is not finite.")
        plan = self.plan(pool, target)
        if not plan.converged and ctx is not None:
            ctx.log(f"got-d: not converged after {plan.rounds} rounds: the weights are wrong by {plan.error:.2g}, wanted "
                    f"{self.tolerance:g}. Try eps={2 * self.eps:g} or more rounds")
        return calibrated(plan.f)

    def plan(self, pool: torch.Tensor, target: torch.Tensor) -> Plan:
        """The potentials."""
        return solve(pool, target, self._eps(pool, target), tolerance=self.tolerance, most=self.rounds, momentum=self.momentum)

    def _eps(self, pool: torch.Tensor, target: torch.Tensor) -> float:
        if not self.relative:
            return self.eps
        return self.eps * float(np.mean([float(cost(part.double(), target.double()).mean()) for part in pool.split(2000)]))

    def _scored(self, pool: Sequence[Example], texts: Sequence[str], wanted: Sequence[str], ctx: Ctx) -> list[float]:
        """A number for each row of the pool; the smallest are kept."""
        if self.by == "random":
            return [float(v) for v in ctx.rng("random").random(len(texts))]
        if self.by == "dsir":
            return [-v for v in dsir(texts, wanted, ctx.rng("dsir"))]
        import torch

        seen, aim = (torch.from_numpy(ctx.engine.embed(ctx.roles["encoder"], some)) for some in (texts, wanted))
        if self.by == "nearest":
            return [float(v) for v in -(seen @ aim.mean(0))]
        few = list(range(len(pool)))
        if len(pool) > self.solve_rows:
            few = sorted(spread(few, lambda i: pool[i].source, self.solve_rows, ctx.rng.within("solved")))
        found = self.scores(seen[few], aim, ctx)
        if len(few) < len(pool):
            plan = self.plan(seen[few], aim)
            b = torch.full((len(aim),), 1 / len(aim), dtype=torch.float64)
            found = soft(seen.double(), aim.double(), plan.g, b, self._eps(seen[few], aim))
            found = calibrated(found)
        return [float(v) for v in (-found if self.by == "reversed" else found)]

    def _target(self, ctx: Ctx) -> list[Example]:
        """The rows to move towards. Raises UserError where there are none."""
        if self.target:
            path = Path(self.target)
            if not path.is_file():
                raise UserError(f"got-d: target: there is no file {self.target}.")
            found = [r for r in ReadJsonl().apply(iter([SourceFile(path.name, str(path))]), ctx) if isinstance(r, Example)]
        else:
            try:
                found = list(ctx.stream(f"target.{self.target_subset}"))
            except KeyError:  # no input of this name
                found = []
        if not found:
            raise UserError("got-d needs a target: target=FILE, or inputs: {target: …} with rows.")
        if len(found) < FEW:
            ctx.log(f"got-d: the target has {len(found)} rows: potentials of fewer than {FEW} are noisy")
        chosen = sorted(ctx.rng("target").permutation(len(found))[:self.target_rows].tolist())
        return [found[i] for i in chosen]


def calibrated(f: torch.Tensor) -> torch.Tensor:
    """[N] potentials against the mean of all others: a constant does not matter."""
    return (f - f.mean()) * (len(f) / max(1, len(f) - 1))


def dsir(pool: Sequence[str], target: Sequence[str], draw: np.random.Generator) -> list[float]:
    """Log importance of each text plus Gumbel noise: the largest are a draw without replacement by importance."""
    counts = [np.stack([_hashed(t) for t in some]) for some in (pool, target)]
    ours, theirs = ((c.sum(0) + 1) / (c.sum() + BUCKETS) for c in counts)
    return [float(v) for v in counts[0] @ np.log(theirs / ours) + draw.gumbel(size=len(pool))]


def _hashed(text: str) -> np.ndarray:
    """[BUCKETS] counts of words and of pairs of words."""
    words = text.lower().split()
    found = np.zeros(BUCKETS)
    for gram in [*words, *(" ".join(p) for p in pairwise(words))]:
        found[zlib.crc32(gram.encode()) % BUCKETS] += 1
    return found


def _text(row: Example) -> str:
    """What is embedded of a row. Raises UserError for an empty text."""
    text = "\n".join(t.text for t in row.turns)[:CHARACTERS]
    if not text.strip():
        raise UserError(f"got-d: row {row.id} is an empty text.")
    return text

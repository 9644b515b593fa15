"""graft: the few entries of a tuned model that carry its skill, as a sparse delta on the base.

θ(γ) = θ_pre + γ ⊙ (θ_ft - θ_pre) with γ in {0, 1}. γ starts as the `sparsity` largest changes of all numbered layers together
(embeddings, vocabulary head and what stands outside of layers are left out). With `data` it is then optimised: a real S of the
same shape, from U[0, 1), relaxes it, γ(S) = γ_0 (1 - σ(S - 10)) + (1 - γ_0) σ(S - 10), and S follows the gradient of the loss
at θ(γ(S)) by plain steps. After each step the rounded graft is tried on held-out rows; the best one is kept, the start among
them. How large it becomes depends on the steps: the count is in the record.

The result keeps the base's own values too (--rule revert-graft). When it helps: to see where a skill lies; to carry several
skills in one model (--rule apply-graft); better calibration than the whole tune. Source: Panigrahi et al. 2023,
"Task-specific skill localization in fine-tuned language models", sections 2 and 3 (seed 59).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from luthier.core.component import Slot, named
from luthier.core.errors import UserError
from luthier.core.identity import hash_file
from luthier.core.kinds import Objective, WeightRule
from luthier.techniques.weights._rows import read_pairs
from luthier.techniques.weights._shared import numbered

if TYPE_CHECKING:
    import torch

    from luthier.core.step import Ctx
    from luthier.engine.tensors import Spec


class Graft(WeightRule, name="graft", seeds=[59]):
    """A tune reduced to the entries that matter most."""

    takes_base: ClassVar[bool] = True
    models: ClassVar[tuple[int, int]] = (1, 1)
    sparsity: float = Field(1e-4, gt=0, le=1, description="share of the entries of all layers at the start")
    start: Literal["magnitude", "random"] = Field("magnitude", description="which entries: the largest changes, or, as a "
                                                                           "control, as many at random")
    data: str = Field("", description="JSON lines with question and answer on which the mask is optimised; empty: it is not")
    objective: Slot[Objective] = Field(named("supervised"), description="whose loss is lowered")
    steps: int = Field(20, ge=1, description="steps of the optimisation")
    rate: float = Field(1e7, gt=0, description="step size; an entry changes sides when its S has moved by about 10")
    rows: int = Field(8, ge=1, description="rows of a batch")
    batches: int = Field(128, ge=1, description="batches whose mean gradient makes a step, at most")
    max_tokens: int = Field(512, ge=8, description="longest row in tokens")

    @property
    def leaves(self) -> Literal["model", "adapter", "delta"]:
        return "delta"

    @property
    def roles(self) -> tuple[str, ...]:
        return ("model", "base") if self.data else ()

    def check(self, models: int) -> None:
        if self.data and len(found := read_pairs(self.data, "graft", "data")) < 2:
            raise UserError(f"graft: {self.data} has {len(found)} row; one is learned from and one held out: give at least 2.")

    def content(self) -> dict[str, Any]:
        return {"data": hash_file(Path(self.data).expanduser())} if self.data else {}

    def statistics(self, ctx: Ctx) -> dict[str, torch.Tensor]:
        """Chosen entries of each tensor, [n] int64 counted through the flattened tensor, rising.

        Raises:
            UserError: the sparsity leaves no entry, or nothing changed.
        """
        chosen = self._largest(ctx) if self.start == "magnitude" else self._random(ctx)
        if self.data:
            from luthier.techniques.weights._grafting import localised

            chosen = localised(self, ctx, chosen)
        ctx.log(f"the graft has {sum(map(len, chosen.values()))} entries in {len(chosen)} tensors")
        return chosen

    def _count(self, total: int) -> int:
        count = round(self.sparsity * total)
        if not count:
            raise UserError(f"graft: sparsity = {self.sparsity:g} of {total} entries leaves none. Give at least "
                            f"{1 / max(total, 1):.1g}.")
        return count

    def _largest(self, ctx: Ctx) -> dict[str, torch.Tensor]:
        """The largest changes over all layers; in memory are those that are kept so far."""
        import torch

        sizes = {g[0]: t[0][g[0]].numel() for g, t in ctx.stream("weights") if numbered(g[0])}
        count, names = self._count(sum(sizes.values())), list(sizes)
        values, owners, places = torch.empty(0), torch.empty(0, dtype=torch.int32), torch.empty(0, dtype=torch.int64)
        for group, (base, tuned) in ctx.stream("weights"):
            if group[0] not in sizes:
                continue
            change = (tuned[group[0]].float() - base[group[0]].float()).abs().reshape(-1)
            best = change.topk(min(count, len(change)))
            owner = torch.full((len(best.indices),), names.index(group[0]), dtype=torch.int32)
            values, owners = torch.cat([values, best.values]), torch.cat([owners, owner])
            places = torch.cat([places, best.indices])
            kept = values.topk(min(count, len(values))).indices
            values, owners, places = values[kept], owners[kept], places[kept]
        if not values.any():
            raise UserError("graft: no layer differs from the base; there is nothing to graft.")
        places, owners = places[values > 0], owners[values > 0]
        return {n: places[owners == i].sort().values for i, n in enumerate(names) if (owners == i).any()}

    def _random(self, ctx: Ctx) -> dict[str, torch.Tensor]:
        """As many entries, drawn from all layers alike."""
        import numpy as np
        import torch

        sizes = {g[0]: t[0][g[0]].numel() for g, t in ctx.stream("weights") if numbered(g[0])}
        total = sum(sizes.values())
        drawn = np.sort(ctx.rng("graft").choice(total, size=self._count(total), replace=False))
        ends = np.cumsum([0, *sizes.values()])
        parts = {n: drawn[(drawn >= a) & (drawn < b)] - a for n, a, b in zip(sizes, ends, ends[1:], strict=False)}
        return {n: torch.from_numpy(part) for n, part in parts.items() if len(part)}

    def specs(self, group: Sequence[str], given: Mapping[str, Spec], stats: Any) -> dict[str, Spec]:
        import torch

        name, spec = group[0], given[group[0]]
        if name not in stats:
            return {}
        count = (len(stats[name]),)
        return {f"{name}:at": type(spec)(torch.int64, count), f"{name}:values": type(spec)(spec.dtype, count),
                f"{name}:was": type(spec)(spec.dtype, count)}

    def apply(self, group: Sequence[str], tensors: Sequence[Mapping[str, torch.Tensor]], stats: Any
              ) -> dict[str, torch.Tensor]:
        """Places, the tuned values there, and the base's own."""
        name = group[0]
        if name not in stats:
            return {}
        was, values = (t[name].reshape(-1)[stats[name]] for t in tensors)
        return {f"{name}:at": stats[name], f"{name}:values": values, f"{name}:was": was}

    def facts(self, group: Sequence[str], tensors: Sequence[Mapping[str, torch.Tensor]], stats: Any) -> dict[str, Any]:
        """How many entries, and their share."""
        count = len(stats.get(group[0], ()))
        return {"entries": count, "share": count / tensors[0][group[0]].numel()} if count else {}

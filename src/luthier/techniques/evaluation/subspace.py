"""subspace: which directions an update took, which of them another update shares, and what it amplifies.

    phi(i, j) = ||U1[:, :i]^T U2[:, :j]||_F² / min(i, j)                in [0, 1]; of random ones max(i, j) / d on average
    amplification = ||ΔW||_F / ||U^T W0 V||_F                           U [out, r], V [in, r]: the leading directions of ΔW

ΔW = W - W0 [out, in] of a linear layer, an adapter merged. The directions [d, r] of phi are the right singular vectors of
LoRA's A [r, in] (`of=A`), the left ones of B [out, r] (`of=B`), or the right ones of ΔW (`of=change`), which any tune has;
`auto` takes A where both tunes are LoRA. r is at most k, and no more than the rank that the update has. Beside U^T W0 V stand
the same norm along the leading directions of W0 itself, (s_1² + … + s_r²)^½, and along random ones, r ||W0||_F / (out · in)^½.

When it helps: two seeds or ranks that share only their first directions say that a low rank was enough; an update that
amplifies much strengthens what the base had and did not stress. A holds its random start, too: what training did not move
looks like chance. Source: Hu et al. 2021, "LoRA", arXiv 2106.09685, sections 7.2 and 7.3, tables 7 and 8 (seed 114).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from luthier.core.artifact import Artifact
from luthier.core.errors import UserError
from luthier.core.files import write_lines
from luthier.core.finding import Finding, not_applicable
from luthier.core.kinds import Audit
from luthier.core.step import Ctx
from luthier.engine.subjects import Subject
from luthier.techniques.evaluation._spectra import changed
from luthier.techniques.evaluation._tunes import tune_in, weighed

if TYPE_CHECKING:
    import torch

MATRICES, PAIRS = "matrices.jsonl", "pairs.jsonl"
KEY = "base_model.model."  # how PEFT begins the names in an adapter's file
Of = Literal["auto", "A", "B", "change"]


class Subspace(Audit, name="subspace", seeds=[114]):
    """Leading directions of an update: shared with another one, and amplified."""

    battery: ClassVar[bool] = False
    other: str = Field("", description="a second tune of the same base, a run or a folder; alone an update has no phi")
    of: Of = Field("auto", description="whose directions are compared: of LoRA's A, of its B, or of the change itself")
    k: int = Field(16, ge=1, description="leading directions of each update that are looked at")
    modules: tuple[str, ...] = Field((), description="parts of names of linear layers, or attention; all when left out")
    max_amplification: float | None = Field(None, gt=0, description="most that an update may amplify; no limit if left out")
    max_similarity: float | None = Field(None, gt=0, description="most that two updates may share; no limit if left out")

    def check(self) -> None:
        """Refuse a second tune that is none."""
        if self.other:
            tune_in("subspace", self.other)
        elif self.of != "auto" or self.max_similarity is not None:
            raise UserError("subspace: of and max_similarity are about two tunes. Name the second one: --audit "
                            "subspace:other=RUN2.")

    def content(self) -> dict[str, Any]:
        """The second tune."""
        return {"other": tune_in("subspace", self.other).identity} if self.other else {}

    def measure(self, ctx: Ctx, subject: Subject) -> list[Finding]:
        """`audit/subspace/amplification`, and `…/similarity` with another tune; a line a matrix in two files.

        Raises:
            UserError: a second tune of another base or without LoRA's factors where they are asked for, or what
                `_spectra.changed` refuses.
        """
        deltas, bases = {}, {}
        for name, before, after in changed(subject, self.modules):
            deltas[name], bases[name] = after - before, before
        if not deltas:
            return [not_applicable("audit/subspace/amplification", "the change is zero: no linear layer was changed")]
        rows = [amplified(name, delta, bases[name], self.k) for name, delta in deltas.items()]
        write_lines(ctx.folder / MATRICES, rows)
        return [self._amplification(rows), *([self._similarity(ctx, subject, deltas, bases)] if self.other else [])]

    def _amplification(self, rows: Sequence[Mapping[str, Any]]) -> Finding:
        there = [r["amplification"] for r in rows if r["amplification"] is not None]
        if not there:
            return not_applicable("audit/subspace/amplification", "the base has nothing along the directions of the update")
        told = f"{len(there)} changed matrices, {min(there):.3g} to {max(there):.3g}"
        if len(there) < len(rows):
            told += f"; in {len(rows) - len(there)} more the base has nothing there"
        middle = median(there)
        return weighed("audit/subspace/amplification", middle, self.max_amplification, unit="times", evidence=MATRICES,
                       title="amplification of the base's own part (median)", detail=told, matrices=len(rows),
                       rank=median(r["rank"] for r in rows))

    def _similarity(self, ctx: Ctx, subject: Subject, deltas: Mapping[str, Any], bases: Mapping[str, Any]) -> Finding:
        assert subject.tuned is not None and subject.base is not None
        other = tune_in("subspace", self.other)
        if other.meta["base"]["identity"] != subject.base.identity:
            raise UserError(f"subspace: {self.other} was tuned on {other.meta['base']['name']}, another base than "
                            f"{subject.base.meta['name']}: their directions have no common meaning. Compare tunes of one base.")
        sides = [factors(a) for a in (subject.tuned, other)]
        of = self.of if self.of != "auto" else "A" if all(sides) else "change"
        if of == "change":
            second = {name: after - before for name, before, after in changed(replace(subject, tuned=other), self.modules)}
            found = [{n: leading(d, bases[n], self.k) for n, d in side.items() if n in bases} for side in (deltas, second)]
        else:
            found = [{n: directions(parts[of], self.k, of) for n, parts in side.items() if n in deltas} for side in sides]
            if lost := [place for place, side in zip(("the audited tune", self.other), sides, strict=True) if not side]:
                raise UserError(f"subspace: {lost[0]} holds no LoRA factors, so there is no {of}. Take of=change.")
        rows = [{"name": n, "shape": list(bases[n].shape), **shared(one, found[1][n])} for n, one in found[0].items()
                if n in found[1]]
        if not rows:
            return not_applicable("audit/subspace/similarity", "the two tunes have changed no matrix in common")
        write_lines(ctx.folder / PAIRS, rows)
        return self._told(of, rows)

    def _told(self, of: str, rows: Sequence[Mapping[str, Any]]) -> Finding:
        sides = [min(len(r["phi"]) for r in rows), min(len(r["phi"][0]) for r in rows)]
        mean, chance = ([[sum(r[key][i][j] for r in rows) / len(rows) for j in range(sides[1])] for i in range(sides[0])]
                        for key in ("phi", "chance"))
        whole, luck = (sum(r[key][-1][-1] for r in rows) / len(rows) for key in ("phi", "chance"))
        what = "the change" if of == "change" else f"LoRA's {of}"
        return weighed("audit/subspace/similarity", whole, self.max_similarity, evidence=PAIRS,
                       title=f"subspace shared with another tune, of {what}",
                       detail=f"{len(rows)} matrices; the first direction {mean[0][0]:.3f}, by chance {chance[0][0]:.3f}; all "
                              f"{sides[0]} and {sides[1]} of each {whole:.3f}, by chance {luck:.3f}",
                       matrices=len(rows), of=of, first=mean[0][0], chance=luck,
                       heat={"title": "phi(i, j), mean over matrices", "x": "directions of the other tune", "y":
                             "directions of this one", "cells": [[round(v, 4) for v in row] for row in mean]})


def directions(matrix: torch.Tensor, k: int, of: str = "A") -> torch.Tensor:
    """[d, r] singular vectors on the side of the layer, of A [rank, d] or B [d, rank], with values above rounding; r <= k."""
    import torch

    u, s, vh = torch.linalg.svd(matrix.float(), full_matrices=False)
    rank = int((s > max(matrix.shape) * torch.finfo(torch.float32).eps * s[0]).sum())
    return (vh.T if of == "A" else u)[:, :max(1, min(k, rank))]


def leading(delta: torch.Tensor, base: torch.Tensor, k: int) -> torch.Tensor:
    """[in, r] leading right singular vectors of a change [out, in], of those above what rounding alone leaves."""
    from luthier.engine.spectra import Spectrum

    return Spectrum.of(delta).right[:, :_rank(delta, base, k)]


def _rank(delta: torch.Tensor, base: torch.Tensor, k: int) -> int:
    import torch

    from luthier.engine.spectra import numeric_rank

    return max(1, min(k, numeric_rank(delta, float(torch.linalg.matrix_norm(base + delta, 2)))))


def shared(one: torch.Tensor, two: torch.Tensor) -> dict[str, Any]:
    """`phi` [i, j] of two sets of directions [d, i] and [d, j], and what random ones have."""
    import torch

    products = (one.double().T @ two.double()).square().cumsum(0).cumsum(1)
    i, j = (torch.arange(1, n + 1, dtype=torch.float64) for n in products.shape)
    phi = products / torch.minimum(i[:, None], j[None])
    return {"phi": [[round(min(v, 1.0), 6) for v in row] for row in phi.tolist()],
            "chance": (torch.maximum(i[:, None], j[None]) / len(one)).tolist()}


def amplified(name: str, delta: torch.Tensor, base: torch.Tensor, k: int) -> dict[str, Any]:
    """Norms of a change [out, in], and of its base along the change's directions, its own and random ones."""
    from luthier.engine.spectra import Spectrum

    change, own = Spectrum.of(delta), Spectrum.of(base)
    rank = _rank(delta, base, k)
    norm = float(delta.double().norm())
    along = float((change.left[:, :rank].double().T @ base.double() @ change.right[:, :rank].double()).norm())
    nothing = 1e-7 * float(own.values[0])  # what rounding leaves of a product that is zero
    return {"name": name, "shape": list(base.shape), "rank": rank, "values": change.values[:rank].tolist(), "norm": norm,
            "along_change": along, "along_base": float(own.values[:rank].double().norm()),
            "along_random": rank * float(base.double().norm()) / math.sqrt(base.numel()),
            "amplification": norm / along if along > nothing else None}


def factors(tuned: Artifact) -> dict[str, dict[str, torch.Tensor]]:
    """LoRA's A [r, in] and B [out, r] by layer; nothing where a tune is no LoRA."""
    from safetensors.torch import load_file

    path = tuned.folder / "adapter_model.safetensors"
    if tuned.kind != "adapter" or not path.exists():
        return {}
    tensors = load_file(path)
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, side = key.removeprefix(KEY).removesuffix(".weight").rpartition(".lora_")
        if side in ("A", "B") and tensor.dim() == 2:
            found.setdefault(name, {})[side] = tensor
    return {n: parts for n, parts in found.items() if len(parts) == 2}

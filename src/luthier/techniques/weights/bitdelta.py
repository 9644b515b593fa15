"""bitdelta: W ≈ W0 + sum_k a_k S_k: one sign a weight and one number a matrix for what a full tune changed.

D = W - W0 [out, in], S_1 = sign(D) with sign(0) = +1, a_1 = mean |D|, which minimises ||D - a S||; the next plane does the same
to what is left, so that k planes are k bits. Packed are the matrices of numbered layers; embeddings, vocabulary head, norms and
biases are kept whole where they changed. `distill` then trains one factor a plane, a_k = a0_k exp(t_k), on the squared distance
between the logits of the tuned model and of the packed one; the best step on held-out text is kept, the start among them.

The result is a delta on the base; `luthier merge DELTA --rule linear` makes plain weights of it. When it helps: many full tunes
of one base, each a sixteenth of bfloat16 weights (a thirty-second of float32) in its layers. Source: Liu et al. 2024,
"BitDelta: your fine-tune may only be worth one bit", sections 3.1 and 3.2 (seed 136); trained there are the a_k themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.identity import hash_file
from luthier.core.kinds import WeightRule
from luthier.techniques.weights._shared import in_layers

if TYPE_CHECKING:
    import numpy as np
    import torch

    from luthier.core.rng import Rng
    from luthier.core.step import Ctx
    from luthier.engine.tensors import Spec

ZEROS = 0.05  # share of unchanged weights from which on +a would move too many that stood still


class BitDelta(WeightRule, name="bitdelta", seeds=[136], version=2):
    """A full tune as signs and scales on its base."""

    takes_base: ClassVar[bool] = True
    models: ClassVar[tuple[int, int]] = (1, 1)
    bits: int = Field(1, ge=1, le=8, description="planes of signs, each one bit a weight")
    signs: Literal["change", "random"] = Field("change", description="those of the change, or, as a control, any")
    distill: str = Field("", description="a text file on which the scales are trained; empty: they stay mean |D|")
    steps: int = Field(200, ge=1, description="steps of that training")
    rows: int = Field(4, ge=1, description="pieces of text a step")
    tokens: int = Field(128, ge=8, description="tokens of a piece")
    learning_rate: float = Field(0.01, gt=0, description="of Adam on the logarithms of the scales, falling to 0 as a cosine")

    @property
    def leaves(self) -> Literal["model", "adapter", "delta"]:
        return "delta"

    @property
    def roles(self) -> tuple[str, ...]:
        return ("model", "base") if self.distill else ()

    def check(self, models: int) -> None:
        if self.distill and not Path(self.distill).expanduser().is_file():
            raise UserError(f"bitdelta: distill = {self.distill!r}: there is no such file. Give a file of plain text.")

    def content(self) -> dict[str, Any]:
        return {"distill": hash_file(Path(self.distill).expanduser())} if self.distill else {}

    def statistics(self, ctx: Ctx) -> dict[str, Any]:
        """Scales [bits] of each packed matrix, what each loses, and which other tensors changed.

        Raises:
            UserError: changes that are not finite, or none in any layer.
        """
        import torch

        from luthier.engine.weight_executor import finite

        scales: dict[str, torch.Tensor] = {}
        facts: dict[str, dict[str, Any]] = {}
        changed = set()
        for group, (base, tuned) in ctx.stream("weights"):
            name = group[0]
            if not torch.equal(base[name], tuned[name]):
                changed.add(name)
            if in_layers(name, base[name].shape) and name in changed:
                change = tuned[name].float() - base[name].float()
                if not finite(change):
                    raise UserError(f"{name} changed by numbers that are not finite; they can't be packed.")
                _, scales[name], left = self.packed(name, change, ctx.rng)
                facts[name] = {"scales": scales[name].tolist(), "zeros": round(float((change == 0).float().mean()), 4),
                               "relative error": round(float(left.norm() / change.norm()), 4)}
        if not scales:
            raise UserError("bitdelta: no matrix of a numbered layer differs from the base; there is nothing to pack.")
        if idle := [n for n, f in facts.items() if f["zeros"] > ZEROS]:
            ctx.log(f"{len(idle)} of {len(facts)} matrices have more than {ZEROS:.0%} weights that did not change (first: "
                    f"{idle[0]}); a sign moves them all the same. Tune with float32 weights, or keep what changed alone: "
                    "--rule graft")
        stats = {"scales": scales, "facts": facts, "changed": changed, "rng": ctx.rng}
        if self.distill:
            from luthier.techniques.weights._distilling import distilled

            stats["scales"], losses = distilled(self, ctx, scales)
            ctx.log(f"held-out squared distance of logits: {losses[0]:.3e} -> {losses[1]:.3e}")
        return stats

    def packed(self, name: str, change: torch.Tensor, rng: Rng) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Planes of one matrix's change, as `planes` gives them."""
        return planes(change, self.bits, partial(rng, f"signs/{name}") if self.signs == "random" else None)

    def specs(self, group: Sequence[str], given: Mapping[str, Spec], stats: Any) -> dict[str, Spec]:
        import torch

        name, spec = group[0], given[group[0]]
        if name in stats["scales"]:
            count = torch.Size(spec.shape).numel()
            return {f"{name}:bits": type(spec)(torch.uint8, (self.bits, -(-count // 8))),
                    f"{name}:scales": type(spec)(torch.float32, (self.bits,))}
        return {name: spec} if name in stats["changed"] else {}

    def apply(self, group: Sequence[str], tensors: Sequence[Mapping[str, torch.Tensor]], stats: Any
              ) -> dict[str, torch.Tensor]:
        """Signs of the change; the scales are those of the statistics."""
        name, (base, tuned) = group[0], tensors
        if name in stats["scales"]:
            bits, _, _ = self.packed(name, tuned[name].float() - base[name].float(), stats["rng"])
            return {f"{name}:bits": bits, f"{name}:scales": stats["scales"][name]}
        return {name: tuned[name]} if name in stats["changed"] else {}

    def facts(self, group: Sequence[str], tensors: Sequence[Mapping[str, torch.Tensor]], stats: Any) -> dict[str, Any]:
        """Scales, share of weights that did not change, and ||D - sum a S|| / ||D|| before distillation."""
        found: dict[str, Any] = stats["facts"].get(group[0], {})
        return found


def planes(change: torch.Tensor, count: int, draw: Callable[[int], np.random.Generator] | None = None
           ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Packed signs [count, ceil(n / 8)], scales [count] float32, and what is left of `change` [out, in].

    draw: the generator of a plane's signs, where they are not those of the change.
    """
    import torch

    from luthier.engine.deltas import pack_bits

    left, bits, scales = change.clone(), [], []
    for plane in range(count):
        positive, scale = left >= 0, left.abs().mean(dtype=torch.float64).float()
        if draw is not None:
            positive = torch.from_numpy(draw(plane).random(tuple(left.shape), dtype="float32")) < 0.5
        bits.append(pack_bits(positive))
        scales.append(scale)
        left -= torch.where(positive, scale, -scale)
    return torch.stack(bits), torch.stack(scales), left

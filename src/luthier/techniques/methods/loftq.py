"""LoftQ: weights in few bits and LoRA factors chosen together, so that training begins near the base.

    min over Q on an N-bit grid, A [out, r], B [in, r] of ||W - Q - A B'||_F, by turns:
    A_0 = B_0 = 0;   Q_t = q_N(W - A_{t-1} B_{t-1}');   U S V' = svd(W - Q_t);   A_t = U_r S_r^1/2,  B_t = V_r S_r^1/2

No quantiser here is a projection, so a later turn may be worse: the best one is kept. PEFT's lora_B is A, and its lora_A is
B' / (alpha / r), so that a scaling other than 1 begins at the same place. Q is frozen and stored in N bits; with `iterations=0`
Q = q_N(W), lora_B = 0, and the method is QLoRA. q_N is NormalFloat in blocks, or uniform with one scale a matrix.

When it helps: 2 or 3 bits, where QLoRA begins far from the base; at 4 bits the two are near. The rate that is best for one
is not for the other. Source: Li et al. 2023, arXiv 2310.08659 (seed 180).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.files import write_json
from luthier.core.kinds import Default, Method
from luthier.core.step import FitCtx
from luthier.techniques.methods._shared import lora_layers, require_rank, targeted, wrap

if TYPE_CHECKING:
    import torch

    from luthier.engine.low_bits import LowBits
    from luthier.engine.models import Model
    from luthier.techniques.methods._quantizers import Quantizer

Factors = tuple["torch.Tensor", "torch.Tensor"]
EXACT_UP_TO = 2048  # sides of a matrix whose singular vectors are all computed
OVERSAMPLED, ROUNDS = 10, 4  # of the randomised ones


class LoftQ(Method, name="loftq", seeds=[180]):
    """LoRA on a base in few bits, begun where both together are nearest to the base."""

    artifact: ClassVar[Literal["adapter", "delta", "model"]] = "adapter"
    bits: Literal[2, 3, 4, 8, "2/4"] = Field(4, description="bits of a weight: 2, 3, 4 or 8; 2/4: 4 in the first half of the "
                                                            "layers, 2 in the rest")
    quant: Literal["nf", "uniform"] = Field("nf", description="nf: NormalFloat, a scale a block; uniform: equal steps, one "
                                                              "scale a matrix")
    block: int = Field(64, ge=1, description="weights that share a scale (nf)")
    iterations: int = Field(5, ge=0, description="turns of quantising and decomposing; 0 is QLoRA")
    rank: int = Field(16, ge=1, description="rank of the update")
    alpha: float | None = Field(None, gt=0, description="the update is scaled by alpha / rank; rank if left out")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the input of lora_A while training")
    target: str | tuple[str, ...] = Field("all-linear", description="all-linear, attention-qv, or names of layers")
    svd: Literal["auto", "exact", "randomised"] = Field("auto", description="auto: randomised where a side is above 2048")

    def prepare(self, model: Model, ctx: FitCtx) -> Model:
        """Raises UserError for weights that are not finite, and for a rank above the side of a layer."""
        from peft import LoraConfig

        from luthier.engine.low_bits import no_merging

        targets = self._targets(model, ctx)
        require_rank("loftq", self.rank, targets)
        alpha = float(self.alpha or self.rank)
        factors = self._quantise(model, list(targets), ctx)
        wrap(model, LoraConfig(r=self.rank, lora_alpha=alpha, lora_dropout=self.dropout,  # type: ignore[arg-type]
                               target_modules=list(targets)))
        no_merging(model.module)
        layers = lora_layers(model.module)
        for name, (up, down) in factors.items():
            layers[name].lora_B["default"].weight.data.copy_(up)
            layers[name].lora_A["default"].weight.data.copy_(down.T / (alpha / self.rank))
        return model

    def _targets(self, model: Model, ctx: FitCtx) -> dict[str, tuple[int, int]]:
        """The layers that are quantised; those whose weights something else shares stay, and are named."""
        if model.low_bits is not None or "quantize" in model.base.meta:
            raise UserError(f"loftq quantises {model.name} itself, and it is in few bits already. Leave base.quantize out.")
        targets = targeted("loftq", model, self.target)
        owners: dict[int, list[str]] = {}
        for name, module in model.module.named_modules():
            if (weight := module._parameters.get("weight")) is not None:
                owners.setdefault(id(weight), []).append(name)
        shared = {n for names in owners.values() if len(names) > 1 for n in names} & targets.keys()
        if shared and ctx is not None:
            ctx.log(f"loftq: {', '.join(sorted(shared))} share weights with other modules and stay as they are")
        if not (left := {n: sides for n, sides in targets.items() if n not in shared}):
            raise UserError(f"loftq: every targeted layer of {model.name} shares its weights with another module. Try lora.")
        return left

    def _quantise(self, model: Model, names: list[str], ctx: FitCtx) -> dict[str, Factors]:
        """Put the layers in few bits; the factors by layer, none for QLoRA, which begins as LoRA does."""
        import torch

        from luthier.engine import low_bits
        from luthier.techniques.methods._quantizers import matrix, require_finite

        bits, facts = self._bits(model, names), {}
        factors: dict[str, Factors] = {}
        base = low_bits.LowBitBase()
        for name in names:
            weight = matrix(model.module.get_submodule(name))
            require_finite("loftq", name, weight)
            draw = torch.Generator("cpu" if weight.is_meta else weight.device)
            draw.manual_seed(ctx.rng.key("svd", name) if ctx is not None else 0)
            found, pair, errors = begin(weight.float(), self._quantizer(bits[name]), self.rank, self.iterations,
                                        self._randomised(weight), draw)
            if pair:
                factors[name] = pair
            base.layers[name] = found
            facts[name] = {"bits": bits[name], "qlora": errors[0], "loftq": errors[1]}
            low_bits.put(model, name, found)
        model.low_bits = base
        if ctx is not None and model.device.type != "meta":
            self._tell(base, facts, ctx)
        return factors

    def _bits(self, model: Model, names: list[str]) -> dict[str, int]:
        """Bits of each layer."""
        from luthier.engine.layers import layer_stacks

        if self.bits != "2/4":
            return dict.fromkeys(names, int(self.bits))
        stacks = layer_stacks(model)
        if not stacks:
            raise UserError(f"loftq: bits = 2/4 tells the first half of the layers from the rest, and {model.name} has no "
                            "stack of layers that are called one after another. Give one number of bits.")
        first = {id(m) for stack in stacks for layer in list(stack.layers)[:len(stack.layers) // 2] for m in layer.modules()}
        return {n: 4 if id(model.module.get_submodule(n)) in first else 2 for n in names}

    def _quantizer(self, bits: int) -> Quantizer:
        from luthier.techniques.methods._quantizers import normal_float, uniform

        return partial(normal_float, bits=bits, block=self.block) if self.quant == "nf" else partial(uniform, bits=bits)

    def _randomised(self, weight: torch.Tensor) -> bool:
        return self.svd == "randomised" or (self.svd == "auto" and max(weight.shape) > EXACT_UP_TO)

    def _tell(self, base: Any, facts: dict[str, dict[str, Any]], ctx: FitCtx) -> None:
        """Before training: how far each layer is from the base's, beside QLoRA, and the memory of all."""
        write_json(ctx.folder / "loftq.json", facts)
        ways = {way: sum(f[way] for f in facts.values()) / len(facts) for way in ("qlora", "loftq")}
        stored, whole = sum(m.bytes for m in base.layers.values()) / 1e6, 2 * base.numbers / 1e6
        ctx.log(f"loftq: relative error of {len(facts)} layers {ways['loftq']:.4f} on average, QLoRA's {ways['qlora']:.4f} "
                f"(loftq.json); {stored:.1f} MB, {whole:.1f} MB in 16 bits")

    def defaults(self, model: Model, rows: int) -> dict[str, Default]:
        if model.architecture == "encoder":
            return {"learning_rate": Default(1e-4, "Li et al. 2023, GLUE: 1e-4")}
        return {"learning_rate": Default(3e-4, "Li et al. 2023, Llama-2: 3e-4")}


def begin(weight: torch.Tensor, quantizer: Quantizer, rank: int, iterations: int, randomised: bool, draw: torch.Generator
          ) -> tuple[LowBits, Factors | None, tuple[float, float]]:
    """Q, the factors (A [out, r], B [in, r]) of the best turn, and ||W - Q|| / ||W|| of QLoRA and of what is kept.

    With 0 iterations there are no factors. Of a matrix without values only the shapes are right.
    """
    import torch

    if weight.is_meta:
        found = quantizer(weight)
        return found, (weight.new_zeros(weight.shape[0], rank), weight.new_zeros(weight.shape[1], rank)), (0.0, 0.0)
    norm = float(weight.norm()) or 1.0
    first = quantizer(weight)
    plain = float((weight - first.dense()).norm()) / norm
    best, pair, least = first, None, plain
    low_rank = torch.zeros_like(weight)
    for turn in range(iterations):
        found = quantizer(weight - low_rank) if turn else first
        left = weight - found.dense()
        up, down = decomposed(left, rank, randomised, draw)
        low_rank = up @ down.T
        error = float((left - low_rank).norm()) / norm
        if pair is None or error < least:
            best, pair, least = found, (up, down), error
    return best, pair, (round(plain, 6), round(least, 6))


def decomposed(left: torch.Tensor, rank: int, randomised: bool, draw: torch.Generator) -> Factors:
    """(U_r S_r^1/2, V_r S_r^1/2) of a matrix [out, in]; randomised: Halko et al. 2011 with power iterations."""
    import torch

    if randomised and rank + OVERSAMPLED < min(left.shape):
        basis = left @ torch.randn(left.shape[1], rank + OVERSAMPLED, generator=draw, device=left.device)
        for _ in range(ROUNDS):
            basis = torch.linalg.qr(left @ (left.T @ torch.linalg.qr(basis)[0]))[0]
        small, values, right = torch.linalg.svd(basis.T @ left, full_matrices=False)
        outer = basis @ small
    else:
        outer, values, right = torch.linalg.svd(left, full_matrices=False)
    root = values[:rank].sqrt()
    return outer[:, :rank] * root, right[:rank].T * root

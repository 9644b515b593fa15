"""QEFT: a base in few bits of which some whole columns are left, and only these are trained.

    y = x[:, :d-k] Q' + x[:, d-k:] Wo',   Q in N bits and frozen, Wo [out, k] trained;   no adapter, nothing to merge

The k weak columns are those whose inputs are large: with H = 2 X'X of a calibration set, what reads the residual stream (q, k,
v, gate, up) shares one set, the largest of sum over layers of H_cc / mean(H_cc), and the base's channels are reordered once so
that they stand last; down has its own, by the order of its layer's hidden neurons; o too, whose inputs are gathered. The other
columns are quantised by GPTQ in groups with a scale and a zero each, layer by layer, and the weak ones take up their errors.
`sensitivity=owq` ranks by H_cc ||W_c - Q(W_c)||^2 (Lee et al. 2024, OWQ). `train=scales` trains the scales alone (PEQA).

When it helps: one model in the form in which it is served, at the memory of 4 bits. Calibration takes a pass over the base and
a factorisation a layer. Source: Lee et al. 2024, arXiv 2410.08661 (seed 111).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from luthier.core.errors import UserError
from luthier.core.files import write_json
from luthier.core.identity import hash_file
from luthier.core.kinds import Default, Method
from luthier.core.step import FitCtx
from luthier.techniques.methods._shared import percent

if TYPE_CHECKING:
    import torch

    from luthier.engine.low_bits import LowBitBase, LowBits
    from luthier.engine.models import Model


class Qeft(Method, name="qeft", seeds=[111]):
    """Few bits, and a few whole columns that learn."""

    artifact: ClassVar[Literal["adapter", "delta", "model"]] = "delta"
    bits: Literal[2, 3, 4, 8, 16] = Field(4, description="bits of a frozen weight; 16: the base's own weights")
    group: int = Field(128, ge=1, description="columns of a row that share scale and zero")
    weak: int | float = Field(0.03125, ge=0, description="how many columns stay whole and are trained; below 1, which share "
                                                         "of the width (0.01 or 1%), rounded up; 128 of 4096 in the paper")
    calibration: str = Field("examples.train", description="a text file (.txt, or .jsonl with 'text'), or INPUT.SUBSET")
    sequences: int = Field(128, ge=8, description="most sequences of the calibration")
    tokens: int = Field(512, ge=8, description="tokens of a sequence; rows are cut there")
    rounding: Literal["gptq", "nearest"] = Field("gptq", description="nearest: every weight for itself")
    search: Literal["minmax", "mse"] = Field("minmax", description="mse: the range of a group that errs least")
    sensitivity: Literal["hessian", "owq"] = Field("hessian", description="what the weak columns are ranked by")
    columns: Literal["sensitive", "random"] = Field("sensitive", description="random: any columns, as a control")
    train: Literal["weak", "scales"] = Field("weak", description="scales: of the frozen weights, with weak=0")

    @field_validator("weak", mode="before")
    @classmethod
    def _percent(cls, value: Any) -> Any:
        return percent(value)

    def check(self) -> None:
        path = Path(self.calibration).expanduser()
        if not path.is_file() and ("/" in self.calibration or path.suffix in (".txt", ".jsonl", ".md")):
            raise UserError(f"qeft: calibration = {self.calibration!r}: there is no such file. Give a text file, or rows such "
                            "as examples.train.")

    def content(self) -> dict[str, Any]:
        path = Path(self.calibration).expanduser()
        return {"calibration": hash_file(path)} if path.is_file() else {}

    def prepare(self, model: Model, ctx: FitCtx) -> Model:
        """Raises UserError for an architecture whose channels can't be reordered, and for as many weak columns as there are."""
        from luthier.engine import low_bits
        from luthier.techniques.methods._reordering import linears, spaces, stack_of

        if model.low_bits is not None or "quantize" in model.base.meta:
            raise UserError(f"qeft quantises {model.name} itself, and it is in few bits already. Leave base.quantize out.")
        layers = linears(model, stack_of("qeft", model))
        spaces("qeft", model, layers)
        weak = self._weak(model, layers)
        if model.device.type == "meta":
            _empty(self, model, layers, weak)
        else:
            low_bits.once(model, ctx, lambda: self._quantise(model, weak, ctx))
        for layer in low_bits.layers_of(model.module).values():
            if self.train == "scales":
                layer.learn_scales()
            else:
                assert layer.weak is not None  # `_weak` refuses none
                layer.weak.requires_grad_(True)
        return model

    def _weak(self, model: Model, layers: Sequence[dict[str, str]]) -> int:
        """How many columns stay whole."""
        share = isinstance(self.weak, float) and self.weak < 1
        count = -int(-self.weak * model.width // 1) if share else int(self.weak)
        narrow = min(model.module.get_submodule(n).in_features for names in layers for n in names.values())
        if count >= narrow:
            raise UserError(f"qeft: weak = {self.weak} keeps {count} columns whole, and {model.name} has layers with {narrow} "
                            f"inputs: nothing would be quantised. Give at most {narrow - 1}, or a share such as 3%.")
        if (count == 0) != (self.train == "scales"):
            raise UserError(f"qeft: weak = {self.weak} with train = {self.train}: whole columns are what is trained, or else "
                            "scales (train=scales,weak=0).")
        if self.train == "scales" and self.bits == 16:
            raise UserError("qeft: bits = 16 has no scales to train. Give 2, 3, 4 or 8.")
        return count

    def _quantise(self, model: Model, weak: int, ctx: FitCtx) -> LowBitBase:
        """Rank, reorder, quantise layer by layer; what was done goes to the log and to qeft.json."""
        from luthier.engine import low_bits
        from luthier.techniques.methods._calibration import sequences, squares, walk
        from luthier.techniques.methods._quantizers import require_finite
        from luthier.techniques.methods._reordering import SHARING, apply, linears, stack_of

        stack = stack_of("qeft", model)
        layers = linears(model, stack)
        for name in (n for names in layers for n in names.values()):
            require_finite("qeft", name, model.module.get_submodule(name).weight)
        batches = sequences("qeft", model, self.calibration, self.sequences, self.tokens, ctx)
        orders = self._orders(model, layers, squares(model, layers, batches), weak, ctx)
        base = low_bits.LowBitBase(along=apply("qeft", model, stack, orders))

        def visit(number: int, hessians: dict[str, torch.Tensor]) -> None:
            for first, together in SHARING.items():
                require_finite("qeft", layers[number][first], hessians[first], "inputs")
                order = orders.get(f"output/{number}") if first == "o_proj" else None
                hessian = hessians[first] if order is None else hessians[first][order][:, order]
                for name in (layers[number][last] for last in together):
                    weight = model.module.get_submodule(name).weight.detach()
                    matrix, columns = self._rounded(weight if order is None else weight[:, order], hessian, weak)
                    base.layers[name] = matrix
                    base.weak |= {name: weak} if weak else {}
                    base.orders |= {name: order} if order is not None else {}
                    low_bits.put(model, name, matrix, columns.to(weight.dtype) if weak else None, order)

        walk(model, stack, layers, batches, visit)
        if ctx is not None:
            bits = base.average_bits(8 * next(model.module.parameters()).element_size())
            moved = sorted({name for name, _ in base.along} | set(base.orders))
            write_json(ctx.folder / "qeft.json", {
                "bits_per_weight": round(bits, 4), "weak": weak, "sequences": sum(map(len, batches)), "permuted": moved})
            ctx.log(f"qeft: {bits:.2f} bits a weight in {len(base.layers)} layers, {weak} whole columns each; {len(moved)} "
                    "tensors permuted (qeft.json)")
        return base

    def _orders(self, model: Model, layers: Sequence[dict[str, str]], found: Sequence[dict[str, torch.Tensor]], weak: int,
                ctx: FitCtx) -> dict[str, torch.Tensor]:
        """By space (`residual`, `hidden/NUMBER`, `output/NUMBER`): its channels, the weak ones last."""
        import torch

        from luthier.techniques.methods._reordering import SHARING

        def ranked(number: int, first: str) -> torch.Tensor:
            sums = [found[number][first] * self._lost(model, layers[number][last]) for last in SHARING[first]]
            return torch.stack([s / s.mean().clamp(min=1e-30) for s in sums]).sum(0)

        scores = {"residual": torch.stack([ranked(n, first) for n in range(len(layers)) for first in ("q_proj", "gate_proj")]
                                          ).sum(0)}
        scores |= {f"{space}/{n}": ranked(n, first) for n in range(len(layers))
                   for space, first in (("hidden", "down_proj"), ("output", "o_proj"))}
        if self.columns == "random":
            draw = torch.Generator().manual_seed(ctx.rng.key("columns") if ctx is not None else 0)
            scores = {space: torch.rand(len(s), generator=draw) for space, s in scores.items()}
        orders = {}
        for space, score in scores.items() if weak else ():
            last = score.topk(weak).indices.sort().values.cpu()
            rest = torch.ones(len(score), dtype=torch.bool)
            rest[last] = False
            orders[space] = torch.cat([rest.nonzero()[:, 0], last])
        return orders

    def _lost(self, model: Model, name: str) -> torch.Tensor | float:
        """||W_c - Q(W_c)||^2 [in] by nearest rounding, or 1 where only inputs are looked at."""
        from luthier.techniques.methods._quantizers import affine

        if self.sensitivity == "hessian" or self.bits == 16:
            return 1.0
        weight = model.module.get_submodule(name).weight.detach().float()
        return (weight - affine(weight, self.bits, self.group, self.search).dense()).square().sum(0)

    def _rounded(self, weight: torch.Tensor, hessian: torch.Tensor, weak: int) -> tuple[LowBits, torch.Tensor]:
        """The frozen columns, and the weak ones [out, weak] behind them."""
        from luthier.engine.low_bits import LowBits
        from luthier.techniques.methods._quantizers import affine, gptq

        kept = weight.shape[1] - weak
        if self.bits == 16:
            return LowBits.whole(weight[:, :kept].contiguous()), weight[:, kept:].contiguous()
        if self.rounding == "nearest":
            return affine(weight[:, :kept], self.bits, self.group, self.search), weight[:, kept:].contiguous()
        return gptq(weight, hessian, self.bits, self.group, weak, self.search)

    def defaults(self, model: Model, rows: int) -> dict[str, Default]:
        return {"learning_rate": Default(2e-4, "house default for a few whole columns; sweep it on dev")}


def _empty(method: Qeft, model: Model, layers: Sequence[dict[str, str]], weak: int) -> None:
    """The shapes of it all, on a model without values."""
    from luthier.engine import low_bits
    from luthier.techniques.methods._quantizers import affine

    base = low_bits.LowBitBase()
    for name in (n for names in layers for n in names.values()):
        weight = model.module.get_submodule(name).weight.detach()
        kept = weight[:, :weight.shape[1] - weak]
        base.layers[name] = low_bits.LowBits.whole(kept) if method.bits == 16 else affine(kept, method.bits, method.group)
        low_bits.put(model, name, base.layers[name], weight.new_empty(weight.shape[0], weak) if weak else None)
    model.low_bits = base

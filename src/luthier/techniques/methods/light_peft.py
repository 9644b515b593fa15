"""Light-PEFT: after a short estimation heads, neurons, adapter modules and ranks are cut, and training goes on in what is left.

Phase 0, a share of the planned steps, trains LoRA with masks m, 1 at the start, on each head's output and each hidden neuron;
loss + l1 sum |m|, and learning rates of the masks that are `head_rate` and `neuron_rate` times LoRA's. Then are cut

    heads      the lowest m of each layer (with shared keys, whole groups by the sum of their m); at least one stays
    neurons    the lowest m of all layers together, or of each
    modules    the lowest mean over tokens of ||s B A x|| / ||W x + b||, of the whole model
    ranks      the lowest mean over steps of |sum_i A_ji dA_ji| / in + |sum_o B_oj dB_oj| / out, of the modules that stay

from the second half of the phase. Masks only rank: phase 1 begins without them, on the cut base, with what was learned of
LoRA, cut likewise, under the scaling alpha / rank of before. Stored are the adapter and which rows and columns are left.

When it helps: a base that is large for its task; inference is on the small model, too. Of few steps the masks order little; the
log tells their spread. Source: Gu et al. 2024, arXiv 2406.03792 (seed 17).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from luthier.core.files import write_json
from luthier.core.kinds import Default, Hook, Method
from luthier.core.step import FitCtx
from luthier.techniques.methods._blocks import blocks
from luthier.techniques.methods._estimating import Measured
from luthier.techniques.methods._shared import lora_layers, relora, require_rank, targeted, wrap

if TYPE_CHECKING:
    import torch

    from luthier.engine.models import Model
    from luthier.engine.pruning import Pruned

By = Literal["score", "random"]


class LightPeft(Method, name="light-peft", seeds=[17]):
    """LoRA on a base that is cut early."""

    artifact: ClassVar[Literal["adapter", "delta", "model"]] = "adapter"
    rank: int = Field(8, ge=1, description="rank of the update before ranks are cut")
    alpha: float = Field(16, gt=0, description="the update is scaled by alpha / rank, before and after")
    dropout: float = Field(0.05, ge=0, lt=1, description="dropout on the input of A in the estimation")
    target: str | tuple[str, ...] = Field("all-linear", description="all-linear, attention-qv, or names of layers")
    estimate_share: float = Field(0.1, gt=0, lt=1, description="share of the planned steps spent on the estimation")
    prune_heads: float = Field(1 / 3, ge=0, lt=1, description="share of each layer's heads that is cut")
    prune_ffn: float = Field(1 / 3, ge=0, lt=1, description="share of the hidden neurons that is cut")
    prune_modules: float = Field(0.75, ge=0, lt=1, description="share of the adapter's modules that is dropped")
    prune_ranks: float = Field(0.5, ge=0, lt=1, description="share of the ranks left that is cut")
    neurons: Literal["global", "layer"] = Field("global", description="whether neurons of all layers compete, or each layer's")
    l1: float = Field(1e-4, ge=0, description="weight of the sum of all masks")
    head_rate: float = Field(100, gt=0, description="learning rate of heads' masks, times LoRA's")
    neuron_rate: float = Field(50, gt=0, description="learning rate of neurons' masks, times LoRA's")
    base_by: By = Field("score", description="random: any heads and neurons, as a control")
    peft_by: By = Field("score", description="random: any modules and ranks, as a control")

    def prepare(self, model: Model, ctx: FitCtx) -> Model:
        """Raises UserError for layers that are shared or unknown."""
        from peft import LoraConfig

        blocks("light-peft", model)
        targets = targeted("light-peft", model, self.target)
        require_rank("light-peft", self.rank, targets)
        return wrap(model, LoraConfig(r=self.rank, lora_alpha=self.alpha,  # type: ignore[arg-type]
                                      lora_dropout=self.dropout, target_modules=list(targets)))

    def start(self, model: Model, ctx: FitCtx) -> Hook:
        return Estimate(self, model, ctx)

    def finish(self, model: Model, hook: Hook) -> None:
        assert isinstance(hook, Estimate)
        hook.tell()

    def defaults(self, model: Model, rows: int) -> dict[str, Default]:
        return {"learning_rate": Default(3e-4, "Gu et al. 2024, RoBERTa-large on SST-2: 3e-4")}


class Estimate(Measured):
    """Phase 0 measures; phase 1 trains what was kept."""

    def turn(self, phase: int) -> None:
        """Choose, say so, and cut."""
        self.seconds = self.clock.seconds / max(1, self.clock.step)
        heads, neurons = self._base()
        self.plan = {"heads": heads, "neurons": neurons, "ranks": self._ranks()}
        spread = [float(m.detach().std()) for m in (*self.heads, *self.neurons) if m.numel() > 1]
        before = sum(p.numel() for p in self.model.module.parameters() if p.requires_grad)
        self._apply(self.plan)
        after = sum(p.numel() for p in self.model.module.parameters() if p.requires_grad)
        write_json(self.ctx.folder / "light_peft.json", {
            "heads": [len(kept) for kept in heads], "neurons": [len(kept) for kept in neurons],
            "ranks": {n: len(kept) for n, kept in self.plan["ranks"].items()}})
        self.ctx.log(f"light-peft: {self.weights:,} weights, {before:,} of them trained -> {self.model.parameters():,}, "
                     f"{after:,}; deviation of the masks {sum(spread) / max(1, len(spread)):.2g}")

    def _base(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Groups of heads and neurons that stay, layer by layer."""
        import torch

        groups = [m.detach().cpu().view(b.groups, -1).sum(1) for m, b in zip(self.heads, self.blocks, strict=True)]
        neurons = [m.detach().cpu() for m in self.neurons]
        if self.method.base_by == "random":
            groups, neurons = (self._drawn(kind, given) for kind, given in (("heads", groups), ("neurons", neurons)))
        heads = [_highest(g, max(1, len(g) - int(self.method.prune_heads * len(g)))) for g in groups]
        if self.method.neurons == "layer":
            return heads, [_highest(n, max(1, len(n) - int(self.method.prune_ffn * len(n)))) for n in neurons]
        whole = torch.cat(neurons)
        left = torch.zeros(len(whole), dtype=torch.bool)
        left[_highest(whole, max(1, len(whole) - int(self.method.prune_ffn * len(whole))))] = True
        parts = left.split([len(n) for n in neurons])
        return heads, [p.nonzero()[:, 0] if p.any() else _highest(n, 1) for p, n in zip(parts, neurons, strict=True)]

    def _ranks(self) -> dict[str, torch.Tensor]:
        """Ranks that stay, of the modules that do."""
        import torch

        method, names = self.method, list(self.layers)
        modules = torch.stack([self.ratios[n][0] / self.ratios[n][1].clamp(min=1) for n in names])
        if method.peft_by == "random":
            modules = self._drawn("modules", [modules])[0]
        kept = [names[i] for i in _highest(modules, max(1, len(names) - int(method.prune_modules * len(names)))).tolist()]
        scores = [self.scores[n] for n in kept]
        if method.peft_by == "random":
            scores = self._drawn("ranks", scores)
        whole = torch.cat(scores)
        left = torch.zeros(len(whole), dtype=torch.bool)
        left[_highest(whole, max(1, len(whole) - int(method.prune_ranks * len(whole))))] = True
        found = zip(kept, left.split([len(s) for s in scores]), strict=True)
        return {n: part.nonzero()[:, 0] for n, part in found if part.any()}

    def _drawn(self, what: str, like: list[torch.Tensor]) -> list[torch.Tensor]:
        import torch

        return [torch.from_numpy(self.rng(f"random/{what}", n).random(len(t))) for n, t in enumerate(like)]

    def _apply(self, plan: Mapping[str, Any]) -> None:
        """The cut base with the cut adapter, without masks."""
        from luthier.engine.pruning import Kept

        for handle in self.handles:
            handle.remove()
        self.handles = []
        pruned = self._pruned(plan)
        factors = {}
        for name, ranks in plan["ranks"].items():
            layer, kept = self.layers[name], pruned.layers.get(name, Kept())
            down, up = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
            factors[name] = Kept(rows=ranks, columns=kept.columns).of(down), Kept(rows=kept.rows, columns=ranks).of(up)
        pruned.cut(self.model)
        relora(self.model, factors, self.method.alpha / self.method.rank)
        self.model.module.train()
        self.layers = lora_layers(self.model.module)

    def _pruned(self, plan: Mapping[str, Any]) -> Pruned:
        from luthier.engine.pruning import Pruned

        return Pruned({name: kept for block, groups, neurons in zip(self.blocks, plan["heads"], plan["neurons"], strict=True)
                       for name, kept in block.kept(groups, neurons).items()})

    def reshape(self, state: dict[str, Any]) -> None:
        """Cut again what was cut when this state was kept."""
        if state["plan"] and not self.plan:
            self.plan = state["plan"]
            self._apply(self.plan)
            assert self.ctx.rebuild_optimizer is not None
            self.ctx.rebuild_optimizer(False)

    def tell(self) -> None:
        """Seconds a step, before and after: they are measured, and differ from run to run."""
        steps = self.clock.step - self.ends[0]
        if self.seconds and steps > 0:
            later = (self.clock.seconds - self.seconds * self.ends[0]) / steps
            self.ctx.log(f"light-peft: {self.seconds:.3f} s a step in the estimation, {later:.3f} s after it")


def _highest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Ascending places of the highest scores; of equal ones the first."""
    return scores.argsort(descending=True, stable=True)[:count].sort().values

"""AutoLoRA: a rank of its own for each layer, learned on rows that the weights do not see.

Search, with k0 the largest rank, A [k0, in], B [out, k0], s = alpha / k0:

    h = W0 x + s B diag(a) A x,   a = softmax(logits), or logits / sum;   all a = 1 / k0 at the start

    min_a L_val(W*(a), a)   with   W*(a) = argmin_W L_train(W, a),   solved one step at a time:
    W' = W - eta grad_W L_train(W, a),   v = grad_W' L_val(W', a),   eps = 0.01 / |v|
    g = grad_a L_val(W', a) - eta (grad_a L_train(W + eps v, a) - grad_a L_train(W - eps v, a)) / (2 eps)

Adam moves the logits by g, then the weights move by grad_W L_train(W, a) at the new a. A share of the training rows, the
same ones throughout, is L_val. Afterwards rank = how many a reach the threshold, and an ordinary LoRA of these ranks is
trained from a fresh start on all rows; it is what is left, and plain PEFT loads it. The planned steps hold both phases.

When it helps: layers differ in how much they must change, and a grid of ranks is too dear. A search of few steps moves the
selection little; the run says so. Source: Zhang et al. 2024, arXiv 2403.09113 (seed 94).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.files import write_json
from luthier.core.kinds import Default, Hook, Method
from luthier.core.step import FitCtx
from luthier.techniques.methods._phases import Phases
from luthier.techniques.methods._shared import in_float32, lora_layers, relora, require_rank, targeted, wrap

if TYPE_CHECKING:
    import torch

    from luthier.engine.models import Model

Gradients = tuple[list["torch.Tensor"], "torch.Tensor"]
# Below this spread the order of the selection variables is noise.
LEAST_SPREAD = 0.01


class AutoLora(Method, name="autolora", seeds=[94]):
    """LoRA whose ranks are searched on held-out training rows."""

    artifact: ClassVar[Literal["adapter", "delta", "model"]] = "adapter"
    k0: int = Field(8, ge=2, description="largest rank, that of every layer during the search")
    alpha: float = Field(16, gt=0, description="the update is scaled by alpha / rank")
    target: str | tuple[str, ...] = Field("attention-qv", description="all-linear, attention-qv, or names of layers")
    threshold: float | Literal["auto"] = Field("auto", description="least selection value of a kept rank; auto: 1 / k0")
    min_rank: Literal[0, 1] = Field(1, description="0 lets a layer vanish where no value reaches the threshold")
    search_share: float = Field(0.5, gt=0, lt=1, description="share of the planned steps spent on the search")
    val_share: float = Field(0.3, gt=0, lt=1, description="share of the training rows that only the selection learns from, "
                                                         "during the search")
    order: Literal["second", "first"] = Field("second", description="first: eta = 0, the gradient of L_val alone")
    normalise: Literal["softmax", "sum"] = Field("softmax", description="how logits become selection values")
    selection_rate: float = Field(1e-2, ge=0, description="learning rate of the logits (3e-4 in the paper, whose searches "
                                                          "take thousands of steps)")
    control: bool = Field(False, description="the selection learns from the rows that the weights learn from: no second level")

    def prepare(self, model: Model, ctx: FitCtx) -> Model:
        from peft import LoraConfig

        targets = targeted("autolora", model, self.target)
        require_rank("autolora", self.k0, targets, "k0")
        return in_float32(wrap(model, LoraConfig(r=self.k0, lora_alpha=self.alpha,  # type: ignore[arg-type]
                                               target_modules=list(targets))))

    def start(self, model: Model, ctx: FitCtx) -> Hook:
        return Search(self, model, ctx)

    def finish(self, model: Model, hook: Hook) -> None:
        """An ordinary LoRA with the ranks that were found, and `ranks.json` beside it."""
        assert isinstance(hook, Search)
        hook.export()

    def defaults(self, model: Model, rows: int) -> dict[str, Default]:
        return {"learning_rate": Default(3e-4, "Zhang et al. 2024, released code: 3e-4")}


def hypergradient(train: Callable[[], Gradients], held_out: Callable[[], Gradients],
                  moved: Callable[[Sequence[torch.Tensor]], AbstractContextManager[Any]], eta: float) -> torch.Tensor:
    """d L_val(W'(a), a) / d a by central differences; eta = 0 gives the first order.

    `train` and `held_out` give (gradients of the weights, gradient of a) where the weights are; within `moved(delta)` they are
    at W + delta.
    """
    if not eta:
        return held_out()[1]
    step = train()[0]
    with moved([-eta * g for g in step]):
        v, direct = held_out()
    norm = sum(float(g.square().sum()) for g in v) ** 0.5
    if not norm:
        return direct
    eps = 0.01 / norm
    sides = []
    for sign in (1, -1):
        with moved([sign * eps * g for g in v]):
            sides.append(train()[1])
    return direct - eta * (sides[0] - sides[1]) / (2 * eps)


class Search(Phases):
    """Phase 0 learns weights and selection, phase 1 the weights of the ranks that were kept."""

    def __init__(self, method: AutoLora, model: Model, ctx: FitCtx) -> None:
        import torch

        from luthier.engine import distributed

        super().__init__("autolora", model, ctx, [method.search_share, 1 - method.search_share])
        self.method, self.rows, self.rng = method, ctx.rows, ctx.rng.within("autolora")
        assert self.rows is not None
        if distributed.ranks() > 1 or len(self.rows.loop.tasks) > 1:
            raise UserError("autolora searches in one process and for one task. Start it without a launcher, or use lora.")
        held = round(method.val_share * len(self.rows))
        if not 0 < held < len(self.rows):
            raise UserError(f"autolora: val_share = {method.val_share:g} of {len(self.rows)} rows leaves {held} to choose "
                            f"ranks by and {len(self.rows) - held} to learn from; both need some. Change val_share.")
        if held < self.rows.per_batch:
            ctx.log(f"autolora: {held} rows choose the ranks, fewer than a batch of {self.rows.per_batch}")
        order = self.rng("split").permutation(len(self.rows))
        self.held, self.learned = sorted(order[:held].tolist()), sorted(order[held:].tolist())
        self.layers = lora_layers(model.module)
        start = 0.0 if method.normalise == "softmax" else 1.0
        shape = len(self.layers), method.k0
        self.logits = torch.full(shape, start, device=model.device, requires_grad=True)
        self.kept = torch.zeros(shape, dtype=torch.bool)
        self.adam = torch.optim.Adam([self.logits], method.selection_rate, betas=(0.5, 0.999))
        self.handles = [layer.lora_A["default"].register_forward_hook(self._scaling(i))
                        for i, layer in enumerate(self.layers.values())]

    def selection(self) -> torch.Tensor:
        """a [layers, k0]."""
        if self.method.normalise == "softmax":
            return self.logits.softmax(-1)
        return self.logits / self.logits.sum(-1, keepdim=True)

    def _scaling(self, layer: int) -> Callable[..., torch.Tensor]:
        def scaled(module: Any, given: Any, out: torch.Tensor) -> torch.Tensor:
            if self.phase == 0:
                return out * self.selection()[layer].to(out.dtype)
            # PEFT scales by alpha / k0; the layer now has this many ranks.
            return out * (self.method.k0 / max(1, int(self.kept[layer].sum())))

        return scaled

    # --- search ----------------------------------------------------------------------------------------------------

    def on_batch(self, batch: Any) -> list[Any]:
        """During the search only rows that the selection does not learn from."""
        return [self._drawn("train", self.learned)] if self.phase == 0 else [batch]

    def _drawn(self, name: str, places: list[int]) -> Any:
        from luthier.engine.loop import rows_at

        assert self.rows is not None
        drawn = rows_at(self.rng.within(name), self.clock.step, len(places), self.rows.per_batch)
        return self.rows.batch([places[i] for i in drawn])

    def on_gradients(self) -> None:
        """Move the selection, then leave the gradient of the weights at the new one."""
        if self.phase:
            return
        closure, perturbed = self.ctx.closure, self.ctx.perturbed
        assert closure is not None and perturbed is not None
        closure([], into=[])  # those of the loop are at the old selection
        train = self._drawn("train", self.learned)
        held_out = train if self.method.control else self._drawn("validation", self.held)
        bilevel = self.method.order == "second" and not self.method.control

        def at(batch: Any, name: str) -> Gradients:
            found: list[torch.Tensor] = []
            self.logits.grad = None
            closure([batch], rng=name, into=found)
            assert self.logits.grad is not None
            return found, self.logits.grad

        self.logits.grad = hypergradient(lambda: at(train, ""), lambda: at(held_out, "/validation"), perturbed,
                                         self.clock.rate if bilevel else 0.0)
        self.adam.step()
        closure([train])
        self.logits.grad = None

    def turn(self, phase: int) -> None:
        """Choose the ranks and begin anew with them; what is not kept is zero on both sides, and stays so."""
        import torch
        from torch import nn

        method, a = self.method, self.selection().detach().cpu()
        threshold = 1 / method.k0 if method.threshold == "auto" else method.threshold
        self.kept = a >= threshold - 1e-6
        for row, kept in zip(a, self.kept, strict=True):
            if method.min_rank and not kept.any():
                kept[row.argmax()] = True
        ranks = self.kept.sum(-1).tolist()
        if not sum(ranks):
            raise UserError(f"autolora: no selection value reaches threshold = {threshold:g} (highest {float(a.max()):.3f}). "
                            "Lower it, or set min_rank=1.")
        still = float(a.max()) - 1 / method.k0 < LEAST_SPREAD
        self.ctx.log(f"ranks {min(ranks)} to {max(ranks)}, {sum(ranks)} in all; highest selection value {float(a.max()):.3f}"
                     + ("; the ranks are undetermined: the selection has hardly moved. Give more steps or a larger "
                        "selection_rate" if still else ""))
        torch.manual_seed(self.rng.key("begin"))
        with torch.no_grad():
            for layer, kept in zip(self.layers.values(), self.kept, strict=True):
                down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
                nn.init.kaiming_uniform_(down, a=5 ** 0.5)
                up.zero_()
                down[~kept.to(down.device)] = 0

    # --- what is left ------------------------------------------------------------------------------------------------

    def export(self) -> None:
        """The model's adapter becomes a LoRA with a rank of its own for each layer."""
        for handle in self.handles:
            handle.remove()
        ranks = dict(zip(self.layers, self.kept.sum(-1).tolist(), strict=True))
        factors = {name: (layer.lora_A["default"].weight[kept], layer.lora_B["default"].weight[:, kept])
                   for (name, layer), kept in zip(self.layers.items(), self.kept, strict=True) if kept.any()}
        relora(self.model, factors, None, self.method.alpha)
        write_json(self.ctx.folder / "ranks.json", {
            name: {"rank": ranks[name], "selection": [round(v, 6) for v in row]}
            for name, row in zip(self.layers, self.selection().tolist(), strict=True)})

    def state_dict(self) -> dict[str, Any]:
        return {"logits": self.logits.detach(), "kept": self.kept, "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        import torch

        with torch.no_grad():
            self.logits.copy_(state["logits"])
        self.kept = state["kept"].clone()
        self.adam.load_state_dict(state["adam"])

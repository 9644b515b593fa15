"""The estimation of Light-PEFT: masks that learn, and statistics of an adapter while it trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from luthier.core.errors import UserError
from luthier.core.step import FitCtx
from luthier.techniques.methods._blocks import blocks
from luthier.techniques.methods._phases import Phases
from luthier.techniques.methods._shared import lora_layers

if TYPE_CHECKING:
    import torch

    from luthier.engine.models import Model

FEW_STEPS = 20


class Measured(Phases):
    """Phase 0 trains LoRA with masks on heads and neurons, and adds up what modules and ranks are worth.

    heads, neurons: masks [heads], [neurons] of each layer. ratios: of each module the sum over tokens of ||s B A x|| /
    ||W x + b||, and how many; scores: of its ranks the sum over steps of `worth`. plan: what a later phase keeps, once known.
    """

    def __init__(self, method: Any, model: Model, ctx: FitCtx) -> None:
        import torch

        from luthier.engine import distributed

        super().__init__("light-peft", model, ctx, [method.estimate_share, 1 - method.estimate_share])
        self.method, self.rows, self.rng = method, ctx.rows, ctx.rng.within("light-peft")
        if distributed.ranks() > 1:
            raise UserError("light-peft estimates in one process. Start it without a launcher, or use lora.")
        if self.ends[0] < FEW_STEPS:
            ctx.log(f"light-peft: {self.ends[0]} steps of estimation order little; {FEW_STEPS} and more are advised. Give more "
                    "steps, or a larger estimate_share")
        self.blocks = blocks("light-peft", model)
        self.heads, self.neurons = ([torch.ones(getattr(b, kind), device=model.device, requires_grad=True) for b in self.blocks]
                                    for kind in ("heads", "neurons"))
        self.adam = torch.optim.Adam([{"params": self.heads}, {"params": self.neurons}])
        self.layers = lora_layers(model.module)
        self.ratios = {n: torch.zeros(2, dtype=torch.float64) for n in self.layers}
        self.scores = {n: torch.zeros(method.rank, dtype=torch.float64) for n in self.layers}
        self.plan: dict[str, Any] = {}
        self.weights, self.seconds = model.parameters(), 0.0
        self._said: dict[str, Any] = {}
        self._heard: list[tuple[str, torch.Tensor]] = []
        self._waiting: list[tuple[str, float, float]] = []
        self.handles = [*self._masking(), *self._watching()]

    def _masking(self) -> list[Any]:
        """Masks on what the attention's output layer and the FFN's second one read."""
        def by(mask: torch.Tensor, width: int) -> Callable[..., Any]:
            return lambda module, given: (given[0] * mask.repeat_interleave(width).to(given[0].dtype), *given[1:])

        inner = self.model.module.get_base_model()
        return [inner.get_submodule(block.name(last)).register_forward_pre_hook(by(mask, width))
                for block, heads, neurons in zip(self.blocks, self.heads, self.neurons, strict=True)
                for last, mask, width in ((block.layout.out, heads, block.width), (block.layout.reads, neurons, 1))]

    def _watching(self) -> list[Any]:
        """||s B A x|| / ||W x + b|| of each token, where the second half of the phase trains."""
        import torch

        def base(name: str) -> Callable[..., None]:
            def said(module: Any, given: Any, out: torch.Tensor) -> None:
                if self._measures():
                    self._said[name] = out.detach().float().norm(dim=-1)

            return said

        def whole(name: str, layer: Any) -> Callable[..., None]:
            def said(module: Any, given: Any, out: torch.Tensor) -> None:
                if self._measures():
                    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
                    with torch.no_grad():
                        low = layer.scaling["default"] * (given[0].to(down.dtype) @ down.T @ up.T).float().norm(dim=-1)
                    self._heard.append((name, torch.nan_to_num(low / self._said.pop(name), 0.0, 0.0, 0.0)))

            return said

        return [h for n, layer in self.layers.items() for h in (layer.base_layer.register_forward_hook(base(n)),
                                                               layer.register_forward_hook(whole(n, layer)))]

    def _measures(self) -> bool:
        import torch

        return self.phase == 0 and 2 * self.clock.step >= self.ends[0] - 1 and torch.is_grad_enabled()

    def on_batch(self, batch: Any) -> list[Any]:
        """A step begins, perhaps again."""
        self._heard, self._waiting = [], []
        for mask in (*self.heads, *self.neurons):
            mask.grad = None
        return [batch]

    def on_loss(self, run: Any, batch: Any, parts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What was heard of real tokens, and the sum of the masks."""
        import torch

        from luthier.engine.batches import TokenBatch

        if self.phase:
            return parts
        masks = [part.mask for part in batch.values() if isinstance(part, TokenBatch)]
        for name, ratio in self._heard:
            # Rows in one pack have no padding; padded ones are as wide as their mask.
            real = next((m.to(ratio) for m in masks if m.shape == ratio.shape), torch.ones_like(ratio))
            self._waiting.append((name, float((ratio * real).sum()), float(real.sum())))
        self._heard = []
        if not self.method.l1:
            return parts
        return {**parts, "masks": self.method.l1 * torch.stack([m.abs().sum() for m in (*self.heads, *self.neurons)]).sum()}

    def on_gradients(self) -> None:
        """Move the masks; add up what modules and ranks are worth."""
        import torch

        if self.phase:
            return
        for group, factor in zip(self.adam.param_groups, (self.method.head_rate, self.method.neuron_rate), strict=True):
            group["lr"] = self.clock.rate * factor
        self.adam.step()
        if not self._measures():
            return
        for name, total, count in self._waiting:
            self.ratios[name] += torch.tensor([total, count], dtype=torch.float64)
        assert self.rows is not None
        gradients = {id(p): m.grad for p, m in self.rows.loop.masters.pairs}
        for name, layer in self.layers.items():
            down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            below, above = gradients[id(down)], gradients[id(up)]
            if below is not None and above is not None:  # of a layer that the loss does not hear, nothing is known
                self.scores[name] += worth(down, below, up, above).cpu()

    def state_dict(self) -> dict[str, Any]:
        return {"heads": [m.detach() for m in self.heads], "neurons": [m.detach() for m in self.neurons],
                "adam": self.adam.state_dict(), "ratios": self.ratios, "scores": self.scores, "plan": self.plan,
                "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        import torch

        with torch.no_grad():
            for mask, was in zip((*self.heads, *self.neurons), (*state["heads"], *state["neurons"]), strict=True):
                mask.copy_(was)
        self.adam.load_state_dict(state["adam"])
        self.ratios, self.scores = ({n: t.clone() for n, t in state[k].items()} for k in ("ratios", "scores"))
        self.seconds = state["seconds"]


def worth(down: torch.Tensor, d_down: torch.Tensor, up: torch.Tensor, d_up: torch.Tensor) -> torch.Tensor:
    """[rank] float64: what a loss would change by, to first order, without a rank of A [rank, in] and B [out, rank]."""
    import torch

    inner = (down.detach().double() * d_down.double()).sum(1).abs() / down.shape[1]
    outer = (up.detach().double() * d_up.double()).sum(0).abs() / up.shape[0]
    return torch.nan_to_num(inner + outer, 0.0, 0.0, 0.0)

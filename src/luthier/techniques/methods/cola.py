"""Chain of LoRA: a LoRA is trained, tied into the frozen weights, and a fresh one learns what is left.

    W_i = W_(i-1) + (alpha / rank) B_i A_i,   A_i drawn anew, B_i = 0, a new optimizer and schedule for every link

The links share the planned steps: training costs what one LoRA costs, and what frozen earlier links add to a forward. They stay
factored, A = [A_1; ...; A_M] and B = [B_1 ... B_M], so that nothing is rounded into short weights; what is left is an ordinary
LoRA of the summed rank on the first base. Heads are not begun anew.

When it helps: where one LoRA of this rank is too poor. Source: Xia, Qin, Hazan 2024, arXiv 2401.04151 (seed 26).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.kinds import Default, Hook, Method
from luthier.core.step import FitCtx
from luthier.techniques.methods._phases import Phases
from luthier.techniques.methods._shared import lora_layers, relora, require_rank, targeted, wrap

if TYPE_CHECKING:
    import torch

    from luthier.engine.models import Model


class Cola(Method, name="cola", seeds=[26]):
    """LoRA after LoRA, each on what the ones before have left."""

    artifact: ClassVar[Literal["adapter", "delta", "model"]] = "adapter"
    rank: int = Field(8, ge=1, description="rank of a link")
    alpha: float = Field(16, gt=0, description="every link is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the input of A while training")
    target: str | tuple[str, ...] = Field("attention-qv", description="all-linear, attention-qv, or names of layers")
    links: int = Field(3, ge=1, description="how many LoRAs, one after another")
    ranks: tuple[int, ...] = Field((), description="a rank for each link, at most `rank`; rank for all if empty")

    def prepare(self, model: Model, ctx: FitCtx) -> Model:
        from peft import LoraConfig

        if self.ranks and len(self.ranks) != self.links:
            raise UserError(f"cola: ranks has {len(self.ranks)} numbers for {self.links} links; give one for each.")
        if not all(1 <= r <= self.rank for r in self.ranks):
            raise UserError(f"cola: ranks = {list(self.ranks)}: each must be from 1 to rank = {self.rank}.")
        targets = targeted("cola", model, self.target)
        require_rank("cola", self.rank, targets)
        return wrap(model, LoraConfig(r=self.rank, lora_alpha=self.alpha,  # type: ignore[arg-type]
                                      lora_dropout=self.dropout, target_modules=list(targets)))

    def start(self, model: Model, ctx: FitCtx) -> Hook:
        return Chain(self, model, ctx)

    def finish(self, model: Model, hook: Hook) -> None:
        assert isinstance(hook, Chain)
        hook.export()

    def defaults(self, model: Model, rows: int) -> dict[str, Default]:
        return {"learning_rate": Default(2e-4, "as lora: Hu et al. 2021, GPT-2: 2e-4")}


class Chain(Phases):
    """Phase i trains link i; the earlier ones are added to what each layer says."""

    def __init__(self, method: Cola, model: Model, ctx: FitCtx) -> None:
        super().__init__("cola", model, ctx, [1] * method.links)
        self.method, self.layers = method, lora_layers(model.module)
        self.ranks = method.ranks or (method.rank,) * method.links
        self.tied: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self.handles = [layer.register_forward_hook(self._adding(name)) for name, layer in self.layers.items()]
        self._shorten(0)

    def _adding(self, name: str) -> Callable[..., Any]:
        def added(layer: Any, given: Any, out: torch.Tensor) -> torch.Tensor:
            if name not in self.tied or layer.disable_adapters:
                return out
            down, up = self.tied[name]
            # In A's format, as PEFT computes the link itself.
            return out + (layer.scaling["default"] * given[0].to(down.dtype) @ down.T @ up.T).to(out.dtype)

        return added

    def _now(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """A and B of the link that is trained."""
        layer = self.layers[name]
        return layer.lora_A["default"].weight, layer.lora_B["default"].weight

    def _whole(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """A and B of all links so far, side by side."""
        import torch

        rank = self.ranks[self.phase]
        down, up = self._now(name)
        down, up = down.detach()[:rank].clone(), up.detach()[:, :rank].clone()
        if name not in self.tied:
            return down, up
        return torch.cat([self.tied[name][0], down]), torch.cat([self.tied[name][1], up], 1)

    def _shorten(self, link: int) -> None:
        """Ranks that a link does not have are zero on both sides, and no gradient moves them."""
        import torch

        with torch.no_grad():
            for name in self.layers:
                self._now(name)[0][self.ranks[link]:] = 0

    def turn(self, phase: int) -> None:
        """Tie a knot: keep the link, and begin the next."""
        import torch
        from torch import nn

        self.tied = {name: self._whole(name) for name in self.layers}
        scale = self.method.alpha / self.method.rank
        norm = sum(float((scale * up @ down).detach().square().sum()) for down, up in map(self._now, self.layers)) ** 0.5
        ranks = [effective_rank(down, up) for down, up in self.tied.values()]
        self.ctx.log(f"link {phase + 1} of {self.method.links}: update of norm {norm:.3g}; effective rank of the sum "
                     f"{sum(ranks) / len(ranks):.2f}")
        torch.manual_seed(self.ctx.rng.key("cola", phase))
        with torch.no_grad():
            for down, up in map(self._now, self.layers):
                nn.init.kaiming_uniform_(down, a=5 ** 0.5)
                up.zero_()
        self._shorten(phase + 1)

    def export(self) -> None:
        """All links as one LoRA on the base."""
        for handle in self.handles:
            handle.remove()
        if self.method.links > 1:
            relora(self.model, {name: self._whole(name) for name in self.layers}, self.method.alpha / self.method.rank)

    def state_dict(self) -> dict[str, Any]:
        return {"tied": {name: list(pair) for name, pair in self.tied.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        device = self.model.device
        self.tied = {name: (down.to(device), up.to(device)) for name, (down, up) in state["tied"].items()}


def effective_rank(down: torch.Tensor, up: torch.Tensor) -> float:
    """The effective rank of up @ down, from the factors alone."""
    import torch

    from luthier.engine import spectra

    inner = torch.linalg.qr(up.double())[1] @ torch.linalg.qr(down.double().T)[1].T
    return spectra.effective_rank(torch.linalg.svdvals(inner))

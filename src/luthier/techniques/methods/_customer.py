"""What the customer of a split model does while the vendor trains (`split-and-privatize`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from luthier.core.kinds import Hook
from luthier.core.step import FitCtx

if TYPE_CHECKING:
    from luthier.engine.splitting import Split


class Customer(Hook):
    """Labels that are the vendor's are sent, noise is drawn anew where it must be, and a far vendor hears of each step."""

    def __init__(self, inner: Hook, split: Split, state: dict[str, Any], ctx: FitCtx, each_epoch: bool) -> None:
        self.inner, self.split, self.state, self.ctx, self.each_epoch = inner, split, state, ctx, each_epoch

    def on_batch(self, batch: Any) -> list[Any]:
        import torch

        found = []
        for given in self.inner.on_batch(batch):
            if self.split.labels == "vendor" and isinstance(given.get("label"), torch.Tensor):
                given = {**given, "label": self.split.wire.send("down", label=given["label"])["label"]}
            found.append(given)
        return found

    def on_loss(self, run: Any, batch: Any, parts: dict[str, Any]) -> dict[str, Any]:
        return self.inner.on_loss(run, batch, parts)

    def on_gradients(self) -> None:
        self.inner.on_gradients()

    def on_step(self) -> None:
        self.inner.on_step()
        if self.split.far:
            clock = self.ctx.clock
            assert clock is not None
            self.split.far.line.step(self.split.far.step, clock.rate)
            self.split.far.step = clock.step + 1

    def on_round(self) -> None:
        self.inner.on_round()
        if self.each_epoch and self.ctx.clock is not None:
            self.split.round = self.ctx.clock.epoch

    def state_dict(self) -> dict[str, Any]:
        far = {"step": self.split.far.step} if self.split.far else {}
        return {"inner": self.inner.state_dict(), "round": self.split.round, **far}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.inner.load_state_dict(state["inner"])
        self.split.round = state["round"]
        if self.split.far:
            self.split.far.step = state["step"]

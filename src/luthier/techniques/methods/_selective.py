"""Selective tuning: some of the model's own tensors move, and only what moved is kept (a delta).

A method of this family says which tensors it means; `Retrain` moves chosen entries of them only: a first phase moves all,
what it shows selects entries, and a second phase begins again at the same weights with these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.kinds import Method
from luthier.core.step import FitCtx
from luthier.techniques.methods._phases import Phases

if TYPE_CHECKING:
    import torch

    from luthier.engine.models import Model

Tensors = Mapping[str, "torch.Tensor"]


class Selective(Method):
    """Trains the tensors that `found` names and `terms` picks from."""

    artifact: ClassVar[Literal["adapter", "delta", "model"]] = "delta"
    # What it looks for, one and several, for its errors.
    sought: ClassVar[tuple[str, str]]
    terms: tuple[str, ...] = Field((), description="only those whose name contains one of these, such as query; all if empty")

    def found(self, model: Model) -> dict[str, torch.nn.Parameter]:
        """The tensors this method is about, by name."""
        raise NotImplementedError

    def chosen(self, model: Model) -> dict[str, torch.nn.Parameter]:
        """Those that move. Raises UserError where there are none, and names what there is."""
        found, (one, several) = self.found(model), self.sought
        if not found:
            raise UserError(f"{self.info.name} has nothing to train: {model.name} has no {several}. Try --method lora.")
        chosen = {n: p for n, p in found.items() if not self.terms or any(t in n for t in self.terms)}
        if not chosen:
            parts = sorted({n.rpartition(".")[0].rsplit(".", 1)[-1] for n in found})
            raise UserError(f"{self.info.name}: no {one} is called {', '.join(self.terms)}. "
                            f"This model has: {', '.join(parts)}.")
        return chosen

    def prepare(self, model: Model, ctx: FitCtx) -> Model:
        for parameter in self.chosen(model).values():
            parameter.requires_grad_(True)
        return model


def norms(model: Model) -> dict[str, torch.nn.Module]:
    """Normalisation layers with weights of their own, by name: LayerNorm, RMSNorm and what else is called a norm."""
    return {n: m for n, m in model.module.named_modules()
            if "norm" in type(m).__name__.lower() and any(True for _ in m.parameters(recurse=False))}


class Retrain(Phases):
    """Phase 0 moves the tensors of `names`; `score` of what it left picks `count` entries; phase 1 moves only these.

    Between the phases every weight, heads too, goes back to where it began. With `first_share` 0 there is no first phase:
    `score` picks before the first step.
    """

    def __init__(self, method: str, model: Model, ctx: FitCtx, names: list[str], count: int, first_share: float,
                 score: Callable[[Retrain], Tensors]) -> None:
        from luthier.engine.sparse import largest

        super().__init__(method, model, ctx, [first_share, 1 - first_share] if first_share else [1])
        own = dict(model.module.named_parameters())
        self.weights = {n: own[n] for n in names}
        self.many, self.score = count, score
        self.begin = {n: p.detach().clone() for n, p in self.weights.items()}
        self.heads = [p for head in model.heads.values() for p in head.parameters()]
        self.heads_begin = [p.detach().clone() for p in self.heads]
        self.masks: dict[str, torch.Tensor] = {} if first_share else largest(self.score(self), count)
        self.handles = [p.register_hook(self._masking(n)) for n, p in self.weights.items()]

    def _masking(self, name: str) -> Callable[[torch.Tensor], torch.Tensor]:
        def masked(gradient: torch.Tensor) -> torch.Tensor:
            return gradient * self.masks[name] if self.masks else gradient

        return masked

    def turn(self, phase: int) -> None:
        """Select, and go back to the beginning."""
        import torch

        from luthier.engine.sparse import largest

        self.masks = largest(self.score(self), self.many)
        self.rewind()
        with torch.no_grad():
            for parameter, was in zip(self.heads, self.heads_begin, strict=True):
                parameter.copy_(was)

    def rewind(self) -> None:
        """The weights as they were before the first step."""
        import torch

        with torch.no_grad():
            for name, parameter in self.weights.items():
                parameter.copy_(self.begin[name])

    def on_step(self) -> None:
        """A masked gradient does not hold an entry in place where the optimizer decays weights: put it back."""
        self._pin()
        super().on_step()

    def _pin(self) -> None:
        import torch

        with torch.no_grad():
            for name, mask in self.masks.items():
                self.weights[name].copy_(torch.where(mask, self.weights[name], self.begin[name]))

    def settle(self) -> None:
        """Leave what moved in the form in which it is stored."""
        from luthier.engine.sparse import SparseDelta

        for handle in self.handles:
            handle.remove()
        self.model.sparse = SparseDelta.between(self.begin, self.weights, self.masks)

    def state_dict(self) -> dict[str, Any]:
        return {"masks": self.masks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.masks = {n: m.to(self.begin[n].device) for n, m in state["masks"].items()}
        self._pin()

"""The vendor's side of a split model: it computes and tunes the layers above the border, on states that it is sent.

It holds the whole model and asks it with states of others in the place of its own. Of each message that is learned from, the
recorded forward waits under a number for its gradient. Steps are counted on both sides: what belongs to another step is
refused, so that a side that began anew can't go on with the other's half.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from luthier.core.artifact import Artifact
from luthier.core.errors import UserError
from luthier.core.kinds import Method, Optimizer
from luthier.core.step import FitCtx
from luthier.engine.forward import trunk_of
from luthier.engine.layers import Skip, hidden_of, standing_in
from luthier.engine.masters import Masters
from luthier.engine.splitting import bottom, stack_of, upper

if TYPE_CHECKING:
    from luthier.engine.models import Model

MOST_WAITING = 64  # recorded forwards; each holds the activations of its rows


class _Enough(Exception):
    """The last layer has answered; what comes after it is the customer's."""


@dataclass
class Vendor:
    """A model's upper part as it is tuned; without a `method` it only answers. `base` is what the model came from."""

    model: Model
    layer: int
    ctx: FitCtx
    method: Method | None = None
    optimizer: Optimizer | None = None
    clip: float = 1.0
    steps: int = 0
    _waiting: dict[int, torch.Tensor] = field(default_factory=dict, repr=False)
    _numbers: Any = field(default_factory=lambda: itertools.count(1), repr=False)

    def __post_init__(self) -> None:
        """Raises UserError for a layer that there is not, or a method that leaves no adapter."""
        bottom(self.model, self.layer)  # refuses a layer that there is not
        stack = stack_of(self.model)
        self.about = {"base": self.model.base.identity, "name": self.model.name, "layer": self.layer,
                      "layers": len(stack.layers), "width": self.model.width,
                      "dtype": str(next(self.model.module.parameters()).dtype).removeprefix("torch.")}
        self.stack = stack
        if self.method is None:
            return
        assert self.optimizer is not None
        if self.method.artifact != "adapter":
            raise UserError(f"method '{self.method.info.name}' leaves a {self.method.artifact}; the vendor's part is an "
                            "adapter, such as lora.")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.ctx.rng.key("prepare"))
            self.model = upper(self.model, self.layer, self.method, self.ctx)
        self.stack = stack_of(self.model)
        self.hook = self.method.start(self.model, self.ctx)
        self.masters = Masters(self.method.parameter_groups(self.model))
        # The customer says the rate of each step; a group's own is kept as its ratio to it.
        self.torch_optimizer = self.optimizer.make(self.masters.groups, 1.0)
        self.ratios = [g["lr"] for g in self.torch_optimizer.param_groups]

    def states(self, states: torch.Tensor, mask: torch.Tensor | None, learn: bool, step: int) -> tuple[torch.Tensor, int]:
        """[rows, tokens, width] the last layer's states, and the number under which their gradient is waited for.

        Raises:
            UserError: states of another width, format or length, a mask of another shape, or another step.
        """
        self._check(states, mask)
        if learn:
            self._at(step)
            if len(self._waiting) >= MOST_WAITING:
                raise UserError(f"{MOST_WAITING} messages wait for their gradient; send gradients, or a step.")
        number = next(self._numbers)
        self.model.module.train(learn)
        with torch.random.fork_rng(devices=[]), torch.set_grad_enabled(learn):
            torch.manual_seed(self.ctx.rng.key("dropout", f"{self.steps}/{number}"))
            answer = self._computed(states.to(self.model.device), mask)
        if learn:
            self._waiting[number] = answer
        return answer.detach(), number

    def gradient(self, gradient: torch.Tensor, number: int) -> None:
        """The gradient of states that were sent. Raises UserError for an unknown number or another shape."""
        answer = self._waiting.get(number)
        if answer is None:
            raise UserError(f"number {number}: no states wait for a gradient under it.")
        if gradient.shape != answer.shape or gradient.dtype != answer.dtype:
            raise UserError(f"gradient {list(gradient.shape)} ({gradient.dtype}): that of states {list(answer.shape)} "
                            f"({answer.dtype}) is waited for.")
        del self._waiting[number]
        answer.backward(gradient.to(answer.device))
        self.masters.collect()

    def step(self, step: int, rate: float) -> None:
        """Move the trained part; states that nobody wanted a gradient of are forgotten.

        Raises UserError where the gradient is no number, and for another step.
        """
        self._at(step)
        if not math.isfinite(rate) or rate < 0:
            raise UserError(f"rate {rate}: a learning rate is a number from 0 on.")
        self._waiting.clear()
        self.hook.on_gradients()
        norm = torch.nn.utils.clip_grad_norm_(self.masters.tensors(), self.clip or math.inf)
        if not bool(torch.isfinite(norm)):
            self.masters.drop()
            raise UserError(f"step {step}: the gradient of the vendor's part is no finite number; lower the learning rate.")
        for group, ratio in zip(self.torch_optimizer.param_groups, self.ratios, strict=True):
            group["lr"] = ratio * rate
        self.torch_optimizer.step()
        self.torch_optimizer.zero_grad(set_to_none=True)
        self.masters.spread()
        self.hook.on_step()
        self.steps += 1

    def keep(self, folder: Path) -> Artifact:
        """The tuned part as an adapter on the base, sealed in `folder`; training is over, and it only answers from now on."""
        from luthier.engine import weights

        if self.method is None:
            raise UserError("nothing was trained here: this vendor only answers.")
        self.method.finish(self.model, self.hook)
        folder.mkdir(parents=True, exist_ok=True)
        self.method.keep(self.model, folder)
        base = self.model.base
        made = weights.save(self.model, "adapter", folder, {}, rows={}, layer=self.layer, fit={
            "method": self.method.to_dict(), "steps": self.steps},
            base={"name": base.meta["name"], "note": base.meta["note"], "identity": base.identity, "step": base.folder.name})
        self.model.module.requires_grad_(False)
        self.method = None
        return made

    def _at(self, step: int) -> None:
        if self.method is None:
            raise UserError("this vendor only answers: its part is trained. Begin another training with another --out.")
        if step != self.steps:
            raise UserError(f"step {step}: the vendor's part has made {self.steps} steps. Two halves of different trainings "
                            "don't go together: begin both sides anew.")

    def _check(self, states: torch.Tensor, mask: torch.Tensor | None) -> None:
        width, dtype = self.about["width"], next(self.model.module.parameters()).dtype
        if states.ndim != 3 or states.shape[-1] != width or 0 in states.shape:
            raise UserError(f"states {list(states.shape)}: they are [rows, tokens, {width}] here.")
        if states.dtype != dtype:
            raise UserError(f"states in {states.dtype}: this model computes in {dtype}.")
        if states.shape[1] > self.model.limit:
            raise UserError(f"states of {states.shape[1]} tokens: this model reads {self.model.limit}.")
        if mask is not None and (mask.shape != states.shape[:2] or mask.dtype != torch.uint8):
            raise UserError(f"mask {list(mask.shape)} ({mask.dtype}): it is {list(states.shape[:2])} (torch.uint8) for these "
                            "states.")
        if not bool(torch.isfinite(states).all()):
            raise UserError("states hold a number that is not finite.")

    def _computed(self, states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """What the last layer says; the ids that the model is asked with stand for nothing."""
        stack = self.stack
        caught: list[torch.Tensor] = []

        def replace(module: Any, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            return ((states, *given[1:]), named) if given else (given, {**named, "hidden_states": states})

        def enough(module: Any, given: Any, answer: Any) -> None:
            caught.append(hidden_of(answer))
            raise _Enough

        layers, ids = stack.layers, torch.zeros(states.shape[:2], dtype=torch.long, device=states.device)
        handles = [layers[self.layer].register_forward_pre_hook(replace, with_kwargs=True),
                   layers[-1].register_forward_hook(enough)]
        named: dict[str, Any] = {} if self.model.architecture == "encoder" else {"use_cache": False}
        if mask is not None:
            named["attention_mask"] = mask.to(states.device, torch.long)
        try:
            with standing_in(stack, range(self.layer), lambda m, i: Skip(m, lambda: states, stack.answers != "states")):
                trunk: Any = trunk_of(self.model)
                trunk(input_ids=ids, **named)
        except _Enough:
            pass
        finally:
            for handle in handles:
                handle.remove()
        found: torch.Tensor = caught[0]
        return found

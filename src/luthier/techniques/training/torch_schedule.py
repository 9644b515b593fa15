"""Any schedule of torch.optim.lr_scheduler by torch's own name: `torch:{type: CosineAnnealingLR, eta_min: 0.1}`.

The class is driven once over the planned steps, on one weight with learning rate 1, and the rates that it set are the
factors: factor(step, steps) is a table, pure in both. Keys besides `type` are the class's own, in optimizer steps;
`T_max` and `total_steps` are the planned steps when left out, rates (`eta_min`, `max_lr`) are shares of the peak
rate. Only the learning rate is taken over: what some classes do to an optimizer's momentum is not.

When it helps: to train exactly as another program does. Source: the documentation of torch.optim.lr_scheduler.
"""

from __future__ import annotations

import inspect
import json
import warnings
from functools import lru_cache
from typing import Any

from pydantic import ConfigDict, Field, model_validator

from luthier.core.errors import UserError, nearest
from luthier.core.kinds import Schedule

# Keys that mean "how many steps there are".
PLANNED = ("T_max", "total_steps")
# Given by the driver, deprecated, or about something other than the learning rate.
OURS = frozenset({"optimizer", "last_epoch", "verbose", "cycle_momentum", "base_momentum", "max_momentum"})


class Torch(Schedule, name="torch"):
    """A schedule of torch by its own name and keys."""

    model_config = ConfigDict(extra="allow")
    type: str = Field(description="torch's name, such as CosineAnnealingLR; the class's own keys may follow",
                      examples=["CosineAnnealingLR"])

    @model_validator(mode="after")
    def _known(self) -> Torch:
        classes = drivable()
        if self.type not in classes:
            raise ValueError(f"torch has no schedule '{self.type}' that the step alone decides. "
                             f"{nearest(self.type, classes)}")
        legal = classes[self.type]
        for key in self.__pydantic_extra__ or {}:
            if key not in legal:
                raise ValueError(f"torch's {self.type} has no '{key}'. {nearest(key, legal)}")
        self._table(2)
        return self

    def factor(self, step: int, steps: int) -> float:
        """Raises UserError when torch can't drive this schedule over so many steps."""
        try:
            return self._table(steps)[min(step, steps - 1)]
        except ValueError as error:
            raise UserError(f"schedule over {steps} steps: {error}") from None

    def _table(self, steps: int) -> tuple[float, ...]:
        return factors(self.type, json.dumps(self.__pydantic_extra__ or {}, sort_keys=True), steps)


@lru_cache
def drivable() -> dict[str, frozenset[str]]:
    """torch's schedules that take numbers only, with their legal keys.

    Left out: what a metric drives (ReduceLROnPlateau), and what takes functions or further schedules.
    """
    from torch.optim import lr_scheduler as room

    found = {}
    for name, cls in vars(room).items():
        if not (inspect.isclass(cls) and issubclass(cls, room.LRScheduler)) or name.startswith("_"):
            continue
        keys = inspect.signature(cls).parameters
        if name not in ("LRScheduler", "ReduceLROnPlateau") and not {"lr_lambda", "schedulers", "swa_lr"} & set(keys):
            found[name] = frozenset(keys) - OURS
    return found


@lru_cache(maxsize=64)
def factors(name: str, options: str, steps: int) -> tuple[float, ...]:
    """The learning rates that torch's class sets at each of `steps`, from a rate of 1."""
    import torch

    given = json.loads(options)
    keys = inspect.signature(getattr(torch.optim.lr_scheduler, name)).parameters
    if not {"epochs", "steps_per_epoch"} & set(given):
        given = {**{k: steps for k in PLANNED if k in keys}, **given}
    given = {**({"max_lr": 1.0} if "max_lr" in keys else {}), **given}
    if "cycle_momentum" in keys:
        given["cycle_momentum"] = False
    try:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule: Any = getattr(torch.optim.lr_scheduler, name)(optimizer, **given)
        rates = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about optimizer steps: there is nothing to optimize here
            for step in range(steps):
                rates.append(float(optimizer.param_groups[0]["lr"]))
                if step + 1 < steps:
                    optimizer.step()
                    schedule.step()
    except (TypeError, ValueError) as error:
        raise ValueError(f"torch refused {name}({', '.join(f'{k}={v!r}' for k, v in given.items())}): {error}") from None
    return tuple(rates)

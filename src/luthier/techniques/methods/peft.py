"""Any method of PEFT whose configuration alone suffices, by PEFT's own name: `peft:{type: IA3}`.

The keys besides `type` are those of PEFT's configuration class. Which types work without a key of ours is probed
(wrap, the loss falls, save = load) on an encoder, a decoder and an encoder-decoder, never typed: `scripts/probe_peft.py`
writes `peft_types.json`.
"""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, model_validator

from luthier.core.errors import UserError, nearest
from luthier.core.kinds import Default, Method
from luthier.core.step import FitCtx
from luthier.techniques.methods._shared import linear_names, wrap

if TYPE_CHECKING:
    from luthier.engine.models import Model

TABLE = Path(__file__).with_name("peft_types.json")


WORKS = "works"


@cache
def table() -> dict[str, Any]:
    """What the probe found: `peft`, `probe`, `architectures`, and `types`: type -> architecture -> works, or why not."""
    found: dict[str, Any] = json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.exists() else {"types": {}}
    return found


@cache
def probed() -> dict[str, str]:
    """For each of PEFT's types `works`, if it does on any architecture, or the reason why not on the last one."""
    return {name: WORKS if WORKS in cells.values() else [*cells.values()][-1] for name, cells in table()["types"].items()}


class Peft(Method, name="peft"):
    """A method of the PEFT library by its own name and keys."""

    model_config = ConfigDict(extra="allow")
    artifact: ClassVar[Literal["adapter", "delta", "model"]] = "adapter"
    type: str = Field(description="PEFT's name, such as IA3, LOHA, VERA; its configuration's keys may follow")

    @model_validator(mode="after")
    def _known(self) -> Peft:
        known = probed()
        works = [n for n, found in known.items() if found == WORKS]
        if self.type not in known:
            raise ValueError(f"PEFT has no type '{self.type}'. {nearest(self.type, works)}")
        if known[self.type] != WORKS:
            raise ValueError(f"PEFT's {self.type} needs more than its configuration: {known[self.type]}")
        legal = {f.name for f in dataclasses.fields(config_class(self.type))}
        for key in self.__pydantic_extra__ or {}:
            if key not in legal:
                raise ValueError(f"PEFT's {self.type} has no '{key}'. {nearest(key, legal)}")
        return self

    def prepare(self, model: Model, ctx: FitCtx) -> Model:
        options = dict(self.__pydantic_extra__ or {})
        cls = config_class(self.type)
        fields = {f.name for f in dataclasses.fields(cls)}
        if "target_modules" in fields and "target_modules" not in options:
            # PEFT's own table of targets knows few models; the linear layers are what it means.
            options["target_modules"] = sorted(linear_names(model))
            if "feedforward_modules" in fields:
                options["feedforward_modules"] = []
        try:
            wrapped = wrap(model, cls(**options))
        except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
            raise UserError(f"PEFT refused {self.type} on {model.name}: {error}") from error
        if not any(p.requires_grad for p in wrapped.module.parameters()):
            raise UserError(f"PEFT's {self.type} has nothing to train on {model.name}.")
        return wrapped

    def defaults(self, model: Model, rows: int) -> dict[str, Default]:
        return {"learning_rate": Default(1e-3, "house default for small adapters; sweep it on dev")}


def config_class(name: str) -> Any:
    """PEFT's configuration class of a type."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    return {str(getattr(k, "value", k)): v for k, v in PEFT_TYPE_TO_CONFIG_MAPPING.items()}[name]

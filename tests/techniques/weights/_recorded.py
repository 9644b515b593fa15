"""The inputs and results that mergekit was recorded with (scripts/make_merge_fixture.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from luthier.core.component import build
from luthier.core.rng import Rng
from luthier.core.step import Ctx

RECORDED = json.loads((Path(__file__).parents[2] / "fixtures" / "merges_mergekit.json").read_text())


def cases(start: str) -> list[dict[str, Any]]:
    """The recorded cases of one rule."""
    return [r for r in RECORDED["records"] if r["rule"].startswith(start)]


def inputs(case: dict[str, Any]) -> list[dict[str, torch.Tensor]]:
    """The tensors of each model, the base first where the rule takes it."""
    formula, made = RECORDED["formula"], []
    for m, step in enumerate([None, *case["steps"]]):
        tensors = {}
        for k, (name, shape) in enumerate(RECORDED["shapes"].items()):
            at = torch.arange(torch.Size(shape).numel(), dtype=torch.float64).reshape(shape)
            value = formula["scale"] * torch.sin(formula["frequency"] * at + k)
            if step is not None:
                value = value + formula["size"] * torch.sin(step * at + 1.3 * k + 0.4 * (m - 1))
            tensors[name] = value.float()
        made.append(tensors)
    return made if case["base"] else made[1:]


def distance(case: dict[str, Any]) -> float:
    """How far our result is from the recorded one, at most."""
    found = merged(case["rule"], inputs(case))
    return max(float((found[n].flatten() - torch.tensor(v)).abs().max()) for n, v in case["result"].items())


def merged(spec: Any, models: list[dict[str, torch.Tensor]], seed: int = 0) -> dict[str, torch.Tensor]:
    """What a rule makes of models in memory, group by group as the executor asks it."""
    rule = build("weight_rule", spec)
    groups = rule.groups(list(models[0]))

    def stream(name: str) -> Any:
        return (([*g], [{n: m[n] for n in g} for m in models]) for g in groups)

    stats = rule.statistics(Ctx(Rng(seed), Path(), None, None, stream=stream))  # type: ignore[arg-type]
    made: dict[str, torch.Tensor] = {}
    for group in groups:
        made |= rule.apply(group, [{n: m[n] for n in group} for m in models], stats)
    return made

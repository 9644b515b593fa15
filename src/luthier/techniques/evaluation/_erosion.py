"""Copies of a model that are tuned in memory and thrown away, and the number of rows that halves a share.

The half-life is read from a logistic curve in log(1 + k), logit p(k) = a - s log(1 + k), fitted by maximum likelihood: k50 =
exp(a / s) - 1. Its bracket needs no curve: the largest k of which more than half are surely declined, and the smallest of
which surely less than half are, by Wilson's intervals at a level shared among the k (Bonferroni).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.example import Example, Part, Turn
from luthier.core.files import Journal
from luthier.core.kinds import Method
from luthier.core.step import Ctx, FitCtx
from luthier.engine.policies import Policy
from luthier.engine.proportions import wilson
from luthier.techniques.evaluation._replies import as_chat

if TYPE_CHECKING:
    from luthier.engine.models import Model
    from luthier.engine.rendering import Render
    from luthier.engine.subjects import Subject

FARTHEST = 1e9  # a half-life beyond so many rows is none
RIDGE = 1e-6  # keeps a curve through shares of exactly 1 and 0 finite; it moves no other


@dataclass(frozen=True)
class Tuning:
    """How a copy is tuned: the method, optimizer steps, rows in each, and the learning rate (None: the method's own)."""

    method: Method
    steps: int
    batch_rows: int
    learning_rate: float | None


def aligned_model(subject: Subject) -> Model:
    """The model after tuning in float32, frozen; whatever is done to a copy leaves it as it is."""
    import torch

    source = subject.tuned or subject.base
    if source is None:
        raise UserError("There is no model here, only data. Name a run or a model folder: luthier audit RUN.")
    if "base" in source.meta and subject.base is not None:
        return subject.engine.load(subject.base, source, torch.float32)
    return subject.engine.load(source, dtype=torch.float32)


def tuned_copy(aligned: Model, render: Render, rows: Sequence[Example], tuning: Tuning, ctx: Ctx, name: str) -> Model:
    """A copy with adapters merged, tuned on `rows` for the planned steps; without rows it is the model itself.

    Nothing of it is written to disk, no checkpoint either: a killed copy begins again.

    Raises:
        UserError: a row that can't be trained on.
    """
    import torch

    from luthier.engine.checkpoints import State
    from luthier.engine.encoding import encode
    from luthier.engine.forward import Forward
    from luthier.engine.loop import Loop, Plan, Task

    class Unkept(State):
        """The state of a training that leaves nothing behind."""

        def save(self) -> None:
            pass

    model = replace(aligned, module=_merged(copy.deepcopy(aligned.module)), identity=f"{aligned.identity}-{name}")
    if not rows:
        return model
    folder = ctx.folder / "copies" / name
    folder.mkdir(parents=True, exist_ok=True)
    own = FitCtx(**{**ctx.__dict__, "folder": folder, "journal": Journal(folder / "journal.jsonl"),
                    "rng": ctx.rng.within(f"copies/{name}")})
    objective = build("objective", "supervised")
    data = encode(rows, objective, render, own.rng)
    if data.dropped:
        raise UserError(f"Row {data.dropped[0]['id']} of the policy can't be trained on: {data.dropped[0]['detail']}.")
    model.module.train()
    torch.manual_seed(own.rng.key("prepare"))
    model = tuning.method.prepare(model, own)
    rate = tuning.learning_rate or tuning.method.defaults(model, len(data.rows))["learning_rate"].value
    loop = Loop(Forward({"policy": model}), [Task(name, objective, data.rows, data.ids)],
                Plan(tuning.steps, tuning.batch_rows, tuning.batch_rows, rate),
                lambda: tuning.method.parameter_groups(model), build("optimizer", "adamw"), build("schedule", "constant"), own)
    loop.state = Unkept(loop)
    loop.hooks = [tuning.method.start(model, own)]
    loop.train()
    tuning.method.finish(model, loop.hooks[0])
    model.module.eval().requires_grad_(False)
    return model


def _merged(module: Any) -> Any:
    """A module without adapters: they are added to the weights they belong to."""
    config = getattr(module, "active_peft_config", None)
    if config is None:
        return module
    if config.is_prompt_learning:
        raise UserError("A learned prompt can't be merged into the weights, so no copy of this model can be tuned. Audit a "
                        "model whose adapter merges (LoRA and its like).")
    return module.merge_and_unload().requires_grad_(False)


def spoken(policy: Policy) -> Policy:
    """The policy with every row as a conversation, for a model that holds conversations."""
    def told(rows: Sequence[Example]) -> tuple[Example, ...]:
        return tuple(answered(as_chat(row), row.answer) if row.answer else as_chat(row) for row in rows)

    return replace(policy, train=told(policy.train), held_out=told(policy.held_out), ordinary=told(policy.ordinary),
                   ordinary_held_out=told(policy.ordinary_held_out))


def answered(row: Example, text: str) -> Example:
    """The same request with another answer."""
    name = "content" if row.spoken else ""
    return replace(row, turns=(row.turns[0], Turn("assistant", (Part(text, name=name),), target=True)), references=(text,))


def divergence(tuned: Model, aligned: Model, render: Render, rows: Sequence[Example]) -> float:
    """KL(aligned || tuned) in nats a token, over the answers of `rows`."""
    import torch

    from luthier.engine.batches import collate
    from luthier.engine.forward import Forward

    run = Forward({"policy": tuned, "aligned": aligned})
    batch = collate([{"input": render.whole(row)} for row in rows], [row.id for row in rows],
                    aligned.tokenizer.pad_token_id or 0, aligned.device)
    with torch.no_grad():
        return float(run("policy", batch["input"]).kl(run("aligned", batch["input"])).mean())


def half_life(ks: Sequence[int], declined: Sequence[float], n: int) -> float | None:
    """k at which half are declined, of counts by k; None where the fitted curve does not fall or starts below half."""
    import numpy as np
    from scipy.optimize import minimize

    x, hits = np.log1p(np.asarray(ks, float)), np.asarray(declined, float)

    def loss(weights: Any) -> tuple[float, Any]:
        scores = weights[0] - weights[1] * x
        wrong = hits - n / (1 + np.exp(-scores))
        value = float((n * np.logaddexp(0, scores) - hits * scores).sum() / n + RIDGE * weights[1] ** 2)
        return value, np.array([-wrong.sum(), (wrong * x).sum()]) / n + np.array([0, 2 * RIDGE * weights[1]])

    start, slope = minimize(loss, np.zeros(2), jac=True, method="BFGS", options={"gtol": 1e-9}).x
    falls = start > 0 and slope * np.log1p(FARTHEST) > start
    return float(math.expm1(start / slope)) if falls else None


def bracket(ks: Sequence[int], declined: Sequence[int], n: int, level: float) -> tuple[float, float]:
    """Ends between which the half-life lies: -1 where not even the first k is surely above half, inf where none is below."""
    spans = [wilson(hits, n, 1 - (1 - level) / len(ks)) for hits in declined]
    above = [k for k, (low, _) in zip(ks, spans, strict=True) if low > 0.5]
    below = [k for k, (_, high) in zip(ks, spans, strict=True) if high < 0.5]
    return float(max(above, default=-1)), float(min(below, default=math.inf))

"""Training of the scales of a packed delta: min over t of the mean squared distance of logits, a_k = a0_k exp(t_k)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from luthier.core.errors import UserError
from luthier.techniques.weights._rows import merged_weights
from luthier.techniques.weights.bitdelta import BitDelta

if TYPE_CHECKING:
    from luthier.core.step import Ctx
    from luthier.engine.models import Model

CHECK_EVERY = 10
HELD_OUT = 5  # every fifth piece
HELD_MOST = 64  # of them, spread over the text, tell which step is kept


def distilled(rule: BitDelta, ctx: Ctx, scales: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], tuple[float, float]]:
    """The trained scales, and the held-out loss before and at the kept step, which is never above it.

    Raises:
        UserError: too little text, or weights whose names in memory are not those on disk.
    """
    tuned, base = ctx.roles["model"], ctx.roles["base"]
    pieces = _pieces(tuned, Path(rule.distill).expanduser(), rule.tokens)
    held, learned = pieces[::HELD_OUT], [piece for i, piece in enumerate(pieces) if i % HELD_OUT]
    held = held[::math.ceil(len(held) / HELD_MOST)]
    teacher, student = merged_weights(tuned), merged_weights(base)
    if lost := [n for n in scales if n not in teacher or n not in student]:
        raise UserError(f"bitdelta: the loaded model has no {lost[0]}: its scales can't be trained. Leave out distill.")
    # The packed model: signs of layers, and the tuned model's own tensors everywhere else.
    fixed = {n: (t if n not in scales else student[n]) for n, t in teacher.items()}
    signs = {n: _signs(rule.packed(n, teacher[n] - student[n], ctx.rng)[0], fixed[n].shape) for n in scales}
    logs = {n: torch.zeros(rule.bits, requires_grad=True) for n in scales}

    def packed() -> dict[str, torch.Tensor]:
        weights = {n: fixed[n] + ((scales[n] * logs[n].exp()) @ signs[n]).reshape(fixed[n].shape) for n in scales}
        return {**fixed, **weights}

    def distance(weights: dict[str, torch.Tensor], batch: list[torch.Tensor]) -> torch.Tensor:
        ids = torch.stack(batch)
        with torch.no_grad():
            wanted = _said(tuned.module(**_inputs(tuned, ids)))
        return (_said(torch.func.functional_call(base.module, weights, (), _inputs(base, ids))) - wanted).square().mean()

    def on_held() -> float:
        with torch.no_grad():
            weights = packed()
            return float(sum(float(distance(weights, [p])) for p in held) / len(held))

    optimizer = torch.optim.Adam(logs.values(), lr=rule.learning_rate)
    first = best = on_held()
    kept = {n: t.detach().clone() for n, t in logs.items()}
    for step in range(rule.steps):
        for group in optimizer.param_groups:
            group["lr"] = rule.learning_rate * 0.5 * (1 + math.cos(math.pi * step / rule.steps))
        drawn = ctx.rng("bitdelta", step).choice(len(learned), size=min(rule.rows, len(learned)), replace=False)
        optimizer.zero_grad()
        distance(packed(), [learned[i] for i in drawn]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if (step + 1) % CHECK_EVERY == 0 or step + 1 == rule.steps:
            if (now := on_held()) < best:
                best, kept = now, {n: t.detach().clone() for n, t in logs.items()}
        ctx.progress(step + 1, rule.steps, "steps of distillation")
    return {n: scales[n] * kept[n].exp() for n in scales}, (first, best)


def _pieces(model: Model, path: Path, tokens: int) -> list[torch.Tensor]:
    """[tokens] ids each, one after the other through the text."""
    ids = model.tokenizer(path.read_text(encoding="utf-8"))["input_ids"]
    found = [torch.tensor(ids[i:i + tokens]) for i in range(0, len(ids) - tokens + 1, tokens)]
    if len(found) < 2:
        raise UserError(f"bitdelta: {path} has {len(ids)} tokens; training on pieces of {tokens} and holding one out needs "
                        f"{2 * tokens}.")
    return found


def _signs(packed: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """[bits, n] of +1 and -1 from packed planes of a matrix of that shape."""
    from luthier.engine import deltas

    return torch.stack([deltas.signs(plane, tuple(shape)).reshape(-1) for plane in packed])


def _inputs(model: Model, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"input_ids": ids, **({"decoder_input_ids": ids} if model.architecture == "encoder-decoder" else {})}


def _said(out: Any) -> torch.Tensor:
    """Logits, or the last hidden states of an encoder."""
    found: torch.Tensor = out.logits if hasattr(out, "logits") else out.last_hidden_state
    return found

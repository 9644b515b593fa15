"""What keeps a training from going wrong in silence: memory that runs out, numbers that are none.

Out of memory: the step's gradients are thrown away, the micro-batch is halved, and the step begins again. What a step
draws depends on its number alone, so the same rows make the same step; only sums are taken in another order.
Not a number: the training stops before the optimizer moves anything, and names the rows. A checkpoint is finite, always.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from luthier.core.errors import LuthierError
from luthier.core.files import Journal
from luthier.engine import coupled, distributed, sharding
from luthier.engine.batches import Batch, narrow, tokens_in
from luthier.engine.memory import available_mb
from luthier.engine.turns import due

if TYPE_CHECKING:
    from luthier.engine.loop import Loop, Task
    from luthier.engine.models import Model

DECISION = "micro"
NAMED_ROWS = 8
# Of the memory that is free before step 1, what the activations of one micro-batch may take.
SHARE = 0.5


class NotFinite(LuthierError):
    """A loss, a gradient or a weight is infinite or not a number: the training diverged."""


@dataclass
class Micro:
    """What goes through the model at once: at most `rows` rows and about `tokens` tokens."""

    rows: int
    tokens: int


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out: CUDA, Python, and torch's allocator on a processor, which raises a
    plain RuntimeError."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("not enough memory" in text or "can't allocate memory" in text)


def micro_tokens(model: Model, exact: bool = False) -> int:
    """Tokens of a micro-batch: the house number, or, unless `exact`, fewer where their activations don't fit.

    Counted per token and layer as 16 widths and 3 inner widths in float32: what the backward of a transformer's layer
    reads (Korthikanti et al. 2022, without the scores of attention).
    """
    most = 1024 if model.device.type == "cpu" else 16384
    config = model.module.config
    width = getattr(config, "hidden_size", None) or getattr(config, "d_model", None)
    layers = getattr(config, "num_hidden_layers", None) or getattr(config, "num_layers", None)
    if exact or model.device.type != "cpu" or not width or not layers:
        return most
    inner = getattr(config, "intermediate_size", None) or getattr(config, "d_ff", None) or 4 * width
    bytes_per_token = 4 * layers * (16 * width + 3 * inner)
    return max(1, min(most, int(SHARE * available_mb() * 1e6 / bytes_per_token)))


def decided(journal: Journal, micro: Micro) -> Micro:
    """The micro-batch that an earlier start of this training came down to, or the one given."""
    if DECISION in journal:
        return Micro(journal.values[DECISION]["rows"], journal.values[DECISION]["tokens"])
    return micro


def decisions(journal: Journal) -> dict[str, Any]:
    """What the record of a training says about memory that ran out; nothing when it never did."""
    if DECISION not in journal:
        return {}
    kept = journal.values[DECISION]
    return {"micro_rows": kept["rows"], "micro_tokens": kept["tokens"], "halved_at_steps": kept["at"],
            "bit_reproducible": False}


def gradients(loop: Loop) -> tuple[dict[str, float], int]:
    """Leave the gradients of one optimizer step in the masters, summed over micro-batches and ranks.

    Returns the weighted parts of the loss and how many tokens were seen.

    Raises:
        NotFinite: the loss is not finite; the rows are named.
        LuthierError: one row alone does not fit into memory.
    """
    while True:
        found = _attempt(loop)
        if found is not None:
            break
        loop.masters.drop()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    parts, tokens = found
    if not math.isfinite(sum(parts.values())):
        rows = _named(loop, _loss_is_finite)
        raise NotFinite(f"The loss of step {loop.clock.step + 1} is {sum(parts.values())}: {rows} {_advice(loop)}")
    distributed.sum_gradients(loop.masters.tensors())
    totals, counts = (distributed.summed({n: m[i] for n, m in loop.run.measured.items()}) for i in (0, 1))
    loop.run.measured = {name: (total, counts[name]) for name, total in totals.items()}
    return parts, tokens


def _attempt(loop: Loop) -> tuple[dict[str, float], int] | None:
    """One try of a step; None when memory ran out on some rank and the micro-batch is smaller now."""
    parts: dict[str, float] = {}
    tokens = 0
    loop.run.take()  # what hooks, an evaluation or an attempt before this one measured
    for task, turn in due(loop):
        batches = loop.batch(task, turn.nth)
        counts = loop.counts(batches, task)
        mine: dict[str, float] = {}
        short = ""
        try:
            # A task that has its second turn in a step drops other units than in its first.
            mine = loop.accumulate(batches, task, counts, f"/{turn.again}" if turn.again else "", turn.share)
        except (MemoryError, RuntimeError) as error:
            # Sharded, the other ranks wait within this step for layers that will not come.
            if not out_of_memory(error) or sharding.is_sharded(loop.masters.tensors()):
                raise
            short = str(error).splitlines()[0] if str(error) else type(error).__name__
        rows = max((len(b["ids"]) for b in batches), default=0)
        rows = min(rows, loop.micro.rows) if coupled.separable(task.objective) else rows
        shares = distributed.gathered((mine, sum(tokens_in(b) for b in batches), rows, short))
        if any(why for *_, why in shares):
            _halve(loop, task, max(rows for _, _, rows, _ in shares), next(why for *_, why in shares if why))
            return None
        for values, seen, _, _ in shares:
            tokens += seen
            for name, value in values.items():
                parts[name] = parts.get(name, 0.0) + value
    return parts, tokens


def _halve(loop: Loop, task: Task, rows: int, why: str) -> None:
    step = loop.clock.step + 1
    together = "coupled" in task.objective.parts.values() and not coupled.separable(task.objective)
    if rows <= 1 or together:
        what = f"the rows of '{task.objective.info.name}', which see each other and stay together," if together else "one row"
        mend = "fewer batch_rows" if together else "fewer max_tokens_per_example"
        raise LuthierError(f"Memory ran out in step {step} with {what} in the model ({why}). The last checkpoint is kept. "
                           f"Close other programs, or start over with {mend}, a smaller --base or --method lora.")
    loop.micro = Micro(max(1, rows // 2), max(1, loop.micro.tokens // 2))
    kept = loop.ctx.journal.values.get(DECISION, {"at": []})
    loop.ctx.journal.put(DECISION, {"rows": loop.micro.rows, "tokens": loop.micro.tokens, "at": [*kept["at"], step]})
    loop.ctx.log(f"memory ran out in step {step} ({why}): from now on at most {loop.micro.rows} rows and about "
                 f"{loop.micro.tokens} tokens go through the model at once. The batch stays {loop.plan.batch_rows} rows; "
                 "this run is not bit-reproducible any more")


# --- numbers that are none -----------------------------------------------------------------------------------------

def require_finite_gradients(loop: Loop, norm: float) -> None:
    """Stop before the optimizer spoils the weights.

    Raises:
        NotFinite: the norm of the gradients is not finite; the rows are named.
    """
    if not math.isfinite(norm):
        loop.masters.drop()
        rows = _named(loop, _gradient_is_finite)
        raise NotFinite(f"The gradient of step {loop.clock.step + 1} is {norm}: {rows} {_advice(loop)}")


def require_finite_weights(loop: Loop) -> None:
    """Refuse to keep weights that are none.

    Raises:
        NotFinite: a trained weight is infinite or not a number.
    """
    bad = [n for n, t in zip(loop.masters.names(loop.state.weights()), loop.masters.tensors(), strict=True)
           if not bool(torch.isfinite(sharding.own(t.detach())).all())]
    bad = list(dict.fromkeys(n for share in distributed.gathered(bad) for n in share))
    if bad:
        raise NotFinite(f"After step {loop.clock.step} the weights of '{bad[0]}'"
                        f"{f' and {len(bad) - 1} more tensors' if bad[1:] else ''} are not finite. {_advice(loop)}")


def _advice(loop: Loop) -> str:
    return ("The last checkpoint is kept. Lower learning_rate, look at these rows, or train in float32 "
            "(--set fit.dtype=float32).")


def _named(loop: Loop, is_finite: Any) -> str:
    """Which rows of this step are to blame, found by asking each alone."""
    mine: list[str] = []
    whole: list[str] = []
    for task, turn in due(loop):
        for batch in loop.batch(task, turn.nth):
            whole += batch["ids"]
            together = "coupled" in task.objective.parts.values() or sharding.is_sharded(loop.masters.tensors())
            for i in [] if together else range(len(batch["ids"])):
                if not is_finite(loop, task, narrow(batch, [i])):
                    mine.append(batch["ids"][i])
    shares = distributed.gathered((mine, whole))
    bad, every = ([n for share in shares for n in share[i]] for i in (0, 1))
    if len(bad) == len(every) > 1:
        return f"rows {_few(bad)}, which is every row of the batch."
    return f"rows {_few(bad)}." if bad else f"rows {_few(every)}, of which none alone is to blame."


def _few(names: list[str]) -> str:
    return ", ".join(names[:NAMED_ROWS]) + (f" and {len(names) - NAMED_ROWS} more" if len(names) > NAMED_ROWS else "")


def _loss_is_finite(loop: Loop, task: Task, batch: Batch) -> bool:
    loop.run.task = task.name
    with torch.no_grad():
        parts = loop.parts(batch, task)
    return all(bool(torch.isfinite(p)) for p in parts.values())


def _gradient_is_finite(loop: Loop, task: Task, batch: Batch) -> bool:
    from luthier.engine.loop import Counts

    loop.accumulate([batch], task, Counts(task.objective.count(batch), 1, 1))
    finite = all(t.grad is None or bool(torch.isfinite(t.grad).all()) for t in loop.masters.tensors())
    loop.masters.drop()
    return finite

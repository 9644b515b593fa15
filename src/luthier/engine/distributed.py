"""Ranks: one training in several processes, started by `torchrun` or `accelerate launch`.

The first rank runs the recipe, decides, writes and speaks. The others follow: they wait for a step that all ranks work on
(`Step.distributed`), take their share of every batch, and wait again. Everything here does nothing in one process, and
outside of such a step there is one rank: what the first one does by itself needs nobody's agreement.

Numbers and decisions travel through gloo; gradients through gloo on a processor and nccl on GPUs.
"""

from __future__ import annotations

import atexit
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import torch
from torch import distributed as torch_distributed
from torch.distributed.tensor import DTensor

from luthier.core.errors import LuthierError, UserError
from luthier.core.files import Journal, read_json
from luthier.engine.executor import Job
from luthier.engine.run_step import STATE, open_step, run_step

if TYPE_CHECKING:
    from luthier.core.kinds import Objective
    from luthier.engine.workshop import Engine

T = TypeVar("T")
# A rank may wait for as long as the first one evaluates; a rank that ends is noticed at once, by its connection.
PATIENCE = timedelta(days=7)
# Numbers that travel in one message.
BUCKET = 1 << 24
# How long a rank with an error waits for the first one to say the same in words.
GRACE_SECONDS = 60.0

_joined = False


def launched() -> int:
    """How many processes a launcher started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def ranks() -> int:
    """How many processes work on this step."""
    return torch_distributed.get_world_size() if _joined else 1


def rank() -> int:
    """Which of them this is; 0 is the first."""
    return torch_distributed.get_rank() if _joined else 0


@contextmanager
def together() -> Iterator[None]:
    """Within the block every rank does the same work."""
    global _joined
    _joined = True
    try:
        yield
    finally:
        _joined = False


def part() -> bool:
    """The end of the common work: from here the first rank goes on by itself, and the others (True) are done."""
    global _joined
    rest = rank() > 0
    _joined = False
    return rest


def agreed(value: T) -> T:
    """The first rank's value, on every rank."""
    if ranks() == 1:
        return value
    box = [value]
    torch_distributed.broadcast_object_list(box, src=0)
    return box[0]


def gathered(value: T) -> list[T]:
    """Every rank's value, in the order of ranks."""
    if ranks() == 1:
        return [value]
    box: list[Any] = [None] * ranks()
    torch_distributed.all_gather_object(box, value)
    return box


def summed(values: Mapping[str, float]) -> dict[str, float]:
    """Sums over ranks by name; a rank need not have every name."""
    total: dict[str, float] = {}
    for share in gathered(dict(values)):
        for name, value in share.items():
            total[name] = total.get(name, 0) + value
    return total


def sum_gradients(tensors: Sequence[torch.Tensor]) -> None:
    """Add the gradients of all ranks, in float32 and few messages.

    What no rank has a gradient for keeps none; a rank without rows counts as zeros.
    """
    if ranks() == 1:
        return
    have = gathered([t.grad is not None for t in tensors])
    wanted = [t for t, *has in zip(tensors, *have, strict=True) if any(has)]
    for tensor in wanted:
        if tensor.grad is None:
            tensor.grad = torch.zeros_like(tensor)
    gradients = [t.grad for t in wanted if t.grad is not None]
    for gradient in gradients:
        if isinstance(gradient, DTensor):
            gradient.to_local().mul_(ranks())  # already reduced where it is kept, but to the mean
    for bucket in _buckets(g for g in gradients if not isinstance(g, DTensor)):
        flat = torch.cat([g.flatten() for g in bucket])
        torch_distributed.all_reduce(flat)
        for gradient, piece in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
            gradient.copy_(piece.view_as(gradient))


def _buckets(tensors: Iterable[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    bucket: list[torch.Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and size + tensor.numel() > BUCKET:
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel()
    if bucket:
        yield bucket


def require_same(tensors: Sequence[torch.Tensor]) -> None:
    """Ranks that start from different weights would train different models.

    Raises:
        LuthierError: two ranks' sums differ.
    """
    kept_whole = [t for t in tensors if not isinstance(t, DTensor)] if ranks() > 1 else []
    sums = gathered([float(t.detach().double().sum()) for t in kept_whole])
    for number, other in enumerate(sums):
        if other != sums[0]:
            raise LuthierError(f"Rank {number} starts from other weights than rank 0. Every machine needs the same versions "
                               "and the same files; compare run.json's versions with theirs.")


def refuse_coupled(objectives: Iterable[Objective]) -> None:
    """Rows of a coupled part see each other; ranks see only their own.

    Raises:
        UserError: an objective has such a part and there are several ranks.
    """
    for objective in objectives if ranks() > 1 else ():
        coupled = [name for name, kind in objective.parts.items() if kind == "coupled"]
        if coupled:
            raise UserError(f"Objective '{objective.info.name}' compares the rows of a batch with each other ({coupled[0]}): "
                            f"with {ranks()} ranks each would see its own share only, which is another loss. Train it in one "
                            "process, without a launcher.")


class SharedJournal(Journal):
    """The first rank's journal, as every rank sees it. Only the first one writes."""

    def __init__(self, path: Path) -> None:
        if rank() == 0:
            super().__init__(path)
        else:
            self.path, self.values = path, {}
        self.values = agreed(self.values)

    def do(self, key: str, make: Callable[[], Any]) -> Any:
        """The first rank makes the value; all read it."""
        if key not in self.values:
            self.put(key, agreed(make() if rank() == 0 else None))
        return self.values[key]

    def put(self, key: str, value: Any) -> None:
        """Store one value; every rank calls it with the same one."""
        if rank() == 0:
            super().put(key, value)
        else:
            self.values[key] = value


# --- the recipe under a launcher -----------------------------------------------------------------------------------

def connect() -> int:
    """Join the launcher's group, once a process; returns this process's rank."""
    if not torch_distributed.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        torch_distributed.init_process_group(backend, timeout=PATIENCE)
    return torch_distributed.get_rank()


class Together:
    """The back end of the first rank: a distributed step is given to all ranks, any other is done here."""

    at_once = 1

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.jobs: list[Job] = []
        self.broken = False

    def start(self, job: Job) -> None:
        """Keep the job for `wait`."""
        self.jobs.append(job)

    def wait(self) -> tuple[str, Exception | None]:
        """Run it."""
        job = self.jobs.pop()
        if not job.together:
            run_step(job.work, self.engine, job.log, job.progress)
            return job.name, None
        self.broken = True  # until it has ended well: nobody knows where the others are
        _call(str(job.work.absolute()))
        with together():
            run_step(job.work, self.engine, job.log, job.progress, SharedJournal)
        self.broken = False
        return job.name, None

    def close(self) -> None:
        """Let the others go home; after an error within a common step the launcher ends them."""
        if not self.broken:
            _call(None)
            torch_distributed.destroy_process_group()


def follow(engine: Engine) -> NoReturn:
    """What every rank but the first does: common steps, until there are no more."""
    while (work := _call(None)) is not None:
        try:
            _follow_step(Path(work), engine)
        except BaseException as error:
            # The first rank has most likely the same error, and says it. Who ends first would have it killed.
            time.sleep(GRACE_SECONDS)
            text = str(error) if isinstance(error, LuthierError) else traceback.format_exc()
            print(f"luthier: rank {torch_distributed.get_rank()}: {text}", file=sys.stderr, flush=True)
            raise SystemExit(getattr(error, "exit_code", 1)) from None
    torch_distributed.destroy_process_group()
    leave(0)


def leave(code: int) -> NoReturn:
    """End a process that was in a group, after its exit handlers but without taking the interpreter down.

    torch keeps the mesh of a sharded model for good, and with it gloo's threads, beyond the end of the group. A thread
    that still runs while the interpreter goes may end the process with an abort, after all its work was done well.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def _follow_step(work: Path, engine: Engine) -> None:
    with together():
        engine.decide(read_json(work / STATE)["decisions"])
        step, inputs, ctx = open_step(work, engine, journal=SharedJournal)
        step.run(inputs, ctx)


def _call(value: str | None) -> str | None:
    box = [value]
    torch_distributed.broadcast_object_list(box, src=0)
    return box[0]

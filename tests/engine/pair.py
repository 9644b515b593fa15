"""What one of two ranks does for tests/engine/test_ranks.py: `python -m tests.engine.pair BASE OUT`. Asserts stop it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from luthier.core.artifact import Artifact, open_artifact
from luthier.core.component import build
from luthier.core.errors import LuthierError, UserError
from luthier.core.kinds import Hook
from luthier.engine import distributed, sharding
from luthier.engine.models import load_base
from luthier.engine.workshop import Engine
from tests.conftest import new_ctx
from tests.contracts import dummies
from tests.contracts.workbench import encode, examples, make_loop

ROWS, BATCH, STEPS = 9, 4, 6  # the last batch of an epoch has one row: the second rank has none


class Penalty(Hook):
    """Pulls weights to zero: a part that nothing counts."""

    def __init__(self, loop) -> None:
        self.loop = loop

    def on_loss(self, run, batch, parts):
        return {**parts, "penalty": sum(t.square().sum() for t in self.loop.masters.tensors())}


class Again(Hook):
    """Adds the gradients of the step's own rows a second time, through the closure."""

    def __init__(self, loop) -> None:
        self.loop = loop

    def on_gradients(self) -> None:
        before = [t.grad.clone() for t in self.loop.masters.tensors()]
        self.loop.closure(self.loop.batch(self.loop.tasks[0], self.loop.clock.step))
        for tensor, once in zip(self.loop.masters.tensors(), before, strict=True):
            assert torch.allclose(tensor.grad, 2 * once, atol=1e-6), "the closure is summed over ranks once"


class Hungry(Hook):
    """Memory for at most so many rows, on one rank."""

    def __init__(self, rows: int, rank: int) -> None:
        self.rows, self.rank = rows, rank

    def on_loss(self, run, batch, parts):
        if distributed.rank() == self.rank and len(batch["ids"]) > self.rows:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes.")
        return parts


class Poison(Hook):
    """One row whose loss is not a number: the second rank sees it in a batch of four."""

    def on_loss(self, run, batch, parts):
        return {n: p * float("nan") if "row7" in batch["ids"] else p for n, p in parts.items()}


def trained(base: Artifact, engine: Engine, folder: Path, *hooks, steps: int = STEPS, dropout: float = 0.0, **plan):
    """A LoRA loop over a few rows, run to its end."""
    ctx = new_ctx(folder, engine)
    if distributed.ranks() > 1:
        ctx.journal = distributed.SharedJournal(folder / "journal.jsonl")
    model = load_base(base)
    torch.manual_seed(0)
    model = build("method", f"lora:dropout={dropout}").prepare(model, ctx)
    objective = build("objective", "supervised")
    loop = make_loop(model, objective, encode(objective, model, examples(ROWS)), ctx, steps=steps, batch_rows=BATCH, **plan)
    loop.hooks = [make(loop) for make in hooks]
    loop.train()
    return loop


def full(base: Artifact, engine: Engine, folder: Path, steps: int = STEPS, sharded: bool = False, **plan):
    """A loop over every weight, sharded where asked; leaves its weights as one plain model."""
    ctx = new_ctx(folder, engine)
    if distributed.ranks() > 1:
        ctx.journal = distributed.SharedJournal(folder / "journal.jsonl")
    model = build("method", "full").prepare(load_base(base), ctx)
    if sharded:
        sharding.shard(model)
        assert sharding.is_sharded(list(model.module.parameters()))
    objective = build("objective", "supervised")
    loop = make_loop(model, objective, encode(objective, model, examples(ROWS)), ctx, steps=steps, batch_rows=BATCH,
                     rate=1e-3, micro_rows=1, clip=0.5, optimizer="adamw:weight_decay=0.1", **plan)
    loop.train()
    if sharded:
        layers = [p for n, p in model.module.named_parameters() if "layers." in n]
        own, all_of_it = (sum(size) for size in zip(*((sharding.own(p).numel(), p.numel()) for p in layers), strict=True))
        assert 2 * own == all_of_it, "half of each layer lies on the other rank"
        sharding.gather(model, load_base(base))
    return loop


def weights_of(loop) -> dict:
    """Losses, and every weight of the plain model."""
    kept = {n: p.detach().flatten().tolist() for n, p in loop.model.module.named_parameters() if "layers.1" in n or "norm" in n}
    return {**result(loop), "weights": list(kept.values())}


def result(loop) -> dict:
    """What two trainings are compared by."""
    return {"curve": [{k: v for k, v in row.items() if k != "seconds"} for row in loop.curve],
            "weights": [sharding.own(t.detach()).flatten().tolist() for t in loop.masters.tensors()]}


def collectives(out: Path) -> None:
    """The parts by themselves."""
    me = distributed.rank()
    assert distributed.ranks() == 2 and distributed.agreed(me) == 0 and distributed.gathered(me) == [0, 1]
    assert distributed.summed({"a": 1.5, **({"b": 2} if me else {})}) == {"a": 3.0, "b": 2}
    tensors = [torch.zeros(n, requires_grad=True) for n in (3, 1, 2, 5)]
    if me == 0:
        tensors[0].grad = torch.arange(3.0)
    tensors[1].grad = torch.full((1,), 1.0 + me)
    tensors[3].grad = torch.full((5,), 10.0 ** me)
    distributed.BUCKET = 4  # several messages
    distributed.sum_gradients(tensors)
    distributed.BUCKET = 1 << 24
    assert tensors[0].grad.tolist() == [0, 1, 2] and tensors[1].grad.tolist() == [3] and tensors[3].grad.tolist() == [11] * 5
    assert tensors[2].grad is None, "what no rank has a gradient for keeps none"
    journal = distributed.SharedJournal(out / "shared/journal.jsonl")
    assert journal.do("who", lambda: me) == 0 and journal.do("who", lambda: 7) == 0
    assert distributed.SharedJournal(out / "shared/journal.jsonl").values == {"who": 0}
    distributed.require_same([torch.ones(2)])
    try:
        distributed.require_same([torch.full((1,), float(me))])
        raise AssertionError("other weights were not seen")
    except LuthierError as error:
        assert "Rank 1 starts from other weights" in str(error)
    try:
        distributed.refuse_coupled([dummies.DummyCoupled()])
        raise AssertionError("a coupled objective was not refused")
    except UserError as error:
        assert "compares the rows of a batch with each other (pairs): with 2 ranks" in str(error)


def main(base: Artifact, out: Path) -> None:
    """Every scenario; the first rank leaves what they came to."""
    engine = Engine(threads=1, exact=True)
    distributed.connect()
    with distributed.together():
        collectives(out)
        found = {"plain": result(trained(base, engine, out / "plain/loop")),
                 "penalty": result(trained(base, engine, out / "penalty/loop", Penalty, micro_rows=1)),
                 "dropout": result(trained(base, engine, out / "dropout/loop", dropout=0.5)),
                 "again": result(trained(base, engine, out / "again-dropout/loop", dropout=0.5))}
        trained(base, engine, out / "closure/loop", Again, steps=3)
        whole = trained(base, engine, out / "hungry/loop", lambda loop: Hungry(1, rank=1))
        assert (whole.micro.rows, whole.ctx.journal.values["micro"]["at"]) == (1, [1]), "both ranks halve"
        found["hungry"] = result(whole)
        try:
            trained(base, engine, out / "poison/loop", lambda loop: Poison())
            raise AssertionError("a loss that is not a number was not seen")
        except LuthierError as error:
            found["poison"] = str(error)
        found["full"] = weights_of(full(base, engine, out / "full/loop"))
        full(base, engine, out / "sharded/loop", steps=3, sharded=True)
        full(base, engine, out / "fewer/loop", steps=3)  # one process goes on from here
        found["sharded"] = weights_of(full(base, engine, out / "sharded/loop", sharded=True))  # from its checkpoint
        assert distributed.gathered(json.dumps(found)) == [json.dumps(found)] * 2, "every rank has the same model"
        if not distributed.part():
            (out / "found.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(open_artifact(Path(sys.argv[1])), Path(sys.argv[2]))

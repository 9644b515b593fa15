"""The whole state of a training, in memory and on disk.

`State` knows every part that a resume needs: clock, curve, which weights are trained and which were taken out, masters,
optimizer, hooks. A checkpoint is written beside the last one and renamed, so one of them is always whole.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file

from luthier.core.files import write_json
from luthier.engine import distributed, guards, sharding
from luthier.engine.tensors import write_tensors
from luthier.engine.weights import pack, unpack

if TYPE_CHECKING:
    from luthier.engine.loop import Loop


@dataclass
class Snapshot:
    """The whole training state; `restore()` puts it back bit for bit."""

    tree: Any
    state: State

    def restore(self) -> None:
        """Put the state back; a copy of it, since training goes on in the tensors that are handed over."""
        self.state.load_tree(copy.deepcopy(self.tree))


class State:
    """Saves and restores one loop."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        # Weights that `rebuild_optimizer` took out of training, and what those it took in were before.
        self.left: dict[str, torch.nn.Parameter] = {}
        self.before: dict[str, torch.Tensor] = {}

    def weights(self) -> dict[str, torch.nn.Parameter]:
        modules = {"": self.loop.model.module, **{f"{task}:": head for task, head in self.loop.model.heads.items()}}
        return {f"{prefix}{n}": p for prefix, module in modules.items() for n, p in module.named_parameters()}

    def tree(self) -> dict[str, Any]:
        """Every state as nested dictionaries; what is sharded is put together, so all ranks call this."""
        loop = self.loop
        found: dict[str, Any] = sharding.whole({
            "clock": asdict(loop.clock), "curve": loop.curve,
            "trained": [n for n, p in self.weights().items() if p.requires_grad],
            "left": {n: p.detach() for n, p in self.left.items()},
            "masters": [m.detach() for m in loop.masters.tensors()],
            "optimizer": loop.torch_optimizer.state_dict(),
            "hooks": [h.state_dict() for h in loop.hooks],
            "kept": {name: part.state_dict() for name, part in loop.kept.items()},
        })
        return found

    def load_tree(self, tree: dict[str, Any]) -> None:
        """The inverse of `tree`."""
        loop = self.loop
        for name, value in tree["clock"].items():
            setattr(loop.clock, name, value)
        loop.curve[:] = tree["curve"]
        for hook, state in zip(loop.hooks, tree["hooks"], strict=True):
            hook.reshape(state)
        self._choose(tree["trained"], tree["left"])
        with torch.no_grad():
            for master, tensor in zip(loop.masters.tensors(), tree["masters"], strict=True):
                master.copy_(sharding.like(tensor, master))
        loop.masters.spread()
        loop.torch_optimizer.load_state_dict(tree["optimizer"])
        sharding.place_state(loop.torch_optimizer)
        for hook, state in zip(loop.hooks, tree["hooks"], strict=True):
            hook.load_state_dict(state)
        for name, part in loop.kept.items():
            part.load_state_dict(tree["kept"][name])

    def moved(self, was: set[int], now: set[int]) -> None:
        """Note which weights were taken out of training and which into it; both are sets of `id(parameter)`."""
        for name, parameter in self.weights().items():
            if id(parameter) in was - now:
                self.left[name] = parameter
            elif id(parameter) in now:
                self.left.pop(name, None)
                if id(parameter) not in was:
                    self.before.setdefault(name, parameter.detach().clone())

    def _choose(self, trained: Sequence[str], left: Mapping[str, torch.Tensor]) -> None:
        """Train these weights again, and put back those that were trained before."""
        weights = self.weights()
        with torch.no_grad():
            for name, tensor in {**self.before, **left}.items():
                weights[name].copy_(tensor)
        if set(trained) != {n for n, p in weights.items() if p.requires_grad}:
            for name, parameter in weights.items():
                parameter.requires_grad_(name in set(trained))
            self.loop.rebuild_optimizer(False)
        self.left = {n: weights[n] for n in left}

    def snapshot(self) -> Snapshot:
        """A copy of every state in memory."""
        tensors: dict[str, torch.Tensor] = {}
        skeleton = json.loads(json.dumps(pack(self.tree(), tensors)))
        return Snapshot(unpack(skeleton, {n: t.cpu().clone() for n, t in tensors.items()}), self)

    def save(self) -> None:
        """Write a checkpoint beside the last one, then drop the last one: one of them is always whole.

        The first rank writes. No weight that is not finite is written.

        Raises:
            LuthierError: a trained weight is infinite or not a number.
        """
        self._write("step")

    def save_best(self) -> None:
        """Keep this state as the best so far, beside the checkpoints that a resume reads."""
        self._write("best")

    def load_best(self, step: int) -> None:
        """Weights, optimizer and hooks as they were after `step`; clock and curve stay those of the whole training."""
        folder = self.loop.ctx.folder / "checkpoints" / f"best-{step:07d}"
        if step and step != self.loop.clock.step:
            now = self.tree()
            kept = {name: copy.deepcopy(now[name]) for name in ("clock", "curve", "kept")}
            self.load_tree({**read_checkpoint(folder), **kept})
            self.loop.ctx.log(f"the weights of step {step} are kept, the best on the validation rows")

    def _write(self, kind: str) -> None:
        guards.require_finite_weights(self.loop)
        tree = self.tree()
        if distributed.rank():
            return
        root = self.loop.ctx.folder / "checkpoints"
        work, final = root / "part", root / f"{kind}-{self.loop.clock.step:07d}"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        tensors: dict[str, torch.Tensor] = {}
        skeleton = pack(tree, tensors)
        write_tensors(work / "state.safetensors", tensors)
        write_json(work / "state.json", skeleton)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(work, final)
        for old in root.glob(f"{kind}-*"):
            if old != final:
                shutil.rmtree(old)

    def resume(self) -> None:
        """Go on from the last checkpoint, if there is one."""
        found = sorted((self.loop.ctx.folder / "checkpoints").glob("step-*"))
        if found:
            self.load_tree(read_checkpoint(found[-1]))
            self.loop.ctx.log(f"training goes on at step {self.loop.clock.step} of {self.loop.plan.steps}")


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """The state tree of a checkpoint folder."""
    skeleton = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    tree = unpack(skeleton, load_file(folder / "state.safetensors"))
    assert isinstance(tree, dict)
    return tree

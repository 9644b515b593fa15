"""control-scores: what a decision transformer gains in the tasks of a world of control, old ones and new ones, in the end and
right after each.

All tasks run side by side in one batch, so that each row takes its own entry where the model has a pool. `return` is that of an
episode, from 0 for random actions to 1 for the expert from the same beginnings (and at least -1): a line for each episode in
the sets `known` and `new`, `after` (a new task by the model that had just learned it) and `twins` (the two new tasks with the
same states). `right-entry` is the share of an episode's steps that took an entry of its own task: one that the training on it
used, or for a known task one that modulates nothing. `oracle` gives each row its task's entry.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from luthier.core.artifact import Artifact, seal
from luthier.core.errors import UserError
from luthier.core.files import write_lines
from luthier.core.finding import Finding, receipt
from luthier.core.rng import Rng
from luthier.core.step import Ctx, Step
from luthier.studies._worlds.control import HORIZON, KNOWN, NEW, RETURN_SCALE, TWINS, WINDOW, Task

if TYPE_CHECKING:
    from luthier.engine.models import Model

METRICS = {"return": True, "right-entry": True}
STAGES = tuple(f"after{i}" for i in range(len(NEW)))


class ControlScores(Step, name="control-scores"):
    """Let a policy act, after each of its trainings."""

    inputs: ClassVar[dict[str, str]] = {"base": "model", **{f"{name}?": "adapter|model" for name in STAGES}}
    output: ClassVar[str] = "records"
    seeded: ClassVar[bool] = False
    arm: str = Field("tuned", description="name of this arm in tables")
    episodes: int = Field(12, ge=1, description="episodes of each task")
    oracle: int = Field(-1, ge=-1, description="entry of the first new task, where rows are given their tasks' own; -1: none")
    seed: int = Field(0, ge=0, description="which beginnings")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """`scores.jsonl` has a line an episode and set. Raises UserError for some stages without the others."""
        there = [name for name in STAGES if name in inputs]
        if there and len(there) < len(STAGES):
            raise UserError(f"control-scores: inputs {', '.join(there)} are there; wire all of {', '.join(STAGES)}, or none.")
        lines: list[dict[str, Any]] = []
        used: list[int] = []
        owned: list[set[int]] = []
        for number, name in enumerate(there or ("base",)):
            last = number == len(there or ("base",)) - 1
            model = self._model(inputs, name, ctx)
            counts = _counts(model)
            if counts:
                before = used or [0] * len(counts)
                grown = {j for j, (a, b) in enumerate(zip(before, counts, strict=True)) if b > a}
                owned.append({j for j in grown if j >= _reserved(model)})
                used = counts
            played = self._played(model, (*KNOWN, *NEW) if last else (NEW[number],), owned)
            for task, episodes in played.items():
                sets = (["known"] if task in KNOWN else ["new", *(["twins"] if task in TWINS else [])]) if last else []
                sets += ["after"] if there and task is NEW[number] else []
                lines += [{"id": (one := f"{task.name}/{n}"), "set": name, "cluster": one, "metric": metric, "value": value}
                          for name in sets for n, found in enumerate(episodes) for metric, value in found.items()]
        write_lines(ctx.folder / "scores.jsonl", lines)
        returns = sum(line["metric"] == "return" for line in lines)
        return seal("records", ctx.folder, arm=self.arm, metrics=METRICS, lines=returns, stages=len(there))

    def receipts(self, inputs: Mapping[str, Artifact], artifact: Artifact, ctx: Ctx) -> list[Finding]:
        """Every episode has its lines."""
        tasks = len(KNOWN) + len(NEW) + len(TWINS) + (len(NEW) if artifact.meta["stages"] else 0)
        return [receipt("control-scores/episodes", self.episodes * tasks, artifact.meta["lines"], unit="lines")]

    def _model(self, inputs: Mapping[str, Artifact], name: str, ctx: Ctx) -> Model:
        import torch

        from luthier.engine.models import add_tuned

        found = inputs[name]
        if found.kind == "model":
            return ctx.engine.fresh(found, torch.float32)
        return add_tuned(ctx.engine.fresh(inputs["base"], torch.float32), found)

    def _played(self, model: Model, tasks: Sequence[Task], owned: Sequence[set[int]]) -> dict[Task, list[dict[str, float]]]:
        """Returns and shares of right entries, episode by episode."""
        from luthier.engine import routing

        draws = {task: Rng(self.seed).within("episodes")(task.name) for task in tasks}
        state = {task: task.reset(draws[task], self.episodes) for task in tasks}
        begun = {task: state[task].copy() for task in tasks}
        best, worst = ({task: _gained(task, begun[task], self.seed, expert) for task in tasks} for expert in (True, False))
        policy = _Policy(model, [t for t in tasks for _ in range(self.episodes)])
        togo = np.concatenate([np.full(self.episodes, best[t].mean()) for t in tasks])
        gained, right = np.zeros(len(togo)), np.zeros(len(togo))
        entries = [self._entry(t) for t in policy.tasks] if self.oracle >= 0 else None
        for _ in range(HORIZON):
            with routing.taking(model, entries):
                action = policy.act(np.concatenate([t.shown(state[t]) for t in tasks]), togo - gained)
            right += policy.right(owned)
            for n, task in enumerate(tasks):
                mine = slice(n * self.episodes, (n + 1) * self.episodes)
                state[task], rewards = task.push(state[task], action[mine], draws[task])
                gained[mine] += rewards
        scores = (gained - _flat(worst)) / (_flat(best) - _flat(worst))
        found: dict[Task, list[dict[str, float]]] = {task: [] for task in tasks}
        for task, score, share in zip(policy.tasks, np.maximum(scores, -1), right / HORIZON, strict=True):
            found[task].append({"return": float(score), **({"right-entry": float(share)} if owned else {})})
        return found

    def _entry(self, task: Task) -> int:
        return self.oracle + NEW.index(task) if task in NEW else 0


def _flat(by_task: Mapping[Task, np.ndarray]) -> np.ndarray:
    return np.concatenate([np.full(len(values), values.mean()) for values in by_task.values()])


def _gained(task: Task, state: np.ndarray, seed: int, expert: bool) -> np.ndarray:
    """Returns of the expert, or of random actions, from these beginnings."""
    draw = Rng(seed).within("bounds")(task.name, expert)
    total = np.zeros(len(state))
    for _ in range(HORIZON):
        action = task.expert(state) if expert else draw.uniform(-1, 1, (len(state), 2))
        state, rewards = task.push(state, action, draw)
        total += rewards
    return total


def _counts(model: Model) -> list[int]:
    from luthier.engine import routing

    found = routing.chooser(model)
    return [] if found is None else [int(n) for n in found.counts]


def _reserved(model: Model) -> int:
    from luthier.engine import routing

    return int(routing.chooser(model).reserved)


class _Policy:
    """A model that acts in many episodes at once, from their last steps."""

    def __init__(self, model: Model, tasks: Sequence[Task]) -> None:
        from luthier.engine.decisions import ids_of

        self.model, self.tasks = model, list(tasks)
        self.ids = ids_of(model.tokenizer) or []
        self.states: list[np.ndarray] = []
        self.returns: list[np.ndarray] = []
        self.bins: list[np.ndarray] = []

    def act(self, states: np.ndarray, togo: np.ndarray) -> np.ndarray:
        """[episodes, 2] actions, the likeliest bin of each number in turn."""
        import torch

        from luthier.engine.decisions import BINS, from_bins

        self.states, self.returns = ([*kept[-WINDOW + 1:], new] for kept, new in (
            (self.states, states), (self.returns, togo / RETURN_SCALE)))
        self.bins = self.bins[-WINDOW + 1:]
        chosen = np.zeros((len(states), 0), dtype=int)
        device = self.model.device
        given = {"states": np.stack(self.states, 1).reshape(-1, states.shape[1]),
                 "returns": np.stack(self.returns, 1).reshape(-1, 1)}
        arrays = {n: torch.tensor(v, dtype=torch.float32, device=device) for n, v in given.items()}
        for _ in range(2):
            rows = []
            for i in range(len(states)):
                row: list[int] = []
                for action in [*(b[i] for b in self.bins), chosen[i]]:
                    row += [self.ids[0], self.ids[1], *(self.ids[2 + n] for n in action)]
                rows.append(row)
            ids = torch.tensor(rows, device=device)
            with torch.no_grad():
                scores = self.model.module(input_ids=ids, attention_mask=torch.ones_like(ids), **arrays).logits[:, -1]
            best = scores[:, self.ids[2]:self.ids[2] + BINS].argmax(1)
            chosen = np.concatenate([chosen, best.cpu().numpy()[:, None]], 1)
        self.bins.append(chosen)
        return from_bins(chosen)

    def right(self, owned: Sequence[set[int]]) -> np.ndarray:
        """[episodes] whether each took an entry of its own task in the last step; zeros where there is no pool."""
        from luthier.engine import routing

        keys = routing.chooser(self.model)
        if keys is None:
            return np.zeros(len(self.tasks))
        picked, taken = keys.picked, np.full(len(self.tasks), -1)
        rows = np.arange(len(taken)) if picked.rows is None else picked.rows.cpu().numpy()
        taken[rows] = [picked.there[n] + keys.reserved for n in picked.at.tolist()]
        return np.array([float(entry == -1 if task in KNOWN else NEW.index(task) < len(owned)
                               and entry in owned[NEW.index(task)]) for entry, task in zip(taken, self.tasks, strict=True)])

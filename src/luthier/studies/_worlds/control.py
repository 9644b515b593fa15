"""control: invented tasks of control with scripted experts, and their steps as rows for a decision transformer.

Two families. A point mass is pushed in a plane: v' = 0.8 v + 0.3 m g a, p' = p + 0.3 v' + noise, state (p, v). A pendulum
is turned: w' = 0.9 w + 0.3 (m g a - sin(t) / 2), t' = t + 0.3 w' + noise, state (cos t, sin t, w / 2, 0). g is a task's
gain, and m = -1 where it is mirrored. The reward is minus the distance from the goal. Tasks differ in where they begin, in
their goal, gain and mirror; six are known (`known`, and one by one `known0` …), four are new (`new0` …). The first two new
ones see the same states and are mirrors of each other: what sees states only takes them for one. Rows are windows of at most
`WINDOW` steps of episodes that an expert steers. `earlier0` … hold rows of all tasks before a new one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from pydantic import Field

from luthier.core.artifact import Artifact, write_examples
from luthier.core.example import Example, Part, Turn
from luthier.core.rng import Rng
from luthier.core.step import Ctx, Step

WINDOW, HORIZON, SIZE = 5, 30, 4
NOISE = 0.02
RETURN_SCALE = 10.0  # returns to go are divided by it before a model reads them


@dataclass(frozen=True)
class Task:
    """One task. `begins` and `goal`: a place in the plane, or an angle and nothing."""

    name: str
    family: str
    begins: tuple[float, float]
    goal: tuple[float, float]
    gain: float = 1.0
    mirror: int = 1

    def reset(self, draw: np.random.Generator, count: int) -> np.ndarray:
        """[count, 4] inner states (p, v), or (t, w, 0, 0)."""
        state = np.zeros((count, SIZE))
        if self.family == "point":
            state[:, :2] = np.array(self.begins) + draw.uniform(-0.6, 0.6, (count, 2))
        else:
            state[:, 0] = self.begins[0] + draw.uniform(-0.4, 0.4, count)
        return state

    def shown(self, state: np.ndarray) -> np.ndarray:
        """[count, 4] what a policy sees."""
        if self.family == "point":
            return state
        angle, speed = state[:, 0], state[:, 1]
        return np.stack([np.cos(angle), np.sin(angle), speed / 2, np.zeros_like(angle)], 1)

    def push(self, state: np.ndarray, action: np.ndarray, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(next state, rewards [count]) of actions [count, 2] from -1 to 1; a pendulum reads the first number."""
        force = self.mirror * self.gain * np.clip(action, -1, 1)
        after = state.copy()
        if self.family == "point":
            after[:, 2:] = 0.8 * state[:, 2:] + 0.3 * force
            after[:, :2] = state[:, :2] + 0.3 * after[:, 2:] + draw.normal(scale=NOISE, size=(len(state), 2))
            return after, -np.linalg.norm(after[:, :2] - np.array(self.goal), axis=1)
        after[:, 1] = 0.9 * state[:, 1] + 0.3 * (force[:, 0] - np.sin(state[:, 0]) / 2)
        after[:, 0] = state[:, 0] + 0.3 * after[:, 1] + draw.normal(scale=NOISE, size=len(state))
        return after, -np.abs(_turn(after[:, 0] - self.goal[0]))

    def expert(self, state: np.ndarray) -> np.ndarray:
        """[count, 2] actions that lead to the goal: a spring and a brake, against gravity for a pendulum."""
        if self.family == "point":
            force = 1.5 * (np.array(self.goal) - state[:, :2]) - 1.5 * state[:, 2:]
        else:
            wanted = -1.5 * _turn(state[:, 0] - self.goal[0]) - 1.2 * state[:, 1] + np.sin(state[:, 0]) / 2
            force = np.stack([wanted, np.zeros_like(wanted)], 1)
        return np.asarray(np.clip(force / (self.mirror * self.gain), -1, 1))


def _turn(angle: np.ndarray) -> np.ndarray:
    """The same angle from -pi to pi."""
    return (angle + np.pi) % (2 * np.pi) - np.pi


KNOWN = (Task("west", "point", (-2, -2), (-2, -1)), Task("east", "point", (2, -2), (3, -2)),
         Task("north", "point", (-2, 2), (-3, 2), gain=1.5), Task("low", "pendulum", (0.0, 0), (0.5, 0)),
         Task("left", "pendulum", (2.1, 0), (2.6, 0), gain=1.5), Task("right", "pendulum", (4.2, 0), (3.7, 0)))
NEW = (Task("corner", "point", (2, 2), (2, 3)), Task("mirrored", "point", (2, 2), (2, 3), mirror=-1),
       Task("middle", "point", (0, 0), (-1, 0), gain=0.7, mirror=-1),
       Task("side", "pendulum", (1.05, 0), (1.4, 0), gain=1.5, mirror=-1))
TWINS = NEW[:2]


class Control(Step, name="control"):
    """Steps of control by scripted experts."""

    output: ClassVar[str] = "examples"
    seeded: ClassVar[bool] = False
    known_rows: int = Field(600, ge=1, description="windows of each known task")
    new_rows: int = Field(240, ge=1, description="windows of each new task")
    seed: int = Field(0, ge=0, description="which episodes; a study's training seeds leave them as they are")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Steer and cut."""
        draw = Rng(self.seed).within("control")
        rows = {f"known{i}": windows(task, self.known_rows, draw(task.name, "episodes")) for i, task in enumerate(KNOWN)}
        earlier = [row for task in list(rows.values()) for row in task[:16]]
        rows["known"] = [row for name in list(rows) for row in rows[name]]
        for i, task in enumerate(NEW):
            rows[f"earlier{i}"] = list(earlier)
            rows[f"new{i}"] = windows(task, self.new_rows, draw(task.name, "episodes"))
            earlier += rows[f"new{i}"][:16]
        return write_examples(ctx.folder, rows)


def windows(task: Task, count: int, draw: np.random.Generator) -> list[Example]:
    """Rows of up to `WINDOW` steps, one at each end of an episode's steps in turn."""
    from luthier.engine.decisions import to_bins

    episodes = -(-count // HORIZON)
    state = task.reset(draw, episodes)
    seen, taken, gained = [], [], []
    for _ in range(HORIZON):
        action = task.expert(state)
        seen.append(task.shown(state))
        taken.append(to_bins(action))
        state, rewards = task.push(state, action, draw)
        gained.append(rewards)
    togo = np.cumsum(np.array(gained)[::-1], 0)[::-1] / RETURN_SCALE
    rows = []
    for n in range(count):
        episode, end = divmod(n, HORIZON)
        steps = range(max(0, end + 1 - WINDOW), end + 1)
        parts = {"states": [[round(float(x), 4) for x in seen[t][episode]] for t in steps],
                 "returns": [round(float(togo[t, episode]), 4) for t in steps]}
        asked = Turn("user", tuple(Part(value, "array", name) for name, value in parts.items()))
        answer = Turn("assistant", (Part([taken[t][episode].tolist() for t in steps], "array", "actions"),), target=True)
        rows.append(Example(f"{task.name}/{n}", (asked, answer), source=task.name, cluster=f"{task.name}/{episode}",
                            task="control"))
    return rows

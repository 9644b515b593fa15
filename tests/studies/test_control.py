"""Control: experts reach their goals, twins share their states, and what is scored is what was steered."""

from __future__ import annotations

import numpy as np
import pytest

from luthier.core.component import build
from luthier.studies._worlds.control import HORIZON, KNOWN, NEW, TWINS, WINDOW, windows
from luthier.studies._worlds.control_scores import _gained


def steered(task, mirrored=1, seed=0):
    draw = np.random.default_rng(seed)
    state = task.reset(draw, 20)
    seen = []
    for _ in range(HORIZON):
        state, rewards = task.push(state, mirrored * task.expert(state), draw)
        seen.append(task.shown(state))
    return np.array(seen), -rewards


@pytest.mark.parametrize("task", [*KNOWN, *NEW], ids=lambda t: t.name)
def test_experts_end_near_their_goals_and_far_from_them_when_mirrored(task):
    assert steered(task)[1].mean() < 0.1 < steered(task, -1)[1].mean()
    begun = task.reset(np.random.default_rng(0), 20)
    assert _gained(task, begun, 0, True).mean() > _gained(task, begun, 0, False).mean() + 3


def test_twins_see_the_same_states_and_act_in_opposite_ways():
    one, other = (steered(task)[0] for task in TWINS)
    assert np.allclose(one, other)
    state = TWINS[0].reset(np.random.default_rng(0), 5)
    assert np.allclose(TWINS[0].expert(state), -TWINS[1].expert(state))
    regions = {t.name: steered(t)[0].mean((0, 1)) for t in (*KNOWN, *NEW[1:])}
    names = list(regions)
    assert min(np.linalg.norm(regions[a] - regions[b]) for a in names for b in names if a < b) > 0.2


def test_rows_are_windows_of_episodes_and_returns_add_up(make_ctx):
    rows = windows(KNOWN[0], 2 * HORIZON, np.random.default_rng(0))
    known = [{p.name: p.value for t in e.turns for p in t.parts} for e in rows]
    assert [len(k["states"]) for k in known[:7]] == [1, 2, 3, 4, 5, 5, 5] and max(len(k["states"]) for k in known) == WINDOW
    assert known[6]["states"][:-1] == known[5]["states"][1:] and known[6]["actions"][:-1] == known[5]["actions"][1:]
    assert all(k["returns"] == sorted(k["returns"]) for k in known)  # rewards are never above 0
    made = build("step", "control:known_rows=4,new_rows=2").run({}, make_ctx("world"))
    assert {n: len(list(made.examples(n))) for n in ("known", "known0", "new3", "earlier0", "earlier3")} == {
        "known": 24, "known0": 4, "new3": 2, "earlier0": 24, "earlier3": 30}

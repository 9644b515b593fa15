"""Tasks that take turns: shares by size, one task a step or several, rows that go round, pure in (seed, step)."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from scipy.stats import chisquare

from luthier.core.rng import Rng
from luthier.engine.turns import Turn, Turns, steps_of_epoch

SIZES = {"large": 900, "middle": 300, "small": 60, "least": 20}


def counted(turns: Turns) -> list[int]:
    seen = Counter(t.task for step in range(turns.steps) for t in turns.at(step))
    return [seen[n] for n in range(len(turns.names))]


@pytest.mark.oracle(seed=16, clause=5, against="chi-square test")
def test_tasks_have_turns_by_their_size():
    sizes = np.array(list(SIZES.values()))
    chances = [chisquare(counted(Turns(SIZES, Rng(seed), 500, 4)), 2000 * sizes / sizes.sum()).pvalue for seed in range(40)]
    # p-values of the right shares are uniform: seldom small, seldom all near 1 as those of a sequence without chance would be.
    assert min(chances) > 1e-4 and sum(p < 0.1 for p in chances) <= 12 and sum(p < 0.5 for p in chances) >= 8
    equal = [chisquare(counted(Turns(SIZES, Rng(seed), 500, 4)), [500] * 4).pvalue for seed in range(3)]
    assert max(equal) < 1e-9, "other shares would be seen"


@pytest.mark.oracle(seed=16, clause=5, against="chi-square test, shares worked by hand")
def test_a_temperature_makes_shares_more_equal():
    roots = np.array([30, 10, 2, 1])  # square roots of 900, 100, 4, 1
    drawn = counted(Turns({"a": 900, "b": 100, "c": 4, "d": 1}, Rng(0), 1000, 4, temperature=2))
    assert chisquare(drawn, 4000 * roots / roots.sum()).pvalue > 1e-3
    assert chisquare(drawn, 4000 * roots ** 2 / (roots ** 2).sum()).pvalue < 1e-9


def test_rows_of_a_task_go_round_and_a_second_turn_is_told():
    turns = Turns(SIZES, Rng(1), 60, 5)
    seen: dict[int, list[int]] = {}
    for step in range(60):
        at = turns.at(step)
        assert len(at) == 5 and all(t.share == 0.2 for t in at)
        for n, turn in enumerate(at):
            assert turn.again == sum(t.task == turn.task for t in at[:n])
            seen.setdefault(turn.task, []).append(turn.nth)
    assert all(places == list(range(len(places))) for places in seen.values())
    assert {n: had["turns"] for n, had in turns.report(60).items()} == {
        name: len(seen.get(n, [])) for n, name in enumerate(SIZES)}


def test_steps_mix_tasks_or_are_all_alike():
    mixed, alike = (Turns(SIZES, Rng(2), 200, 6, alike=a) for a in (False, True))
    assert sum(len({t.task for t in mixed.at(s)}) > 1 for s in range(200)) > 120
    assert all(len({t.task for t in alike.at(s)}) == 1 and len(alike.at(s)) == 6 for s in range(200))
    assert len(set(counted(alike))) > 1


def test_a_longer_training_begins_as_the_shorter_one():
    short, long = Turns(SIZES, Rng(3), 10, 4), Turns(SIZES, Rng(3), 30, 4)
    assert [short.at(s) for s in range(10)] == [long.at(s) for s in range(10)]
    assert [short.at(s) for s in range(10)] != [Turns(SIZES, Rng(4), 10, 4).at(s) for s in range(10)]


def test_an_epoch_is_that_of_the_first_task_or_of_all_rows():
    assert steps_of_epoch([10, 99], 4) == 3
    assert steps_of_epoch([10, 30], 4, Turns({"a": 10, "b": 30}, Rng(0), 1, 5)) == 2
    assert Turns({"a": 1}, Rng(0), 1, 1).at(0) == [Turn(0, 0, 1.0, 0)]

"""Power: the smallest visible difference against simulation, closed forms and its limits."""

from __future__ import annotations

import numpy as np
import pytest

from luthier.engine import statistics
from luthier.engine.power import smallest_visible


def draws(rng: np.random.Generator, seeds: int, clusters: int, luck: float, suits: float, effect: float = 0.0):
    """One experiment: paired differences by seed, each cluster one question."""
    own = suits * rng.normal(size=clusters)
    names = [str(i) for i in range(clusters)]
    return [(effect + luck * rng.normal() + own + rng.normal(size=clusters), names) for _ in range(seeds)]


@pytest.mark.parametrize("seeds, clusters, luck, suits", [(3, 60, 0.05, 0.5), (3, 60, 0.3, 0.5), (5, 30, 0.2, 0.0),
                                                          (8, 20, 0.0, 1.0)])
def test_four_of_five_experiments_decide_at_the_difference_that_is_named(seeds, clusters, luck, suits):
    rng = np.random.default_rng(3)
    named = [smallest_visible(draws(rng, seeds, clusters, luck, suits)) for _ in range(60)]
    effect = float(np.sqrt(np.mean(np.square(named))))
    decided = [statistics.hierarchical(draws(rng, seeds, clusters, luck, suits, effect)).verdict == "better"
               for _ in range(300)]
    assert np.mean(decided) == pytest.approx(0.8, rel=0.2)


def test_one_seed_is_tested_over_clusters():
    rng = np.random.default_rng(4)
    named = [smallest_visible(draws(rng, 1, 40, 0.0, 0.5)) for _ in range(40)]
    effect = float(np.sqrt(np.mean(np.square(named))))
    decided = []
    for _ in range(150):
        (values, names), = draws(rng, 1, 40, 0.0, 0.5, effect)
        decided.append(statistics.paired(np.zeros(40), values, names, resamples=399).verdict == "better")
    assert np.mean(decided) == pytest.approx(0.8, rel=0.2)


def test_with_many_clusters_it_is_the_normal_closed_form():
    (values, names), = draws(np.random.default_rng(5), 1, 4000, 0.0, 0.5)
    assert smallest_visible([(values, names)]) == pytest.approx(statistics.minimum_effect(values, names), rel=2e-3)


def test_it_grows_with_the_demand_and_falls_with_the_data():
    rng = np.random.default_rng(6)
    few, many = draws(rng, 3, 30, 0.0, 0.5), draws(rng, 3, 3000, 0.0, 0.5)
    assert smallest_visible(few) > 3 * smallest_visible(many)
    assert smallest_visible(few, level=1 - 0.05 / 6) > smallest_visible(few) > smallest_visible(few, power=0.5)


def test_where_the_data_can_not_say_nothing_is_said():
    names = [str(i) for i in range(9)]
    assert smallest_visible([(np.zeros(9), names)]) is None  # no difference anywhere: how rare one is, nobody knows
    assert smallest_visible([(np.arange(5.0), names[:5])] * 3) is None
    with pytest.raises(ValueError, match="power is 1"):
        smallest_visible([(np.arange(9.0), names)], power=1)

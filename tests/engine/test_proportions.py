"""Shares: Wilson, McNemar and Newcombe against closed forms, statsmodels, scipy and published examples."""

from __future__ import annotations

import math

import pytest

from luthier.engine.proportions import Paired, wilson


@pytest.mark.parametrize("n", [1, 7, 40, 250])
def test_wilson_solves_its_own_equation_and_is_that_of_statsmodels(n):
    from statsmodels.stats.proportion import proportion_confint

    z = 1.959963984540054
    for hits in {0, 1, n // 3, n}:
        ends = wilson(hits, n)
        assert ends == pytest.approx(proportion_confint(hits, n, method="wilson"), abs=1e-9)
        for p in ends:
            assert abs(hits / n - p) == pytest.approx(z * math.sqrt(p * (1 - p) / n), abs=1e-7)
    assert wilson(0, n)[0] == 0.0 and wilson(n, n)[1] == 1.0


@pytest.mark.parametrize(("counts", "p"), [((5, 0, 0, 5), 1.0), ((0, 1, 0, 9), 1.0), ((3, 6, 1, 0), 2 * (1 + 7) / 2**7),
                                           ((1, 8, 0, 1), 2 / 2**8), ((0, 4, 4, 2), 1.0)])
def test_mcnemar_by_hand_and_by_scipy(counts, p):
    from scipy.stats import binomtest

    found = Paired(*counts)
    assert found.mcnemar() == pytest.approx(p)
    if found.lost + found.won:
        assert found.mcnemar() == pytest.approx(binomtest(found.lost, found.lost + found.won).pvalue)


def test_newcombes_published_example():
    # Newcombe 1998, "Improved confidence intervals for the difference between binomial proportions based on paired data".
    assert Paired(36, 12, 2, 0).interval() == pytest.approx((0.0569, 0.3404), abs=5e-4)


def test_no_change_in_few_questions_is_no_proof():
    none = Paired(40, 0, 0, 0)
    assert none.drop == 0 and none.interval()[1] == pytest.approx(3.8415 / 43.8415, abs=1e-4)
    assert none.needed(0.05) is not None and Paired(100, 0, 0, 0).interval()[1] < 0.05


def test_an_interval_covers_as_often_as_it_says():
    import numpy as np

    rng, inside = np.random.default_rng(0), 0
    for counts in rng.multinomial(60, [0.5, 0.15, 0.05, 0.3], size=800):
        low, high = Paired(*map(int, counts)).interval()
        inside += low <= 0.10 <= high
    assert 0.93 <= inside / 800 <= 0.985


def test_bad_numbers_are_refused():
    for wrong in ((1, 0), (-1, 4), (5, 4)):
        with pytest.raises(ValueError, match="a number of hits"):
            wilson(*wrong)

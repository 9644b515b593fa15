"""Clustered least squares against statsmodels."""

from __future__ import annotations

import numpy as np
import pytest

from luthier.engine.regression import least_squares


@pytest.mark.oracle(clause="coefficients and clustered errors", against="statsmodels")
def test_coefficients_errors_and_intervals_are_those_of_statsmodels():
    import statsmodels.api as sm

    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(8), 5)
    x = np.column_stack([np.ones(40), rng.normal(size=40), rng.normal(size=40)])
    y = x @ [1.0, 0.5, -0.2] + rng.normal(size=8)[clusters] + rng.normal(size=40)
    ours = least_squares(y, x, clusters.tolist())
    theirs = sm.OLS(y, x).fit(cov_type="cluster", cov_kwds={"groups": clusters}, use_t=True)
    assert ours.coefficients == pytest.approx(theirs.params, rel=1e-10) and ours.errors == pytest.approx(theirs.bse, rel=1e-10)
    assert ours.interval(2) == pytest.approx(tuple(theirs.conf_int()[2]), rel=1e-8)
    assert ours.p(1) == pytest.approx(theirs.pvalues[1], rel=1e-8) and ours.fit == pytest.approx(theirs.rsquared, rel=1e-10)


def test_what_cannot_be_estimated_is_refused():
    ones = np.ones((6, 1))
    with pytest.raises(ValueError, match="2 clusters"):
        least_squares(np.arange(6.0), ones, ["a"] * 6)
    with pytest.raises(ValueError, match="depend on each other"):
        least_squares(np.arange(6.0), np.hstack([ones, ones]), list("abcdef"))

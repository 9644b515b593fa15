"""Scores that agree on every question: the bound is the exact binomial one, and the verdict follows from it."""

from __future__ import annotations

import numpy as np
import pytest

from luthier.core.finding import Finding
from luthier.engine import statistics
from luthier.pipelines.alike import alike, count_alike, rarest, settle


def compared(asked: int, margin: float | None = 0.02, score: float = 0.0) -> tuple[statistics.Comparison, np.ndarray]:
    scores = np.full(asked, score)
    return statistics.paired(scores, scores, [f"s{i}" for i in range(asked)], margin=margin), scores


@pytest.mark.parametrize("clusters", [6, 15, 149, 1000])
def test_the_bound_is_the_exact_binomial_one_for_no_event(clusters):
    from scipy.stats import binomtest

    exact = binomtest(0, clusters, alternative="less").proportion_ci(0.95, method="exact").high
    assert rarest(clusters, 0.95) == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("asked", [9, 15, 148])
def test_few_questions_decide_nothing_and_what_is_needed_would(asked):
    result, scores = compared(asked)
    assert result.verdict == "no difference within"  # what a sample without spread says by itself
    settled = settle(result, scores, scores, 0.95)
    assert settled.verdict == "undecided" and asked + settled.needed == 149
    assert (settled.difference, settled.low, settled.high, settled.p) == (0, 0, 0, result.p)
    assert rarest(149, 0.95) <= 0.02 < rarest(148, 0.95)


def test_many_questions_keep_the_verdict():
    result, scores = compared(149)
    assert settle(result, scores, scores, 0.95) == result and result.verdict == "no difference within"


def test_a_wider_range_needs_more():
    result, scores = compared(200, margin=1.0, score=32.0)  # tokens: one answer in 32 may differ by 32
    assert settle(result, scores, scores, 0.95) == result
    few, scores = compared(60, margin=1.0, score=32.0)
    assert settle(few, scores, scores, 0.95).verdict == "undecided"


def test_questions_per_cluster_count_once():
    scores = np.zeros(30)
    result = statistics.paired(scores, scores, [f"s{i // 3}" for i in range(30)], margin=0.02)
    assert settle(result, scores, scores, 0.95).needed == 3 * (149 - 10)


def test_any_other_comparison_stays_as_it_is():
    left, right = np.zeros(12), np.array([0.0] * 11 + [1e-6])
    result = statistics.paired(left, right, list("abcdefghijkl"), margin=0.02)
    assert settle(result, left, right, 0.95) is result and count_alike(left, right) == 11
    bare, scores = compared(9, margin=None)
    assert settle(bare, scores, scores, 0.95) is bare


def test_a_finding_says_whether_all_scores_agree():
    assert alike(Finding("f", 0, 0, 0.0, "undecided", extra={"alike": 9, "questions": 9}))
    for extra in ({}, {"alike": 0, "questions": 0}, {"alike": 8, "questions": 9}, {"questions": 9}):
        assert not alike(Finding("f", 0, 0, 0.0, "undecided", extra=extra))

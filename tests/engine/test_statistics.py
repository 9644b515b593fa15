"""The paired comparisons against scipy, statsmodels, brute force, hand calculation and known truth."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.engine import statistics as s
from luthier.engine.two_way import two_way_half


def clustered(seed, count, shift=0.0, largest=12, discrete=False):
    """(values, labels): normal cluster effects, `count` clusters of 1 to `largest` questions."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(count), rng.integers(1, largest + 1, count))
    values = shift + 0.5 * rng.normal(size=count)[labels] + rng.normal(size=len(labels))
    return np.sign(values) * (np.abs(values) > 0.9) if discrete else values, labels


def brute_force_p(values, labels):
    """Every one of the 2^C sign vectors, one at a time."""
    sums = [values[labels == label].sum() for label in np.unique(labels)]
    found = [abs(np.dot(signs, sums)) for signs in itertools.product([1, -1], repeat=len(sums))]
    return np.mean(np.array(found) >= abs(sum(sums)) - 1e-9)


# --- sign flip -------------------------------------------------------------------------------------------------------


def test_six_clusters_that_agree_give_the_smallest_p_and_the_range_of_the_means():
    values, labels = np.array([1.0, 2, 3, 4, 5, 6]), list("abcdef")
    assert s.sign_flip_test(values, labels) == 2 / 64
    # 3 of the 64 sign vectors may disagree: the identity, its mirror, and no other pair. So each end is the first
    # delta that one pair reaches, the mean of the lowest cluster alone or of the highest alone.
    assert s.sign_flip_interval(values, labels) == (1.0, 6.0)


def test_hand_case_with_one_cluster_against():
    # |sum| = 1+1+1+1+1+1-3 = 3; of 2^7 sign vectors those with |±3 + (k of six)| >= 3: counted by the binomial law.
    values, labels = np.array([1.0] * 6 + [-3.0]), list(range(7))
    ways = {2 * k - 6: scipy.special.comb(6, k, exact=True) for k in range(7)}
    count = sum(number for total, number in ways.items() for big in (3, -3) if abs(total + big) >= 3)
    assert s.sign_flip_test(values, labels) == count / 128


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("count", [2, 5, 8, 10])
def test_exact_p_equals_scipy_permutation_of_signs_and_brute_force(count, discrete):
    values, labels = clustered(count, count, 0.3, discrete=discrete)
    sums = np.bincount(labels, values)
    against = scipy.stats.permutation_test(
        (sums, np.zeros(count)),
        lambda x, y, axis: np.sum(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf,
    )
    assert s.sign_flip_test(values, labels) == pytest.approx(against.pvalue)
    assert s.sign_flip_test(values, labels) == brute_force_p(values, labels)


@pytest.mark.parametrize("seed", range(5))
def test_ties_survive_rounding(seed):
    rng = np.random.default_rng(seed)
    whole, labels = rng.integers(-3, 4, 60), np.repeat(np.arange(12), 5)
    assert s.sign_flip_test(whole * 0.1, labels) == s.sign_flip_test(whole, labels)
    assert s.sign_flip_test(whole / 3, labels) == s.sign_flip_test(whole, labels)


def test_random_flips_are_close_to_the_enumeration_and_never_give_zero(monkeypatch):
    values, labels = clustered(3, 12, 0.4)
    exact, exact_ends = s.sign_flip_test(values, labels), s.sign_flip_interval(values, labels)
    monkeypatch.setattr(s, "EXACT_CLUSTERS", 0)
    assert s.sign_flip_test(values, labels, flips=40_000) == pytest.approx(exact, abs=4 * (exact / 40_000) ** 0.5)
    assert s.sign_flip_interval(values, labels, flips=40_000) == pytest.approx(exact_ends, abs=0.03)
    assert s.sign_flip_test(values + 100, labels, flips=99) == pytest.approx(1 / 100, abs=0.011)
    monkeypatch.setattr(s, "_CHUNK", 1000)
    assert s.sign_flip_test(values, labels, flips=40_000) == pytest.approx(exact, abs=4 * (exact / 40_000) ** 0.5)


@settings(max_examples=150, deadline=None)
@given(
    data=st.lists(st.tuples(st.sampled_from([-1, 0, 1, 2]), st.integers(0, 8)), min_size=1, max_size=40),
    level=st.sampled_from([0.8, 0.9, 0.95, 0.99]),
    shift=st.sampled_from([-1.0, -0.5, 0.0, 0.25, 1.0]),
)
def test_zero_is_in_the_interval_exactly_when_the_test_does_not_reject(data, level, shift):
    values, labels = np.array([value for value, _ in data]) - shift, [label for _, label in data]
    low, high = s.sign_flip_interval(values, labels, level)
    assert low <= high
    assert (low <= 0 <= high) == (s.sign_flip_test(values, labels) > 1 - level + 1e-12)


@pytest.mark.parametrize("count", [7, 13, 25, 40])
def test_the_interval_is_the_set_of_shifts_that_the_test_accepts(count):
    values, labels = clustered(count, count, 0.2)
    low, high = s.sign_flip_interval(values, labels, seed=4, flips=999)
    # Flips are matched to clusters sorted by their sums; a shift may re-sort them, so few random flips blur the edge.
    blur = 1e-6 if count <= s.EXACT_CLUSTERS else 0.15 * (high - low)
    for delta, accepted in [(low + blur, 1), (high - blur, 1), (low - blur, 0), (high + blur, 0)]:
        assert (s.sign_flip_test(values - delta, labels, seed=4, flips=999) > 0.05) == bool(accepted)


def test_the_interval_is_unbounded_below_six_clusters_and_at_the_level_out_of_reach():
    values, labels = clustered(1, 5)
    assert s.sign_flip_interval(values, labels) == (-np.inf, np.inf)
    values, labels = clustered(1, 7)
    assert np.isfinite(s.sign_flip_interval(values, labels, 0.95)).all()
    assert s.sign_flip_interval(values, labels, 0.999) == (-np.inf, np.inf)


# --- properties shared by all ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [8, 20, 60])
def test_order_and_names_of_clusters_do_not_matter_but_the_seed_does(count):
    values, labels = clustered(count, count, 0.2)
    rng = np.random.default_rng(0)
    order, names = rng.permutation(len(values)), rng.permutation(count)
    zero = np.zeros(len(values))
    first = s.paired(zero, values, labels, seed=3, resamples=499)
    assert s.paired(zero, values[order], [f"section {names[i]}" for i in labels[order]], seed=3, resamples=499) == first
    assert s.paired(zero, values, labels, seed=3, resamples=499) == first
    if count > s.EXACT_CLUSTERS:
        assert s.paired(zero, values, labels, seed=4, resamples=499).low != first.low


@pytest.mark.parametrize("count", [8, 20, 60])
def test_swapping_the_arms_mirrors_and_scaling_scales(count):
    values, labels = clustered(count, count, 0.2)
    zero = np.zeros(len(values))
    there = s.paired(zero, values, labels, resamples=4999)
    back, tenfold = s.paired(values, zero, labels, resamples=4999), s.paired(zero, 10 * values, labels, resamples=4999)
    assert back.difference == pytest.approx(-there.difference)
    assert (tenfold.low, tenfold.high) == pytest.approx((10 * there.low, 10 * there.high))
    assert tenfold.p == there.p
    width = there.high - there.low
    assert (-back.high, -back.low) == pytest.approx((there.low, there.high), abs=0.05 * width)


# --- cluster bootstrap, standard error, power ------------------------------------------------------------------------


def robust_fit(values, labels):
    api = pytest.importorskip("statsmodels.api")
    ols = api.OLS(values, np.ones(len(values)))
    return ols.fit(cov_type="cluster", cov_kwds={"groups": labels})


def test_the_standard_error_is_the_cluster_robust_one_of_statsmodels():
    values, labels = clustered(5, 30, 0.2)
    z = scipy.stats.norm.ppf(0.975) + scipy.stats.norm.ppf(0.8)
    assert s.minimum_effect(values, labels) == pytest.approx(z * robust_fit(values, labels).bse[0])


def test_with_many_even_clusters_the_bootstrap_is_the_cluster_robust_t_interval():
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(400), 5)
    values = rng.normal(size=400)[labels] + rng.normal(size=2000)
    fit = robust_fit(values, labels)
    low, high = s.cluster_bootstrap_interval(values, labels)
    assert (low, high) == pytest.approx((fit.conf_int()[0]), abs=0.03 * (high - low))
    assert (low + high) / 2 == pytest.approx(values.mean())


def test_bootstrap_interval_and_p_agree():
    seen = set()
    for seed in range(60):
        values, labels = clustered(seed, 50, 0.2, largest=4)
        result = s.paired(np.zeros(len(values)), values, labels, seed=seed, resamples=199)
        assert result.test == "cluster bootstrap"
        assert (result.low > 0 or result.high < 0) == (result.p <= 0.05 + 1e-12)
        assert (result.verdict != "undecided") == (result.p <= 0.05 + 1e-12)
        seen.add(result.verdict)
    assert seen >= {"better", "undecided"}


def test_bootstrap_in_small_pieces_draws_the_same(monkeypatch):
    values, labels = clustered(2, 60, 0.2)
    whole = s.cluster_bootstrap_interval(values, labels, resamples=999)
    monkeypatch.setattr(s, "_CHUNK", 600)
    assert s.cluster_bootstrap_interval(values, labels, resamples=999) == pytest.approx(whole)


def test_where_almost_nothing_differs_the_bootstrap_gives_way_to_the_sign_flip():
    values, labels = np.zeros(300), np.repeat(np.arange(60), 5)
    values[[3, 77]] = 1.0
    assert s.cluster_bootstrap_interval(values, labels) == (-np.inf, np.inf)
    result = s.paired(np.zeros(300), values, labels)
    assert (result.test, result.verdict) == ("sign flip", "undecided")
    assert result.p == pytest.approx(0.5, abs=0.03)
    assert result.low is not None and result.low <= 0 < result.difference <= result.high


@pytest.mark.parametrize("count", [8, 20, 60])
def test_constant_differences_have_no_width(count):
    _, labels = clustered(count, count)
    none, same = np.zeros(len(labels)), np.full(len(labels), 0.25)
    result = s.paired(none, none, labels)
    assert (result.low, result.high, result.p, result.verdict, result.needed) == (0, 0, 1, "undecided", None)
    assert s.paired(none, none, labels, margin=0.01).verdict == "no difference within"
    result = s.paired(none, same, labels)
    assert (result.low, result.high) == pytest.approx((0.25, 0.25))
    assert result.verdict == "better" and result.p < 0.05


def test_questions_needed_follows_the_closed_form_and_delivers_the_power():
    values, labels = clustered(6, 40, 0.0)
    error, z = robust_fit(values, labels).bse[0], 1.959964 + 0.841621
    total = len(values) * (z * error / 0.1) ** 2
    assert s.questions_needed(values, labels, 0.1) == int(np.ceil(total - len(values)))
    assert s.questions_needed(values, labels, -0.1) == s.questions_needed(values, labels, 0.1)
    assert s.questions_needed(values, labels, 100.0) == 0
    effect, decided = s.minimum_effect(values, labels), 0
    for seed in range(200):
        values, labels = clustered(1000 + seed, 40, effect)
        decided += s.paired(np.zeros(len(values)), values, labels, seed=seed, resamples=399).verdict == "better"
    assert 0.68 <= decided / 200 <= 0.92


# --- verdicts --------------------------------------------------------------------------------------------------------


def test_verdicts_follow_the_direction_and_the_margin():
    values, labels = clustered(9, 20, 2.0)
    zero = np.zeros(len(values))
    result = s.paired(zero, values, labels)
    assert (result.verdict, result.needed, result.test, result.n) == ("better", None, "sign flip", len(values))
    assert result.clusters == 20 and result.difference == pytest.approx(values.mean())
    assert s.paired(values, zero, labels).verdict == "worse"
    assert s.paired(zero, values, labels, higher_is_better=False).verdict == "worse"
    wide = s.paired(zero, values, labels, margin=50)
    assert str(wide) == "no difference within ±50"
    narrow = s.paired(zero, values, labels, margin=0.01)
    assert narrow.verdict == "better"


def test_undecided_says_how_many_more_questions():
    values, labels = clustered(21, 20, 0.05)
    result = s.paired(np.zeros(len(values)), values, labels)
    assert result.verdict == "undecided"
    assert result.needed == s.questions_needed(values, labels, result.difference)
    assert str(result) == f"undecided (about {result.needed} more questions)"
    # With a margin, the nearer of two ways to decide counts: to leave zero, or to fit within the margin.
    effect = max(abs(result.difference), 0.2 - abs(result.difference))
    near = s.paired(np.zeros(len(values)), values, labels, margin=0.2)
    assert near.verdict == "undecided" and near.needed == s.questions_needed(values, labels, effect)


@pytest.mark.parametrize("count", [1, 3, 5])
def test_fewer_than_six_clusters_are_undecided_without_interval(count):
    values, labels = clustered(2, count, 5.0)
    result = s.paired(np.zeros(len(values)), values, labels)
    assert (result.low, result.high, result.p, result.test, result.verdict) == (None, None, None, "none", "undecided")
    assert result.needed >= (6 - count) * len(values) / count


# --- jackknife -------------------------------------------------------------------------------------------------------


def test_jackknife_values_of_a_mean_are_the_cluster_means():
    values, labels = clustered(4, 9, 0.3)
    pseudo = s.jackknife_values(np.mean, list(values), labels)
    means = np.bincount(labels, values) / np.bincount(labels)
    assert pseudo == pytest.approx(means[labels])
    assert s.sign_flip_test(pseudo, labels) == s.sign_flip_test(values, labels)
    assert s.sign_flip_interval(pseudo, labels) == pytest.approx(s.sign_flip_interval(values, labels))


def test_jackknife_values_of_a_ratio_equal_the_textbook_delete_one_formula():
    rng = np.random.default_rng(8)
    pairs = [tuple(row) for row in rng.uniform(1, 2, (12, 2))]

    def ratio(rows):
        top, bottom = np.array(rows).sum(0)
        return top / bottom

    expected = [12 * ratio(pairs) - 11 * ratio(pairs[:i] + pairs[i + 1 :]) for i in range(12)]
    assert s.jackknife_values(ratio, pairs, list(range(12))) == pytest.approx(expected)


def test_jackknife_standard_error_of_a_corpus_metric_matches_its_sampling_error():
    def spread(rows):
        return float(np.std(rows))

    estimates, errors = [], []
    for seed in range(150):
        values, labels = clustered(seed, 25)
        pseudo = s.jackknife_values(spread, list(values), labels)
        estimates.append(spread(values))
        errors.append(s.minimum_effect(pseudo, labels) / (1.959964 + 0.841621))
    assert np.mean(errors) == pytest.approx(np.std(estimates), rel=0.2)


# --- Holm and several seeds ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 7, 30])
def test_holm_equals_statsmodels(size):
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    p = np.random.default_rng(size).beta(0.4, 2, size).round(2)
    assert s.holm(p) == pytest.approx(multitest.multipletests(p, method="holm")[1])


def test_holm_by_hand():
    assert s.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])


def several(rng, seeds, count, parts):
    labels = np.repeat(np.arange(count), rng.integers(1, 13, count))
    cluster = parts[1] * rng.normal(size=count)
    return [
        (
            parts[0] * rng.normal()
            + (cluster + parts[2] * rng.normal(size=count))[labels]
            + rng.normal(size=len(labels)),
            labels,
        )
        for _ in range(seeds)
    ]


def test_hierarchical_adds_the_squares_of_the_two_robust_half_widths():
    runs = several(np.random.default_rng(3), 4, 15, (0.3, 0.4, 0.2))
    values, labels = np.concatenate([v for v, _ in runs]), np.concatenate([c for _, c in runs])
    rows = np.repeat(np.arange(4), [len(v) for v, _ in runs])
    first, second = robust_fit(values, rows).bse[0] ** 2, robust_fit(values, labels).bse[0] ** 2
    result = s.hierarchical(runs)
    half = (scipy.stats.t.ppf(0.975, 3) ** 2 * first + scipy.stats.t.ppf(0.975, 14) ** 2 * second) ** 0.5
    assert (result.low, result.high) == pytest.approx((values.mean() - half, values.mean() + half))
    assert (result.p <= 0.05) == (result.low > 0 or result.high < 0)
    at_p = s.hierarchical([(v + 0.5, c) for v, c in runs])
    edge = s.hierarchical([(v + 0.5, c) for v, c in runs], level=1 - at_p.p)
    assert edge.low == pytest.approx(0.0, abs=1e-6), "p is the level at which the interval reaches zero"
    assert (result.test, result.seeds, result.clusters, result.n) == ("two-way t", 4, 15, len(values))


def test_with_only_the_seeds_differing_it_is_the_t_test_over_seeds():
    labels = np.arange(40)
    levels = [0.1, 0.3, 0.5, 0.4]
    result = s.hierarchical([(np.full(40, level), labels) for level in levels])
    against = scipy.stats.ttest_1samp(levels, 0.0)
    assert result.p == pytest.approx(against.pvalue)
    assert (result.low, result.high) == pytest.approx(tuple(against.confidence_interval(0.95)))


@pytest.mark.parametrize("ratio", [0.3, 3.0, 10.0])
@pytest.mark.parametrize("alpha", [0.05, 0.05 / 12])
def test_three_seeds_reject_equal_methods_no_more_often_than_asked(ratio, alpha):
    """At the level that Holm asks for, too: the variances as chi-squared, the mean as normal, drawn without any data."""
    rng = np.random.default_rng(5)
    by_seed, by_cluster = ratio * rng.chisquare(2, 40_000) / 2, rng.chisquare(59, 40_000) / 59
    mean = rng.normal(size=40_000) * (1 + ratio) ** 0.5
    share = np.mean(np.abs(mean) > two_way_half(by_seed, 3, by_cluster, 60, alpha))
    assert share <= alpha + 3 * (alpha / 40_000) ** 0.5
    freedom = (by_seed + by_cluster) ** 2 / (by_seed**2 / 2 + by_cluster**2 / 59)
    one_t = np.sqrt(by_seed + by_cluster) * scipy.stats.t.ppf(1 - alpha / 2, freedom)
    assert ratio < 1 or np.mean(np.abs(mean) > one_t) > 1.3 * alpha, "which Satterthwaite's degrees of freedom do"


@pytest.mark.parametrize("parts", [(0.5, 0.0, 0.0), (0.0, 0.6, 0.0), (0.3, 0.4, 0.3), (0.0, 0.0, 0.0)])
def test_hierarchical_covers(parts):
    rng = np.random.default_rng(17)
    inside = 0
    for _ in range(400):
        result = s.hierarchical(several(rng, 3, 20, parts))
        inside += result.low <= 0 <= result.high
    assert inside / 400 >= 0.915


def test_hierarchical_needed_brings_the_larger_source_down_to_what_the_smaller_leaves():
    runs = several(np.random.default_rng(6), 4, 60, (0.5, 0.3, 0.0))
    values = np.concatenate([v for v, _ in runs])
    rows = np.repeat(np.arange(4), [len(v) for v, _ in runs])
    by_seed = robust_fit(values, rows).bse[0] ** 2
    by_cluster = robust_fit(values, np.concatenate([c for _, c in runs])).bse[0] ** 2
    runs = [(v + 0.35 - values.mean(), c) for v, c in runs]
    result = s.hierarchical(runs)
    assert by_seed > by_cluster and result.verdict == "undecided" and result.needed_unit == "seeds"
    goal = (0.35 / (1.959964 + 0.841621)) ** 2
    assert result.needed == int(np.ceil(4 * by_seed / (goal - by_cluster) - 4))


def test_where_the_variance_would_do_it_is_the_small_number_of_seeds_that_is_named():
    """Three trainings that differ little: by normal deviates nothing is missing, by those of t more seeds are."""
    rows = np.arange(1000)
    noise = np.where(rows % 2, 0.1, -0.1)
    runs = [(0.035 + level + noise, rows) for level in (-0.006, 0.0, 0.006)]
    result = s.hierarchical(runs, level=1 - 0.05 / 12)
    _, _, seeds, count, by_seed, by_cluster = s.two_ways(runs)
    assert result.verdict == "undecided" and (result.needed_unit, seeds, count) == ("seeds", 3, 1000) and result.needed

    def missing(more: int) -> float:
        spread = by_seed * 3 / (3 + more)
        wide = [scipy.stats.t.ppf(1 - 0.05 / 24, freedom) ** 2 for freedom in (2 + more, 999)]
        half = np.sqrt(wide[0] * spread + wide[1] * by_cluster)
        return half + 0.841621 * np.sqrt(spread + by_cluster) - abs(result.difference)

    assert missing(result.needed) <= 0 < missing(result.needed - 1)


def test_hierarchical_is_undecided_below_three_seeds_or_six_clusters_and_names_the_unit():
    rng = np.random.default_rng(0)
    two = s.hierarchical(several(rng, 2, 20, (0.1, 0.1, 0.1)))
    assert (two.low, two.p, str(two)) == (None, None, "undecided (about 1 more seeds)")
    few = s.hierarchical(several(rng, 3, 5, (0.1, 0.1, 0.1)))
    assert (few.verdict, few.test, few.needed_unit) == ("undecided", "none", "questions")
    noisy = s.hierarchical([(np.full(60, level), np.arange(60)) for level in (-1.0, 1.2, 0.5)])
    assert (noisy.verdict, noisy.needed_unit) == ("undecided", "seeds") and noisy.needed >= 1
    assert s.hierarchical(several(rng, 5, 30, (0.0, 0.0, 0.0)), margin=5.0).verdict == "no difference within"


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: s.sign_flip_test([1.0, np.nan], [0, 1]), r"values\[1\] is nan"),
        (lambda: s.sign_flip_test([1.0, "no"], [0, 1]), r"values\[1\] is 'no'"),
        (lambda: s.sign_flip_test([1.0, None], [0, 1]), r"values\[1\] is None"),
        (lambda: s.sign_flip_test([], []), "at least one"),
        (lambda: s.sign_flip_test([[1.0]], [0]), r"shape \(1, 1\)"),
        (lambda: s.sign_flip_interval([1.0, 2.0], [0]), "found 2, clusters: found 1"),
        (lambda: s.sign_flip_interval([1.0, 2.0], [0, None]), r"clusters\[1\] is None"),
        (lambda: s.sign_flip_interval([1.0, 2.0], [0, 1], 95), "level is 95"),
        (lambda: s.cluster_bootstrap_interval([1.0, np.inf], [0, 1]), r"values\[1\] is inf"),
        (lambda: s.cluster_bootstrap_interval([1.0, 2.0], [0, 0]), "1 distinct label"),
        (lambda: s.paired([1.0], [1.0, 2.0], [0]), "left has 1 values, right has 2"),
        (lambda: s.paired([1.0, -np.inf], [1.0, 2.0], [0, 1]), r"left\[1\] is -inf"),
        (lambda: s.paired([1.0, 2.0], [1.0, 2.0], [0, float("nan")]), r"clusters\[1\] is nan"),
        (lambda: s.paired([1.0], [1.0], [0], margin=0), "margin is 0"),
        (lambda: s.questions_needed([1.0, 2.0], [0, 1], 0.0), "effect is 0.0"),
        (lambda: s.minimum_effect([1.0, 2.0], [0, 1], power=1.5), "power is 1.5"),
        (lambda: s.minimum_effect([1.0, 2.0], [0, 0]), "1 distinct label"),
        (lambda: s.holm([0.1, 1.2]), r"p_values\[1\] is 1.2"),
        (lambda: s.holm([]), "at least one"),
        (lambda: s.jackknife_values(np.mean, [1.0, 2.0], [0, 0]), "1 distinct label"),
        (lambda: s.jackknife_values(np.mean, [1.0], [0, 1]), "found 1, clusters: found 2"),
        (lambda: s.jackknife_values(lambda rows: np.nan, [1.0, 2.0], [0, 1]), r"metric .*\[0\] is nan"),
        (lambda: s.hierarchical([]), "differences_by_seed"),
        (lambda: s.hierarchical([([1.0], [0]), ([np.nan], [0])]), r"seed 1: values\[0\] is nan"),
        (lambda: s.hierarchical([([1.0], [0]), ([1.0, 2.0], [0])]), "seed 1: values: found 2"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


# --- error rates, in small (in full: benchmarks/null_experiments.py) -------------------------------------------------


@pytest.mark.parametrize(("count", "shift"), [(8, 0.0), (20, 0.0), (60, 0.0), (20, 0.4)])
def test_error_rate_and_coverage(count, shift):
    inside = 0
    for seed in range(400):
        values, labels = clustered(10_000 * count + seed, count, shift, largest=30)
        result = s.paired(np.zeros(len(values)), values, labels, seed=seed, resamples=399)
        inside += result.low <= shift <= result.high
    assert 0.92 <= inside / 400 <= 0.98

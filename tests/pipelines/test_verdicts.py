"""Verdicts of a comparison: what they rest on, how often they are wrong, and what is recommended."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from benchmarks.null_compare import METRIC, World, judged, null
from luthier.core.finding import Finding
from luthier.engine import statistics
from luthier.pipelines.grid import Cost, Scores
from luthier.pipelines.verdicts import budgets, pair, recommend, table, verdicts


def scores(values: list[float], name: str = "unseen", metric: str = "f1", cluster: int = 1) -> Scores:
    return {(name, metric): {f"q{i}": (f"c{i // cluster}", float(v)) for i, v in enumerate(values)}}


def random_scores(seed: int, mean: float = 0.0, count: int = 60, runs: int = 3) -> list[Scores]:
    rng = np.random.default_rng(seed)
    return [scores(mean + rng.normal(size=count)) for _ in range(runs)]


# --- error rates ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("world", [World("small luck", questions=60), World("large luck", questions=60, fortune=0.3),
                                   World("right or wrong", questions=60, binary=True)], ids=lambda w: w.name)
def test_equal_arms_are_rarely_called_different(world):
    count = 50
    found = null(world, count)
    assert found["alarms"] <= stats.binom.ppf(0.999, count, 0.05) / count
    assert found["coverage"] >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize("world", [World("small luck"), World("large luck", fortune=0.3), World("four arms", arms=4, sets=2),
                                   World("clusters", seeds=5, cluster=5)], ids=lambda w: w.name)
def test_false_alarms_and_coverage_are_within_what_is_promised(world):
    found = null(world, 1000)
    assert found["alarms"] <= 0.05 + 0.015 and found["coverage"] >= 0.95 - 0.015


def test_an_arm_that_is_better_is_found_and_its_interval_holds_the_difference():
    findings = [f for fs in judged(World("two", arms=2, questions=60), 25, effect=1.5) for f in fs]
    assert all(f.verdict == "better" and f.extra["right_arm"] == "arm-1" for f in findings)
    assert np.mean([f.interval[0] <= 1.5 <= f.interval[1] for f in findings]) >= 0.8


# --- what a verdict rests on ---------------------------------------------------------------------------------------

def test_from_three_seeds_the_method_is_judged():
    left, right = random_scores(1), random_scores(2, mean=1.0)
    found, = verdicts({"a": left, "b": right}, {"f1": True})
    names = [f"c{i}" for i in range(60)]
    differences = [np.array([r["unseen", "f1"][f"q{i}"][1] - l["unseen", "f1"][f"q{i}"][1] for i in range(60)])
                   for l, r in zip(left, right, strict=True)]
    wanted = statistics.hierarchical([(d, names) for d in differences], margin=0.02)
    assert (found.difference, found.interval, found.extra["p"]) == (wanted.difference, (wanted.low, wanted.high), wanted.p)
    assert found.extra["test"] == "two-way t" and found.extra["estimand"] == "method" and found.extra["seeds"] == 3
    assert found.right - found.left == pytest.approx(found.difference)


@pytest.mark.parametrize("runs", [1, 2])
def test_with_fewer_seeds_these_models_are_judged_by_their_mean(runs):
    left, right = random_scores(1, runs=runs, count=30), random_scores(2, mean=1.0, runs=runs, count=30)
    found, = verdicts({"a": left, "b": right}, {"f1": True})
    values = [np.mean([r["unseen", "f1"][f"q{i}"][1] - l["unseen", "f1"][f"q{i}"][1]
                       for l, r in zip(left, right, strict=True)]) for i in range(30)]
    assert found.difference == pytest.approx(np.mean(values)) and found.extra["test"] == "sign flip"
    assert found.extra["estimand"] == "models" and found.extra["seeds"] == runs


def test_one_metric_is_one_family_and_references_are_another():
    arms = {name: random_scores(i) for i, name in enumerate("abc")}
    findings = verdicts(arms, {"f1": True}, references={"base": random_scores(9, runs=1)[0]})
    families = {f.extra["family_name"] for f in findings}
    assert families == {"arms by f1", "against base by f1"}
    for family in families:
        mine = [f for f in findings if f.extra["family_name"] == family]
        assert [f.extra["p_holm"] for f in mine] == pytest.approx(list(statistics.holm([f.extra["p"] for f in mine])))
        assert len(mine) == 3 and all(f.extra["family"] == 3 for f in mine)
    assert all(f.extra["visible_family"] > f.extra["visible"] for f in findings)


def test_what_does_not_survive_holm_is_undecided_and_says_what_it_would_take():
    arms = {name: random_scores(i, mean=0.5 * (name == "d")) for i, name in enumerate("abcd")}
    findings = verdicts(arms, {"f1": True})
    lost = [f for f in findings if f.extra["p"] < 0.05 < f.extra["p_holm"]]
    assert lost and all(f.verdict == "undecided" and f.extra["needed"] > 0 for f in lost)


def test_where_lower_is_better_the_verdict_turns():
    arms = {"a": random_scores(1), "b": random_scores(2, mean=3.0)}
    assert [verdicts(arms, {"f1": up})[0].verdict for up in (True, False)] == ["better", "worse"]


def test_few_clusters_and_questions_that_not_all_answered():
    arms = {"a": [scores([0, 1, 0, 1])], "b": [scores([1, 1, 1])]}
    found, = verdicts(arms, {"f1": True})
    assert found.verdict == "undecided" and found.interval is None and found.extra["p_holm"] is None
    assert found.extra["questions"] == 3 and found.extra["visible"] is None
    assert pair("unseen", "f1", "a", [{}], "b", arms["b"]) is None
    assert verdicts({"a": [{}], "b": arms["b"]}, {"f1": True}) == []


def test_the_table_is_the_mean_over_seeds_and_questions():
    runs = [scores([0, 1] * 30), scores([1, 1] * 30), scores([0, 0] * 30)]
    row, = table({"a": runs}, ["f1"])
    assert row["value"] == 0.5 and row["by_seed"] == [0.5, 1.0, 0.0] and row["clusters"] == row["questions"] == 60
    assert (row["low"], row["high"]) == (0.0, 1.0)  # cut where no mean can lie
    single, = table({"a": runs[:1]}, ["f1"])
    assert (single["low"], single["high"]) == statistics.mean_interval([0, 1] * 30, range(60))


# --- what is recommended -------------------------------------------------------------------------------------------

COSTS = {name: Cost(10, 100, seconds, seconds + 1, parameters) for name, seconds, parameters in (
    ("full", 5.0, 900_000), ("lora", 3.0, 60_000), ("bitfit", 3.0, 26_000))}


def said(left: str, right: str, verdict: str, name: str = "unseen") -> Finding:
    return Finding(f"compare/f1/{name}/{left}|{right}", 0.5, 0.5, 0.0, verdict, extra={
        "metric": "f1", "set": name, "left_arm": left, "right_arm": right, "questions": 120, "seeds": 3, "margin": 0.02,
        "visible_family": 0.04})


def of(one: str, two: str, three: str) -> list[Finding]:
    return [said("full", "lora", one), said("full", "bitfit", two), said("lora", "bitfit", three)]


@pytest.mark.parametrize("verdicts_, arm, words", [
    (of("undecided", "undecided", "undecided"), "bitfit",
     "No difference in f1 you can see with 120 questions of unseen, 3 trainings an arm; the smallest difference that would be "
     "seen is 0.04 f1. Take the cheapest: bitfit (26,000 trained parameters)."),
    (of("no difference", "no difference", "no difference"), "bitfit", "No difference beyond ±0.02 f1 with 120 questions"),
    (of("worse", "worse", "undecided"), "full",
     "Take full (900,000 trained parameters): no arm beats it, and it beats bitfit and lora"),
    (of("undecided", "worse", "worse"), "lora",
     "full and lora are beaten by no arm in f1 with 120 questions of unseen, 3 trainings an arm; bitfit is. Take the cheapest "
     "of them: lora (60,000 trained parameters)."),
    (of("undecided", "worse", "undecided"), "lora", "full and lora are beaten by no arm"),
    ([said("full", "lora", "better"), said("full", "bitfit", "worse"), said("lora", "bitfit", "better")], None,
     "No arm is best on every set by f1"),
])
def test_the_cheapest_of_those_that_none_beats_is_recommended(verdicts_, arm, words):
    found = recommend(verdicts_, COSTS, "f1")
    assert found["arm"] == arm and words in found["words"]


def test_an_arm_that_is_not_shown_to_beat_the_base_is_told():
    findings = of("undecided", "undecided", "undecided")
    for verdict, told in (("undecided", True), ("better", False)):
        words = recommend([*findings, said("base", "bitfit", verdict)], COSTS, "f1")["words"]
        assert ("It is not shown to beat base." in words) == told


def test_budgets_that_differ_are_named():
    assert budgets(COSTS) == []
    other = {**COSTS, "long": Cost(20, 100, 1.0, 1.0, 1)}
    assert budgets(other) == ["optimizer steps differ: full 10, lora 10, bitfit 10, long 20"]


def test_the_simulated_metric_is_the_one_that_is_judged():
    assert {f.extra["metric"] for fs in judged(World("x", questions=12), 1) for f in fs} == {METRIC}

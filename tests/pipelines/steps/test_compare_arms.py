"""compare-arms: the verdicts are those of the statistics, said of the right arm, and no arm answers other questions."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from luthier.core.artifact import Artifact, seal
from luthier.core.errors import UserError
from luthier.core.files import read_json, read_lines, write_lines
from luthier.core.finding import Finding
from luthier.engine import statistics
from luthier.pipelines.steps.compare_arms import CompareArms, holm_family

Scores = Mapping[str, Sequence[float | None]]


@pytest.fixture
def arm(tmp_path):
    """`arm(name, {"set/metric": values})`: the records of an arm; questions come three to a section."""
    def make(name: str, scores: Scores, higher: bool = True, first: int = 0) -> Artifact:
        folder = tmp_path / "arms" / f"{name}{len(list(tmp_path.glob('arms/*')))}"
        rows = [{"id": f"{place.split('/')[0]}{i}", "set": place.split("/")[0], "cluster": f"s{i // 3}",
                 "metric": place.split("/")[1], "value": v}
                for place, values in scores.items() for i, v in enumerate(values, first)]
        write_lines(folder / "scores.jsonl", rows)
        asked = {(r["set"], r["id"]): {k: r[k] for k in ("id", "set", "cluster")} for r in rows}
        write_lines(folder / "predictions.jsonl", asked.values())
        return seal("records", folder, arm=name, metrics={p.split("/")[1]: higher for p in scores})

    return make


@pytest.fixture
def compare(make_ctx):
    """`compare(*arms, **fields)`: table and findings; the artifact and the receipt are in `compare.made`."""
    def run(*arms: Artifact, **fields: Any) -> tuple[list[dict[str, Any]], list[Finding]]:
        step, inputs, ctx = CompareArms(**fields), {f"a{i}": a for i, a in enumerate(arms)}, make_ctx("compare")
        artifact = step.run(inputs, ctx)
        run.made = artifact, step.receipts(inputs, artifact, ctx)[0]
        return (read_json(artifact.folder / "table.json"),
                [Finding.from_dict(r) for r in read_lines(artifact.folder / "findings.jsonl")])

    return run


def noise(seed: int, mean: float, count: int = 60) -> list[float]:
    draw = random.Random(seed)
    return [round(min(1.0, max(0.0, draw.gauss(mean, 0.2))), 3) for _ in range(count)]


def clusters(count: int) -> list[str]:
    return [f"s{i // 3}" for i in range(count)]


# --- verdicts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [9, 60, 180], ids=["no test", "sign flip", "bootstrap"])
def test_findings_are_those_of_the_paired_test_itself(arm, compare, make_ctx, count):
    values = {"one": noise(1, 0.3, count), "two": noise(2, 0.5, count), "three": noise(3, 0.32, count)}
    _, findings = compare(*[arm(n, {"known/f1": v, "unseen/f1": v[::-1]}) for n, v in values.items()])
    rng = make_ctx("compare").rng
    expected = [statistics.paired(values[l][::way], values[r][::way], clusters(count), margin=0.02, level=0.95,
                                  seed=rng.key("paired", f"f1/{name}") % 2**32)
                for name, way in (("known", 1), ("unseen", -1)) for l, r in combinations(values, 2)]
    assert len(findings) == 6
    for found, wanted in zip(findings, expected, strict=True):
        assert (found.difference, found.extra["p"]) == (wanted.difference, wanted.p)
        assert found.interval == (None if wanted.low is None else (wanted.low, wanted.high))
        assert (found.extra["test"], found.extra["needed"]) == (wanted.test, wanted.needed)
        assert (found.extra["clusters"], found.extra["questions"]) == (count // 3, count)
        assert found.extra.get("p_holm") is None or found.extra["p_holm"] >= wanted.p
    adjusted = [f.extra.get("p_holm") for f in findings]
    assert adjusted == ([None] * 6 if count == 9 else pytest.approx(list(statistics.holm([e.p for e in expected]))))


def test_a_verdict_is_about_the_arm_on_the_right(arm, compare):
    low, high = arm("low", {"known/f1": noise(1, 0.2)}), arm("high", {"known/f1": noise(2, 0.7)})
    (found,) = compare(low, high)[1]
    assert (found.name, found.verdict) == ("compare/f1/known/low|high", "better")
    assert found.left == pytest.approx(np.mean(noise(1, 0.2))) and found.right == pytest.approx(np.mean(noise(2, 0.7)))
    assert found.difference == pytest.approx(found.right - found.left) and found.interval[0] > 0
    assert (found.extra["left_arm"], found.extra["right_arm"]) == ("low", "high")
    (turned,) = compare(high, low)[1]
    assert (turned.name, turned.verdict) == ("compare/f1/known/high|low", "worse")
    assert turned.difference == pytest.approx(-found.difference)


def test_where_lower_is_better_so_is_the_lower_arm(arm, compare):
    arms = [arm(n, {"known/f1": noise(s, m)}, higher=False) for n, s, m in (("low", 1, 0.2), ("high", 2, 0.7))]
    assert [f.verdict for f in compare(*arms)[1]] == ["worse"]


def test_within_the_margin_there_is_no_difference(arm, compare):
    values = noise(1, 0.5)
    same, near = arm("same", {"known/f1": values}), arm("near", {"known/f1": [v + 0.001 for v in values]})
    assert [f.verdict for f in compare(same, near)[1]] == ["no difference"]
    assert [f.verdict for f in compare(same, near, margin=0.0001)[1]] == ["better"]


def test_scores_that_never_differ_are_undecided_until_there_are_many(arm, compare):
    few, = compare(arm("a", {"known/f1": [0.0] * 60}), arm("b", {"known/f1": [0.0] * 60}))[1]
    assert (few.verdict, few.interval, few.extra["alike"], few.extra["questions"]) == ("undecided", (0, 0), 60, 60)
    assert few.extra["needed"] == 3 * (149 - 20)  # 149 sections, three questions each
    many, = compare(arm("a", {"known/f1": [0.0] * 450}), arm("b", {"known/f1": [0.0] * 450}))[1]
    assert (many.verdict, many.extra["alike"], many.extra["needed"]) == ("no difference", 450, None)


def test_few_sections_are_undecided(arm, compare):
    (found,) = compare(arm("a", {"known/f1": [0.0] * 15}), arm("b", {"known/f1": [1.0] * 15}))[1]
    assert (found.verdict, found.interval, found.extra["p"]) == ("undecided", None, None)


# --- families --------------------------------------------------------------------------------------------------------


def lone(p: float, name: str = "f", verdict: str = "better") -> Finding:
    return Finding(name, 0.1, 0.2, 0.1, verdict, interval=(0.01, 0.2), extra={"p": p})


def test_a_lone_small_p_among_six_does_not_decide():
    family = [lone(0.04, "lone"), *[lone(0.5, f"f{i}", "undecided") for i in range(5)]]
    assert holm_family([family[0]], 0.05)[0].verdict == "better"
    first = holm_family(family, 0.05)[0]
    assert (first.verdict, first.extra["p_holm"], first.extra["family"]) == ("undecided", pytest.approx(0.24), 6)
    assert [f.verdict for f in holm_family([lone(0.008, "lone"), *family[1:]], 0.05)] == ["better"] + ["undecided"] * 5
    for p, verdict in ((0.0083, "worse"), (0.0084, "undecided"), (0.04, "undecided")):
        assert holm_family([lone(p, "lone", "worse"), *family[1:]], 0.05)[0].verdict == verdict


def test_what_was_not_tested_is_no_member_of_the_family():
    found = holm_family([lone(0.04, "a"), Finding("b", 0.1, 0.2, 0.1, "undecided", extra={"p": None})], 0.05)
    assert [(f.verdict, f.extra["p_holm"], f.extra["family"]) for f in found] == [
        ("better", 0.04, 1), ("undecided", None, 1)]


def test_what_decides_between_two_arms_may_not_decide_among_four(arm, compare):
    spread = 0.2 * np.linspace(-1.7, 1.7, 20)  # by section; its mean is zero
    mixed = [np.random.default_rng(seed).permutation(spread) for seed in (1, 2)]
    shifts = {"base": 0 * spread, "one": spread + 0.1, "two": mixed[0] + 0.05, "three": mixed[1] + 0.05}
    arms = [arm(name, {"known/f1": 0.5 + np.repeat(shift, 3)}) for name, shift in shifts.items()]
    (pair,) = compare(*arms[:2])[1]
    assert pair.verdict == "better" and 0.03 < pair.extra["p"] < 0.05 and pair.extra["p_holm"] == pair.extra["p"]
    family = compare(*arms)[1]
    assert [f.extra["family"] for f in family] == [6] * 6 and family[0].name == pair.name
    assert family[0].extra["p"] == pair.extra["p"] and family[0].extra["p_holm"] == pytest.approx(6 * pair.extra["p"])
    assert family[0].verdict == "undecided"


def test_each_metric_is_a_family_of_its_own_over_all_sets(arm, compare):
    rows = {f"{s}/{m}": noise(1, 0.5) for s in ("known", "unseen") for m in ("f1", "exact-match", "stops")}
    _, findings = compare(*[arm(n, rows) for n in ("a", "b", "c")])
    assert {f.extra["metric"] for f in findings} == {"f1", "exact-match"}, "stops is in the table alone"
    assert {f.extra["family"] for f in findings} == {6} and len(findings) == 12


# --- what is compared -------------------------------------------------------------------------------------------------


def test_questions_without_a_value_are_left_out_of_both_arms(arm, compare):
    one = arm("one", {"known/f1": [None, 1.0, *noise(1, 0.4, 58)]})
    two = arm("two", {"known/f1": [1.0, None, *noise(2, 0.4, 58)]})
    table, (found,) = compare(one, two)
    assert found.extra["questions"] == 58 and [t["questions"] for t in table] == [59, 59]
    assert (found.left, found.right) == pytest.approx((np.mean(noise(1, 0.4, 58)), np.mean(noise(2, 0.4, 58))))


def test_the_table_holds_each_arms_mean_with_its_interval(arm, compare):
    values = noise(1, 0.5)
    table, _ = compare(arm("a", {"known/f1": values, "known/recall": [None] * 60}), arm("b", {"known/f1": values[:6]}))
    low, high = statistics.mean_interval(values, clusters(60), 0.95)
    assert table[0] == {"arm": "a", "set": "known", "metric": "f1", "value": pytest.approx(np.mean(values)), "low": low,
                        "high": high, "questions": 60, "clusters": 20}
    assert (table[1]["low"], table[1]["clusters"], len(table)) == (None, 2, 2), "recall does not apply: no row"


def test_the_receipt_sees_arms_with_other_questions(arm, compare):
    whole, same = (arm(n, {"known/f1": noise(1, 0.5)}) for n in ("whole", "same"))
    less, other = arm("less", {"known/f1": noise(1, 0.5)[:50]}), arm("other", {"known/f1": noise(1, 0.5)}, first=30)
    for arms, verdict in (((whole, same), "agrees"), ((whole, less), "differs"), ((less, whole), "differs"),
                          ((whole, other), "differs"), ((whole, same, less), "differs")):
        compare(*arms)
        assert compare.made[1].verdict == verdict


def test_the_same_arm_twice_is_refused(arm, compare):
    with pytest.raises(UserError, match="Two arms have the same name"):
        compare(arm("a", {"known/f1": [1.0]}), arm("a", {"known/f1": [1.0]}))


def test_equal_inputs_give_equal_findings(arm, compare):
    arms = [arm(n, {"known/f1": noise(s, 0.5, 180)}) for s, n in enumerate("ab")]
    compare(*arms)
    first = compare.made[0]
    compare(*arms)
    assert compare.made[0].identity == first.identity
    assert first.meta["arms"] == ["a", "b"] and first.meta["sets"] == ["known"]

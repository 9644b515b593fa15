"""Source and target drops by hand, by algebra, and of domains that are one."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from luthier.core.artifact import write_examples
from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.example import question
from luthier.engine.subjects import Subject
from luthier.techniques.evaluation._shift import DomainShift, apart

HAND = [[0.9, 0.7], [0.8, 0.6]]


@pytest.mark.oracle(seed=124, clause=1, against="by hand")
def test_the_matrix_of_the_paper_by_hand():
    shift = DomainShift.of(HAND)
    assert (shift.source_drop[0, 1], shift.target_drop[0, 1]) == pytest.approx((0.2, -0.1))
    assert (shift.source_drop[1, 0], shift.target_drop[1, 0]) == pytest.approx((-0.2, 0.1))
    assert (shift.case(0, 1), shift.case(1, 0)) == ("observed", "unobserved")
    told = shift.report()
    assert told["cases"] == {"classic": 0, "observed": 1, "unobserved": 1, "none": 0}
    assert (told["worst_source_drop"], told["worst_target_drop"]) == pytest.approx((0.2, 0.1))
    assert (told["spread_source_drop"], told["spread_target_drop"]) == pytest.approx((0.2, 0.1))
    # .2 / .9 and -.2 / .6; -.1 / .6 and .1 / .9
    assert told["relative_source_drop"] == pytest.approx((0.2 / 0.9 - 0.2 / 0.6) / 2)
    assert told["relative_target_drop"] == pytest.approx((-0.1 / 0.6 + 0.1 / 0.9) / 2)
    lower = DomainShift.of([[0.1, 0.4], [0.3, 0.2]], higher_is_better=False)
    assert (lower.source_drop[0, 1], lower.target_drop[0, 1], lower.case(0, 1)) == (pytest.approx(0.3), pytest.approx(0.2),
                                                                                   "classic")
    assert DomainShift.of([[0.5, 0.6], [0.6, 0.5]]).case(0, 1) == "none"


@pytest.mark.oracle(seed=124, clause=2, against="algebra: mean diagonal - mean off-diagonal")
@given(st.integers(2, 6).flatmap(lambda n: arrays(np.float64, (n, n), elements=st.floats(0, 1))))
@settings(max_examples=60, deadline=None)
def test_both_means_are_equal_for_any_matrix(scores):
    told, off = DomainShift.of(scores).report(), ~np.eye(len(scores), dtype=bool)
    assert told["mean_source_drop"] == pytest.approx(told["mean_target_drop"], abs=1e-12)
    assert told["mean_source_drop"] == pytest.approx(np.diag(scores).mean() - scores[off].mean(), abs=1e-12)
    difference = DomainShift.of(scores).source_drop - DomainShift.of(scores).target_drop
    assert np.allclose(difference, np.diag(scores)[:, None] - np.diag(scores)[None, :])


WORDS = {"good": "fine list of names", "bad": "dull block of scope"}


def rows(domains, count=24, field=False):
    made = []
    for name in domains:
        for n in range(count):
            label = ("good", "bad")[n % 2]
            made.append(question(f"{name}{n}", f"{WORDS[label]} module", label=label, source="" if field else name,
                                 meta={"domain": name} if field else {}))
    return made


def audit(make_ctx, engine, given, name="a", **options):
    ctx = make_ctx(name)
    examples = write_examples(make_ctx(f"{name}-rows").folder, {"all": given})
    made = build("audit", {"use": "domain-shift", "base": "pico-encoder", "method": "full", "epochs": 1, "min_test": 6,
                           **options})
    return made.measure(ctx, Subject(engine, examples=examples)), ctx


@pytest.mark.oracle(seed=124, clause=3, against="domains that are one and the same")
def test_identical_domains_have_no_drop(make_ctx, engine):
    found, _ = audit(make_ctx, engine, rows("xyz", field=True), domain_field="domain")
    assert len(found) == 1 + 6
    for finding in found[1:]:
        low, high = finding.interval
        assert low <= 0 <= high
        low, high = finding.extra["source_interval"]
        assert low <= 0 <= high
        assert not finding.extra["sure"]
    assert found[0].extra["mean_source_drop"] == pytest.approx(found[0].extra["mean_target_drop"], abs=1e-12)


@pytest.mark.oracle(seed=124, clause=3, against="simulation: two groups of one distribution")
def test_intervals_of_equal_groups_cover_zero():
    draw = np.random.default_rng(0)
    inside = [low <= 0 <= high for low, high in (apart(draw.random(40) < 0.7, draw.random(60) < 0.7) for _ in range(400))]
    assert 0.92 <= np.mean(inside) <= 0.98
    from scipy.stats import ttest_ind

    a, b = draw.standard_normal(20), draw.standard_normal(30) * 2
    ends = ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert apart(a, b) == pytest.approx((ends.low, ends.high))
    assert apart([1, 1], [0, 0]) == (1, 1)


@pytest.mark.oracle(seed=124, clause=1, against="a ready matrix by hand")
def test_a_ready_matrix_is_told_without_training(make_ctx, engine, tmp_path):
    path = tmp_path / "m.json"
    path.write_text(json.dumps({"domains": ["a", "b"], "scores": HAND, "higher_is_better": True}))
    found = build("audit", f"domain-shift:matrix={path}").measure(make_ctx("m"), Subject(engine))
    assert [f.name for f in found] == ["audit/domain-shift", "audit/domain-shift/a->b", "audit/domain-shift/b->a"]
    assert found[1].right == pytest.approx(-0.1) and "source drop 0.2: observed" in found[1].detail
    assert found[0].right == pytest.approx(0.1) and "b -> a" in found[0].detail and found[0].verdict == "undecided"
    path.write_text(json.dumps({"domains": ["a", "b"], "scores": HAND}))
    with pytest.raises(UserError, match="does not say higher_is_better"):
        build("audit", f"domain-shift:matrix={path}").check()
    path.write_text(json.dumps({"domains": ["a"], "scores": [[1]], "higher_is_better": True}))
    with pytest.raises(UserError, match="a finite square matrix of two domains or more"):
        build("audit", f"domain-shift:matrix={path}").check()


def test_domains_that_can_not_be_compared_are_refused(make_ctx, engine):
    with pytest.raises(UserError, match="needs two domains or more, named by 'source' in every row; found: x"):
        audit(make_ctx, engine, rows("x"))
    with pytest.raises(UserError, match="named by 'genre' in every row"):
        audit(make_ctx, engine, rows("xy"), domain_field="genre")
    with pytest.raises(UserError, match="Domain 'y' has 4 rows, of which 2 would be test rows; at least min_test = 6"):
        audit(make_ctx, engine, rows("x") + rows("y", 4))


def test_unequal_domains_are_told_or_made_equal(make_ctx, engine):
    lines = []
    made = build("audit", "domain-shift:min_test=4")
    given = rows("x") + rows("y", 40)
    split = made._split(make_ctx("m", log=lines.append), given)
    assert {n: (len(a), len(b)) for n, (a, b) in split.items()} == {"x": (14, 10), "y": (24, 16)}
    assert "domains have different numbers of training rows" in lines[0]
    same = build("audit", "domain-shift:min_test=4,equalize=true")._split(make_ctx("m"), given)
    assert {len(a) for a, _ in same.values()} == {14}

"""One rule for all studies: planted records give the verdict they must."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
import scipy.stats

from luthier.core.component import Info
from luthier.core.errors import UserError
from luthier.core.kinds import Study
from luthier.core.study import Choice, Claim, Found, Guard, Measure, Paper, Scale, Trend
from luthier.pipelines import judging, reproducing
from luthier.pipelines.findings import WHOLE

QUALITY, FITTED, OTHERS = Measure("f1"), Measure("f1", "fitted"), Measure("f1", "others")


class Planted(Study):
    """A study whose records are written by hand."""

    info: ClassVar[Info] = Info("study", "planted", 1, (0,))
    paper: ClassVar[Paper] = Paper("t", "c", "new is better than old", "0.9 against 0.8")
    scales: ClassVar[Mapping[str, Scale]] = {"default": Scale(3, {"test": 100})}

    def recipe(self) -> dict[str, Any]:
        return {}

    def arms(self) -> dict[str, dict[str, Any]]:
        return {"old": {}, "new": {}}

    def guards(self) -> tuple[Guard, ...]:
        return (Guard("the old one works", QUALITY, ("old",), least=0.3),)

    def claims(self) -> tuple[Claim, ...]:
        return (Claim("better", "new is better", "old", "new", QUALITY, "higher", 0.05, 0.3),)


def planted(effect: float, *, units: int = 100, seeds: int = 3, noise: float = 0.1, level: float = 0.5, on: str = "test"):
    """Records of two arms whose true difference is `effect`."""
    rng = np.random.default_rng(1)
    hard = rng.normal(0, 0.1, units)
    made = {}
    for seed in range(seeds):
        for arm, shift in (("old", 0.0), ("new", effect)):
            values = level + hard + shift + rng.normal(0, noise, units)
            made[arm, seed, "score"] = {(on, "f1"): {f"q{i}": (f"q{i}", float(v)) for i, v in enumerate(values)}}
    return made


@pytest.mark.parametrize("effect, verdict", [
    (0.2, "shown"), (-0.2, "reversed"), (0.0, "not shown at this scale"), (0.01, "not shown at this scale")])
def test_what_is_planted_is_found(effect, verdict):
    found = judging.judge(Planted(), "default", planted(effect, noise=0.05))
    assert found.verdict == verdict and found.guarded
    assert found.claims[0].difference == pytest.approx(effect, abs=0.02)


def test_too_little_data_is_underpowered_and_not_a_no():
    study = Planted()
    noisy = judging.judge(study, "default", planted(0.04, noise=1.5))
    assert noisy.verdict == "underpowered" and noisy.claims[0].extra["visible"] > 0.05
    few = planted(0.2, units=4)
    assert judging.judge(study, "default", few).claims[0].verdict == "underpowered", "below 6 units there is no interval"


def test_undecided_needs_power_for_what_is_of_interest():
    # half-width 0.03 around 0.025: zero and 0.05 both inside, and 0.05 would mostly have been seen
    assert judging.weigh("higher", (-0.005, 0.055), 0.05, 0.043) == "undecided"
    assert judging.weigh("higher", (-0.005, 0.055), 0.05, 0.06) == "underpowered"
    assert judging.weigh("higher", None, 0.05, math.inf) == "underpowered"


@pytest.mark.parametrize("interval, verdict", [
    ((0.01, 0.2), "shown"), ((0.01, 0.04), "not shown at this scale"), ((-0.2, -0.06), "reversed"),
    ((-0.04, -0.01), "not shown at this scale"), ((-0.04, 0.04), "not shown at this scale")])
def test_a_direction_is_only_a_sign(interval, verdict):
    assert judging.weigh("higher", interval, 0.05, 0.01) == verdict
    assert judging.weigh("lower", (-interval[1], -interval[0]), 0.05, 0.01) == verdict


def test_a_broken_guard_leaves_no_verdict():
    found = judging.judge(Planted(), "default", planted(0.2, level=0.1))
    assert found.verdict == "not applicable" and "the old one works" in found.why and not found.guarded
    assert found.claims[0].verdict == "shown", "the claim's own numbers stay to be read"


def test_fewer_units_than_stated_break_a_guard():
    found = judging.judge(Planted(), "default", planted(0.2, units=60))
    assert found.verdict == "not applicable" and "at least 100 independent units" in found.why


def test_two_seeds_speak_of_these_models():
    found = judging.judge(Planted(), "default", planted(0.2, seeds=2))
    assert found.claims[0].extra["test"] == "cluster bootstrap" and found.verdict == "shown"
    assert judging.judge(Planted(), "default", planted(0.2)).claims[0].extra["test"] == "two-way t"


class Several(Planted):
    """Choices, unpaired sides, secondary claims."""

    info: ClassVar[Info] = Info("study", "several", 1, (0,))

    def choices(self) -> tuple[Choice, ...]:
        return (Choice("best", ("old", "new"), FITTED), Choice("alike", ("old", "new"), QUALITY, near="old"))

    def claims(self) -> tuple[Claim, ...]:
        return (Claim("better", "new is better", "old", "new", QUALITY, "higher", 0.05, 0.3),
                Claim("best", "the chosen is better", "old", "best", QUALITY, "higher", 0.05, 0.3),
                Claim("apart", "fitted above others", "new", "new", FITTED, "higher", 0.05, 0.3, left_measure=OTHERS),
                Claim("nothing", "no claim at all", "old", "alike", QUALITY, "higher", 0.05, 0.3, main=False))


def several(gap: float):
    made = planted(0.2)
    for (arm, seed, _), scores in made.items():
        rng = np.random.default_rng(seed)
        for on, mean in (("fitted", 0.6 + (0.1 if arm == "new" else 0)), ("others", 0.6 - gap)):
            scores[on, "f1"] = {f"{on}{i}": (f"{on}{i}", float(v)) for i, v in enumerate(rng.normal(mean, 0.1, 40))}
    return made


def test_choices_stand_for_arms_and_sides_may_differ():
    found = judging.judge(Several(), "default", several(0.2))
    assert found.chosen == {"best": "new", "alike": "old"} and found.verdict == "shown"
    by_name = {f.name.rpartition("/")[2]: f for f in found.claims}
    assert by_name["apart"].difference == pytest.approx(0.3, abs=0.05) and "regression" in by_name["apart"].extra["test"]
    assert by_name["nothing"].verdict == "not shown at this scale" and by_name["nothing"].difference == 0


def test_main_claims_must_all_hold():
    found = judging.judge(Several(), "default", several(-0.3))
    assert found.verdict == "not shown at this scale" and "apart: reversed" in found.why and "better: shown" in found.why


def test_a_claim_about_an_arm_that_left_no_such_measure_is_refused():
    records = planted(0.2)
    del records["new", 1, "score"]["test", "f1"]
    with pytest.raises(UserError, match="Arm 'new', seed 1"):
        judging.judge(Planted(), "default", records)


class Sloped(Planted):
    """A response that falls with one of two terms."""

    info: ClassVar[Info] = Info("study", "sloped", 1, (0,))
    scales: ClassVar[Mapping[str, Scale]] = {"default": Scale(3, {})}

    def guards(self) -> tuple[Guard, ...]:
        return ()

    def claims(self) -> tuple[Claim, ...]:
        return ()

    def trends(self) -> tuple[Trend, ...]:
        runs = {f"x{share}-e{n}": f"x{share}" for share in range(4) for n in range(3)}
        return (Trend("slope", "falls with b", QUALITY, {"a": FITTED, "b": OTHERS}, "b", runs, "lower", 0.05, 0.1, main=True),)


def sloped(noise: float = 0.0, seed: int = 0):
    rng = np.random.default_rng(seed)
    made = {}
    for place in range(3):
        for share in range(4):
            run = rng.normal(0, noise)
            for n in range(3):
                a, b = (4 - share) / 4 * min(1, 0.5 + 0.3 * n), share / 4 * (0.1 + 0.4 * n)
                response = 0.37 + 0.07 * a - 0.08 * b + run + rng.normal(0, noise)
                made[f"x{share}-e{n}", place, "score"] = {
                    ("test", "f1"): {"q": ("q", response)},
                    ("fitted", "f1"): {"a": ("a", 2 * a)}, ("others", "f1"): {"b": ("b", 2 * b)}}
    return made


@pytest.mark.oracle(seed=34, clause=2, against="planted coefficients")
def test_a_regression_recovers_planted_coefficients():
    found = judging.judge(Sloped(), "default", sloped()).claims[0]
    assert found.difference == pytest.approx(-0.08, abs=1e-8) and found.verdict == "shown"


@pytest.mark.oracle(seed=34, clause=2, against="simulation")
def test_a_regression_covers_planted_coefficients():
    spans = [judging.judge(Sloped(), "default", sloped(0.02, draw)).claims[0].interval for draw in range(200)]
    covered = np.mean([low <= -0.08 <= high for low, high in spans])
    assert 0.90 <= covered <= 0.99, covered


def test_what_can_be_seen_is_the_formula():
    assert judging.visible(0.5, 100) == pytest.approx((1.959964 + 0.841621) * 0.05, rel=1e-5)
    assert judging.visible(0.5, 100, 0.1, 4) == pytest.approx(2.801585 * math.sqrt(0.0025 + 0.0025), rel=1e-5)


AREA, CHANGE = Found("auroc", "audit/ood", "look"), Found("difference", "audit/ood/change", "look")


class Audited(Planted):
    """Claims about what an audit found: one number a training."""

    info: ClassVar[Info] = Info("study", "audited", 1, (0,))
    scales: ClassVar[Mapping[str, Scale]] = {"default": Scale(5, {})}

    def guards(self) -> tuple[Guard, ...]:
        return (Guard("it tells them apart at all", AREA, ("old",), least=0.5),)

    def claims(self) -> tuple[Claim, ...]:
        return (Claim("better", "new is better", "old", "new", AREA, "higher", 0.02, 0.0, 0.02),
                Claim("fell", "the new one fell by less than it is", "new", "new", AREA, "higher", 0.02, 0.0, 0.02,
                      left_measure=CHANGE, main=False))


def looked(old: Sequence[float], new: Sequence[float], shared: bool = False):
    """Records of an audit of two arms; with `shared` no training is behind the seeds."""
    made = {}
    for arm, areas in (("old", old), ("new", new)):
        for seed, area in enumerate(areas):
            step = f"look@{arm}" if shared else f"look@{arm}@s{seed}"
            made[arm, seed, "look"] = {("audit/ood", "auroc"): {WHOLE: (step, area)},
                                       ("audit/ood/change", "difference"): {WHOLE: (step, area - 0.9)}}
    return made


OLD, NEW = (0.80, 0.82, 0.79, 0.83, 0.81), (0.90, 0.91, 0.86, 0.92, 0.93)


def test_findings_are_paired_by_training():
    found = judging.judge(Audited(), "default", looked(OLD, NEW))
    t = scipy.stats.ttest_rel(NEW, OLD)
    (low, high), claim = t.confidence_interval(0.95), found.claims[0]
    assert claim.interval == pytest.approx((low, high), abs=1e-12) and claim.extra["p"] == pytest.approx(t.pvalue)
    assert found.verdict == "shown" and claim.extra["units"] == 5 and "trainings" in claim.extra["test"]
    other = found.claims[1]
    assert other.interval == pytest.approx((0.9, 0.9)) and other.extra["left_arm"] == "new, difference of look, change"
    assert {(r["arm"], r["metric"], r["units"], r["questions"]) for r in found.table} == {
        (arm, name, 5, 5) for arm in ("old", "new") for name in ("auroc", "difference")}


@pytest.mark.parametrize("records, units", [(looked(OLD[:2], NEW[:2]), 2), (looked(OLD[:1] * 5, NEW[:1] * 5, shared=True), 1)])
def test_seeds_without_a_training_of_their_own_are_no_units(records, units):
    found = judging.judge(Audited(), "default", records)
    assert found.verdict == "underpowered" and found.claims[0].interval is None
    assert found.claims[0].extra["units"] == units and {r["units"] for r in found.table} == {units}


def test_what_few_trainings_can_show_allows_for_an_unknown_spread():
    said = reproducing.stated(AuditedArms(), "default")
    assert said.units == {"trainings": 5}
    assert said.visible["better"] == pytest.approx((2.776445 + 0.940965) * 0.02 / math.sqrt(5), rel=1e-5)
    assert judging.visible_over_trainings(0.02, 2) == math.inf


class AuditedArms(Audited):
    """With arms that a recipe can be made of."""

    info: ClassVar[Info] = Info("study", "audited-arms", 1, (0,))

    def recipe(self) -> dict[str, Any]:
        look = {"use": "audit", "audit": "personal-data", "inputs": {"examples": "facts"}}
        return {"name": "audited-arms", "seed": 0, "steps": {"facts": {"use": "facts-world"}, "look": look}}

    def arms(self) -> dict[str, dict[str, Any]]:
        return {"old": {}, "new": {"facts.persons": 20}}

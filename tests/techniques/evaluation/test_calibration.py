"""calibration: ECE and AURC by hand, against simulation, and the verdicts on models of known confidence."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from luthier.core.component import build
from luthier.core.example import Example, Part, Turn
from luthier.core.files import Journal
from luthier.core.kinds import Prediction
from luthier.core.rng import Rng
from luthier.core.step import Ctx
from luthier.techniques.evaluation.calibration import aurc, ece, reliability, risks, shares_of_ece


def records(*pairs):
    return [{"confidence": c, "right": float(y), "cluster": i} for i, (c, y) in enumerate(pairs)]


@pytest.mark.oracle(clause="ECE is the mean distance of confidence and accuracy", against="hand case")
def test_ece_by_hand():
    four = records((0.95, 1), (0.85, 0), (0.75, 1), (0.65, 0))
    assert ece(four, 10) == pytest.approx((0.05 + 0.85 + 0.25 + 0.65) / 4)
    assert ece(four, 2) == pytest.approx(abs(0.5 - 0.8))
    edges = records((0.0, 0), (0.1, 1), (0.100001, 1), (1.0, 1))
    assert [n for _, _, n in reliability(edges, 10)] == [2, 1, 1], "0 and 0.1 belong to the first bin, 1 to the last"
    assert ece(edges, 10) == pytest.approx((2 * abs(0.5 - 0.05) + (1 - 0.100001) + 0) / 4)


@pytest.mark.oracle(clause="AURC is the mean risk over coverages", against="hand case")
def test_risk_and_coverage_by_hand():
    four = records((0.65, 0), (0.95, 1), (0.85, 0), (0.75, 1))
    assert risks(four) == pytest.approx([0, 1 / 2, 1 / 3, 1 / 2])
    assert aurc(four) == pytest.approx(1 / 3)
    tied = records((0.9, 1), (0.5, 0), (0.5, 1), (0.1, 0))
    assert risks(tied) == pytest.approx([0, 0.25, 1 / 3, 0.5]), "equal ones share their errors"
    assert aurc(records((0.9, 1), (0.8, 1), (0.2, 0))) < aurc(records((0.2, 1), (0.8, 1), (0.9, 0)))


@pytest.mark.oracle(clause="perfect calibration has a small ECE, scaled logits a large one", against="simulation")
def test_simulated_models():
    rng = np.random.default_rng(0)
    p = rng.uniform(0.02, 0.98, 20_000)
    y = rng.random(20_000) < p
    sure = 1 / (1 + np.exp(-4 * np.log(p / (1 - p))))
    calm, bold = ([{"confidence": float(c), "right": float(r)} for c, r in zip(cs, y, strict=True)] for cs in (p, sure))
    assert ece(calm, 10) < 0.015 < 0.1 < ece(bold, 10)
    shares = shares_of_ece(bold, 10)
    assert shares.mean() == pytest.approx(ece(bold, 10)) and shares.shape == (20_000,)
    assert aurc(calm) == pytest.approx(aurc(bold), abs=1e-9), "scaling keeps the order"


class Labels:
    """A label model of known probabilities."""

    labels, encoder, same = True, True, False

    def __init__(self, confidence, right, n):
        self.confidence, self.n, self.hits = confidence, n, round(right * n)

    def held_out(self):
        return [Example(f"e{i}", (Turn("user", (Part("x"),)),), label="a") for i in range(self.n)]

    def classified(self, ctx, rows):
        c = self.confidence
        return [Prediction(r.id, label=said, probabilities={said: c, other: 1 - c}) for i, r in enumerate(rows)
                for said, other in [("a", "b") if i < self.hits else ("b", "a")]]


@pytest.mark.parametrize(("confidence", "right", "n", "verdict"), [
    (0.8, 0.8, 400, "pass"), (0.99, 0.6, 400, "fail"), (0.9, 0.8, 30, "undecided")])
def test_a_label_model_fails_only_when_its_whole_interval_does(tmp_path, confidence, right, n, verdict):
    ctx = Ctx(Rng(0), tmp_path, Journal(tmp_path / "j.jsonl"), None)
    first, second = build("audit", "calibration").measure(ctx, Labels(confidence, right, n))
    assert first.verdict == verdict and first.left is None
    assert first.right == pytest.approx(abs(confidence - round(right * n) / n))
    low, high = first.interval
    assert low <= first.right <= high
    assert (second.left, second.right) == pytest.approx((1 - right, 1 - right)), "all are equally sure"
    assert second.name.endswith("abstention") and second.verdict == "pass"
    assert first.extra["plot"]["diagonal"] and (tmp_path / "labels.jsonl").exists()


class Options:
    """Two models that give four options log-probabilities; `scale` makes the second one surer."""

    labels = encoder = same = False

    def __init__(self, scale):
        self.scale, self.rng = scale, np.random.default_rng(1)
        self.scores = self.rng.normal(0, 0.4, 4 * 217)

    def render(self, role, rows=()):
        from luthier.core.kinds import Tokens

        return SimpleNamespace(whole=lambda row: Tokens([1, 2], [False, True]))

    def token_scores(self, ctx, role, sides):
        return [[float(s) * (self.scale if role == "after" else 1)] for s in self.scores[:len(sides)]]

    def held_out(self):
        return []


@pytest.mark.parametrize(("scale", "verdict"), [(1.0, "pass"), (12.0, "fail")])
def test_logits_that_are_scaled_fail_and_equal_ones_pass(tmp_path, scale, verdict):
    ctx = Ctx(Rng(0), tmp_path, Journal(tmp_path / "j.jsonl"), None)
    first, second = build("audit", "calibration:questions=217").measure(ctx, Options(scale))
    assert first.verdict == verdict and second.verdict == "pass", "the order of confidence is not changed by much"

"""membership: AUC against Mann and Whitney, the attacks by hand, and verdicts on models of known scores."""

from __future__ import annotations

import math

import numpy as np
import pytest

from luthier.core.component import build
from luthier.core.example import question
from luthier.core.files import Journal, read_lines
from luthier.core.rng import Rng
from luthier.core.step import Ctx
from luthier.techniques.privacy.membership import auc, found_at


def records(members, others, role="after"):
    return [{"member": True, role: s} for s in members] + [{"member": False, role: s} for s in others]


@pytest.mark.oracle(clause="AUC is the share of pairs in which the member scores higher", against="scipy's Mann-Whitney U")
def test_auc_is_mann_whitneys():
    from scipy.stats import mannwhitneyu

    rng = np.random.default_rng(0)
    for n, m in ((5, 9), (40, 23)):
        a, b = rng.integers(0, 9, n).astype(float), rng.integers(0, 7, m).astype(float)
        assert auc(records(a, b), "after") == pytest.approx(mannwhitneyu(a, b).statistic / (n * m))
    assert auc(records([2, 3], [1]), "after") == 1.0 and auc(records([1], [1]), "after") == 0.5


@pytest.mark.oracle(clause="at most 1 % of the others are taken for members", against="hand case")
def test_found_at_a_low_rate_by_hand():
    assert found_at(records([5, 3, 2], [3, 1]), "after", 0.01) == [True, False, False]
    many = records([99.5, 98.5, 50], list(range(100)))
    assert found_at(many, "after", 0.01) == [True, True, False], "one of a hundred may be above"


@pytest.mark.oracle(clause="loss takes all tokens, min-k the least likely share", against="hand case")
def test_scores_by_hand():
    told = [-1.0, -5.0, -3.0, -0.5, -0.5]
    assert build("audit", "membership").score(told) == pytest.approx(-2.0)
    assert build("audit", "membership:attack=min-k,share=0.4").score(told) == pytest.approx(-4.0)
    assert build("audit", "membership:attack=min-k,share=0.1").score(told) == pytest.approx(-5.0)


class Known:
    """Models that give members so many nats more than others."""

    labels = encoder = same = False

    def __init__(self, before, after, n=60):
        self.gain, self.n = {"before": before, "after": after}, n

    def rows(self, subset):
        return [question(f"m{i}", f"What is {i}?", "x", cluster=f"c{i}") for i in range(self.n)]

    def held_out(self):
        return [question(f"o{i}", f"Where is {i}?", "x", cluster=f"d{i}") for i in range(self.n)]

    def answer_scores(self, ctx, role, rows):
        noise = np.random.default_rng(7 if role == "before" or self.gain["before"] == self.gain["after"] else 8)
        return [[float(noise.normal()) + self.gain[role] * r.id.startswith("m")] for r in rows]


@pytest.mark.parametrize(("before", "after", "verdict"), [(0, 0, "pass"), (0, 3, "fail"), (1.0, 1.0, "pass"),
                                                          (0, 0.35, "undecided")])
def test_only_what_tuning_added_counts(tmp_path, before, after, verdict):
    ctx = Ctx(Rng(0), tmp_path, Journal(tmp_path / "j.jsonl"), None)
    risen, found = build("audit", "membership").measure(ctx, Known(before, after))
    assert risen.verdict == verdict, (risen.left, risen.right, risen.interval)
    assert len(read_lines(tmp_path / "rows.jsonl")) == 120
    if after == 3:
        normal = 0.5 * (1 + math.erf(3 / 2))
        assert risen.right == pytest.approx(normal, abs=0.03) and found.verdict == "fail"


def test_few_rows_say_nothing(tmp_path):
    ctx = Ctx(Rng(0), tmp_path, Journal(tmp_path / "j.jsonl"), None)
    (found,) = build("audit", "membership").measure(ctx, Known(0, 0, n=5))
    assert found.verdict == "not applicable" and "5 training rows" in found.detail

"""gains: knowledge is the difference of differences, with the error of two independent means."""

from __future__ import annotations

import numpy as np
import pytest

from luthier.pipelines.gains import knowledge, pairs


def values(numbers, name):
    return {f"{name}{i}": (f"{name}{i // 2}", float(v)) for i, v in enumerate(numbers)}


def test_arms_are_paired_with_the_reference_that_reads_as_they_do():
    assert pairs(["base", "base+retrieval", "tuned", "tuned+retrieval", "alone+other"], "base") == [
        ("base", "tuned"), ("base+retrieval", "tuned+retrieval")]


def test_knowledge_is_the_difference_of_differences():
    rng = np.random.default_rng(0)
    k, u = rng.normal(0.3, 0.1, 160), rng.normal(0.1, 0.1, 160)
    zeros = np.zeros(160)
    found = knowledge((values(zeros, "k"), values(k, "k")), (values(zeros, "u"), values(u, "u")), margin=0.02)
    assert found.difference == pytest.approx(k.mean() - u.mean(), abs=1e-12) and found.verdict == "better"
    pairs_of = [x.reshape(-1, 2).mean(1) for x in (k, u)]
    error = np.sqrt(sum(x.var(ddof=1) / len(x) for x in pairs_of))
    assert (found.high - found.low) / 2 == pytest.approx(1.975 * error, rel=0.12)


def test_format_alone_is_no_knowledge_and_few_sections_decide_nothing():
    zeros, gain = np.zeros(40), np.full(40, 0.4)
    gain[::4] += 0.01
    same = knowledge((values(zeros, "k"), values(gain, "k")), (values(zeros, "u"), values(gain, "u")), margin=0.02)
    assert same.difference == pytest.approx(0) and same.verdict == "no difference within"
    few = knowledge((values(zeros[:4], "k"), values(gain[:4], "k")), (values(zeros, "u"), values(gain, "u")), margin=0.02)
    assert few.verdict == "undecided" and few.low is None and few.needed == 8

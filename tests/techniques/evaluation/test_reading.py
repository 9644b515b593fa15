"""bits-per-byte and perplexity by hand."""

import math

import pytest

from luthier.core.component import build
from luthier.core.example import Example, Part, Turn
from luthier.core.kinds import Prediction


def text(name: str, value: str) -> Example:
    return Example(name, (Turn("user", (Part(value, name="text"),)),), task="text")


EXAMPLES = [text("a", "äb"), text("b", "abcdef"), text("c", "x")]
READ = [Prediction("a", tokens=2, log_probability=-3 * math.log(2)), Prediction("b", tokens=4, log_probability=-4.0),
        Prediction("c")]


def test_bits_per_byte():
    metric = build("metric", "bits-per-byte")
    records = metric.score(EXAMPLES, READ, None)
    assert [r["value"] for r in records[:2]] == pytest.approx([1.0, 4 / math.log(2) / 6]) and records[2]["value"] is None
    assert metric.reduce(records) == pytest.approx((3 + 4 / math.log(2)) / 9) and not metric.higher_is_better
    assert math.isnan(metric.reduce(records[2:]))


def test_perplexity():
    metric = build("metric", "perplexity")
    records = metric.score(EXAMPLES, READ, None)
    assert [r["value"] for r in records[:2]] == pytest.approx([2 ** 1.5, math.e]) and records[2]["value"] is None
    assert metric.reduce(records) == pytest.approx(math.exp((3 * math.log(2) + 4) / 6)) and not metric.higher_is_better

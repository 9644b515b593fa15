"""lines, by hand."""

from __future__ import annotations

import pytest

from luthier.core.component import build
from luthier.core.example import question
from luthier.core.kinds import Prediction
from luthier.techniques.evaluation.lines import right


@pytest.mark.oracle(clause="each line in its place", against="worked by hand")
@pytest.mark.parametrize("said, wanted, value", [
    ("a b\nc", "a b\nc", 1.0), (" a b \n\n c\n", "a b\nc", 1.0), ("c\na b", "a b\nc", 0.0), ("a b", "a b\nc\nd\ne", 0.25),
    ("x\nc\nd", "a b\nc", 0.5), ('{"a": "b"', '{"a": "b"}', 0.0), ("", "a", 0.0), ("a\nb\nc", "a", 1.0)])
def test_lines_that_are_right(said, wanted, value):
    assert right(said, wanted) == value


def test_the_best_of_several_references_counts_and_without_one_there_is_no_value():
    rows = [question("q", "?", "a\nb", references=("a\nc",)), question("n", "?")]
    records = build("metric", "lines").score(rows, [Prediction("q", text="a\nc"), Prediction("n", text="a")], None)
    assert [r["value"] for r in records] == [1.0, None]

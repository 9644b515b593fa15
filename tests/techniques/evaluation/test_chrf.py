"""chrF, worked by hand."""

from __future__ import annotations

import pytest

from luthier.core.component import build
from luthier.core.example import question
from luthier.core.kinds import Prediction


@pytest.mark.oracle(clause="F-score of character n-grams", against="worked by hand")
def test_one_sentence_by_hand():
    # "ab c" -> abc: 1-grams a b c, 2-grams ab bc; "abd": a b d, ab bd. Shared: a b of 3 and 3, ab of 2 and 2.
    precision = recall = (2 / 3 + 1 / 2) / 2
    two = build("metric", "chrf:order=2")
    assert two.between("ab c", "abd") == pytest.approx(5 * precision * recall / (4 * precision + recall))
    # "ab" against "abab": P = (2/2 + 1/1) / 2 = 1, R = (2/4 + 1/3) / 2; recall counts fourfold in the mean.
    recall = (2 / 4 + 1 / 3) / 2
    assert two.between("ab", "abab") == pytest.approx(5 * recall / (4 + recall))
    # A text of two letters has no 3-grams: orders 1 and 2 alone count.
    assert build("metric", "chrf:order=3").between("ab", "abab") == two.between("ab", "abab")


def test_the_ends_of_the_scale_and_several_references():
    chrf = build("metric", "chrf")
    assert chrf.between("A ferry crosses.", "A ferry crosses.") == 1.0 and chrf.between("zzz", "abc") == 0.0
    assert chrf.between("", "abc") == 0.0 and chrf.between("abc", "ABC") == 0.0
    rows = [question("q", "?", "one thing", references=("another",)), question("n", "?")]
    found = chrf.score(rows, [Prediction("q", text="another"), Prediction("n", text="x")], None)
    assert [r["value"] for r in found] == [1.0, None]

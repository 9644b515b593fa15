"""F1 and EM beside the definition of SQuAD's evaluation script, written down here again, and letters of other scripts."""

from __future__ import annotations

import collections
import re
import string

import pytest

from luthier.core.example import question
from luthier.core.kinds import Prediction
from luthier.techniques.evaluation.exact_match import ExactMatch
from luthier.techniques.evaluation.f1 import F1


def normal(text: str) -> str:
    text = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return " ".join(re.sub(re.compile(r"\b(a|an|the)\b", re.UNICODE), " ", text).split())


def official(said: str, gold: str) -> tuple[float, float]:
    one, two = normal(said).split(), normal(gold).split()
    same = sum((collections.Counter(one) & collections.Counter(two)).values())
    if not same:
        return 0.0, float(normal(said) == normal(gold))
    precision, recall = same / len(one), same / len(two)
    return 2 * precision * recall / (precision + recall), float(normal(said) == normal(gold))


PAIRS = [("Denver Broncos", "Denver Broncos"), ("the Broncos of Denver", "Denver Broncos"), ("Santa Clara, California.",
         "Santa Clara"), ("\"golden anniversary\"", "gold-themed"), ("Levi's Stadium in the San Francisco Bay Area", "Levi's "
         "Stadium"), ("February 7, 2016", "February 7"), ("an orange and orange", "orange"), ("Ü ber-alles", "über alles")]


@pytest.mark.oracle(seed=14, clause=2, against="definition of the SQuAD 1.1 script")
@pytest.mark.parametrize(("said", "gold"), PAIRS)
def test_words_are_compared_as_squad_does(said, gold, make_ctx):
    asked, answered = [question("q", "?", gold)], [Prediction("q", said)]
    f1, exact = (m.score(asked, answered, make_ctx("m"))[0]["value"] for m in (F1(), ExactMatch()))
    assert (f1, exact) == pytest.approx(official(said, gold))


@pytest.mark.oracle(seed=14, clause=2, against="letters counted by hand")
@pytest.mark.parametrize(("said", "gold", "share"), [
    ("東京都", "東京", 2 * 2 / (3 + 2)), ("東京", "京都", 2 * 1 / 4), ("กรุง", "กรุง", 1.0),
    ("1964年に", "1964年", 2 * 2 / (3 + 2)),
    ("ひらがな", "カタカナ", 0.0)])
def test_letters_of_scripts_without_spaces_count(said, gold, share, make_ctx):
    value = F1().score([question("q", "?", gold)], [Prediction("q", said)], make_ctx("m"))[0]["value"]
    assert value == pytest.approx(share)

"""Metrics of answers and labels against hand cases, and against SQuAD's definition derived anew."""

import math
import re
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.errors import GateError
from luthier.core.example import Example, question
from luthier.core.kinds import Prediction
from luthier.techniques.evaluation.abstains import Abstains
from luthier.techniques.evaluation.accuracy import Accuracy
from luthier.techniques.evaluation.exact_match import ExactMatch
from luthier.techniques.evaluation.f1 import F1, overlap
from luthier.techniques.evaluation.over_abstains import OverAbstains
from luthier.techniques.evaluation.stops import Stops

TEXT = st.text(alphabet="aAthe bxyZ.,'-*1é\n", max_size=24)


def one(metric, text, *answers, task="qa", **said):
    """The record of one prediction for a question with these acceptable answers."""
    example = question("q", "What?", answers[0] if answers else "", references=answers[1:], task=task)
    (record,) = metric.score([example], [Prediction("q", text, **said)], None)
    assert record["id"] == "q"
    return record


def value(metric, *args, **said):
    return one(metric, *args, **said)["value"]


# (prediction, answers, EM, F1): F1 = 2 * common / (words of prediction + words of answer), worked out by hand.
CASES = [
    ("The Eiffel Tower!", ["eiffel tower"], 1.0, 1.0),
    ("Eiffel Tower in Paris", ["the Eiffel Tower"], 0.0, 2 * 2 / (4 + 2)),
    ("in  1,000\tyears", ["in 1000 years."], 1.0, 1.0),
    ("cat cat dog", ["cat dog dog"], 0.0, 2 * 2 / (3 + 3)),  # bags: one cat and one dog in common
    ("cat cat dog", ["cat cat"], 0.0, 2 * 2 / (3 + 2)),  # and what both say twice counts twice
    ("theory", ["ory"], 0.0, 0.0),  # an article is a whole word
    ("well-known", ["well known"], 0.0, 0.0),  # punctuation goes without leaving a space
    ("an A and the", ["and"], 1.0, 1.0),
    ("", ["x"], 0.0, 0.0),
    ("red", ["blue", "dark red", "red"], 1.0, 1.0),
    ("light red", ["blue", "dark red", "light-red"], 0.0, 2 * 1 / (2 + 2)),
    ("ÉTÉ", ["été"], 1.0, 1.0),
    ("**", ["*"], 0.0, 0.0),  # nothing would be left of either: they stand for themselves
    ("**", ["**"], 1.0, 1.0),
    ("", ["**"], 0.0, 0.0),
    ("A.", ["a"], 1.0, 1.0),
]


@pytest.mark.oracle(clause="EM and F1 as in SQuAD", against="hand case")
@pytest.mark.parametrize(("text", "answers", "exact", "f1"), CASES)
def test_hand_cases(text, answers, exact, f1):
    assert value(ExactMatch(), text, *answers) == exact
    assert value(F1(), text, *answers) == pytest.approx(f1, abs=1e-12)


def squad(said, wanted):
    """F1 as 2PR/(P+R) by the letter of the definition, word by word, without a Counter."""
    def words(text):
        kept = "".join(c for c in text.lower() if c not in set(string.punctuation))
        return [w for w in re.split(r"\s+", re.sub(r"\b(a|an|the)\b", " ", kept)) if w]
    left, right = words(said), words(wanted)
    if not left or not right:
        return None
    pool, common = list(right), 0
    for word in left:
        if word in pool:
            pool.remove(word)
            common += 1
    if not common:
        return 0.0
    precision, recall = common / len(left), common / len(right)
    return 2 * precision * recall / (precision + recall)


@pytest.mark.oracle(clause="F1 as in SQuAD", against="closed form")
@settings(max_examples=300, deadline=None)
@given(TEXT, TEXT)
def test_f1_equals_the_definition_wherever_words_are_left(said, wanted):
    expected = squad(said, wanted)
    if expected is not None:
        assert overlap(said, wanted) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=300, deadline=None)
@given(TEXT, st.lists(TEXT.filter(str.strip), min_size=1, max_size=3))
def test_overlap_is_symmetric_one_with_itself_and_never_below_exact_match(said, answers):
    assert all(overlap(said, a) == overlap(a, said) for a in answers)
    assert all(overlap(a, a) == 1 for a in answers)
    exact, f1 = value(ExactMatch(), said, *answers), value(F1(), said, *answers)
    assert (exact is None and f1 is None) or 0 <= exact <= f1 <= 1


def test_a_question_without_an_answer_has_no_exact_match_and_no_f1():
    for metric in (ExactMatch(), F1()):
        assert value(metric, "Paris") is None
        assert value(metric, "unknown", "Unknown.") is None  # written to teach abstention
        assert value(metric, "unknown", "unknown", "unknown", "not known") == 1.0  # listed among others: an answer
    assert math.isnan(F1().reduce([{"id": "q", "value": None}]))


def test_references_count_without_a_target_turn():
    example = question("q", "What?", references=("Paris",))
    (record,) = ExactMatch().score([example], [Prediction("q", "paris")], None)
    assert record == {"id": "q", "value": 1.0}


@pytest.mark.parametrize("text", ["", "  ", "Unknown.", "I don’t know", "I DON'T KNOW that one", "not in the documents",
                                  "The passage does not say which.", "Unknown: no such page"])
def test_abstentions(text):
    assert one(Abstains(), text) == {"id": "q", "value": 1.0, "abstained": True}
    assert one(OverAbstains(), text) == {"id": "q", "value": None, "abstained": True}
    assert one(Abstains(), text, "Paris") == {"id": "q", "value": None, "abstained": True}
    assert one(OverAbstains(), text, "Paris") == {"id": "q", "value": 1.0, "abstained": True}


@pytest.mark.parametrize("text", ["Paris", "Unknowns are refused", "It is unknown", "None", "**"])
def test_answers_are_no_abstentions(text):
    assert one(Abstains(), text) == {"id": "q", "value": 0.0, "abstained": False}
    assert one(OverAbstains(), text, "Rome") == {"id": "q", "value": 0.0, "abstained": False}


def test_a_right_answer_is_no_abstention_and_other_tasks_have_none():
    assert value(OverAbstains(), "Unknown", "unknown", "unknown") == 0.0
    assert one(Abstains(), "", task="completion") == {"id": "q", "value": None, "abstained": False}
    assert one(OverAbstains(), "", "x", task="completion")["value"] is None
    assert OverAbstains.higher_is_better is False


def test_phrases_can_be_named():
    assert value(Abstains(phrases=("pass",)), "Pass!") == 1.0
    assert value(Abstains(phrases=("pass",)), "unknown") == 0.0
    assert value(Abstains(phrases=("",)), "Paris") == 0.0


def test_accuracy_compares_labels_as_text():
    examples = [Example(str(i), label=label) for i, label in enumerate(["pos", "neg", 1, None, "pos"])]
    said = [Prediction(str(i), label=label) for i, label in enumerate(["pos", "pos", "1", "pos", None])]
    records = Accuracy().score(examples, said, None)
    assert [r["value"] for r in records] == [1.0, 0.0, 1.0, None, 0.0]
    assert Accuracy().reduce(records) == 0.5


def test_stops():
    assert value(Stops(), "x", "x", stopped=True) == 1.0
    assert value(Stops(), "x", "x", stopped=False) == 0.0
    assert value(Stops(), "", "x", label="pos") is None


def test_predictions_of_other_examples_are_refused():
    with pytest.raises(GateError, match="'b', the example is 'a'"):
        ExactMatch().score([question("a", "?", "x")], [Prediction("b")], None)
    with pytest.raises(GateError, match="1 examples but 0 predictions"):
        F1().score([question("a", "?", "x")], [], None)

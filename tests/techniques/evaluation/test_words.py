"""Metrics of the words of answers: rouge-l, groundedness, succinctness, abstention, similarity."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.citing import ABSTENTION
from luthier.core.errors import UserError
from luthier.core.example import question
from luthier.core.kinds import Prediction
from luthier.techniques.evaluation._shared import abstained, gold_answers
from luthier.techniques.evaluation.abstention import Abstention
from luthier.techniques.evaluation.groundedness import Groundedness
from luthier.techniques.evaluation.rouge_l import RougeL, common_subsequence, rouge_l
from luthier.techniques.evaluation.similarity import Similarity
from luthier.techniques.evaluation.succinctness import Succinctness

FIXTURE = json.loads((Path(__file__).parents[2] / "fixtures" / "rouge_l.json").read_text())
LETTERS = st.lists(st.sampled_from("abc"), max_size=7)


def one(metric, text, *answers, ctx=None, **said):
    """The record of one prediction for a question with these acceptable answers."""
    example = question("q", "What?", answers[0] if answers else "", references=answers[1:])
    (record,) = metric.score([example], [Prediction("q", text, **said)], ctx)
    assert record["id"] == "q"
    return record


@pytest.fixture
def ctx(make_ctx):
    return make_ctx("metric")


# --- rouge-l ---------------------------------------------------------------------------------------------------------


@pytest.mark.oracle(clause="ROUGE-L as in rouge-score", against="rouge-score 0.1.2")
def test_rouge_l_equals_the_package():
    for row in FIXTURE["rows"]:
        assert rouge_l(row["text"], row["answer"]) == pytest.approx(row["value"], abs=1e-12), row
    assert len(FIXTURE["rows"]) > 20


@pytest.mark.oracle(clause="longest common subsequence", against="brute force")
@settings(max_examples=150, deadline=None)
@given(LETTERS, LETTERS)
def test_the_subsequence_is_the_longest(left, right):
    def parts(of):
        return {c for n in range(len(of) + 1) for c in combinations(of, n)}
    assert common_subsequence(left, right) == max(map(len, parts(left) & parts(right)))


@pytest.mark.parametrize(("text", "answers", "value"), [
    ("a peg of dark ebony", ["a peg of ebony"], 2 * 4 / (5 + 4)),
    ("ebony dark", ["dark ebony"], 2 * 1 / (2 + 2)),  # order counts
    ("red", ["blue", "dark red"], 2 * 1 / (1 + 2)),  # the nearest answer
    ("膠は温かい", ["膠は冷たい"], 2 * 3 / (5 + 5)),  # a script without spaces: each character a word
    ("Été chaud", ["été"], 2 * 1 / (2 + 1)),
    ("**", ["**"], 1.0), ("**", ["*"], 0.0), ("", ["x"], 0.0),  # signs alone stand for themselves
])
def test_rouge_l_hand_cases(text, answers, value):
    assert one(RougeL(), text, *answers)["value"] == pytest.approx(value, abs=1e-12)


def test_rouge_l_needs_an_answer():
    assert one(RougeL(), "x")["value"] is None and one(RougeL(), "unknown", ABSTENTION)["value"] is None


# --- groundedness ----------------------------------------------------------------------------------------------------


@pytest.mark.oracle(clause="share of answer words in the passages", against="hand case")
@pytest.mark.parametrize(("text", "shown", "value", "unsupported"), [
    ("A peg of dark ebony", ["Pegs: a peg is of ebony."], 2 / 3, ["dark"]),
    ("ebony ebony oak", ["ebony"], 1 / 2, ["oak"]),  # different words
    ("oak ebony", ["an oak", "EBONY!"], 1.0, []),  # passages together
    ("of the", ["of no use"], 1 / 2, ["the"]),  # function words alone are judged as they are
    ("膠は温かい", ["膠は硬い"], 3 / 5, ["温", "か"]),
    ("", ["ebony"], None, []), (ABSTENTION, ["ebony"], None, []), ("ebony", [], None, []), ("**", ["ebony"], None, []),
])
def test_groundedness_hand_cases(text, shown, value, unsupported):
    record = one(Groundedness(), text, "x", shown=tuple(shown), passages=tuple(map(str, range(len(shown)))))
    assert record["value"] == (None if value is None else pytest.approx(value)) and record["unsupported"] == unsupported


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="ab c.", max_size=12), st.lists(st.text(alphabet="ab c.", max_size=12), min_size=1, max_size=3))
def test_more_passages_never_make_an_answer_less_grounded(text, shown):
    fewer = one(Groundedness(), text, shown=tuple(shown[:1]))["value"]
    more = one(Groundedness(), text, shown=tuple(shown))["value"]
    assert (fewer is None and more is None) or 0 <= fewer <= more <= 1
    assert one(Groundedness(), text, shown=(text,))["value"] in (None, 1.0)


# --- succinctness ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "answers", "value"), [
    ("one two three four", ["a b"], 2.0), ("one", ["a b"], 0.5), ("one two three", ["a", "a b c d"], 3 / 4),
    ("", ["a"], None), (ABSTENTION, ["a"], None), ("one", [], None), ("**", ["a b"], 0.5)])
def test_succinctness_hand_cases(text, answers, value):
    assert one(Succinctness(), text, *answers)["value"] == value
    assert Succinctness.higher_is_better is False


# --- abstention ------------------------------------------------------------------------------------------------------


def test_the_trained_sentence_is_an_abstention():
    assert abstained(ABSTENTION) and abstained(ABSTENTION.capitalize() + ".")
    assert gold_answers(question("q", "What?", ABSTENTION)) == ()


@pytest.mark.oracle(clause="precision, recall and F1 of abstention", against="scikit-learn's definition, by hand")
def test_abstention_is_counted_over_all_questions():
    # (answerable, abstained): 2 right abstentions, 1 missed, 1 too many, 2 right answers.
    cases = [(False, True), (False, True), (False, False), (True, True), (True, False), (True, False)]
    examples = [question(str(i), "What?", "x" if a else "") for i, (a, _) in enumerate(cases)]
    said = [Prediction(str(i), ABSTENTION if s else "y") for i, (_, s) in enumerate(cases)]
    metric = Abstention()
    records = metric.score(examples, said, None)
    assert metric.details(records) == {"precision": 2 / 3, "recall": 2 / 3, "f1": pytest.approx(2 / 3)}
    assert metric.reduce(records[:4]) == pytest.approx(2 * 2 / (3 + 3)) and {r["value"] for r in records} == {None}
    assert metric.details(records[2:3]) == {"recall": 0.0, "f1": 0.0}, "no precision where nothing was abstained from"
    assert metric.details(records[3:]) == {} and math.isnan(metric.reduce(records[4:]))


def test_abstention_has_limits():
    examples = [question(str(i), "What?", "x" if i % 4 else "") for i in range(20)]
    metric = Abstention()
    always = metric.details(metric.score(examples, [Prediction(e.id, "Unknown.") for e in examples], None))
    assert always == {"precision": 5 / 20, "recall": 1.0, "f1": pytest.approx(2 * 5 / (20 + 5))}
    right = replace(examples[1], turns=question("1", "What?", "unknown").turns, references=("unknown", "none known"))
    (record,) = metric.score([right], [Prediction("1", "unknown")], None)
    assert record["abstained"] is False, "a right answer is no abstention"
    (other,) = metric.score([replace(examples[0], task="chat")], [Prediction("0", "")], None)
    assert other["answerable"] is None and metric.details([other]) == {}


# --- similarity ------------------------------------------------------------------------------------------------------


class Axes:
    """An encoder by hand: a text is the angle that it names, in degrees."""

    def embed(self, model, texts, max_tokens):
        assert len(set(texts)) == len(texts), "each text is embedded once"
        angles = np.radians([float(t) for t in texts])
        return np.stack([np.cos(angles), np.sin(angles)], 1).astype("float32")


@pytest.mark.oracle(clause="cosine of reference and answer", against="closed form")
def test_similarity_is_the_cosine_with_the_nearest_answer(ctx):
    ctx = replace(ctx, engine=Axes(), roles={"encoder": None})
    assert one(Similarity(), "60", "0", ctx=ctx)["value"] == pytest.approx(0.5, abs=1e-6)
    assert one(Similarity(), "60", "0", "90", "180", ctx=ctx)["value"] == pytest.approx(math.cos(math.radians(30)), abs=1e-6)
    assert one(Similarity(), "180", "0", ctx=ctx)["value"] == pytest.approx(-1, abs=1e-6)
    assert one(Similarity(), " ", "0", ctx=ctx)["value"] == 0.0 and one(Similarity(), "5", ctx=ctx)["value"] is None


def test_similarity_by_an_encoder(ctx, engine, pico_encoder):
    ctx = replace(ctx, engine=engine, roles={"encoder": engine.load(pico_encoder)})
    assert one(Similarity(), "a peg", "a peg", ctx=ctx)["value"] == pytest.approx(1, abs=1e-5)
    with pytest.raises(UserError, match="similarity needs an encoder"):
        one(Similarity(), "a", "b", ctx=replace(ctx, roles={}))

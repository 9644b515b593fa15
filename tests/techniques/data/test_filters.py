"""The filters of questions: each reason by hand, and every row is either kept as it is or left out with its reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.core.example import Dropped, Example, question
from luthier.engine.rendering import Render, with_passages
from luthier.techniques.data._questions import content_words, jaccard, words
from luthier.techniques.data.answerable import Answerable
from luthier.techniques.data.distinct import Distinct
from luthier.techniques.data.self_contained import SelfContained

PASSAGE = "The float valve switches the pump off. A red lamp shows that the filter must be changed."


def row(asked: str, answer: str = "the float valve", passage: str = PASSAGE, id: str = "q") -> Example:
    return question(id, asked, answer, passage=passage)


def one(step: Any, example: Example, ctx: Any = None) -> Example | Dropped:
    (made,) = step.apply(iter([example]), ctx)
    return made


# --- words -----------------------------------------------------------------------------------------------------------


def test_words_keep_names_together_and_content_words_leave_the_rest():
    assert words("What's `os.path`, a __name__ or re-try?") == ["what's", "os.path", "a", "__name__", "or", "re-try"]
    assert content_words("What is the float valve of a pump?") == {"float", "valve", "pump"}
    assert jaccard("abc", "bcd") == 0.5 and jaccard("", "") == 0.0 and jaccard("a", "") == 0.0


# --- self-contained --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("asked", "why"), [
    ("What is it?", "3 words"),
    ("Which " + "very " * 40 + "old pump?", "43 words"),
    ("The pump is switched off by what.", "no question mark"),
    ("What does this passage say about pumps?", "points at its passage"),
    ("What does the author say about pumps?", "points at its passage"),
    ("What is the pump of the above made of?", "points at its passage"),
    ("Which pump is used in this case?", "points at its passage"),
    ("How does it switch the pump off?", "begins with a word that stands for something else"),
    ("Is this made of red brass?", "begins with a word that stands for something else"),
    ("What are they used for by pumps?", "begins with a word that stands for something else"),
    ("What is the use of it?", "no topic"),
])
def test_a_question_that_needs_its_passage_is_left_out(asked, why):
    assert one(SelfContained(), row(asked)) == Dropped("q", "not self-contained", f"{why}: {asked}")


@pytest.mark.parametrize("asked", [
    "What switches the pump off?", "What is said about passages of text?", "Which sections does a document have? ",
    "What happens when the lamp lights up in italics?",
])
def test_a_question_that_stands_alone_is_kept(asked):
    assert one(SelfContained(), row(asked)) == row(asked)


def test_the_bounds_of_length_are_legal():
    step = SelfContained(min_words=2, max_words=3)
    kept = [isinstance(one(step, row(f"{'pump ' * n}?")), Example) for n in (1, 2, 3, 4)]
    assert kept == [False, True, True, False]


# --- answerable: support ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("answer", "share"), [("a green lamp", "50%"), ("nobody knows", "0%"), ("?!", "0%")])
def test_an_answer_that_the_passage_does_not_hold_is_left_out(make_ctx, answer, share):
    dropped = one(Answerable(), row("What shows that?", answer), make_ctx("a"))
    assert dropped == Dropped("q", "not answerable",
                              f"{share} of the answer's words stand in the passage: What shows that? | {answer}")


def test_support_at_its_threshold_is_enough(make_ctx):
    half = row("What is shown?", "a green lamp")
    assert one(Answerable(support=0.5), half, make_ctx("a")) == half
    assert isinstance(one(Answerable(support=0.51), half, make_ctx("b")), Dropped)


def test_an_answer_that_only_repeats_its_question_is_left_out(make_ctx):
    asked = "Does the float valve switch the pump off?"
    dropped = one(Answerable(), row(asked, "the pump"), make_ctx("a"))
    assert dropped == Dropped("q", "answers itself", f"{asked} | the pump")


# --- answerable: gain ------------------------------------------------------------------------------------------------


class Scorer:
    """Stands for an engine that gives every answer `gain` nats a token more with its passage than without."""

    def __init__(self, gain: float) -> None:
        self.gain, self.asked = gain, []

    def score(self, model: Any, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, int]]:
        self.asked.append(len(pairs))
        return [(-9.0 * len(c) + (self.gain * len(c) if i % 2 == 0 else 0), len(c)) for i, (_, c) in enumerate(pairs)]


@pytest.fixture
def judged(make_ctx, engine, pico):
    """`judged(rows, scorer, **fields)`: what answerable makes of rows when a writer is at hand."""
    def run(rows: Sequence[Example], scorer: Any, name: str = "gain", **fields: Any) -> list[Example | Dropped]:
        ctx = make_ctx(name, roles={"writer": engine.load(pico)})
        return list(Answerable(**fields).apply(iter(rows), replace(ctx, engine=scorer)))

    return run


@pytest.mark.parametrize(("gain", "kept"), [(0.49, False), (0.5, True), (0.51, True), (-1.0, False)])
def test_the_gain_from_the_passage_decides(judged, gain, kept):
    asked = row("What switches it off?")
    (made,) = judged([asked], Scorer(gain))
    if kept:
        assert made == asked
    else:
        wanted = f"the passage adds {gain:.2f} nats a token: What switches it off? | the float valve"
        assert made == Dropped("q", "not answerable", wanted)


def test_each_answer_is_scored_with_its_passage_and_without(judged):
    scorer = Scorer(1.0)
    judged([row("What switches it off?", id="a"), row("What shows it?", "a red lamp", id="b")], scorer)
    assert scorer.asked == [4]


def test_a_longer_answer_that_stands_in_the_passage_is_not_scored(judged):
    literal = row("What must be done?", "the filter must be changed", id="literal")
    other = row("What must be done?", "the changed filter must be", id="other")
    scorer = Scorer(-5.0)
    made = judged([literal, other], scorer)
    assert [m for m in made if isinstance(m, Example)] == [literal]
    assert [m.id for m in made if isinstance(m, Dropped)] == ["other"] and scorer.asked == [2]


def test_what_was_scored_is_not_scored_again(judged):
    rows, first, again, other = [row("What switches it off?")], Scorer(1.0), Scorer(-5.0), Scorer(-5.0)
    assert judged(rows, first) == judged(rows, again) == rows
    assert (first.asked, again.asked) == ([2], [])
    (dropped,) = judged([row("What stops it then?")], other)
    assert isinstance(dropped, Dropped) and other.asked == [2], "another question is scored"


def test_the_gain_of_a_model_is_the_difference_of_its_log_probabilities(judged, engine, pico):
    asked, model = row("What switches it off?"), engine.load(pico)
    render = Render(model.tokenizer, model.architecture, model.limit)
    answer = render.encode(" the float valve")
    (seen, tokens), = engine.score(model, [(render.prompt(asked), answer)])
    (blind, _), = engine.score(model, [(render.prompt(with_passages(asked, ())), answer)])
    gain = (seen - blind) / tokens
    assert gain != 0
    assert judged([asked], engine, "below", gain=gain - 1e-4) == [asked]
    (dropped,) = judged([asked], engine, "above", gain=gain + 1e-4)
    assert dropped.detail.startswith(f"the passage adds {gain:.2f} nats a token: ")


def test_without_a_writer_support_alone_decides(make_ctx):
    asked = row("What switches it off?")
    assert one(Answerable(gain=99), asked, make_ctx("a")) == asked


# --- distinct --------------------------------------------------------------------------------------------------------


def test_a_question_is_asked_once():
    rows = [row("What switches the pump off?", id="a"), row("what switches THE pump off", id="b"),
            row("What switches the lamp off?", id="c")]
    assert list(Distinct().apply(iter(rows), None)) == [
        rows[0], Dropped("b", "repeats a question", "what switches THE pump off (as a)"), rows[2]]


def test_most_words_and_most_topic_words_must_be_common():
    first = "What does the function str.ljust(width) do to a text in the end?"
    other = first.replace("ljust", "rjust")
    assert jaccard(words(first), words(other)) >= 0.8 > jaccard(content_words(first), content_words(other))
    assert len([r for r in Distinct().apply(iter([row(first, id="a"), row(other, id="b")]), None)
                if isinstance(r, Example)]) == 2


def test_similarity_at_the_threshold_is_a_repetition():
    rows = [row("pump valve lamp wire?", id="a"), row("pump valve lamp hose?", id="b")]
    assert isinstance(list(Distinct(threshold=0.6).apply(iter(rows), None))[1], Dropped)
    assert isinstance(list(Distinct(threshold=0.61).apply(iter(rows), None))[1], Example)


# --- all -------------------------------------------------------------------------------------------------------------

VOCABULARY = "what is the float valve pump lamp red filter it this off ? passage it's".split()
texts = st.lists(st.sampled_from(VOCABULARY), max_size=8).map(" ".join)


@pytest.mark.parametrize("step", [SelfContained(), Answerable(), Distinct(threshold=0.5)], ids=lambda s: s.info.name)
@given(st.lists(st.tuples(texts, texts), max_size=8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
def test_every_row_is_kept_as_it_is_or_left_out_once(ctx, step, pairs):
    rows = [row(asked, answer, id=str(i)) for i, (asked, answer) in enumerate(pairs)]
    made = list(step.apply(iter(rows), ctx))
    assert sorted(m.id for m in made) == sorted(r.id for r in rows)
    kept = [m for m in made if isinstance(m, Example)]
    assert kept == [r for r in rows if r.id in {k.id for k in kept}], "kept rows are unchanged and in order"
    assert all(m.reason for m in made if isinstance(m, Dropped))
    assert list(step.apply(iter(kept), ctx)) == kept, "a second pass finds nothing more"

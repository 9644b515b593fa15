"""Curation: each reason by hand, rows kept as they are or named with their reason, and nothing found is told."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.example import Dropped, Example, Part, Passage, Turn, question
from luthier.techniques.data._curation import sentences, texts, with_texts
from luthier.techniques.data.contradictions import Contradictions
from luthier.techniques.data.near_duplicates import NearDuplicates
from luthier.techniques.data.profanity import Profanity


def asked(id: str, text: str, answer: str, **rest: Any) -> Example:
    return question(id, text, answer, **rest)


def passage(id: str, text: str) -> Passage:
    return Passage(id, text, "d", "d#s", ("Pumps",))


def apply(step: Any, rows: list[Any], ctx: Any) -> list[Any]:
    return list(step.apply(iter(rows), ctx))


def left_out(step: Any, rows: list[Any], ctx: Any) -> dict[str, str]:
    """Reason and detail of each dropped row; the others must come through untouched and in order."""
    made = apply(step, rows, ctx)
    assert [m.id for m in made] == [r.id for r in rows]
    assert all(m == r for m, r in zip(made, rows, strict=True) if not isinstance(m, Dropped))
    return {m.id: f"{m.reason}: {m.detail}" for m in made if isinstance(m, Dropped)}


# --- texts -----------------------------------------------------------------------------------------------------------

def test_every_text_that_a_model_may_see_is_looked_at_and_changed():
    call = Part({"id": "1", "name": "send", "arguments": {"to": ["a", {"cc": "b"}], "n": 3}}, type="tool_call")
    row = Example("x", (Turn("user", (Part("c", name="passage"), Part("img.png", type="image"))),
                        Turn("assistant", (Part("d"), call), target=True)), references=("e",),
                  rejected=Turn("assistant", (Part("f"),), target=True), meta={"kept": "g"})
    assert list(texts(row)) == ["c", "d", "1", "send", "a", "b", "f", "e"]
    changed = with_texts(row, str.upper)
    assert list(texts(changed)) == ["C", "D", "1", "SEND", "A", "B", "F", "E"]
    assert changed.meta == {"kept": "g"} and changed.turns[0].parts[1].value == "img.png"
    assert changed.turns[1].parts[1].value["arguments"]["n"] == 3
    assert list(texts(with_texts(passage("p", "a"), str.upper))) == ["PUMPS", "A"]


def test_sentences_end_before_a_capital_or_an_empty_line():
    assert sentences("It holds 3.5 l. See fig. 2! Is it (e.g. red)?\n\nyes") == [
        "It holds 3.5 l.", "See fig. 2!", "Is it (e.g. red)?", "yes"]


# --- contradictions --------------------------------------------------------------------------------------------------

CONTRADICT = [
    ("The large pump holds 40 litres.", "The large pump holds 60 litres."),
    ("Bone glue must be heated before use.", "Bone glue must not be heated before use."),
    ("The large pump holds four litres.", "The large pump holds 5 litres."),
    ("The green lamp doesn't burn at night.", "The green lamp does burn at night."),
    ("Old pumps never leak in winter.", "Old pumps leak in winter."),
]
AGREE = [
    ("The large pump holds 40 litres.", "The small pump holds 60 litres."),
    ("The large pump holds four litres.", "The large pump holds 4 litres."),
    ("Step 1 opens the float valve.", "Step 2 opens the float valve."),
    ("Figure 3 shows the float valve open.", "Figure 4 shows the float valve open."),
    ("Bone glue must be heated before use.", "Bone glue must be heated before use."),
    ("Does the large pump hold 40 litres?", "Does the large pump hold 60 litres?"),
    ("It is 4.", "It is 5."),
]


@pytest.mark.oracle(clause="statements that differ in a number or a negation", against="hand case")
@pytest.mark.parametrize(("one", "two"), CONTRADICT)
def test_statements_that_differ_in_a_number_or_a_negation_contradict(one, two, ctx):
    for rows in ([passage("a", f"Before. {one}"), passage("b", f"{two} After.")],
                 [passage("b", two), passage("a", one)]):
        found = left_out(Contradictions(), rows, ctx)
        assert set(found) == {"a", "b"} and all(why.startswith("contradiction: says '") for why in found.values())
        assert "where b says" in found["a"]


@pytest.mark.oracle(clause="statements that differ in a number or a negation", against="hand case")
@pytest.mark.parametrize(("one", "two"), AGREE)
def test_statements_of_different_things_or_of_the_same_do_not(one, two, ctx):
    assert not left_out(Contradictions(), [passage("a", one), passage("b", two)], ctx)


@pytest.mark.oracle(clause="answers to one question", against="hand case")
@pytest.mark.parametrize(("one", "two", "disagree"), [
    ("40 litres", "60 litres", True), ("the float valve", "a red lamp", True), ("yes", "no", True),
    ("it must be heated slowly", "it must not be heated slowly", True),
    ("the float valve", "The float valve.", False), ("the float valve", "the float valve of the pump", False),
    ("40 litres of water", "40 litres", False), ("12", "twelve", False),
    ("the old float valve opens", "the old float valve closes", False),
])
def test_answers_to_one_question(one, two, disagree, ctx):
    rows = [asked("a", "What does it hold?", one), asked("b", "what does  it hold?", two),
            asked("c", "What else does it hold?", "a lamp")]
    assert set(left_out(Contradictions(), rows, ctx)) == ({"a", "b"} if disagree else set())
    first = left_out(Contradictions(keep="first"), rows, ctx)
    assert set(first) == ({"b"} if disagree else set())


def test_the_same_question_about_another_passage_is_another_question(ctx):
    rows = [asked("a", "What does it hold?", "40 litres", passage="The old pump."),
            asked("b", "What does it hold?", "60 litres", passage="The new pump.")]
    assert not left_out(Contradictions(), rows, ctx)


def test_a_row_that_contradicts_itself_stays(ctx):
    assert not left_out(Contradictions(), [passage("a", f"{CONTRADICT[0][0]} {CONTRADICT[0][1]}")], ctx)


def test_a_judge_has_the_last_word(ctx, monkeypatch):
    class Judge:
        identity, tokenizer, architecture, limit = "judge", None, "decoder", 64

    from luthier.engine import rendering

    class Render:
        def __init__(self, *given): ...
        def prompt(self, example): return [len(example.part("question"))]
        def encode(self, text): return [1 if text == " yes" else 0]

    seen: list[Any] = []

    class Engine:
        def score(self, model, pairs):
            seen.extend(pairs)
            return [((5.0 if n < 2 else -5.0) * (continuation == [1]), 1) for n, (_, continuation) in enumerate(pairs)]

    monkeypatch.setattr(rendering, "Render", Render)
    ctx.roles, ctx.engine = {"judge": Judge()}, Engine()
    rows = [passage("a", CONTRADICT[0][0]), passage("b", CONTRADICT[0][1]),
            passage("c", CONTRADICT[1][0]), passage("d", CONTRADICT[1][1])]
    assert set(left_out(Contradictions(), rows, ctx)) == {"a", "b"}, "the judge saw the second pair otherwise"
    assert len(seen) == 4


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from("abc"), st.text(max_size=12)), max_size=6))
def test_no_row_is_lost_whatever_it_holds(ctx, given_rows):
    rows = [asked(f"q{n}", topic, answer) for n, (topic, answer) in enumerate(given_rows)]
    for step in (Contradictions(), Contradictions(keep="first"), Profanity()):
        left_out(step, rows, ctx)
    groups: dict[str, set[str]] = {}
    for topic, answer in given_rows:
        groups.setdefault(topic, set()).add(answer)
    if all(len(answers) == 1 for answers in groups.values()):
        assert not left_out(Contradictions(), rows, ctx), "equal answers never contradict"


# --- near-duplicates of examples -------------------------------------------------------------------------------------

LONG = "The float valve switches the pump off when the tank is full and the red lamp goes out"


def test_of_examples_what_is_said_counts_and_not_the_passage_they_show(ctx):
    rows = [asked("a", "What switches the pump off?", "the float valve", passage=LONG),
            asked("b", "When does the lamp go out?", "when the tank is full", passage=LONG),
            asked("c", "what switches  the pump off?", "The float valve", passage="another"),
            asked("d", LONG, LONG), asked("e", LONG, f"{LONG} again")]
    assert left_out(NearDuplicates(threshold=0.8), rows, ctx) == {
        "c": "duplicate of a: same text", "e": "duplicate of d: Jaccard 0.95"}, "18 of 19 grams"


# --- profanity -------------------------------------------------------------------------------------------------------

@pytest.mark.oracle(clause="coarse words by class", against="hand case")
@pytest.mark.parametrize(("text", "mild", "strong"), [
    ("Damn, the fucking pump!", 1, 1), ("This is sh1t and f*cked, F***!", 0, 3), ("crap CRAPPY bastards", 2, 1),
    ("Scunthorpe, Dickens, cocktail, shiitake, assess, peacock", 0, 0), ("user@shit.example $hit", 0, 1),
    ("A pump is damned; the dam holds.", 1, 0), ("", 0, 0),
])
def test_words_are_counted_by_class(text, mild, strong):
    assert Profanity(level="mild").count(text) == +type(Profanity().count(""))(mild=mild, strong=strong)
    assert Profanity().count(text).total() == strong


def test_rows_with_more_than_allowed_are_left_out_and_no_word_is_told(ctx):
    rows = [asked("a", "Why?", "fuck this"), asked("b", "Damn, why?", "so"), asked("c", "Why?", "such a Blimey day")]
    assert left_out(Profanity(), rows, ctx) == {"a": "profanity: 1 strong"}
    assert left_out(Profanity(level="mild", further=("blimey",)), rows, ctx) == {
        "a": "profanity: 1 strong", "b": "profanity: 1 mild", "c": "profanity: 1 further"}
    assert not left_out(Profanity(most=1), rows, ctx)


# --- language --------------------------------------------------------------------------------------------------------

ENGLISH = "The float valve switches the pump off as soon as the tank is full of water."
GERMAN = "Das Schwimmerventil schaltet die Pumpe aus, sobald der Tank mit Wasser gefüllt ist."
FRENCH = "La soupape à flotteur arrête la pompe dès que le réservoir est rempli d'eau froide."


@pytest.mark.oracle(clause="the language of a text", against="hand case")
def test_rows_in_another_language_are_left_out(ctx):
    pytest.importorskip("py3langid")
    rows = [passage("en", ENGLISH), passage("de", GERMAN), passage("fr", FRENCH), passage("short", "Die Pumpe."),
            passage("numbers", "1234 5678 9012 " * 9)]
    found = left_out(build("data_step", "language"), rows, ctx)
    assert set(found) == {"de", "fr"} and found["de"].startswith("other language: de, probability ")
    assert set(left_out(build("data_step", "language:keep=[de,fr]"), rows, ctx)) == {"en"}
    assert set(left_out(build("data_step", "language:min_letters=1000"), rows, ctx)) == set()


def test_a_language_that_is_none_is_refused(ctx):
    pytest.importorskip("py3langid")
    with pytest.raises(UserError, match="keep names 'english'"):
        apply(build("data_step", "language:keep=[english]"), [passage("a", ENGLISH)], ctx)


# --- personal data ---------------------------------------------------------------------------------------------------

SECRETS = [  # (text, kind, what must not be told); checked numbers by their own published examples
    ("Write to jane.doe@example.com today.", "email", "jane.doe"),
    ("Pay with 4111 1111 1111 1111 now.", "credit-card", "4111 1111"),
    ("Account DE89 3704 0044 0532 0130 00 it is.", "iban", "3704"),
    ("Call +44 20 7946 0958 at noon.", "phone", "7946"),
]
HARMLESS = ["Write to jane at example dot com.", "Pay with 4111 1111 1111 1112 now.", "Version 3.11.4 of 2024.",
            "Account DE89 3704 0044 0532 0130 01 it is.", "a@b", "The pump holds 40 litres."]


@pytest.mark.oracle(clause="personal data by its form", against="hand case")
@pytest.mark.parametrize(("text", "kind", "secret"), SECRETS)
def test_what_has_a_form_is_masked_and_never_told(text, kind, secret, ctx, log, caplog, capfd):
    pytest.importorskip("presidio_analyzer")
    kinds = "{kinds: [email, credit-card, iban, phone]}"
    with caplog.at_level(logging.DEBUG):
        (masked,) = apply(build("data_step", f"personal-data:{kinds}"), [asked("a", text, f"Yes. {text}")], ctx)
        (dropped,) = apply(build("data_step", "personal-data:action=drop"), [asked("a", text, "Yes.")], ctx)
    assert f"<{kind.upper()}>" in masked.part("question") and f"<{kind.upper()}>" in masked.answer
    assert all(secret not in t for t in texts(masked))
    assert dropped == Dropped("a", "personal data", f"1 {kind}")
    told = "".join(log) + dropped.detail + caplog.text + "".join(capfd.readouterr())
    assert secret not in told and log == [f"personal-data masked 2 {kind}"]


@pytest.mark.parametrize("text", HARMLESS)
def test_what_fails_its_check_or_has_no_form_stays(text, ctx):
    pytest.importorskip("presidio_analyzer")
    step = build("data_step", "personal-data:kinds=[email,credit-card,iban]")
    assert not left_out(step, [asked("a", text, text)], ctx)


def test_a_row_whose_target_spans_would_move_is_left_out(ctx):
    pytest.importorskip("presidio_analyzer")
    spanned = Example("a", (Turn("user", (Part("Who?"),)),
                            Turn("assistant", (Part("jane@example.com is it"),), target=True, spans=((17, 22),))))
    assert left_out(build("data_step", "personal-data"), [spanned], ctx)["a"].startswith("personal data: 1 email; its")

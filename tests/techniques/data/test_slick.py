"""slick: a scripted model is sorted into the paper's categories, and no question is shown its own answer."""

from __future__ import annotations

from dataclasses import replace

import pytest

from luthier.core.errors import UserError
from luthier.core.example import Dropped, question
from luthier.engine.generation import Generated
from luthier.techniques.data.slick import Slick, category

RIGHT = {"q0": (10, 0), "q1": (3, 0), "q2": (0, 1), "q3": (0, 0)}  # right greedy answers of 10, right samples of 160
KINDS = {"q0": "HighlyKnown", "q1": "MaybeKnown", "q2": "WeaklyKnown", "q3": "Unknown"}


class Scripted:
    """An engine whose model answers by the script; keeps the prompts it was given."""

    def __init__(self, tokenizer) -> None:
        self.tokenizer, self.prompts = tokenizer, []

    def generate(self, model, prompts, decoder, **rest):
        said: dict[tuple[str, str], int] = {}
        made = []
        for prompt in prompts:
            text = self.tokenizer.decode(prompt)
            self.prompts.append(text)
            asked = text.rpartition("Question: ")[2].partition("?")[0].split()[-1]
            count = said[asked, decoder.info.name] = said.get((asked, decoder.info.name), 0) + 1
            of = RIGHT.get(asked, (10, 0))[decoder.info.name == "sample"]
            made.append(Generated(f" The {asked}.\nmore" if count <= of else " wrong", 3, True, len(prompt)))
        return made


def rows(relations: int = 1):
    names = [*RIGHT, "q4", "q5", "q6", "q7"]
    return [question(n, f"What is {n}?", f"the {n}", cluster=n, meta={"relation": f"r{i % relations}"})
            for i, n in enumerate(names)]


@pytest.fixture
def asked(make_ctx, engine, pico):
    model = engine.load(pico)
    script = Scripted(model.tokenizer)
    lines: list[str] = []
    return replace(make_ctx("slick", roles={"writer": model}), engine=script, log=lines.append), script, lines


@pytest.mark.oracle(seed=34, clause=1, against="scripted model")
def test_a_scripted_model_is_sorted(asked):
    ctx, script, lines = asked
    found = {r.id: r.meta for r in Slick().apply(iter(rows()), ctx)}
    assert {name: found[name]["knowledge"] for name in KINDS} == KINDS
    assert [found[n]["known_share"] for n in ("q0", "q1", "q2")] == [1.0, 0.3, 0.0]
    assert len(script.prompts) == 8 * 10 + 2 * 10 * 16, "samples only where no greedy answer is right"
    assert lines[-1] == "slick: 5 HighlyKnown, 1 MaybeKnown, 1 WeaklyKnown, 1 Unknown"


@pytest.mark.oracle(seed=34, clause=1, against="hand case")
def test_the_bounds_of_the_categories():
    assert [category(*p) for p in ((1, 0), (0.1, 0), (0.9, 1), (0, 1 / 160), (0, 0))] == [
        "HighlyKnown", "MaybeKnown", "MaybeKnown", "WeaklyKnown", "Unknown"]


@pytest.mark.oracle(seed=34, clause=5, against="the prompts themselves")
def test_no_question_is_among_its_own_examples(asked):
    ctx, script, _ = asked
    twice = [*rows(), question("again", "What is  q0?", "the q0", cluster="again", meta={"relation": "r0"})]
    list(Slick(samples=1).apply(iter(twice), ctx))
    for text in script.prompts:
        shown, _, last = text.rpartition("Question: ")
        word = last.partition("?")[0].split()[-1]
        assert f"{word}?" not in shown and shown.count("Question:") == 4 and shown.count("Answer: the") == 4


def test_examples_are_of_the_same_relation_where_it_has_enough(asked):
    ctx, script, lines = asked
    list(Slick(shots=3, samples=0).apply(iter(rows(2)), ctx))
    for text in script.prompts:
        numbers = {int(w[1]) % 2 for w in text.replace("?", " ").split() if w[0] == "q" and w[1:].isdigit()}
        assert len(numbers) == 1
    assert not [line for line in lines if "fewer than" in line]
    list(Slick(shots=4, samples=0).apply(iter(rows(2)), ctx))
    assert any("fewer than 5" in line for line in lines)


def test_rows_are_kept_dropped_or_relabelled(asked):
    ctx, _, _ = asked
    made = list(Slick(keep="known").apply(iter(rows()), ctx))
    assert [(m.id, m.detail) for m in made if isinstance(m, Dropped)] == [("q3", "Unknown; known is kept")]
    made = list(Slick(relabel="I don't know").apply(iter(rows()), ctx))
    assert [m.answer for m in made if m.meta["knowledge"] == "Unknown"] == ["I don't know"] and len(made) == 8


def test_long_answers_and_too_few_rows_are_refused(asked):
    ctx, _, _ = asked
    with pytest.raises(UserError, match="short answers.*row long has 11"):
        list(Slick().apply(iter([*rows(), question("long", "Why?", "so " * 11)]), ctx))
    with pytest.raises(UserError, match="more than 4 questions"):
        list(Slick().apply(iter(rows()[:4]), ctx))

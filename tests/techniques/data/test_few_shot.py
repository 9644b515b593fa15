"""few-shot: what the writer is shown, how its text is read, and which passages it is asked about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from luthier.core.errors import UserError
from luthier.core.example import Dropped, Example, Passage
from luthier.core.rng import Rng
from luthier.engine.generation import Generated
from luthier.techniques.data._questions import SHOTS
from luthier.techniques.data.few_shot import FewShot

LONG = "The clamp holds two boards together while the glue between them dries, which takes about a day in a cold room."
GOOD = "What does the clamp hold?\nAnswer: two boards"


class Writer:
    """Stands for an engine: says the given texts, the last one over and over, and remembers what it was asked."""

    def __init__(self, *texts: str) -> None:
        self.texts, self.prompts, self.options = texts or (GOOD,), [], {}

    def generate(self, model: Any, prompts: Sequence[list[int]], decoder: Any, **options: Any) -> list[Generated]:
        self.prompts = [model.tokenizer.decode(p) for p in prompts]
        self.options = options
        said = [*self.texts, *[self.texts[-1]] * len(prompts)]
        return [Generated(text, 9, True, len(p)) for text, p in zip(said, prompts, strict=False)]


def pages(sections: int, each: int = 1, text: str = LONG) -> list[Passage]:
    return [Passage(f"d:{s}.{i}", f"{text} It is number {i} of {s}.", "d", f"s{s}", ("Guide", f"Part {s}"))
            for s in range(sections) for i in range(each)]


@pytest.fixture
def write(make_ctx, engine, pico):
    """`write(passages, writer, seed, **fields)`: the rows that few-shot makes."""
    def run(rows: Sequence[Passage], writer: Writer, seed: int = 0, **fields: Any) -> list[Example | Dropped]:
        ctx = make_ctx("few-shot", roles={"writer": engine.load(pico)})
        return list(FewShot(**fields).apply(iter(rows), replace(ctx, rng=Rng(seed), engine=writer)))

    return run


def test_the_writer_sees_the_solved_examples_then_the_passage_below_its_headings(write):
    writer = Writer()
    write([Passage("d:0", "Clamps\nhold  boards.", "d", "s", ("Guide", "Clamps"))], writer, min_words=1)
    (prompt,) = writer.prompts
    assert prompt.startswith("<bos>Passage: ") and prompt.count("<bos>") == 1
    assert prompt.endswith("\n\nPassage: Guide / Clamps: Clamps hold boards.\nQuestion:")
    for shot, question, answer in SHOTS:
        assert f"Passage: {shot}\nQuestion: {question}\nAnswer: {answer}\n\n" in prompt
    assert writer.options["stop"] == "two lines" and writer.options["journal"] is not None


def test_without_headings_the_passage_stands_alone(write):
    writer = Writer()
    write([Passage("d:0", "Clamps hold boards.", "d", "s")], writer, min_words=1)
    assert writer.prompts[0].endswith("\n\nPassage: Clamps hold boards.\nQuestion:")


def test_a_question_with_its_answer_is_a_row_of_its_section(write):
    (row,) = write(pages(1), Writer("  What does the clamp hold? \nAnswer:  two boards "))
    assert (row.part("question"), row.answer) == ("What does the clamp hold?", "two boards")
    assert (row.id, row.source, row.cluster) == ("few-shot/d:0.0/0", "d:0.0", "s0")
    assert (row.references, row.part("passage")) == (("two boards",), pages(1)[0].shown)
    assert row.meta == {"generator": "few-shot", "gold": ["d:0.0"], "headings": ["Guide", "Part 0"]}


@pytest.mark.parametrize("text", [
    "", "What does the clamp hold?", "What does the clamp hold?\nAnswer:", "What does the clamp hold?\nAnswer: \t ",
    "What does the clamp hold?\nAnswer:\nPassage: Glue is warm.", "What does the clamp hold?\ntwo boards",
    "The clamp holds two boards.\nAnswer: two boards", "Why?\nAnswer: two boards", "Answer: two boards",
    "What does the clamp hold? Tell me.\nAnswer: two boards",
    f"What does the {'very ' * 70}old clamp hold?\nAnswer: boards",
    f"What does the clamp hold?\nAnswer: {'boards and ' * 40}",
])
def test_whatever_else_it_writes_is_left_out_with_the_text(write, text):
    (row,) = write(pages(1), Writer(text))
    assert row == Dropped("few-shot/d:0.0", "not a question and an answer", text[:200])


def test_every_passage_that_is_asked_about_is_a_row_or_left_out(write):
    rows = write(pages(6), Writer(GOOD, "no", GOOD, "no", GOOD, "no"))
    assert Counter(type(r) for r in rows) == {Example: 3, Dropped: 3}


def test_passages_are_spread_over_the_sections(write):
    rows = write(pages(4, each=5), Writer(), passages=10)
    assert sorted(Counter(r.cluster for r in rows).values()) == [2, 2, 3, 3]
    assert len(write(pages(2, each=2), Writer(), passages=10)) == 4
    uneven = [*pages(1, each=5), *pages(2)[1:]]
    assert Counter(r.cluster for r in write(uneven, Writer(), passages=4)) == {"s0": 3, "s1": 1}


def test_short_passages_are_not_asked_about(write):
    short = Passage("d:x", "Clamps hold boards.", "d", "sx")
    assert [r.source for r in write([short, *pages(1)], Writer())] == ["d:0.0"]
    assert write([short], Writer()) == []


def test_the_seed_decides_which_sections_are_asked_about(write):
    def chosen(seed: int) -> list[str]:
        return [r.source for r in write(pages(30), Writer(), seed=seed, passages=5)]

    assert chosen(1) == chosen(1)
    assert len({tuple(chosen(seed)) for seed in range(4)}) == 4


def test_a_missing_writer_is_refused_with_what_to_do(make_ctx):
    with pytest.raises(UserError, match=r"inputs: \{writer: base\}"):
        list(FewShot().apply(iter(pages(1)), make_ctx("few-shot")))


def test_finished_batches_are_not_written_again(make_ctx, engine, pico, monkeypatch):
    def rows() -> list[Any]:
        ctx = make_ctx("few-shot", roles={"writer": engine.load(pico)})
        return list(FewShot(decoder="greedy:max_new_tokens=4").apply(iter(pages(2)), ctx))

    first = rows()
    monkeypatch.setattr("luthier.engine.generation.Scheduler", None)  # a second generation would fail
    assert rows() == first and len(first) == 2

"""test-questions: each question is tied to the passages that hold its quote, or named with what is wrong with it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from luthier.core.artifact import Artifact, seal
from luthier.core.errors import UserError
from luthier.core.example import Passage
from luthier.core.files import write_rows
from luthier.pipelines.steps.written_questions import TestQuestions

TEXTS = {
    ("pump.md", "Valves"): ["The float valve switches the pump off. It hangs on a rod that is",
                            "made of brass and four inches long. A red lamp shines."],
    ("pump.md", "Lamps"): ["A red lamp shines.", "It shows that the filter must be changed."],
    ("more/tank.md", "Tank"): ["The tank holds 180 litres.\n\nA red  lamp\nshines."],
}
PASSAGES = [Passage(f"{page}:{heading}:{i}", text, page, f"{page}#{heading}", (heading,))
            for (page, heading), texts in TEXTS.items() for i, text in enumerate(texts)]
ROW = {"id": "q1", "set": "known", "question": "What stops the pump?", "answers": ["the float valve", "a valve"],
       "quote": "The float valve switches the pump off."}


@pytest.fixture
def documents(tmp_path) -> Artifact:
    write_rows(tmp_path / "documents" / "passages", (p.to_dict() for p in PASSAGES))
    return seal("documents", tmp_path / "documents")


@pytest.fixture
def read(tmp_path, documents, make_ctx):
    """`read(rows, **fields)`: the artifact of these rows, its receipt agreeing; what was said is in `read.log`."""
    def run(*rows: dict[str, Any], **fields: Any) -> Artifact:
        step, run.log = TestQuestions(path=write(tmp_path, *rows), **fields), []
        step.check()
        ctx = replace(make_ctx("test"), log=run.log.append)
        made = step.run({"documents": documents}, ctx)
        assert [r.verdict for r in step.receipts({}, made, ctx)] == ["agrees"]
        return made

    return run


def write(folder: Path, *rows: Any) -> str:
    lines = [r if isinstance(r, str) else json.dumps(r) for r in rows]
    (folder / "questions.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return str(folder / "questions.jsonl")


def row(**changed: Any) -> dict[str, Any]:
    return {k: v for k, v in {**ROW, **changed}.items() if v is not ...}


def gold(made: Artifact) -> list[str]:
    return [name for e in made.examples("known") for name in e.meta["gold"]]


# --- quotes ----------------------------------------------------------------------------------------------------------


def test_a_question_belongs_to_the_section_that_holds_its_quote(read):
    (example,) = read(ROW).examples("known")
    assert (example.source, example.cluster) == ("pump.md:Valves:0", "pump.md#Valves")
    assert (example.part("question"), example.part("passage")) == ("What stops the pump?", "")
    assert (example.answer, example.references) == ("the float valve", ("the float valve", "a valve"))
    assert example.meta == {"gold": ["pump.md:Valves:0"], "quote": ROW["quote"]}


def test_every_passage_with_the_quote_is_gold_and_white_space_does_not_count(read):
    wanted = ["pump.md:Valves:1", "pump.md:Lamps:0", "more/tank.md:Tank:0"]
    assert gold(read(row(quote="A red lamp\n shines."))) == wanted
    assert gold(read(row(quote="A red lamp shines.", page="pump.md"))) == wanted[:2]
    assert gold(read(row(quote="A red lamp shines.", page="tank.md"))) == wanted[2:]


@pytest.mark.parametrize(("quote", "passage"), [
    ("switches the pump off. It hangs on a rod that is made of brass", "pump.md:Valves:0"),
    ("that is made of brass and four inches long", "pump.md:Valves:1"),
    ("four inches long. A red lamp shines. A red lamp shines. It shows", "pump.md:Valves:1"),
    ("brass and four inches long. A red lamp shines. A red lamp shines. It shows that the filter must be changed.",
     "pump.md:Valves:1"),
])
def test_a_quote_across_a_boundary_belongs_to_the_passage_with_its_largest_part(read, quote, passage):
    assert gold(read(row(quote=quote))) == [passage]


WRONG = {"another word": "The float valve switches the lamp off.",
         "half of it made up": "The float valve switches the pump, or so it is said.",
         "of two pages": "the filter must be changed. The tank holds 180 litres."}


@pytest.mark.parametrize("quote", WRONG.values(), ids=WRONG)
def test_a_quote_that_no_page_holds_is_refused_or_left_out(read, quote):
    with pytest.raises(UserError, match="1 test questions have a quote that no passage holds: lost.*: drop"):
        read(ROW, row(id="lost", quote=quote))
    made = read(ROW, row(id="lost", quote=quote), missing_quotes="drop")
    assert made.ledger() == [{"id": "lost", "reason": "quote not found", "detail": ""}]
    assert made.meta["rows"] == {"known": 1, "unseen": 0, "unanswerable": 0} and made.meta["read"] == 2
    assert read.log == ["1 test questions left out: their quotes are not in these documents"]


def test_a_quote_of_another_page_is_not_found(read):
    with pytest.raises(UserError, match="no passage holds"):
        read(row(page="tank.md"))


def test_sets_are_kept_apart_and_what_has_no_answer_needs_no_quote(read):
    made = read(ROW, row(id="q2", set="unseen"), row(id="q3", set="unanswerable", answers=[], quote=..., page=None))
    assert made.subsets == ["known", "unanswerable", "unseen"] and made.meta["rows"] == dict.fromkeys(made.subsets, 1)
    (silent,) = made.examples("unanswerable")
    assert (silent.answer, silent.references, silent.cluster, silent.meta["gold"]) == ("", (), "unanswerable/q3", [])


# --- rows that can't be read -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bad", "why"), [
    ("{", r"line 2: broken JSON"),
    ([1], r"line 2: not a JSON object"),
    (row(id="b", quotes="x"), r"line 2: unknown key 'quotes'. Did you mean 'quote'\?"),
    (row(id="b", question=...), r"line 2: no 'question'; its keys are id, set, answers, quote"),
    (row(id="b", set="knwon"), r"line 2: set is 'knwon'. Did you mean 'known'\?"),
    (row(id="b", quote=...), r"line 2: an answerable question needs 'answers' and a 'quote'"),
    (row(id="b", answers=[]), r"line 2: an answerable question needs"),
    (row(id="b", answers="a valve"), r"line 2: answers is 'a valve', not a list of texts"),
    (row(id=7), r"line 2: id is 7, not a text"),
    (ROW, r"line 2: id 'q1' is that of line 1"),
])
def test_a_bad_row_is_named_by_its_line_before_anything_runs(tmp_path, bad, why):
    with pytest.raises(UserError, match=why):
        TestQuestions(path=write(tmp_path, ROW, bad)).check()


def test_problems_are_listed_and_counted(tmp_path):
    with pytest.raises(UserError, match=r"line 1: .*; line 3: .*; line 4: .* and 2 more$") as caught:
        TestQuestions(path=write(tmp_path, "{", "", *["{"] * 6)).check()
    assert str(caught.value).count("broken JSON") == 5


def test_a_missing_an_empty_and_a_foreign_file_are_refused(tmp_path):
    with pytest.raises(UserError, match="no file of test questions"):
        TestQuestions(path=str(tmp_path / "none.jsonl")).check()
    with pytest.raises(UserError, match="holds no questions"):
        TestQuestions(path=write(tmp_path, "", " ")).check()
    (tmp_path / "latin.jsonl").write_bytes(json.dumps(row(question="Ça va?"), ensure_ascii=False).encode("latin-1"))
    with pytest.raises(UserError, match="save it as UTF-8"):
        TestQuestions(path=str(tmp_path / "latin.jsonl")).check()


def test_the_key_follows_the_file(tmp_path):
    step = TestQuestions(path=write(tmp_path, ROW))
    before = step.content()
    assert step.content() == before
    write(tmp_path, row(question="What halts the pump?"))
    assert step.content() != before


def test_the_receipt_sees_a_lost_row(read):
    made = read(ROW)
    meta = {**made.meta, "read": 2}
    assert TestQuestions(path="x").receipts({}, replace(made, meta=meta), None)[0].verdict == "differs"

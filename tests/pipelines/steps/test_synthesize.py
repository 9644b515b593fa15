"""synthesize: every source writes, every filter looks at all rows, and the counts of both add up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from luthier.core.artifact import Artifact, seal
from luthier.core.errors import UserError
from luthier.core.example import Dropped, Example, Passage
from luthier.core.files import read_lines, write_rows
from luthier.core.kinds import DataStep
from luthier.core.step import Ctx
from luthier.pipelines.steps.synthesize import Synthesize
from luthier.techniques.data._questions import written

TEXTS = ["A module is a file of definitions.", "A class is a maker of objects.", "It is long, and says nothing."]


class Every(DataStep, name="test-every"):
    """Asks about every passage that is short, and gives up on the others."""

    def apply(self, rows: Iterator[Passage], ctx: Ctx) -> Iterator[Example | Dropped]:
        for p in rows:
            if len(p.text) > 30:
                yield Dropped(f"test-every/{p.id}", "too long")
            else:
                yield written(p, 0, "test-every", f"What is written in {p.id}?", p.text)


class About(DataStep, name="test-about"):
    """Leaves out the questions that lack a word."""

    word: str = "class"

    def apply(self, rows: Iterator[Example], ctx: Ctx) -> Iterator[Example | Dropped]:
        for row in rows:
            yield row if self.word in row.part("question") else Dropped(row.id, "another topic", row.part("question"))


@pytest.fixture
def documents(tmp_path) -> Artifact:
    rows = [Passage(f"d:{i}", t, "d", f"d#{i}") for i, t in enumerate(TEXTS)]
    write_rows(tmp_path / "documents" / "passages", (p.to_dict() for p in rows))
    (tmp_path / "documents" / "licenses").mkdir()
    (tmp_path / "documents" / "licenses" / "TERMS.txt").write_text("terms")
    return seal("documents", tmp_path / "documents")


@pytest.fixture
def make(documents, make_ctx):
    """`make(**fields)`: the artifact and its receipt; what was said is in `make.log`."""
    def run(inputs: dict[str, Artifact] | None = None, **fields: Any) -> tuple[Artifact, Any]:
        inputs, step, run.log = {"documents": documents, **(inputs or {})}, Synthesize(**fields), []
        ctx = replace(make_ctx("synthesize"), log=run.log.append)
        artifact = step.run(inputs, ctx)
        (found,) = step.receipts(inputs, artifact, ctx)
        return artifact, found

    return run


def test_rows_of_all_sources_and_the_ledger_make_what_was_written(make):
    artifact, found = make(sources=("headings", "test-every"), filters=())
    assert [e.id for e in artifact.examples("all")] == ["headings/d:0/0", "headings/d:1/0", "test-every/d:1/0",
                                                        "test-every/d:2/0"]
    assert artifact.ledger() == [{"id": "test-every/d:0", "reason": "too long", "detail": ""}]
    assert (found.verdict, found.left, found.right) == ("agrees", 5, 5)
    assert artifact.meta["rows"] == {"all": 4} and artifact.meta["dropped"] == 1
    assert (Path(artifact.folder) / "licenses" / "TERMS.txt").read_text() == "terms"


def test_yields_are_counted_by_source_after_each_filter(make):
    artifact, found = make(sources=("headings", "test-every"), filters=("self-contained", "test-about"))
    assert artifact.meta["yields"] == {
        "headings": {"written": 2, "parsed": 2, "self-contained": 2, "test-about": 1},
        "test-every": {"written": 3, "parsed": 2, "self-contained": 2, "test-about": 0}}
    assert make.log[1] == "test-every: 3 written, 2 parsed, 2 self-contained, 0 test-about"
    assert found.verdict == "agrees"


def test_filters_work_in_order_and_each_reason_is_kept(make):
    artifact, _ = make(sources=("test-every",), filters=("test-about:word=written", "test-about:word=d:2"))
    assert [r["id"] for r in artifact.ledger()] == ["test-every/d:0", "test-every/d:1/0"]
    assert [e.source for e in artifact.examples("all")] == ["d:2"]


def test_a_filter_sees_the_rows_of_all_sources_at_once(make, documents):
    artifact, _ = make(sources=("test-every", "headings"), filters=("distinct:threshold=0.3",))
    assert "repeats a question" in {r["reason"] for r in artifact.ledger()}


def test_a_source_that_wrote_much_is_drawn_from_over_all_sections(tmp_path, make_ctx):
    rows = [Passage(f"d:{i}", f"Line {i}.", "d", f"d#{i % 3}") for i in range(12)]
    write_rows(tmp_path / "many" / "passages", (p.to_dict() for p in rows))
    many, step = seal("documents", tmp_path / "many"), Synthesize(sources=("test-every",), filters=(), most_per_source=6)
    artifact = step.run({"documents": many}, make_ctx("drawn"))
    kept = list(artifact.examples("all"))
    assert Counter(e.cluster for e in kept) == {"d#0": 2, "d#1": 2, "d#2": 2}
    assert {e.source for e in kept} == {f"d:{i}" for i in range(6)}  # the first of each section
    assert Counter(r["reason"] for r in artifact.ledger()) == {"more than most_per_source": 6}
    assert artifact.meta["yields"]["test-every"] == {"written": 12, "parsed": 12, "drawn": 6}
    assert step.receipts({}, artifact, None)[0].verdict == "agrees"


def test_nothing_left_is_refused_and_what_was_left_out_is_where_it_says(make, tmp_path):
    place = tmp_path / "synthesize" / "ledger.jsonl"
    with pytest.raises(UserError, match=f"No question is left.*See {place}"):
        make(sources=("headings",), filters=("test-about:word=zebra",))
    assert [r["reason"] for r in read_lines(place)] == ["another topic"] * 2


def test_a_source_that_needs_a_writer_is_refused_without_one(make):
    with pytest.raises(UserError, match=r"needs a writer model: inputs: \{documents: documents, writer: base\}"):
        make(sources=("few-shot",))


def test_a_source_named_twice_is_refused():
    with pytest.raises(UserError, match="sources names 'few-shot' 2 times"):
        Synthesize(sources=("few-shot", "headings", "few-shot:passages=3")).check()
    Synthesize().check()


def test_the_writer_is_at_hand_for_sources_and_filters(make, pico, monkeypatch):
    seen = []
    monkeypatch.setattr(Every, "apply", lambda self, rows, ctx: seen.append(ctx.roles["writer"].name) or iter(()))
    monkeypatch.setattr(About, "apply", lambda self, rows, ctx: seen.append(ctx.roles["writer"].name) or rows)
    make({"writer": pico}, sources=("test-every", "headings"), filters=("test-about",))
    assert seen == ["pico", "pico"]


def test_the_receipt_sees_a_lost_row(make):
    artifact, _ = make(sources=("headings",), filters=())
    meta = {**artifact.meta, "written": 3}
    assert Synthesize().receipts({}, replace(artifact, meta=meta), None)[0].verdict == "differs"

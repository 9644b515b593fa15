"""sections: documents as texts to be read on, without what the unseen test asks about."""

from __future__ import annotations

import pytest

from luthier.core.artifact import seal, write_examples
from luthier.core.errors import UserError
from luthier.core.example import Passage, question
from luthier.core.files import read_lines, write_rows
from luthier.pipelines.steps.sections import Sections


@pytest.fixture
def inputs(make_ctx):
    def make(**clusters):
        ctx = make_ctx("documents")
        passages = [Passage(f"{s}{i}", f"text {i} of {s}", "a.md", s, ("Top", s)) for s in "abcd" for i in range(2)]
        write_rows(ctx.folder / "passages", (p.to_dict() for p in passages))
        documents = seal("documents", ctx.folder)
        rows = {name: [question(f"{name}{c}", "q?", "x", cluster=c) for c in found] for name, found in clusters.items()}
        return {"documents": documents, "examples": write_examples(make_ctx("split").folder, rows)}

    return make


def test_a_text_is_a_section_and_unseen_sections_are_not_read(inputs, make_ctx):
    step, ctx, given = Sections(), make_ctx("sections"), inputs(train="a", dev="b", unseen="c")
    made = step.run(given, ctx)
    assert [e.id for e in made.examples("train")] == ["a", "d"] and [e.id for e in made.examples("dev")] == ["b"]
    assert next(iter(made.examples("train"))).turns[0].text == "Top / a\n\ntext 0 of a\n\ntext 1 of a"
    assert [r["id"] for r in read_lines(made.folder / "ledger.jsonl")] == ["c"]
    assert [r.verdict for r in step.receipts(given, made, ctx)] == ["agrees", "agrees"]


def test_a_section_of_the_test_that_was_read_is_a_difference(inputs, make_ctx):
    step, ctx, given = Sections(), make_ctx("sections"), inputs(train="a", dev="b", unseen="c")
    made = step.run(given, ctx)
    given["examples"] = inputs(train="a", dev="b", unseen="d")["examples"]
    assert [r.verdict for r in step.receipts(given, made, ctx)] == ["agrees", "differs"]


def test_nothing_left_to_read_is_said(inputs, make_ctx):
    with pytest.raises(UserError, match="No section is left"):
        Sections().run(inputs(train="", dev="ab", unseen="cd"), make_ctx("sections"))

"""click-log: weights by hand, clicks on what is not there, and every other bad row."""

import json
import math

import pytest

from luthier.core.errors import UserError
from luthier.core.example import Dropped, Passage, SourceFile
from luthier.techniques.data.click_log import ClickLog

PASSAGES = [Passage("a.md#0", "First said. Then this! And that? More. Last.", "a.md", "a.md#Top", ("Top",)),
            Passage("a.md#1", "Further below.", "a.md", "a.md#Low", ("Top", "Low")),
            Passage("b.md#0", "Of b.", "b.md", "b.md#B", ("B",)), Passage("c.md#0", "Of c.", "c.md", "c.md#C", ("C",))]


@pytest.fixture
def read(tmp_path, make_ctx):
    """`read(rows, **fields)`: what a click-log makes of rows; a row that is a text is written as it is."""
    def run(rows, duplicates=(), **fields):
        path = tmp_path / "clicks.jsonl"
        path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
        streams = {"passages": PASSAGES, "duplicates": duplicates}
        ctx = make_ctx("clicks")
        ctx.stream = lambda name: streams[name]
        return list(ClickLog(**fields).apply(iter([SourceFile("clicks.jsonl", str(path))]), ctx))

    return run


def click(query, document, clicks, impressions=None):
    return {"query": query, "doc_id": document, "clicks": clicks,
            **({} if impressions is None else {"impressions": impressions})}


ROWS = [click("loop over", "a.md", 2, 10), click("loop over", "a.md", 1, 10), click("loop over", "b.md#0", 1, 5),
        click("scope", "c.md", 7, 7), click("scope", "a.md", 0, 9)]


@pytest.mark.oracle(clause="weights of clicks", against="case worked by hand")
@pytest.mark.parametrize(("weighting", "wanted"), [
    ("log", [1.0, math.log(2) / math.log(4), 1.0]), ("rate", [3 / 20, 1 / 5, 1.0]), ("binary", [1.0, 1.0, 1.0])])
def test_weights(read, weighting, wanted):
    made = read(ROWS, weighting=weighting)
    rows = [m for m in made if not isinstance(m, Dropped)]
    assert [r.meta["weight"] for r in rows] == pytest.approx(wanted)
    assert [m.reason for m in made if isinstance(m, Dropped)] == ["shown, not clicked"]


def test_a_document_is_its_title_and_first_sentences_and_all_its_passages_are_right(read):
    first, second, _ = (m for m in read(ROWS, sentences=3) if not isinstance(m, Dropped))
    assert first.part("document") == "Top: First said. Then this! And that?" and first.part("question") == "loop over"
    assert first.meta["positives"] == ["a.md", "a.md#0", "a.md#1", "b.md#0"] == second.meta["positives"]
    assert second.part("document") == PASSAGES[2].shown and second.cluster == "b.md#B"


def test_a_click_on_a_repetition_counts_for_what_it_repeats(read):
    (row,) = read([click("x", "d.md#9", 1)], duplicates=[("d.md#9", "b.md#0")])
    assert row.source == "b.md#0" and row.meta["positives"] == ["d.md#9", "b.md#0"]


def test_unknown_documents_are_named_and_the_work_stops(read):
    rows = [click("x", f"z{i}.md", 1) for i in range(7)] + ROWS
    with pytest.raises(UserError, match=r"7 of the clicked documents.*'z0.md', 'z1.md', 'z2.md', 'z3.md', 'z4.md'\."):
        read(rows)


@pytest.mark.parametrize(("rows", "said"), [
    ([click("x", "a.md", 0), click("y", "b.md", 0)], "all weights are zero"),
    ([click("x", "a.md", 1)] + ["{broken"], "line 2: broken JSON"),
    ([{"query": "x", "clicks": 1}], "line 1: 'doc_id' is None"),
    ([click("x", "a.md", -1)], "'clicks' is -1"),
    ([click("x", "a.md", 1.5)], "'clicks' is 1.5"),
    ([click("x", "a.md", True)], "'clicks' is True"),
    ([click("x", "a.md", 3, 2)], "3 clicks in 2 impressions"),
    ([click(" ", "a.md", 1)], "'query' is ' '"),
    (["[1]"], "a list, not an object"),
    ([""], "empty"),
])
def test_bad_rows_are_refused_with_their_line(read, rows, said):
    with pytest.raises(UserError, match=said):
        read(rows)


def test_a_rate_needs_impressions(read):
    with pytest.raises(UserError, match="weighting: rate divides by it"):
        read([click("x", "a.md", 1)], weighting="rate")

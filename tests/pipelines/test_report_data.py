"""The page of a data set: every number on it is counted anew here, and what a row holds can't become markup."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.pipelines.report.data import bins, render, write_inspection

FOUND = {
    "about": {"kind": "examples", "rows": 4, "base": "pico", "labels": {"thing": 3, "word": 1}},
    "lengths": [3, 5, 5, 40], "sources": {"a.md": 3, "": 1}, "clusters": {"c1": 3, "c2": 1},
    "shown": [{"id": "q1", "tokens": 7, "learned": 2, "segments": [{"text": "What <b>is</b> it?", "learned": False},
                                                                  {"text": " a & b", "learned": True}]},
              {"id": "q2", "text": "<script>alert(1)</script>"}],
}


class Page(HTMLParser):
    """Counts tags and keeps what stands in marks and bars; fails on a tag that is never closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.bars: list[int] = []
        self.marks: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.bars += [int(v) for k, v in attrs if k == "data-value" and tag == "rect"]
        if tag not in ("meta", "link", "br", "hr"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "mark":
            self.marks.append(data)


def test_the_page_holds_lengths_sources_clusters_labels_and_masks():
    text = render(FOUND)
    page = Page(text)
    assert sum(page.bars) == 4 and page.marks == ["marked text", " a & b"]
    assert "script" not in page.tags and "b" not in page.tags, "rows are text, never markup"
    titles = re.findall(r"<h2[^>]*>([^<]*)", text)
    assert titles == ["Lengths", "Labels", "Examples by source", "Clusters", "Rows as they would be learned"]
    assert "75%" in text and "a.md" in text and "(none)" in text


def test_what_is_not_there_has_no_section():
    text = render({"about": {"kind": "documents"}, "shown": []})
    Page(text)
    assert "<h2" not in text


def test_the_page_is_written_into_the_folder(tmp_path):
    path = write_inspection(FOUND, tmp_path / "new")
    assert path == tmp_path / "new" / "inspect.html" and path.read_text(encoding="utf-8") == render(FOUND)


@pytest.mark.oracle(clause="ranges of a histogram", against="brute force")
@given(st.lists(st.integers(0, 5000), min_size=1, max_size=60), st.integers(1, 30))
def test_ranges_hold_every_value_once(values, most):
    found = bins(values, most)
    assert len(found) <= most and sum(count for _, _, count in found) == len(values)
    assert all(count == sum(first <= v <= last for v in values) for first, last, count in found)
    assert all(b[0] == a[1] + 1 for a, b in pairwise(found))
    assert len({last - first for first, last, _ in found}) == 1

"""Headings, tables, lists, code and broken markup of HTML."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.example import Dropped, Section
from luthier.techniques.data.read_html import ReadHtml

PAGE = """<!doctype html><html><head><title>The  page</title><style>p {}</style><script>var x = "gone";</script></head>
<body><nav>menu <a href=x>gone</a></nav><p>Before <b>any</b>
heading.<!-- gone -->
<h1>One<a class="headerlink">¶</a></h1><p>First<br>second</p><p>Third</p>
<h2>Lists</h2><ul><li>a <i>b</i></li><li><p>c</p><ol><li>d</li></ol></li></ul>
<h2>Code</h2><pre>if x:
    y = "``` &lt;"
</pre>
<h1>Tables</h1><table><caption>Sizes</caption><tr><th>a</th><th>b</th></tr><tr><td>1
</td><td>2 <b>3</b></td></tr></table></body></html>"""


def parse(text: str) -> list[tuple[tuple[str, ...], str]]:
    return [(s.headings, s.text) for s in ReadHtml().parse(text)[1]]


def test_page():
    title, sections = ReadHtml().parse(PAGE)
    assert title == "The page"
    assert sections == (
        Section((), "Before any heading.", ((1, 0, 2),)),
        Section(("One",), "First\nsecond\n\nThird", ((1, 0, 4), (15, 0, 4))),
        Section(("One", "Lists"), "- a b\n- c\n- d", ((1, 0, 5), (7, 0, 5), (11, 0, 5))),
        Section(("One", "Code"), '````\nif x:\n    y = "``` <"\n````', ((1, 0, 6),)),
        Section(("Tables",), "Sizes\na | b\n1 | 2 3", ((1, 0, 9),)),
    )


def test_lines():
    page = "<h1>A</h1>\n<p>\n\nfour\n<b>five</b>\n<ul>\n<li>seven\n</ul>\n\n<h2>ten</h2>"
    assert [s.marks for s in ReadHtml().parse(page)[1]] == [((1, 0, 4), (12, 0, 7)), ((1, 0, 10),)]


@pytest.mark.parametrize(("text", "expected"), [
    ("plain text", [((), "plain text")]),
    ("<table><tr><td><h2>H</h2><p>in a layout</td></tr></table>", [(("H",), "in a layout")]),
    ("<table><tr><td>a<td>b<tr><td>c<td>d</table>", [((), "a\n\nb\n\nc\n\nd")]),
    ("<table><tr></tr><dl>alpha</dl>beta</table>", [((), "alpha\n\nbeta")]),
    ("<table><tr><td><pre>x\n  y</pre></td></tr></table>", [((), "```\nx\n  y\n```")]),
    ("<pre>a<br>b</pre>", [((), "```\na\nb\n```")]),
    ("<h1>A</h1><h3>B</h3>x<h2>C</h2>y", [(("A", "B"), "x"), (("A", "C"), "y")]),
    ("<title>t<p>unclosed", []),
    ("<head><meta name=x><body>never closed head", [((), "never closed head")]),
    ("<dl><dt>term<dd>meaning</dl>", [((), "term\n\nmeaning")]),
    ("a<script>alert('x')</script>b<template>gone</template>", [((), "ab")]),
])
def test_cases(text, expected):
    assert parse(text) == expected


def test_depth_does_not_matter():
    began = time.process_time()
    assert parse("<div>" * 20_000 + "deep" + "</div>" * 20_000) == [((), "deep")]
    assert time.process_time() - began < 5


def test_declared_encoding(read):
    page = '<meta charset="windows-1251"><p>Привет, мир. Это страница на русском языке, её надо прочесть верно.</p>' * 3
    assert "Привет, мир" in read(ReadHtml(), page.encode("cp1251"), "a.html").sections[0].text
    page = page.replace("windows-1251", "no-such-code")
    assert read(ReadHtml(), page.encode("cp1251"), "a.html").reason == "not text"


def test_nothing_but_script_is_empty(read):
    row = read(ReadHtml(), "<html><script>x</script></html>", "a.htm")
    assert row == Dropped("a.htm", "empty", "no text in it")


def test_broken_markup_never_fails(read):
    for text in ("<![foo", "<!-", "<a <b", "</", "&#xFFFFFFFF;x", "<table><td>", "<h1><h2>x</h1>"):
        row = read(ReadHtml(), text, "a.html")
        assert isinstance(row, Dropped) or row.sections


TAGS = st.sampled_from("p div b ul li table tr td h1 h2 pre a section dl br".split())


@given(st.recursive(st.sampled_from(["alpha", "beta ", " gamma"]),
                    lambda inner: st.builds(lambda t, c: f"<{t}>{''.join(c)}</{t}>", TAGS, st.lists(inner, max_size=4)),
                    max_leaves=15))
def test_no_word_is_lost_or_repeated(page):
    sections = ReadHtml().parse(page)[1]
    kept = " ".join(s.text for s in sections)
    headings = " ".join({h: None for s in sections for h in s.headings})
    for word in ("alpha", "beta", "gamma"):
        assert (word in kept + headings) == (word in page)
    if "<h" not in page:
        assert sum(kept.count(w) for w in ("alpha", "beta", "gamma")) == sum(page.count(w) for w in
                                                                         ("alpha", "beta", "gamma"))

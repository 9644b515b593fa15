"""Pages with marked questions, written by hand: their pairs are known exactly, as rows and as sections."""

import gzip
import json
import random
import time
from types import SimpleNamespace

import pytest

from luthier.core.errors import UserError
from luthier.core.example import Document, Dropped, Passage, SourceFile
from luthier.techniques.data.faq import Faq
from luthier.techniques.data.read_faq import ReadFaq
from luthier.techniques.data.read_html import ReadHtml
from tests.techniques.data.test_read_pdf import damaged


def asked(question, answer, **more):
    return {"@type": "Question", "name": question, "acceptedAnswer": {"@type": "Answer", "text": answer}, **more}


def linked(*data, kind="application/ld+json") -> str:
    return "".join(f'<script type="{kind}">{d if isinstance(d, str) else json.dumps(d)}</script>\n' for d in data)


def faq(*questions, **more):
    return {"@context": "https://schema.org", "@type": "FAQPage", "mainEntity": list(questions), **more}


GLUE, HEAT = ("What is glue?", "It sticks."), ("How hot?", "60 °C.")
MICRODATA = """<div itemscope itemtype="https://schema.org/FAQPage"><div itemscope itemprop="mainEntity"
itemtype="https://schema.org/Question"><h3 itemprop="name">What is glue?</h3><div itemscope itemprop="acceptedAnswer"
itemtype="https://schema.org/Answer"><div itemprop="text">It <b>sticks</b>.</div></div></div></div>"""
RDFA = """<div vocab="https://schema.org/" typeof="FAQPage"><div property="mainEntity" typeof="Question">
<span property="name">What is glue?</span><div property="acceptedAnswer" typeof="Answer"><p property="text">It sticks.</p>
</div></div></div>"""
PAGES = {
    "list": (linked(faq(asked(*GLUE), asked(*HEAT))), [GLUE, HEAT]),
    "one": (linked({**faq(), "mainEntity": asked(*GLUE)}), [GLUE]),
    "graph": (linked({"@graph": [{"@type": "WebSite"}, {**faq({"@id": "#q"}), "@type": ["WebPage", "FAQPage"]},
                                 {"@id": "#q", **asked(*GLUE)}]}), [GLUE]),
    "top list": (linked([{"@type": "Organization"}, faq(asked(*GLUE))]), [GLUE]),
    "full names": (linked({**faq(asked(*GLUE)), "@type": "https://schema.org/FAQPage"}), [GLUE]),
    "answer as text": (linked(faq({"@type": "Question", "name": GLUE[0], "acceptedAnswer": GLUE[1]})), [GLUE]),
    "comment around": (linked("<!--" + json.dumps(faq(asked(*GLUE))) + "-->"), [GLUE]),
    "line breaks in texts": (linked(json.dumps(faq(asked(*GLUE))).replace("It sticks", "It\nsticks")), [GLUE]),
    "HTML in texts": (linked(faq(asked("What is <i>glue</i>?", "<p>It&nbsp;sticks.</p><ul><li>a</li><li>b</li></ul>"))),
                      [("What is glue?", "It sticks.\n\n- a\n- b")]),
    "entities": (linked(faq(asked("Salt &amp; glue?", "x &lt; y"))), [("Salt & glue?", "x < y")]),
    "votes": (linked({"@type": "QAPage", "mainEntity": {"@type": "Question", "name": GLUE[0], "suggestedAnswer": [
        {"text": "No idea.", "upvoteCount": 1}, {"text": GLUE[1], "upvoteCount": "7"}]}}), [GLUE]),
    "accepted before votes": (linked({"@type": "QAPage", "mainEntity": {**asked(*GLUE), "suggestedAnswer": [
        {"text": "Louder.", "upvoteCount": 99}]}}), [GLUE]),
    "twice": (linked(faq(asked(*GLUE)), faq(asked("what is GLUE?", "Other."))), [GLUE]),
    "microdata": (MICRODATA, [GLUE]),
    "RDFa": (RDFA, [GLUE]),
    "three markups": (linked(faq(asked(*HEAT))) + MICRODATA + RDFA, [HEAT, GLUE]),
    "no answer": (linked(faq({"@type": "Question", "name": "Why?"}, asked("", "x"), asked(*HEAT))), [HEAT]),
    "other languages": (linked(faq(asked("膠とは？", "くっつきます。"))), [("膠とは？", "くっつきます。")]),
}


@pytest.fixture
def rows(tmp_path):
    def read(page, **fields):
        path = tmp_path / "faq.html"
        path.write_text(page, encoding="utf-8")
        return list(ReadFaq(**fields).apply(iter([SourceFile("faq.html", str(path))]), SimpleNamespace(log=lambda text: None)))

    return read


@pytest.mark.parametrize("name", PAGES)
def test_pairs_are_exactly_those_of_the_page(rows, name):
    page, pairs = PAGES[name]
    found = rows(f"<html><body>{page}</body></html>")
    assert [(row.part("question"), row.answer) for row in found] == pairs
    assert {row.task for row in found} == {"qa"} and len({row.cluster for row in found}) == len(pairs)


def test_a_quiz_is_no_faq(rows):
    with pytest.raises(UserError, match="FAQPage or QAPage"):
        rows(linked({"@type": "Quiz", "hasPart": asked(*GLUE)}))


def test_broken_markup_is_refused_or_counted(rows):
    page = "<p>a</p>\n" + linked('{"@type": "FAQPage",}', faq(asked(*GLUE)))
    with pytest.raises(UserError, match=r"line 2\): broken JSON-LD"):
        rows(page)
    dropped, row = rows(page, bad_rows="drop")
    assert isinstance(dropped, Dropped) and "broken JSON-LD" in dropped.detail and row.answer == "It sticks."


def test_a_packed_page_and_a_large_one(tmp_path):
    page = tmp_path / "faq.html.gz"
    page.write_bytes(gzip.compress(MICRODATA.encode()))
    file = SourceFile("faq.html.gz", str(page))
    assert [found.row["question"] for found in ReadFaq().rows(file)] == ["What is glue?"]
    with pytest.raises(UserError, match="too large"):
        list(ReadFaq(max_megabytes=0.0001).rows(file))


def test_pages_that_are_no_text_are_refused(rows, tmp_path):
    (tmp_path / "x.html").write_bytes(b"\0\1" * 40)
    with pytest.raises(UserError, match="not text"):
        list(ReadFaq().rows(SourceFile("x.html", str(tmp_path / "x.html"))))


def test_marked_questions_open_sections(read, log):
    """A question in any element is a heading; what the page hides stands at the end; what it shows is not said twice."""
    page = ("<h1>Help</h1><div>What is glue?</div><p>It sticks.</p><button> How\nhot? </button><p>60 °C.</p>"
            + linked(faq(asked(*GLUE), asked(*HEAT), asked("Hidden?", "<p>Yes.</p><p>Here.</p>")), "{broken FAQPage"))
    row = read(ReadHtml(), page, "a.html")
    assert [(s.headings, s.text) for s in row.sections] == [
        (("Help", "What is glue?"), "It sticks."), (("Help", "How hot?"), "60 °C."), (("Hidden?",), "Yes.\n\nHere.")]
    assert log == [f"a.html, line 3: broken JSON-LD ({json_error('{broken FAQPage')}); its questions are left out"]


def json_error(text: str) -> str:
    try:
        json.loads(text)
    except ValueError as error:
        return str(error)
    raise AssertionError(text)


def test_depth_and_repetition_do_not_matter(rows):
    began = time.process_time()
    deep = '<div itemscope itemtype="https://schema.org/FAQPage Question">' * 3000
    read = ReadHtml().parse(deep + '<p itemprop="name">Deep?</p>' + "</div>" * 3000)
    assert [s.text for s in read[1]] == ["Deep?"]
    answer = {"@id": "#a", "@type": "Answer", "text": "long " * 20_000}
    many = [{"@type": "Question", "name": f"{n}?", "acceptedAnswer": {"@id": "#a"}} for n in range(10_000)]
    with pytest.raises(UserError, match="more than 5000000 letters"):
        rows(linked({"@graph": [answer, faq(*many)]}))
    assert time.process_time() - began < 5


def passage(heading, text, number=0, document="a.html"):
    return Passage(f"{document}#{heading}:{number}", text, document, f"{document}#{heading}", ("Help", heading))


def test_question_headings_become_examples(ctx):
    rows = list(Faq(max_answer_words=6).apply(iter([
        passage("What is glue?", "It sticks. It is made of hides and bones."), passage("What is glue?", "More.", 1),
        passage("Glue", "No question."), passage("what is glue?", "Again.", document="b.html"),
        passage("Empty?", "Empty?"), passage("Long?", "One two three four five six seven."),
        passage("膠とは？", "くっつきます。")]), ctx))
    made, dropped, last = rows
    assert (made.part("question"), made.answer) == ("What is glue?", "It sticks.")
    assert made.cluster == "a.html#What is glue?" and made.source == "a.html#What is glue?:0"
    assert made.meta["generator"] == "faq"
    assert isinstance(dropped, Dropped) and dropped.reason == "answer too long" and last.answer == "くっつきます。"


@pytest.mark.parametrize("files", [40, pytest.param(10_000, marks=pytest.mark.slow)])
def test_damaged_pages_never_fail(read, rows, files):
    rng = random.Random(files)
    whole = "".join(page for page, _ in PAGES.values()).encode()
    for _ in range(files):
        began = time.monotonic()
        page = damaged(whole, rng)
        assert isinstance(read(ReadHtml(), page, "a.html"), Document | Dropped)
        try:
            rows(page.decode("utf-8", "replace"), bad_rows="drop")
        except UserError:
            pass
        assert time.monotonic() - began < 10

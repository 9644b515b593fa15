"""Questions with their answers as pages mark them for search engines: schema.org's FAQPage and QAPage.

Read are JSON-LD (also in `@graph`, in lists, by `@id`), microdata and RDFa. Of several answers the accepted one is taken, else
the one with the most votes. Texts are HTML as they stand; `read-html` makes text of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

PAGES = ("FAQPage", "QAPage")
MOST_LETTERS = 5_000_000
_ANSWERS = ("acceptedAnswer", "suggestedAnswer")
_SCRIPT = re.compile(r"application/ld\+json", re.IGNORECASE)
# (attribute of a type, attribute of a property) of microdata and of RDFa.
_MARKUPS = (("itemtype", "itemprop"), ("typeof", "property"))
_ENDS = re.compile(r"^\s*(?:<!--|(?://)?\s*<!\[CDATA\[)|(?:-->|(?://)?\s*\]\]>)\s*$")


class Pair(NamedTuple):
    """A question and its answer, both as HTML, and the line on which their markup begins."""

    question: str
    answer: str
    line: int


def marked(text: str) -> bool:
    """Whether a page can have such markup at all, which costs less to see than to read."""
    return any(page in text for page in PAGES)


def pairs(soup: Any) -> tuple[list[Pair], list[tuple[int, str]]]:
    """The pairs of a page, each question once, in order; and (line, what is wrong) of each JSON-LD that can't be read."""
    found: list[Pair] = []
    broken: list[tuple[int, str]] = []
    for script in soup.find_all("script", type=_SCRIPT):
        line = script.sourceline or 0
        try:
            data = json.loads(_ENDS.sub("", script.get_text()), strict=False)
        except (ValueError, RecursionError) as error:
            broken.append((line, f"broken JSON-LD ({str(error)[:100]})"))
            continue
        size = 0
        for pair in _linked(data):  # one answer may be named by any number of questions
            size += len(pair[0]) + len(pair[1])
            if size > MOST_LETTERS:
                broken.append((line, f"JSON-LD of more than {MOST_LETTERS} letters of questions and answers"))
                break
            found.append(Pair(*pair, line))
    for kind, name in _MARKUPS:
        found += _inline(soup, kind, name)
    first: dict[str, Pair] = {}
    for one in found:
        key = " ".join(one.question.casefold().split())
        if key and one.answer.strip():
            first.setdefault(key, one)
    return list(first.values()), broken


def _linked(data: Any) -> Iterator[tuple[str, str]]:
    nodes = list(_nodes(data, {}, set()))
    known = {n["@id"]: n for n in nodes if isinstance(n.get("@id"), str) and len(n) > 1}
    seen: set[int] = set()
    for page in nodes:
        if not _types(page.get("@type")) & set(PAGES):
            continue
        for node in _nodes(page, known, seen):
            if "Question" in _types(node.get("@type")):
                answers = [a for key in _ANSWERS for a in _best(_list(node.get(key)))]
                texts = [text for a in answers if (text := _said(known.get(_id(a), a), "text"))]
                yield _said(node, "name") or _said(node, "text"), texts[0] if texts else ""


def _nodes(data: Any, known: dict[str, Any], seen: set[int]) -> Iterator[dict[str, Any]]:
    """Every object within `data`, in order, and those that it names by `@id`; none that was `seen`."""
    stack = [data]
    while stack:
        at = stack.pop()
        if isinstance(at, dict):
            at = known.get(_id(at), at)
            if id(at) in seen:
                continue
            seen.add(id(at))
            yield at
            stack.extend(reversed(list(at.values())))
        elif isinstance(at, list):
            stack.extend(reversed(at))


def _id(node: Any) -> str:
    name = node.get("@id") if isinstance(node, dict) else None
    return name if isinstance(name, str) else ""


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _best(answers: list[Any]) -> list[Any]:
    """Answers by their votes, the most first; equal ones in their order."""
    def votes(answer: Any) -> float:
        count = answer.get("upvoteCount") if isinstance(answer, dict) else None
        try:
            return -float(count)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            return 0.0

    return sorted(answers, key=votes)


def _said(node: Any, key: str) -> str:
    value = node if isinstance(node, str) else node.get(key) if isinstance(node, dict) else None
    for part in _list(value):
        text = part.get("@value") if isinstance(part, dict) else part
        if isinstance(text, str) and text.strip():
            return text
    return ""


def _types(value: Any) -> set[str]:
    """`Question` of `Question`, `schema:Question`, `https://schema.org/Question` and lists of them."""
    names = value.split() if isinstance(value, str) else [v for v in _list(value) if isinstance(v, str)]
    return {re.split(r"[/#:]", name)[-1] for name in names}


class _Marked:
    """A question of microdata or RDFa that is being gathered."""

    def __init__(self, line: int) -> None:
        self.line = line
        self.asked = ""
        self.answers: dict[str, list[str]] = {key: [] for key in _ANSWERS}


def _inline(soup: Any, kind: str, name: str) -> list[Pair]:
    """The pairs of one markup, in one walk: nothing is gone through twice, however things lie within each other."""
    from bs4.element import Tag

    made: list[_Marked] = []
    # A node, whether a page with questions is around it, the question that it is in, and the thing that it belongs to.
    stack: list[tuple[Any, bool, _Marked | None, str]] = [(soup, False, None, "")]
    while stack:
        node, inside, question, thing = stack.pop()
        types, roles = _types(node.get(kind)), _types(node.get(name))
        if question and thing == "Question" and "name" in roles and not types:
            question.asked = question.asked or _inner(node)
            continue
        if question and thing in _ANSWERS and "text" in roles and not types:
            question.answers[thing].append(_inner(node))
            continue
        inside = inside or bool(types & set(PAGES))
        if inside and "Question" in types:
            question, thing = _Marked(node.sourceline or 0), "Question"
            made.append(question)
        elif types:
            thing = next((key for key in _ANSWERS if key in roles), "")
        stack.extend((child, inside, question, thing) for child in reversed(node.contents) if isinstance(child, Tag))
    return [Pair(q.asked, next((text for texts in q.answers.values() for text in texts if text.strip()), ""), q.line)
            for q in made]


def _inner(element: Any) -> str:
    return str(element.get("content") or element.decode_contents())

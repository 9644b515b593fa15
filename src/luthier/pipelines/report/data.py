"""The page of a data set before anything is trained: lengths, clusters, sources, labels, and rows with their masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from luthier.core.files import write_atomic
from luthier.pipelines.report import questions
from luthier.pipelines.report.markup import Html, clipped, counted, details, el, join, number, pairs, plain, table
from luthier.pipelines.report.plots import ticks

NAME = "inspect.html"
BARS = 24  # most bars of a histogram
TALL = 180  # height of its drawing, px
MOST = 20  # sources or clusters that are listed
LONG = 4000  # characters shown of one row


def write_inspection(found: Mapping[str, Any], folder: Path) -> Path:
    """Write `folder/inspect.html`, whole or not at all; returns its path.

    `found` is what `inspect_data` returns: `about` (names and values), `shown` (rows with `text`, or `segments` of
    `{"text", "learned"}`), and as far as there are any `lengths` in tokens, `clusters` and `sources` (rows by name), and
    what `questions.written` tells of questions that were written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    write_atomic(path, render(found))
    return path


def render(found: Mapping[str, Any]) -> str:
    """The page as HTML text."""
    here = files(__package__)
    return Template((here / "page.html").read_text(encoding="utf-8")).substitute(
        title="Data – Luthier", style=(here / "style.css").read_text(encoding="utf-8"), body=body(found))


def body(found: Mapping[str, Any]) -> Html:
    """What the page holds."""
    about = dict(found["about"])
    parts = [
        ("refused", "What was left out, and why", _refused(found.get("refused") or ())),
        ("lengths", "Lengths", _lengths(found.get("lengths") or ())),
        ("questions", "Questions that were written", questions.show(found)),
        ("labels", "Labels", _by_name("label", about.pop("labels", {}))),
        ("sources", "Examples by source", _by_name("source", found.get("sources") or {})),
        ("clusters", "Clusters", _clusters(found.get("clusters") or {})),
        ("rows", "Rows as they would be learned", _rows(found["shown"])),
    ]
    there = [(id, title, content) for id, title, content in parts if content is not None]
    head = el("header", el("p", "Luthier · data before training", class_="eyebrow"),
              el("h1", f"What was understood of the {about.get('kind', 'data')}"),
              pairs(((k, plain(v)) for k, v in about.items()), class_="facts"))
    nav = el("nav", el("ul", *(el("li", el("a", title, href=f"#{id}")) for id, title, _ in there)), aria_label="Contents")
    return join((head, nav, *(_section(*part) for part in there)))


def _section(id: str, title: str, content: Html) -> Html:
    return el("section", el("h2", title, id=f"{id}-title"), content, id=id, aria_labelledby=f"{id}-title")


def bins(values: Sequence[int], most: int = BARS) -> list[tuple[int, int, int]]:
    """(first, last, count) of at most `most` equally wide ranges of whole numbers that hold all values."""
    low, high = min(values), max(values)
    width = -(-(high - low + 1) // most)
    counts = Counter((v - low) // width for v in values)
    return [(low + n * width, low + (n + 1) * width - 1, counts[n]) for n in range((high - low) // width + 1)]


def _lengths(lengths: Sequence[int]) -> Html | None:
    """Histogram of the rows' tokens, with its quartiles and the longest one in numbers."""
    if not lengths:
        return None
    order = sorted(lengths)
    at = [("shortest", order[0]), ("first quarter", order[len(order) // 4]), ("median", order[len(order) // 2]),
          ("third quarter", order[3 * len(order) // 4]), ("longest", order[-1]), ("all rows together", sum(order))]
    caption = el("figcaption", "Rows by their number of tokens, prompt and answer together.")
    return el("div", el("figure", _histogram(bins(order)), caption), pairs(((k, number(v)) for k, v in at), class_="counts"))


def _histogram(ranges: Sequence[tuple[int, int, int]]) -> Html:
    top = max(count for _, _, count in ranges)
    share = 100 / len(ranges)
    parts = []
    for tick in ticks(0, top):
        if tick == int(tick):
            y = TALL * (1 - tick / top)
            parts += [el("line", x1=0, x2="100%", y1=y, y2=y, class_="grid"),
                      el("text", f"{tick:,.0f}", x=-8, y=y, dy="0.32em", text_anchor="end")]
    for n, (first, last, count) in enumerate(ranges):
        tall = TALL * count / top
        told = f"{first:,} tokens: " if first == last else f"{first:,} to {last:,} tokens: "
        parts.append(el("rect", el("title", told, counted(count, "row")), x=f"{n * share:.3f}%", y=f"{TALL - tall:.2f}",
                        width=f"{0.9 * share:.3f}%", height=f"{tall:.2f}", class_="bar", data_value=count))
    for n in sorted({0, len(ranges) // 2, len(ranges) - 1}):
        parts.append(el("text", f"{ranges[n][0]:,}", x=f"{(n + 0.45) * share:.3f}%", y=TALL + 18, text_anchor="middle"))
    return el("svg", *parts, class_="curve bars", height=TALL, role="img", aria_label="Histogram of tokens a row")


def _refused(rows: Sequence[Mapping[str, Any]]) -> Html | None:
    """Files and passages that were left out, each with the reason."""
    if not rows:
        return None
    listed = [[clipped(r["id"], 120), plain(r["reason"]), clipped(r.get("detail") or "", LONG)] for r in rows[:MOST]]
    more = el("p", counted(len(rows) - MOST, "other"), " in the ledger.", class_="quiet") if len(rows) > MOST else None
    return el("div", table("What was left out", ["what", "reason", ""], "ttt", listed, class_="refused"), more)


def _by_name(what: str, counts: Mapping[str, int]) -> Html | None:
    """Rows by source or label, the most frequent first."""
    if not counts:
        return None
    total = sum(counts.values())
    order = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rows = [[clipped(name or "(none)", 120), number(n), f"{n / total:.0%}"] for name, n in order[:MOST]]
    rest, left = len(order) - MOST, sum(n for _, n in order[MOST:])
    more = el("p", f"The {MOST} largest; ", counted(rest, "other"), f" with {left:,} rows.", class_="quiet")
    return el("div", table(f"Rows by {what}", [what, "rows", "share"], "tnn", rows), more if rest > 0 else None)


def _clusters(counts: Mapping[str, int]) -> Html | None:
    """How many rows stand together in splits and statistics, and the largest groups."""
    if not counts:
        return None
    sizes = Counter(counts.values())
    told = el("p", counted(len(counts), "cluster"), " of rows that are never divided between training and test. "
              "Statistics count clusters, not rows.", class_="quiet")
    rows = [[counted(size, "row"), number(n)] for size, n in sorted(sizes.items())]
    if len(rows) > MOST:
        from_here = sorted(sizes)[MOST - 1]
        rest = sum(n for size, n in sizes.items() if size >= from_here)
        rows = [*rows[:MOST - 1], [join((counted(from_here, "row"), " and more")), number(rest)]]
    return el("div", told, table("Clusters by size", ["size", "clusters"], "tn", rows), details(
        "The largest clusters", _by_name("cluster", dict(Counter(counts).most_common(MOST)))))


def _rows(shown: Sequence[Mapping[str, Any]]) -> Html | None:
    """Rows as the model sees them; what is learned is marked by colour and by underlining."""
    if not shown:
        return None
    masked = any("segments" in row for row in shown)
    legend = el("p", el("mark", "marked text", class_="learned"), " is learned; the rest is only read.", class_="quiet")
    return el("div", legend if masked else None, *(_row(row) for row in shown))


def _row(row: Mapping[str, Any]) -> Html:
    if "segments" not in row:
        return el("div", el("h3", row["id"]), el("pre", clipped(row["text"], LONG), class_="sample"))
    text = join(el("mark", clipped(s["text"], LONG), class_="learned") if s["learned"] else clipped(s["text"], LONG)
                for s in row["segments"])
    told = join((counted(row["tokens"], "token"), ", ", number(row["learned"]), " learned"))
    return el("div", el("h3", row["id"], " ", el("span", told, class_="quiet")), el("pre", text, class_="sample"))

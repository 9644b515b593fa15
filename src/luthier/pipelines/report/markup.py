"""HTML from Python values: everything that is not `Html` is escaped, and every number carries its exact value."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

MINUS = "\N{MINUS SIGN}"
NBSP = "\N{NO-BREAK SPACE}"
ABSENT = "–"
NOTHING = 1e-15  # less is what rounding leaves of zero
# What no HTML page may hold: control characters and halves of surrogate pairs (models do write them).
_ILLEGAL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
_VOID = {"br", "hr", "meta", "link"}


class Html(str):
    """Text that is markup already."""


def escape(value: Any) -> Html:
    """A value as HTML text; `Html` passes through."""
    if isinstance(value, Html):
        return value
    return Html(html.escape(_ILLEGAL.sub("\N{REPLACEMENT CHARACTER}", str(value))))


def join(parts: Iterable[Any], between: str = "") -> Html:
    """Parts one after the other; None is left out."""
    return Html(escape(between).join(escape(p) for p in parts if p is not None))


def el(tag: str, *children: Any, **attributes: Any) -> Html:
    """One element. `class_` stands for `class`, `aria_label` for `aria-label`; None and False leave one out."""
    written = []
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        name = name.rstrip("_").replace("_", "-")
        written.append(f" {name}" if value is True else f' {name}="{escape(value)}"')
    start = f"<{tag}{''.join(written)}>"
    return Html(start if tag in _VOID else f"{start}{join(children)}</{tag}>")


def finite(value: Any) -> bool:
    """Whether a value is a number that can be shown and drawn."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def number(value: Any, places: int = 3, sign: bool = False) -> Html:
    """A number to some places, with its exact value in `<data value>`; a dash when there is none."""
    if not finite(value):
        return escape(ABSENT if value is None else value)
    text = f"{value:{'+' if sign else ''},d}" if isinstance(value, int) else _rounded(value, places, sign)
    return el("data", text.replace("-", MINUS), value=repr(value))


def _rounded(value: float, places: int, sign: bool) -> str:
    if abs(value) < NOTHING:
        value = 0.0
    elif abs(value) < 0.5 * 10**-places:
        return f"{value:{'+' if sign else ''}.1e}"
    return f"{value:{'+' if sign else ''},.{places}f}"


def places_for(*values: Any) -> int:
    """Two places, or three where two would show a number other than zero as zero."""
    return 3 if any(finite(v) and 0 < abs(v) < 0.005 for v in values) else 2


def span(low: Any, high: Any, places: int = 3, sign: bool = False) -> Html:
    """An interval, "low to high"; a dash when there is none."""
    if low is None or high is None:
        return escape(ABSENT)
    return el("span", number(low, places, sign), " to ", number(high, places, sign), class_="interval")


def _scaled(value: Any, base: float, units: Sequence[str]) -> Html:
    if not finite(value):
        return escape(ABSENT)
    power = 0
    while abs(value) / base**power >= base and power < len(units) - 1:
        power += 1
    text = f"{value / base**power:,.{1 if power else 0}f} {units[power]}"
    return el("data", text, value=repr(value))


def size(value: Any) -> Html:
    """Bytes in decimal units."""
    return _scaled(value, 1000.0, ("bytes", "kB", "MB", "GB", "TB"))


def duration(value: Any) -> Html:
    """Seconds as people say them."""
    if not finite(value):
        return escape(ABSENT)
    if value < 60:
        return el("data", f"{value:.1f} s", value=repr(value))
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return el("data", f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s", value=repr(value))


def moment(value: Any) -> Html:
    """A date and time in words; anything else as `plain` has it."""
    try:
        when = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return plain(value)
    zone = f" {when.tzname()}" if when.tzinfo else ""
    return el("time", f"{when.day} {when:%B %Y, %H:%M}{zone}", datetime=value)


def plain(value: Any) -> Html:
    """Any JSON value as short text: mappings as "key value" (a component's name alone), lists with commas."""
    if isinstance(value, dict):
        return join((plain(v) if k == "use" else join((k, " ", plain(v))) for k, v in value.items()), " · ")
    if isinstance(value, (list, tuple)):
        return join(map(plain, value), ", ")
    if isinstance(value, bool):
        return escape("yes" if value else "no")
    if isinstance(value, float):
        return el("data", f"{value:.4g}".replace("-", MINUS), value=repr(value)) if finite(value) else escape(value)
    return number(value) if isinstance(value, int) or value is None else escape(value)


def counted(count: int, one: str, many: str = "") -> Html:
    """A number and its noun: 1 question, 2 questions."""
    return join((number(count), NBSP, one if count == 1 else many or one + "s"))


def clipped(text: str, limit: int) -> Html:
    """Text up to a limit, saying how much was left off."""
    if len(text) <= limit:
        return escape(text)
    return join((text[:limit], el("span", f" … {len(text) - limit:,} more characters", class_="quiet")))


def scroll(label: str, *children: Any) -> Html:
    """A box that scrolls sideways by itself and can be reached with the keyboard."""
    return el("div", *children, class_="scroll", tabindex="0", role="region", aria_label=label)


def table(label: str, head: Sequence[Any], align: str, rows: Iterable[Sequence[Any]], **attributes: Any) -> Html:
    """A table in its own scroll box. `align` has one letter a column: t for text, n for numbers.

    Tables of more than three columns become lists of names and values on a narrow screen: each cell carries its heading.
    """
    return tables(label, head, align, [(None, rows)], **attributes)


def tables(label: str, head: Sequence[Any], align: str, groups: Iterable[tuple[Any, Iterable[Sequence[Any]]]],
           **attributes: Any) -> Html:
    """A table whose rows stand in groups, each under a heading of its own (None for no heading)."""
    kinds = [("n" if a == "n" else None) for a in align]
    names = [None, *map(_bare, head[1:])] if len(head) > 3 else [None] * len(head)
    top = join(el("th", h, scope="col", class_=k) for h, k in zip(head, kinds, strict=True))
    bodies = []
    for heading, rows in groups:
        over = el("tr", el("th", heading, scope="rowgroup", colspan=len(head)), class_="group") if heading else None
        body = (
            el("tr", *(
                el("td" if i else "th", cell, scope=None if i else "row", class_=k, data_label=name)
                for i, (cell, k, name) in enumerate(zip(row, kinds, names, strict=True))
            )) for row in rows
        )
        bodies.append(el("tbody", over, *body))
    if len(head) > 3:
        attributes["class_"] = " ".join(filter(None, ("stack", attributes.get("class_"))))
    return scroll(label, el("table", el("thead", el("tr", top)), *bodies, **attributes))


def _bare(heading: Any) -> str | None:
    """A heading as text without markup, for an attribute."""
    text = html.unescape(re.sub(r"<[^>]*>", "", heading)) if isinstance(heading, Html) else str(heading)
    return text.strip() or None


def pairs(rows: Iterable[tuple[Any, Any]], **attributes: Any) -> Html:
    """A list of names and values."""
    return el("dl", *(el("div", el("dt", k), el("dd", v)) for k, v in rows), **attributes)


def details(summary: Any, *children: Any, open_: bool = False, **attributes: Any) -> Html:
    """Something to be opened; no script needed."""
    return el("details", el("summary", summary), *children, open=open_, **attributes)


def slug(text: str) -> str:
    """A word that may stand in a class or an id."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")

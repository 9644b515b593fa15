"""Which adapters the tokens of a row took, of models with gates: a heat map for the first row of each set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.core.files import read_json
from luthier.pipelines.report.facts import Facts
from luthier.pipelines.report.markup import Html, details, el

CELL, TOP = 14, 4  # size of a cell and what is left above the first row, px
LABEL = 110  # room for the adapters' names, px


def routing(facts: Facts) -> Html | None:
    """One heat map a set and arm."""
    maps = [_map(f"{artifact.meta['arm']}, {name}", told) for artifact in facts.of_kind("records").values()
            if (artifact.folder / "routing.json").exists()
            for name, told in read_json(artifact.folder / "routing.json").items()]
    if not maps:
        return None
    note = el("p", "Across: tokens of the prompt and the answer; the darker a cell, the more of the adapter in it, as a mean "
                   "over all gates.", class_="quiet")
    return el("div", note, *maps)


def _map(title: str, told: Mapping[str, Any]) -> Html:
    names, tokens = told["routes"], told["tokens"]
    cells = [el("rect", el("title", f"{names[row]} {weight:.2f} in {tokens[column]!r}"), x=LABEL + CELL * column,
                y=TOP + CELL * row, width=CELL - 1, height=CELL - 1, fill="currentColor", fill_opacity=f"{weight:.2f}")
             for column, weights in enumerate(told["weights"]) for row, weight in enumerate(weights)]
    labels = [el("text", name, x=LABEL - 6, y=TOP + CELL * (row + 0.75), text_anchor="end") for row, name in enumerate(names)]
    drawing = el("svg", *labels, *cells, style=f"width: {LABEL + CELL * len(tokens)}px", height=2 * TOP + CELL * len(names),
                 role="img", aria_label=f"Adapters by token: {title}", class_="routing")
    return el("figure", el("div", drawing, class_="scroll"), el("figcaption", title),
              details("The text", el("p", "".join(tokens))))

"""Look at data before training."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from luthier.cli import _shared as shared


def inspect(
    data: Annotated[str, typer.Argument(help="a file of examples, or files and folders of documents")],
    base: Annotated[str | None, typer.Option("--base", metavar="MODEL", help="whose tokens and template are shown; "
                                                "gemma3-270m for rows, plain words for documents")] = None,
    rows: Annotated[int, typer.Option("--rows", min=1, help="how many rows to show")] = 3,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=8, help="longest row in tokens")] = 512,
    template: Annotated[str, typer.Option("--template", metavar="NAME_OR_FILE", help="auto, plain, chat or a Jinja file: "
                                                "how rows are rendered")] = "auto",
    out: Annotated[Path | None, typer.Option("--out", metavar="FOLDER", help="also write FOLDER/inspect.html: lengths, "
                                             "sources, clusters and masks")] = None,
    accept_terms: shared.Terms = None, as_json: shared.Json = False,
) -> None:
    """What was understood of a file: its format, its rows, and which of their tokens are learned."""
    from luthier.pipelines.inspecting import inspect_data

    shared.accept(accept_terms)
    found = inspect_data(data, base, rows, max_tokens, template)
    if out is not None:
        from luthier.pipelines.report.data import write_inspection

        print(f"written: {write_inspection(found, out)}", file=sys.stderr)
    if as_json:
        print(json.dumps(found, ensure_ascii=False, indent=1))
        return
    print("\n".join(f"{k}: {v}" for k, v in found["about"].items()))
    for row in found["shown"]:
        print(f"\n{row['id']}")
        if "segments" in row:
            print(_coloured(row["segments"], sys.stdout.isatty()))
            print(f"({row['tokens']} tokens, {row['learned']} learned)")
        else:
            print(row["text"])
    if any("segments" in r for r in found["shown"]):
        print("\nLearned tokens are " + ("green." if sys.stdout.isatty() else "between ⟦ and ⟧."))


def _coloured(segments: list[dict[str, object]], colour: bool) -> str:
    learned = ("\x1b[32m", "\x1b[0m") if colour else ("⟦", "⟧")
    return "".join(f"{learned[0]}{s['text']}{learned[1]}" if s["learned"] else str(s["text"]) for s in segments)


commands = {"inspect": inspect}

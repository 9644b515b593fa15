"""Data before training: read, write questions, curate, select, divide, and look at what is there."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from luthier.cli import _shared as shared

REFUSED = 20  # files and passages left out that are listed


def inspect(
    data: Annotated[str, typer.Argument(help="rows, a saved dataset, documents, or what a data command left")],
    base: Annotated[str | None, typer.Option("--base", metavar="MODEL", help="whose tokens and template are shown; "
                                                "gemma3-270m for rows, plain words for documents")] = None,
    rows: Annotated[int, typer.Option("--rows", min=1, help="how many rows to show")] = 3,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=8, help="longest row in tokens")] = 512,
    template: Annotated[str, typer.Option("--template", metavar="NAME_OR_FILE", help="auto, plain, chat or a Jinja file: "
                                                "how rows are rendered")] = "auto",
    out: Annotated[Path | None, typer.Option("--out", metavar="FOLDER", help="also write FOLDER/inspect.html: lengths, "
                                             "sources, clusters and masks")] = None,
    data_step: Annotated[shared.Spec, typer.Option("--data-step", metavar=shared.SPEC, help="list the rows that it would "
                                                   "leave out, such as policy-scan; repeatable")] = None,
    sets: shared.Sets = None, accept_terms: shared.Terms = None, as_json: shared.Json = False,
) -> None:
    """What was understood of a file: its format, its rows, and which of their tokens are learned."""
    from luthier.pipelines.inspecting import inspect_data, reading

    shared.accept(accept_terms)
    found = inspect_data(data, base, rows, max_tokens, template, data_step or (), **reading(sets or ()))
    if out is not None:
        from luthier.pipelines.report.data import write_inspection

        print(f"written: {write_inspection(found, out)}", file=sys.stderr)
    if as_json:
        print(json.dumps(found, ensure_ascii=False, indent=1))
        return
    print("\n".join(f"{k}: {v}" for k, v in found["about"].items()))
    for row in found.get("refused", ())[:REFUSED]:
        print(f"  {row['id']}: {row['reason']}" + (f", {row['detail']}" if row["detail"] else ""))
    if (rest := len(found.get("refused", ())) - REFUSED) > 0:
        print(f"  and {rest} more (--json lists them all)")
    for row in found["shown"]:
        print(f"\n{row['id']}")
        if "segments" in row:
            print(_coloured(row["segments"], sys.stdout.isatty()))
            print(f"({row['tokens']} tokens, {row['learned']} learned)")
        else:
            print(row["text"])
    for row in found.get("flagged", ()):
        print(f"\n{row['id']}\n{row['step']}: {row['reason']}, {row['detail']}")
    if any("segments" in r for r in found["shown"]):
        print("\nLearned tokens are " + ("green." if sys.stdout.isatty() else "between ⟦ and ⟧."))


def _coloured(segments: list[dict[str, object]], colour: bool) -> str:
    learned = ("\x1b[32m", "\x1b[0m") if colour else ("⟦", "⟧")
    return "".join(f"{learned[0]}{s['text']}{learned[1]}" if s["learned"] else str(s["text"]) for s in segments)


ABOUT = {
    "ingest": "Documents to passages, or a file of rows to examples.",
    "synthesize": "Questions with answers from documents; each --data-step writes some.",
    "curate": "Leave out, change or add rows: every --data-step in order.",
    "select": "Choose rows: every --data-step in order.",
    "split": "Divide examples into train, dev and unseen; a saved dataset keeps its own division.",
}


def _command(name: str) -> Callable[..., None]:
    def run(
        path: Annotated[str, typer.Argument(help="documents, a file of rows, a saved dataset, or what a data command left")],
        out: Annotated[Path, typer.Option("--out", metavar="DIR", help="folder of the result; the same command goes on there")],
        data_step: shared.DataStep = None, base: shared.Base = None, seed: shared.Seed = None, sets: shared.Sets = None,
        accept_terms: shared.Terms = None, fresh: shared.Fresh = False, as_json: shared.Json = False,
    ) -> None:
        from luthier.pipelines import data

        shared.accept(accept_terms)
        recipe = data.plan(name, path, data_step or (), base=base, seed=seed or 0, sets=sets or ())
        artifact, cached = data.make(recipe, out, fresh=fresh, watcher=shared.watcher(as_json))
        found = {**data.told(artifact), "cached": cached}
        if as_json:
            print(json.dumps(found, ensure_ascii=False, indent=1))
            return
        print(f"{found['kind']} in {out}" + (" (already done)" if cached else ""))
        for heading in ("kept", "dropped"):
            print(f"{heading}: " + (", ".join(f"{n} {what}" for what, n in found[heading].items()) or "nothing"))

    run.__doc__ = ABOUT[name]
    return run


commands = {**{name: _command(name) for name in ABOUT}, "inspect": inspect}

"""`luthier catalog [SLUG]`"""

from __future__ import annotations

import json
from collections import Counter
from typing import Annotated

import typer

from luthier.cli import _shared as shared


def command(
    slug: Annotated[str | None, typer.Argument(help="one technique, by slug or number")] = None,
    as_json: shared.Json = False,
) -> None:
    """The 210 published techniques: what each does, its oracles, and what stands behind it here."""
    from luthier.core import catalog
    from luthier.core.index import rows

    components = [(r["kind"], r["name"], r["version"], r["seeds"]) for r in rows()]
    if slug is None:
        found = catalog.rows(components)
        if as_json:
            print(json.dumps(found, ensure_ascii=False))
            return
        for row in found:
            print(f"{row['id']:>3} {row['status']:<12} {row['slug']:<28} {row['kind']:<12} {row['summary']}")
        counts = Counter(r["status"] for r in found if r["status"] != "-")
        told = ", ".join(f"{n} {status}" for status, n in sorted(counts.items())) or "none is recorded to run"
        print(f"\n{len(found)} techniques: {told}. luthier catalog SLUG shows one.")
        return
    row = catalog.row(slug, components)
    if as_json:
        print(json.dumps(row, ensure_ascii=False, indent=1))
        return
    print(f"{row['id']} {row['name']}: {row['title']}\n{row['summary']}\n\nstatus: {row['status']}   home: {row['home']}")
    if row["result"]:
        said = row["result"]
        old = "" if said["current"] else ", of an earlier version"
        print(f"study: {said['verdict']} at the {said['scale']} scale ({said['world']}){old}: {said['why']}")
    print("components: " + (", ".join(f"{c['kind']} {c['name']}" for c in row["components"]) or "none named"))
    print("".join(f"  {command}\n" for command in catalog.commands(row["id"], components)), end="")
    print(f"works when: {row['works_when']}\noracles:")
    recorded = {c["n"]: c["outcome"] for c in catalog.records().get(row["id"], {}).get("clauses", ())}
    for oracle in row["oracles"]:
        said = f" [{recorded[oracle['n']]}]" if oracle["n"] in recorded and row["status"] != "stale" else ""
        print(f"  {oracle['n']}. {oracle['text']}{said}")

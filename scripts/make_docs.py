"""Gather the documentation site in `build/docs`: the pages of docs/, the README, and what the code says of itself.

Generated are the reference (each kind with its components, their fields and defaults; the steps of recipes; every command's
help) and the catalogue with what stands behind each technique. Links are made to fit; a link to nothing is an error.

    python scripts/make_docs.py [OUT]
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from luthier.core import catalog, index, recorded  # noqa: E402

SOURCE = "src/luthier"
# Files outside docs/ that pages link to, and where they are on the site. Others of the repository are named, not linked.
MOVED = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "benchmarks/RESULTS.md": "results.md"}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def gather(out: Path) -> list[Path]:
    """Write all pages anew to `out`; the pages.

    Raises:
        ValueError: a link to a page or picture that is not there.
    """
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(ROOT / "docs", out)
    for was, now in MOVED.items():
        if (ROOT / was).exists():
            (out / now).write_text((ROOT / was).read_text(encoding="utf-8"), encoding="utf-8")
    for path in sorted(out.rglob("*.md")):
        name = path.relative_to(out).as_posix()
        came = next((was for was, now in MOVED.items() if now == name), f"docs/{name}")
        path.write_text(_relinked(path.read_text(encoding="utf-8"), came, name), encoding="utf-8")
    (out / "catalogue.md").write_text("\n".join(_catalogue()) + "\n", encoding="utf-8")
    reference = out / "reference"
    reference.mkdir()
    kinds = sorted({str(r["kind"]) for r in index.rows()})
    for kind in kinds:
        (reference / f"{kind}.md").write_text("\n".join(_kind(kind)) + "\n", encoding="utf-8")
    (reference / "commands.md").write_text("\n".join(_commands()) + "\n", encoding="utf-8")
    (reference / "index.md").write_text("\n".join(_contents(kinds)) + "\n", encoding="utf-8")
    pages = sorted(out.rglob("*.md"))
    _check(out, pages)
    return pages


def _relinked(text: str, came: str, name: str) -> str:
    """Links from where a page was written to where its targets are on the site."""
    def turn(found: re.Match[str]) -> str:
        mark, words, target, anchor = found.groups()
        if re.match(r"[a-z]+:", target):
            return found.group()
        whole = os.path.normpath(Path(came).parent / target)
        there = MOVED.get(whole) or (whole.removeprefix("docs/") if whole.startswith("docs/") else None)
        if there is None:
            return words if mark == "" else ""  # a file of the repository that is no page
        return f"{mark}[{words}]({os.path.relpath(there, Path(name).parent)}{anchor or ''})"

    return LINK.sub(turn, text)


def _check(out: Path, pages: list[Path]) -> None:
    for page in pages:
        for _, _, target, _ in LINK.findall(page.read_text(encoding="utf-8")):
            if not re.match(r"[a-z]+:", target) and not (page.parent / target).exists():
                raise ValueError(f"{page.relative_to(out)} links to {target}, which is not there.")


def _contents(kinds: list[str]) -> Iterator[str]:
    yield "# Reference\n\nMade from the code; `luthier list KIND` and `luthier schema KIND NAME` say the same.\n"
    yield "| kind | components |\n|---|---|"
    for kind in kinds:
        names = [str(r["name"]) for r in index.rows() if r["kind"] == kind]
        yield f"| [{kind}]({kind}.md) | {', '.join(f'`{n}`' for n in names)} |"
    yield "\nThe options of every command: [commands](commands.md). A recipe is steps of the kind [step](step.md);\n" \
          "`luthier schema` is its JSON schema."


def _kind(kind: str) -> Iterator[str]:
    yield f"# {kind}\n"
    for row in index.rows():
        if row["kind"] == kind:
            yield f"## {row['name']}\n\n{row['summary']}\n"
            seeds = [f"{s} {catalog.row(s)['title']}" for s in row["seeds"]]
            file = str(row["module"]).removeprefix("luthier.").replace(".", "/")
            about = [f"`{SOURCE}/{file}.py`", f"version {row['version']}"]
            yield "; ".join([*about, *seeds]) + ".\n"
            yield from _fields(row["schema"])


def _fields(schema: dict[str, Any]) -> Iterator[str]:
    fields = schema.get("properties", {})
    if not fields:
        yield "No settings.\n"
        return
    yield "| field | default | values | |\n|---|---|---|---|"
    for name, about in fields.items():
        default = json.dumps(about["default"], ensure_ascii=False) if "default" in about else "required"
        if len(default) > 120:
            default = default[:117] + "…"
        yield f"| `{name}` | {_code(default)} | {_escaped(_values(about))} | {_escaped(about.get('description', ''))} |"
    yield ""


def _values(about: dict[str, Any]) -> str:
    """Type and bounds, in a few words."""
    if "enum" in about:
        return ", ".join(str(v) for v in about["enum"])
    if "anyOf" in about:
        return " or ".join(dict.fromkeys(_values(a) for a in about["anyOf"]))
    kind = about.get("type", about.get("$ref", "component").rsplit("/", 1)[-1])
    told = ", ".join(kind) if isinstance(kind, list) else str(kind)
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    return " ".join([told, *(f"{sign} {about[key]}" for key, sign in bounds.items() if key in about)])


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _code(text: str) -> str:
    return f"`{_escaped(text)}`" if text != "required" else text


def _catalogue() -> Iterator[str]:
    records = recorded.records()
    rows = catalog.rows([(r["kind"], r["name"], r["version"], r["seeds"]) for r in index.rows()])
    there = {seed for r in index.rows() for seed in r["seeds"]}
    yield "# The catalogue\n"
    yield f"{len(rows)} published systems and studies that this project is to make work; {len(there)} have parts here."
    yield "`runs`: its parts are there; `verified`: every clause of its oracle passed; `studied`: its claim was judged here,"
    yield "with the verdict beside it; `stale`: its parts changed since; `unverified`: nothing is recorded yet.\n"
    yield "| | slug | what it is | status | verdict here |\n|---|---|---|---|---|"
    for row in rows:
        record = records.get(row["id"])
        status = row["status"] if row["status"] != "-" else "unverified" if row["id"] in there else ""
        verdict = f"[{record['verdict']}](evidence.md#{record['study']})" if record else ""
        yield f"| {row['id']} | `{row['slug']}` | {_escaped(row['summary'])} | {status} | {verdict} |"


def _commands() -> Iterator[str]:
    yield "# Commands\n"
    names = re.findall(r"^  ([a-z]+) {2,}", _help(), re.MULTILINE)
    yield f"```\n{_help()}\n```\n"
    for name in names:
        yield f"## luthier {name}\n\n```\n{_help(name)}\n```\n"


def _help(*command: str) -> str:
    done = subprocess.run([sys.executable, "-m", "luthier", *command, "--help"], capture_output=True, text=True, check=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "100", "NO_COLOR": "1"})
    return done.stdout.strip()


if __name__ == "__main__":
    place = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "docs"
    print(f"{place}: {len(gather(place))} pages")

"""The generated index: one line a component, so that `list`, `schema` and `--help` never import torch.

`python -m luthier.core.index` writes `components.jsonl` from the classes themselves; a test fails when the file and
the classes disagree, or when a default changed while the version did not.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

PATH = Path(__file__).resolve().parent.parent / "components.jsonl"
ROOMS = ("luthier.engine", "luthier.techniques", "luthier.pipelines", "luthier.studies")


@cache
def rows() -> tuple[dict[str, Any], ...]:
    """The shipped index: dictionaries with kind, name, version, seeds, module, summary, schema."""
    if not PATH.exists():
        return ()
    return tuple(json.loads(line) for line in PATH.read_text(encoding="utf-8").splitlines())


def installed() -> tuple[dict[str, Any], ...]:
    """The shipped rows, and those of components that other packages bring (imports these, where there are any)."""
    from importlib.metadata import entry_points

    from luthier.core.component import ENTRY_POINTS, registered

    roots = set()
    for point in entry_points(group=ENTRY_POINTS):
        point.load()
        roots.add(point.module.partition(".")[0])
    return (*rows(), *(_row(cls) for cls in registered() if cls.__module__.partition(".")[0] in roots))


def describe() -> list[dict[str, Any]]:
    """The index made afresh from the code (imports every room)."""
    import importlib
    import importlib.util
    import pkgutil

    from luthier.core.component import registered

    for room in ROOMS:
        if importlib.util.find_spec(room) is None:
            continue
        package = importlib.import_module(room)
        for module in pkgutil.walk_packages(package.__path__, prefix=f"{room}."):
            importlib.import_module(module.name)
    return [_row(cls) for cls in registered() if cls.__module__.startswith("luthier.")]


def _row(cls: Any) -> dict[str, Any]:
    schema = cls.model_json_schema()
    schema.pop("description", None)
    return {
        "kind": cls.info.kind,
        "name": cls.info.name,
        "version": cls.info.version,
        "seeds": list(cls.info.seeds),
        "module": cls.__module__,
        "summary": (cls.__doc__ or "").strip().splitlines()[0],
        "schema": schema,
    }


def changed_defaults(old: Iterable[dict[str, Any]], new: Iterable[dict[str, Any]]) -> list[str]:
    """Components whose defaults changed while their version did not, as `kind name: field old -> new`."""
    before = {(r["kind"], r["name"]): r for r in old}
    found = []
    for row in new:
        known = before.get((row["kind"], row["name"]))
        if known is None or known["version"] != row["version"]:
            continue
        was, now = (_defaults(r["schema"]) for r in (known, row))
        found += [
            f"{row['kind']} {row['name']}: {field} {was[field]!r} -> {now[field]!r} at version {row['version']}"
            for field in sorted(was.keys() & now.keys()) if was[field] != now[field]
        ]
    return found


def _defaults(schema: dict[str, Any]) -> dict[str, Any]:
    return {name: field.get("default") for name, field in schema.get("properties", {}).items()}


def to_text(lines: list[dict[str, Any]]) -> str:
    """The file's text: one line a component, sorted by kind and name."""
    return "".join(json.dumps(r, ensure_ascii=False, sort_keys=True) + "\n" for r in lines)


if __name__ == "__main__":
    PATH.write_text(to_text(describe()), encoding="utf-8")
    print(f"{PATH.name}: {len(PATH.read_text(encoding='utf-8').splitlines())} components")

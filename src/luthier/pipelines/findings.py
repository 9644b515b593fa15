"""findings: what an audit left, as scores: a value a training of each number of a finding, and one an item of its evidence.

    (finding, number) -> {WHOLE: (step, value)}        audit/ood, auroc
    (file, number) -> {item: (item, value)}            matrices, intruders

Items are the lines of an evidence file that have an `id` or a `name`. The step that made a whole value stands as its
cluster: seeds that share a step, since nothing behind it was trained, are one unit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from luthier.core.artifact import Artifact
from luthier.core.files import read_lines

FILE = "findings.jsonl"
WHOLE = "whole"


def scores(artifact: Artifact) -> dict[tuple[str, str], dict[str, tuple[str, float]]]:
    """Every number of an audit's findings and of the items of their evidence."""
    found: dict[tuple[str, str], dict[str, tuple[str, float]]] = {}
    findings = read_lines(artifact.folder / FILE)
    for finding in findings:
        plain = {name: finding[name] for name in ("left", "right", "difference")}
        for name, value in _numbers({**finding["extra"], **plain}):
            found[finding["name"], name] = {WHOLE: (artifact.folder.name, value)}
    for file in dict.fromkeys(Path(f["evidence"]).name for f in findings if f["evidence"].endswith(".jsonl")):
        for line in read_lines(artifact.folder / file):
            item = line.get("id", line.get("name"))
            if item is not None:
                for name, value in _numbers(line):
                    found.setdefault((Path(file).stem, name), {})[str(item)] = (str(item), value)
    return found


def _numbers(values: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, float]]:
    """Numbers by name, those of a mapping as NAME.KEY."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{within}{name}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{within}{name}", float(value)

"""Banks of phrasings: files of them, the one that fits any question, and how far apart phrasings are to a model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from luthier.core.errors import UserError
from luthier.core.example import Example
from luthier.core.identity import hash_file
from luthier.techniques.evaluation._phrasings import Item, Phrasing, items_of

if TYPE_CHECKING:
    from luthier.engine.models import Model

KINDS = ("observed", "unobserved", "adversarial")
# What any question or text with options bears; the first is how the rows stand in the training data.
GENERAL = (
    "{input}", "Please answer this: {input}", "{input}\nGive the best answer.", "Consider what follows and decide: {input}",
    "Read carefully. {input}", "{input} Reply with the answer alone.", "Here is a case to judge.\n{input}",
    "Tell me the right answer to this.\n\n{input}",
)


def read_bank(path: str, count: int) -> list[tuple[str, list[Phrasing], list[Item]]]:
    """Tasks of a YAML file: name, phrasings and the items at equal distances.

    Raises:
        UserError: the file can't be read, or a task lacks a key or has one of another kind.
    """
    place = Path(path).expanduser()
    try:
        given = yaml.safe_load(place.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path} can't be read: {error}") from None
    if not isinstance(given, list) or not given:
        raise UserError(f"{path} holds no list of tasks: - task: NAME, items: FILE.jsonl, instructions: [...].")
    found = []
    for number, task in enumerate(given, 1):
        lacking = [k for k in ("task", "items", "instructions") if k not in (task or {})]
        if lacking:
            raise UserError(f"{path}: task {number} has no '{lacking[0]}'. It needs task, items and instructions.")
        phrasings = []
        for n, row in enumerate(task["instructions"], 1):
            if row.get("kind") not in KINDS or "template" not in row:
                raise UserError(f"{path}: instruction {n} of {task['task']} needs a template and a kind: {', '.join(KINDS)}.")
            phrasings.append(Phrasing(str(row.get("id", n)), row["kind"], row["template"]))
        found.append((str(task["task"]), phrasings, read_items(place.parent / task["items"], count)))
    return found


def read_items(path: Path, count: int) -> list[Item]:
    """Items of a JSONL file: texts by field, `options`, and the `label`, one of them.

    Raises:
        UserError: the file can't be read, or a line lacks options or has a label that is none of them.
    """
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read: {error}") from None
    made = []
    for number, row in enumerate(rows, 1):
        options = [str(o) for o in row.get("options") or ()]
        if len(options) < 2 or str(row.get("label")) not in options:
            raise UserError(f"{path}, line {number}: label {row.get('label')!r} must be one of its options, two or more; found "
                            f"{options}.")
        fields = {k: str(v) for k, v in row.items() if k not in ("id", "options", "label")}
        if not fields:
            raise UserError(f"{path}, line {number}: there is no text beside options and label.")
        made.append(Item(str(row.get("id", number)), fields, tuple(options), options.index(str(row["label"]))))
    return [made[n * len(made) // min(count, len(made))] for n in range(min(count, len(made)))]


def read_templates(path: str, kind: str) -> list[Phrasing]:
    r"""Phrasings of a text file, one a line, `\n` for a line break. Raises UserError where it can't be read."""
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"{path} can't be read: {error}") from None
    return [Phrasing(f"{kind[0]}{n}", kind, line.strip().replace("\\n", "\n"))
            for n, line in enumerate(lines, 1) if line.strip()]


def content(path: str) -> dict[str, Any]:
    """Hashes of a bank and of the files it names; nothing where there is none."""
    place = Path(path).expanduser()
    if not path or not place.is_file():
        return {}
    given = yaml.safe_load(place.read_text(encoding="utf-8"))
    tasks = given if isinstance(given, list) else []
    names = [place.parent / t["items"] for t in tasks if isinstance(t, dict) and "items" in t]
    return {p.name: hash_file(p) for p in (place, *names) if p.is_file()}


def default_bank(rows: Sequence[Example], count: int) -> list[tuple[str, list[Phrasing], list[Item]]]:
    """The rows of a run in their own words (observed) and in seven that any question bears; nothing without options."""
    items = items_of(rows, count)
    named = [Phrasing(f"general-{n}" if n else "own", "unobserved" if n else "observed", t) for n, t in enumerate(GENERAL)]
    return [("held-out rows", named, items)] if len(items) >= 2 else []


def reworded(row: Example, template: str) -> Example:
    """A row whose question stands in a template."""
    return replace(row, turns=tuple(
        t if t.target else replace(t, parts=tuple(replace(p, value=template.replace("{input}", p.value))
                                                  if p.name == "question" else p for p in t.parts)) for t in row.turns))


def nearest(model: Model, observed: Sequence[str], unobserved: Sequence[str], losses: Sequence[float]
            ) -> tuple[list[float], float | None]:
    """1 - cos of each unobserved phrasing to the nearest observed one, and Kendall's tau of these with the losses.

    A phrasing is the last layer's state at its last token. tau is None where one side is constant.
    """
    import torch
    from scipy.stats import kendalltau

    from luthier.core.kinds import Tokens
    from luthier.engine.batches import collate
    from luthier.engine.forward import hidden_states, vocabulary_of
    from luthier.engine.rendering import renderer

    render = renderer(model)
    vocabulary = vocabulary_of(model)
    if vocabulary is None:
        return [], None
    states = []
    with torch.no_grad():
        for text in (*observed, *unobserved):
            ids = render._start() + render.encode(text)
            row = collate([{"input": Tokens(ids, [False] * len(ids))}], [""], 0, model.device)["input"]
            states.append(hidden_states(model, row, vocabulary).states[0, -1].float())
    unit = torch.nn.functional.normalize(torch.stack(states), dim=-1)
    near = (1 - unit[len(observed):] @ unit[:len(observed)].T).amin(1).clamp(min=0).tolist()
    tau = float(kendalltau(near, losses).statistic) if len(near) > 1 else float("nan")
    return near, None if tau != tau else tau

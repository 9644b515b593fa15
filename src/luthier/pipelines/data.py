"""`luthier data ingest | synthesize | curate | select | split`: one step of a run by itself, from a path to an artifact.

The folder that a command leaves is what the step of a run would have left, with a ledger, so the next command, `luthier
tune` or a recipe (`use: existing`) reads it. What must be made first (documents read, a base opened) is made beside it in
a hidden folder, which goes when the work is done; a command that was killed goes on from there.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier.core.artifact import RECORD, Artifact, open_artifact
from luthier.core.component import build, find, parse_spec
from luthier.core.errors import UserError
from luthier.core.files import commit_folder, read_json, write_json
from luthier.core.identity import digest
from luthier.core.recipe import Recipe
from luthier.core.run import Run
from luthier.engine.executor import Watcher, execute_nodes
from luthier.pipelines.ledger import reason_of
from luthier.pipelines.sources import source
from luthier.pipelines.steps.existing import Existing

DEFAULT_BASE = "gemma3-270m"
REQUEST = "request"
COMMANDS = ("ingest", "synthesize", "curate", "select", "split")


def plan(command: str, path: str, data_steps: Sequence[str] = (), *, base: str | None = None, seed: int = 0,
         sets: Sequence[str] = ()) -> Recipe:
    """The recipe of one command: what is read, what must be at hand, and the step named after the command.

    Raises:
        UserError: a path of the wrong kind, a data step that the command has no place for, or a setting that is none.
    """
    from luthier.pipelines.overrides import override

    steps = {"ingest": _ingest, "synthesize": _synthesize, "curate": _curate, "select": _curate, "split": _split}[command](
        path, list(data_steps), base)
    steps[command] = steps.pop("")
    recipe = Recipe({"name": f"data {command}", "about": "One step by itself.", "seed": seed, "steps": steps})
    fields = type(next(n.step for n in recipe.nodes if n.name == command)).model_fields
    # `--set FIELD=…` means the command's own step; a path that begins with a step's name reaches the others.
    return override(recipe, sets=[f"{command}.{s}" if s.partition("=")[0].split(".")[0].strip() in fields else s
                                  for s in sets])


def _ingest(path: str, specs: list[str], base: str | None) -> dict[str, Any]:
    from luthier.pipelines.steps.read import READERS

    step = source(path, ("documents", "examples"))
    if any(parse_spec(spec)["use"] in READERS for spec in specs):
        step = source(path, ("examples",))
    if step["use"] == "existing":
        raise UserError(f"{path} is ingested already. Go on with: luthier data curate, synthesize or split {path}")
    readers = [spec for spec in specs if getattr(find("data_step", parse_spec(spec)["use"]), "suffixes", ())]
    others = [spec for spec in specs if spec not in readers]
    if others:
        raise UserError(f"--data-step {others[0]}: it reads no files. Ingest first, then: luthier data curate OUT "
                        f"--data-step {others[0]}")
    if step["use"] == "read":
        if len(readers) > 1:
            raise UserError(f"--data-step was given {len(readers)} times; one reader reads rows.")
        return {"": {**step, **({"reader": readers[0]} if readers else {})}}
    if readers:
        first = type(build("step", {"use": "ingest", "paths": [path]})).model_fields["readers"].get_default()
        step["readers"] = [*readers, *(r for r in first if r not in {parse_spec(s)["use"] for s in readers})]
    return {**_base(base), "": {**step, **({"inputs": {"base": "base"}} if base else {})}}


def _synthesize(path: str, specs: list[str], base: str | None) -> dict[str, Any]:
    made: dict[str, Any] = {"use": "synthesize", **({"sources": specs} if specs else {})}
    sources = build("step", made).sources
    writer = base or (DEFAULT_BASE if any("writer" in s.roles for s in sources) else None)
    return {**_base(writer), "source": source(path, ("documents",)),
            "": {**made, "inputs": {"documents": "source", **({"writer": "base"} if writer else {})}}}


def _curate(path: str, specs: list[str], base: str | None) -> dict[str, Any]:
    if not specs:
        raise UserError("Name what is to be done with the rows: --data-step NAME, repeatable. See: luthier list data-step")
    return {**_base(base), "source": source(path, ("examples", "documents")),
            "": {"use": "curate", "steps": specs, "inputs": {"rows": "source", **({"writer": "base"} if base else {})}}}


def _split(path: str, specs: list[str], base: str | None) -> dict[str, Any]:
    from luthier.pipelines.steps.read import splits_of

    step = source(path, ("examples",))
    there = open_artifact(Path(path)).subsets if step["use"] == "existing" else splits_of(Path(path)) or ["all"]
    if there == ["all"]:
        augment = {"augment": specs} if specs else {}
        return {"source": step, "": {"use": "split", "inputs": {"questions": "source"}, **augment}}
    if specs:
        raise UserError(f"{path} comes divided into {', '.join(there)}. Change its training rows with: luthier data curate")
    return {"source": step, "": {"use": "own-splits", "inputs": {"rows": "source"}}}


def _base(name: str | None) -> dict[str, Any]:
    return {"base": {"use": "base", "model": name}} if name else {}


def make(recipe: Recipe, out: Path, *, fresh: bool = False, watcher: Watcher | None = None) -> tuple[Artifact, bool]:
    """The artifact of the recipe's last step in `out`, and whether it was there already.

    Raises:
        UserError: bad input; or `out` holds something else.
        GateError: a receipt differs.
    """
    command = recipe.nodes[-1].name
    for node in recipe.nodes:
        node.step.check()
    request = digest({"recipe": recipe.identity, "content": {n.name: n.step.content() for n in recipe.nodes}})
    if _there(out, request, fresh):
        return open_artifact(out), True
    parts = out.parent / f".{out.name}.parts"
    try:
        if fresh:
            shutil.rmtree(parts, ignore_errors=True)
        parts.mkdir(parents=True, exist_ok=True)
        with Run(parts).locked():
            given = {n.name: open_artifact(Path(n.step.path)) for n in recipe.nodes if isinstance(n.step, Existing)}
            engine = _engine(any(n.step.info.name == "base" for n in recipe.nodes))
            watcher = watcher or Watcher()
            done = execute_nodes(recipe, parts, engine, watcher, lambda text: None, given)
            made = done[command]
            # A step that only divides rows does not know what they are.
            noted = {k: done["source"].meta[k] for k in ("format",) if "source" in done and made.kind == "examples"
                     and done["source"].meta.get(k)}
            write_json(made.folder / RECORD, {**noted, **made.meta, REQUEST: request, "command": command})
            commit_folder(made.folder, out)
        shutil.rmtree(parts)
    except OSError as error:
        raise UserError(f"Can't write to {out}: {error.strerror or error}. Make room, or give another folder with "
                        "--out.") from None
    return open_artifact(out), False


class _NoModels:
    """In place of the workshop where no model is at hand: the work on rows alone starts without torch."""

    decisions: Mapping[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        raise UserError("A data step needs a model. Name one with --base.")


def _engine(models: bool) -> Any:
    if not models:
        return _NoModels()
    from luthier.engine.workshop import Engine

    engine = Engine()
    engine.decide({})
    return engine


def _there(out: Path, request: str, fresh: bool) -> bool:
    """Whether `out` is what was asked for. Raises UserError where it is something else that must not be lost."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if not (out / RECORD).is_file():
        raise UserError(f"{out} is not empty and holds no artifact. Give a new folder with --out.")
    record = read_json(out / RECORD)
    if record.get(REQUEST) == request and not fresh:
        return True
    if REQUEST not in record:
        raise UserError(f"{out} is an artifact that another command made. Give a new folder with --out.")
    if not fresh:
        raise UserError(f"{out} holds what 'luthier data {record.get('command')}' made of other input or settings. Give a new "
                        "folder with --out, or replace it with --fresh.")
    return False


def told(artifact: Artifact) -> dict[str, Any]:
    """What is said of an artifact: rows by subset or documents and passages, and what was left out by reason."""
    reasons = artifact.meta.get("reasons")
    if reasons is None:
        reasons = Counter(reason_of(row["reason"]) for row in artifact.ledger())
    kept = dict(artifact.meta["rows"]) if artifact.kind == "examples" else \
        {k: artifact.meta[k] for k in ("documents", "passages") if k in artifact.meta}
    return {"out": str(artifact.folder), "kind": artifact.kind,
            **({"format": artifact.meta["format"]} if artifact.meta.get("format") else {}),
            "kept": kept, "dropped": dict(sorted(reasons.items(), key=lambda item: -item[1]))}

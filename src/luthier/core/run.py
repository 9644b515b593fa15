"""Run: the folder of a recipe's artifacts, with the recipe, the record and the report.

::

    RUN/recipe.yaml       the recipe as run, every default written out
    RUN/run.json          recipe identity, versions, machine, decisions, state
    RUN/findings.jsonl    receipts and verdicts of all steps
    RUN/log.txt           one line an event
    RUN/steps/NAME/       one artifact a step, with step.json and receipts.jsonl
    RUN/report.html       what it all says
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from luthier.core.artifact import Artifact, open_artifact
from luthier.core.errors import UserError
from luthier.core.files import read_json, read_lines, write_atomic, write_json
from luthier.core.finding import Finding
from luthier.core.recipe import Recipe

PACKAGES = ("luthier", "torch", "transformers", "peft", "numpy", "lancedb", "safetensors")


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


class Run:
    """A run's folder. Opening it for a recipe checks that it belongs to that recipe."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def record(self) -> dict[str, Any]:
        """`run.json`."""
        path = self.folder / "run.json"
        return read_json(path) if path.exists() else {}

    @classmethod
    def open(cls, folder: Path) -> Run:
        """An existing run.

        Raises:
            UserError: the folder is none.
        """
        run = cls(folder)
        if not run.record:
            what = "has no run.json" if folder.exists() else "does not exist"
            raise UserError(f"{folder} is not a run: it {what}. Give the folder of a run (its --out; by default below runs/), "
                            f"or make one: luthier adapt DOCS --out {folder}, luthier tune DATA --out {folder}")
        return run

    @classmethod
    def start(cls, folder: Path, recipe: Recipe) -> Run:
        """A new run, or the one there if it has the same recipe.

        Raises:
            UserError: the folder holds something else, or another recipe's run.
        """
        run = cls(folder)
        record = run.record
        if not record and folder.exists() and any(folder.iterdir()):
            raise UserError(f"{folder} is not empty and is not a run. Give an empty or new folder with --out.")
        if record and record["recipe"] != recipe.identity:
            raise UserError(
                f"{folder} belongs to another recipe: {_difference(folder, recipe)}. "
                "Give another folder with --out, or start over with --fresh."
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not record:
                write_json(folder / "run.json", {
                    "format": 1, "name": recipe.name, "recipe": recipe.identity, "seed": recipe.seed,
                    "started": now(), "versions": _versions(), "machine": platform.platform(),
                    "argv": [Path(sys.argv[0]).name, *sys.argv[1:]], "state": "started",
                })
            write_atomic(folder / "recipe.yaml", recipe.to_yaml())
        except OSError as error:
            raise UserError(f"Can't write to {folder}: {error.strerror}. Give a writable folder with --out.") from None
        return run

    def update(self, **values: Any) -> None:
        """Change entries of `run.json`."""
        write_json(self.folder / "run.json", {**self.record, **values})

    def step(self, name: str) -> Artifact:
        """The artifact of a finished step.

        Raises:
            UserError: the step has not finished here.
        """
        folder = self.folder / "steps" / name
        if not folder.exists():
            raise UserError(f"{self.folder} has no finished step '{name}'.")
        return open_artifact(folder)

    def has(self, name: str) -> bool:
        """Whether a step has finished."""
        return (self.folder / "steps" / name / "luthier.json").exists()

    def steps(self) -> dict[str, dict[str, Any]]:
        """`step.json` of every finished step, in the order in which they finished."""
        paths = [(read_json(p), p) for p in (self.folder / "steps").glob("*/step.json")]
        # Times are to the second; among equals the file's own time decides.
        paths.sort(key=lambda item: (item[0]["finished"], item[1].stat().st_mtime_ns))
        return {p.parent.name: record for record, p in paths}

    def findings(self) -> list[Finding]:
        """Receipts and verdicts of all finished steps."""
        rows = []
        for name in self.steps():
            for file in ("receipts.jsonl", "findings.jsonl"):
                rows += read_lines(self.folder / "steps" / name / file)
        return [Finding.from_dict(r) for r in rows]

    def log(self, text: str) -> None:
        """Add one line to `log.txt`."""
        with (self.folder / "log.txt").open("a", encoding="utf-8") as file:
            file.write(f"{now()} {text}\n")

    @contextmanager
    def locked(self) -> Iterator[int]:
        """Keep a second process out of the run; the descriptor of the lock, for processes that share in the work.

        Raises:
            UserError: another process works here.
        """
        import fcntl

        with (self.folder / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(f"Another process is working in {self.folder}. Wait for it, or give another --out.") from None
            yield file.fileno()


def now() -> str:
    """UTC time to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _difference(folder: Path, recipe: Recipe) -> str:
    import yaml

    was = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    now_ = recipe.fill()
    if was.get("seed") != now_["seed"]:
        return f"its seed is {was.get('seed')}, not {now_['seed']}"
    more, fewer = ([n for n in one["steps"] if n not in other["steps"]] for one, other in ((was, now_), (now_, was)))
    if more or fewer:
        return " and ".join(f"it {what} {', '.join(names[:3])}{f' and {len(names) - 3} more' if names[3:] else ''}"
                            for what, names in (("has the steps", more), ("lacks", fewer)) if names)
    changed = [
        f"{name}.{key} is {was['steps'][name].get(key)!r}, not {values.get(key)!r}"
        for name, values in now_["steps"].items()
        for key in values if was["steps"][name].get(key) != values.get(key)
    ]
    return "; ".join(changed[:3]) or "a component has another version"

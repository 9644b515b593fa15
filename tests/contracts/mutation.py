"""Mutants: small, plausible mistakes in components, each of which some oracle test must see.

`tests/contracts/mutants/KIND-NAME.yaml` holds the mutants of one component, a list of

    - what: alpha / rank is 5 % too large          (in words)
      old: lora_alpha=self.alpha,                  (a text that stands exactly once in the module)
      new: lora_alpha=1.05 * self.alpha,
      module: luthier.techniques.methods.lora      (where it is not the component's own)

A mutant is killed when an oracle test of the component fails with it: one of a seed that the component names, or one
without a seed among the tests of the component's room. Nothing is written to disk: an import hook changes the source on
its way in.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(__file__).parent / "mutants"


@dataclass(frozen=True)
class Mutant:
    """One change of one module; `component` is "kind name"."""

    component: str
    what: str
    module: str
    old: str
    new: str

    @property
    def id(self) -> str:
        return f"{self.component}: {self.what}"

    def mutated(self) -> str:
        """The module's source with the change. Raises ValueError where the old text does not stand exactly once."""
        source = path_of(self.module).read_text(encoding="utf-8")
        if (found := source.count(self.old)) != 1 or self.old == self.new:
            raise ValueError(f"{self.id}: {self.old!r} stands {found} times in {self.module}, and must once and change")
        return source.replace(self.old, self.new)


def path_of(module: str) -> Path:
    """The file of a module of the package."""
    path = ROOT / "src" / Path(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def room_of(component: dict[str, Any]) -> str:
    """The folder of the tests of a component's room, relative to the root."""
    return "/".join(["tests", *component["module"].split(".")[1:-1]])


def tests_of(component: dict[str, Any], tests: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of described tests, the oracle tests that must see a mutant of this component (a line of the index)."""
    room = room_of(component)
    return [t for t in tests if any(o["seed"] in component["seeds"] if "seed" in o else t["file"].startswith(f"{room}/")
                                    for o in t["oracles"])]


def by_nearness(mutant: Mutant, component: dict[str, Any], files: Iterable[str]) -> tuple[list[str], list[str]]:
    """Test files, relative to the root: those that import the changed module, and the others, which name its component or not.

    The first are likely to kill it; the others are tried only where they do not.
    """
    near, far = [], []
    for file in sorted(files):
        text = (ROOT / file).read_text(encoding="utf-8")
        if re.search(rf"\b{re.escape(mutant.module)}\b", text):
            near.append(file)
        else:
            far.append((not re.search(rf"\b{re.escape(component['name'])}\b", text), file))
    return near, [file for _, file in sorted(far)]


def declared(components: Iterable[dict[str, Any]]) -> list[Mutant]:
    """All mutants, by component, in the order of their files. `components` are the lines of the index.

    Raises:
        ValueError: a file belongs to no component, or an entry has other keys than the four.
    """
    modules = {f"{r['kind']}-{r['name']}": (f"{r['kind']} {r['name']}", r["module"]) for r in components}
    found = []
    for path in sorted(FOLDER.glob("*.yaml")):
        if path.stem not in modules:
            raise ValueError(f"mutants/{path.name}: there is no such component; the name is KIND-NAME.yaml")
        component, module = modules[path.stem]
        for entry in yaml.safe_load(path.read_text(encoding="utf-8")):
            if not {"what", "old", "new"} <= set(entry) <= {"what", "old", "new", "module"}:
                raise ValueError(f"mutants/{path.name}: {sorted(entry)}; legal: what, old, new, module")
            found.append(Mutant(**{"component": component, "module": module, **entry}))
    return found


def lacking(components: Iterable[dict[str, Any]], mutants: Iterable[Mutant], least: int = 2) -> list[str]:
    """The components with seeds that have fewer mutants than they must."""
    named = [m.component for m in mutants]
    titles = [f"{r['kind']} {r['name']}" for r in components if r["seeds"] and r["kind"] != "study"]
    return [title for title in titles if named.count(title) < least]


class _Loader(importlib.machinery.SourceFileLoader):
    """Compiles the changed text; no byte code is read or left."""

    def __init__(self, mutant: Mutant) -> None:
        super().__init__(mutant.module, str(path_of(mutant.module)))
        self._text = mutant.mutated()

    def get_code(self, fullname: str) -> CodeType:
        return compile(self._text, self.path, "exec", dont_inherit=True)


class _Finder:
    """Answers for the one changed module."""

    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name != self._mutant.module:
            return None
        return importlib.util.spec_from_loader(name, _Loader(self._mutant))


def install(mutant: Mutant) -> None:
    """Let this process import the mutant. Raises RuntimeError when the module is loaded already."""
    if mutant.module in sys.modules:
        raise RuntimeError(f"{mutant.module} is imported already; a mutant needs a fresh process")
    sys.meta_path.insert(0, _Finder(mutant))  # type: ignore[arg-type]

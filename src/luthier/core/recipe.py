"""Recipe: a small graph of steps as text.

::

    name: adapt
    about: documents in, four arms with evidence out
    seed: 0
    steps:
      base:      {use: base, model: gemma3-270m}
      documents: {use: ingest, inputs: {base: base}, paths: [docs]}

Each step is a component of kind `step`; `inputs` wires the names it reads to the names of other steps, and `seed`, where
a step has one, stands in place of the recipe's. Of a step that draws nothing from the recipe's seed and has a field `seed`, as
invented worlds have, it is that field. Unknown keys are errors with the nearest legal key; `fill` shows every
default; a variant is an edit, never a copy.

Variants of one step stand side by side as NAME@VARIANT: what follows the @ tells them apart, and changes no draw.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from luthier.core.component import build, find, parse_spec
from luthier.core.errors import UserError, nearest
from luthier.core.identity import digest
from luthier.core.step import Step

KEYS = ("name", "about", "seed", "steps")


@dataclass(frozen=True)
class Node:
    """One step of a recipe: its name, the component, the wiring of its inputs, and its own seed if it has one."""

    name: str
    step: Step
    inputs: dict[str, str]
    seed: int | None = None

    @property
    def scope(self) -> str:
        """The name under which it draws: that of its variants, too, so that they differ by what was changed alone."""
        return self.name.partition("@")[0]


class Recipe:
    """A validated graph of steps in an order in which they can run."""

    def __init__(self, text: dict[str, Any]) -> None:
        for key in text:
            if key not in KEYS:
                raise UserError(f"A recipe has no '{key}'. {nearest(key, KEYS)}")
        if not isinstance(text.get("steps"), dict) or not text["steps"]:
            raise UserError("A recipe needs 'steps': a mapping from names to steps.")
        self.name = str(text.get("name", "recipe"))
        self.about = str(text.get("about", ""))
        self.seed = text.get("seed", 0)
        _whole(self.seed, "seed")
        self.text = text
        self.nodes = self._sorted({str(n): self._node(str(n), values) for n, values in text["steps"].items()})

    def _node(self, name: str, values: Any) -> Node:
        if not isinstance(values, dict):
            raise UserError(f"Step '{name}' is not a mapping with 'use'; found {values!r}.")
        values = dict(values)
        wiring = values.pop("inputs", {}) or {}
        if not isinstance(wiring, dict):
            raise UserError(f"The inputs of step '{name}' are not a mapping from input to step; found {wiring!r}.")
        wiring = {str(k): v for k, v in wiring.items()}
        try:
            seed = None if _its_own(values.get("use")) else values.pop("seed", None)
            step = build("step", values)
        except UserError as error:
            raise UserError(f"In step '{name}': {error}") from None
        declared = type(step).inputs
        legal = {n.rstrip("?") for n in declared if n != "*"}
        for wanted in wiring:
            if wanted not in legal and "*" not in declared:
                raise UserError(f"Step '{name}' ({step.info.name}) has no input '{wanted}'. {nearest(wanted, legal)}")
        for wanted in declared:
            if wanted != "*" and not wanted.endswith("?") and wanted not in wiring:
                raise UserError(f"Step '{name}' ({step.info.name}) needs the input '{wanted}': inputs: {{{wanted}: STEP}}.")
        if seed is not None:
            _whole(seed, f"{name}.seed")
            if not type(step).seeded:
                raise UserError(f"Step '{name}' ({step.info.name}) draws nothing: it has no seed. Leave out {name}.seed.")
        return Node(name, step, {k: str(v) for k, v in wiring.items()}, seed)

    def _sorted(self, nodes: dict[str, Node]) -> list[Node]:
        for node in nodes.values():
            for wanted, source in node.inputs.items():
                if source not in nodes:
                    raise UserError(f"Step '{node.name}' reads '{source}', which is no step. {nearest(source, nodes)}")
                kind = type(node.step).inputs.get(wanted) or type(node.step).inputs.get(wanted + "?") or \
                    type(node.step).inputs["*"]
                made = type(nodes[source].step).output
                if not set(made.split("|")) & set(kind.split("|")):
                    raise UserError(f"Step '{node.name}' wants {kind} for '{wanted}'; '{source}' leaves {made}.")
        done: dict[str, Node] = {}
        while len(done) < len(nodes):
            ready = [n for n in nodes.values() if n.name not in done and all(s in done for s in n.inputs.values())]
            if not ready:
                circle = ", ".join(n for n in nodes if n not in done)
                raise UserError(f"These steps wait for each other in a circle: {circle}.")
            done.update({n.name: n for n in ready})
        return list(done.values())

    @property
    def identity(self) -> str:
        """Digest of the seeds, the wiring and every step's identity."""
        steps = {n.name: [n.step.identity, n.inputs, *([] if n.seed is None else [n.seed])] for n in self.nodes}
        return digest({"seed": self.seed, "steps": steps})

    def edit(self, **changes: Any) -> Recipe:
        """A recipe with values set by path: `edit(**{"fit.length": {"epochs": 2}})`.

        A path is STEP.FIELD, STEP.seed, or `seed`; a component inside a field is reached by a further name (`fit.method.rank`).
        """
        text = copy.deepcopy(self.text)
        for path, value in changes.items():
            self._set(text, path, value)
        return Recipe(text)

    def _set(self, text: dict[str, Any], path: str, value: Any) -> None:
        first, *rest = path.removeprefix("steps.").split(".")
        if not rest:
            if first not in ("seed", "name", "about"):
                raise UserError(f"'{path}' names no value: write STEP.FIELD=VALUE. {nearest(first, text['steps'])}")
            text[first] = value
            return
        if first not in text["steps"]:
            raise UserError(f"'{path}': no step '{first}'. {nearest(first, text['steps'])}")
        place: Any = text["steps"][first]
        if rest[0] not in ("use", "inputs", "seed"):
            fields = find("step", place["use"]).model_fields
            if rest[0] not in fields:
                raise UserError(f"'{path}': step '{first}' has no '{rest[0]}'. {nearest(rest[0], fields)}")
        filled: Any = next(n.step for n in self.nodes if n.name == first).to_dict()
        for name in rest[:-1]:
            inner, filled = _at(place, name, path), _at(filled, name, "")
            if inner is None:
                inner = copy.deepcopy(filled) or {}  # what is not written is edited from its default
            if isinstance(inner, str):
                inner = parse_spec(inner)
            if not isinstance(inner, (dict, list)):
                raise UserError(f"'{path}': '{name}' is {inner!r}, which has no parts.")
            _put(place, name, inner)
            place = inner
        _at(place, rest[-1], path)
        _put(place, rest[-1], value)

    def fill(self) -> dict[str, Any]:
        """The recipe with every default written out, for reading."""
        steps = {n.name: {**n.step.to_dict(), **({"inputs": n.inputs} if n.inputs else {}),
                          **({} if n.seed is None else {"seed": n.seed})} for n in self.nodes}
        return {"name": self.name, "about": self.about, "seed": self.seed, "steps": steps}

    def to_yaml(self) -> str:
        """`fill()` as YAML."""
        return yaml.safe_dump(self.fill(), sort_keys=False, allow_unicode=True, width=120)


def _at(place: Any, name: str, path: str) -> Any:
    """What a mapping or list holds under a name of a path; None where nothing is written (or, without path, nothing is)."""
    if isinstance(place, dict):
        return place.get(name)
    if isinstance(place, list) and name.isdigit() and int(name) < len(place):
        return place[int(name)]
    if path:
        legal = [str(i) for i in range(len(place))] if isinstance(place, list) else []
        raise UserError(f"'{path}': there is no '{name}'. {nearest(name, legal)}")
    return None


def _its_own(use: Any) -> bool:
    """Whether `seed` is a field of that step, and no seed of what it draws."""
    step = find("step", use) if isinstance(use, str) else None
    return step is not None and issubclass(step, Step) and not step.seeded and "seed" in step.model_fields


def _whole(seed: Any, where: str) -> None:
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise UserError(f"{where} = {seed!r} is not a whole number.")


def _put(place: Any, name: str, value: Any) -> None:
    place[int(name) if isinstance(place, list) else name] = value


def shipped() -> dict[str, Path]:
    """Recipes of the package by name."""
    folder = Path(str(files("luthier"))) / "pipelines"
    return {p.stem: p for p in sorted(folder.glob("*.yaml"))}


def load_recipe(name_or_file: str) -> Recipe:
    """A shipped recipe by name, or one from a YAML file.

    Raises:
        UserError: neither; names the nearest shipped recipe.
    """
    path = shipped().get(name_or_file) or Path(name_or_file)
    if not path.is_file():
        raise UserError(f"There is no recipe '{name_or_file}', shipped or as a file. {nearest(name_or_file, shipped())}")
    try:
        text = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {error}") from None
    if not isinstance(text, dict):
        raise UserError(f"{path} holds no mapping with 'steps'.")
    return Recipe(text)


def recipe_schema() -> dict[str, Any]:
    """JSON schema of a recipe file, made from the steps' own schemas."""
    from luthier.core.index import rows

    steps = []
    for row in rows():
        if row["kind"] == "step":
            schema = copy.deepcopy(row["schema"])
            schema["properties"] = {
                "use": {"const": row["name"]},
                "inputs": {"type": "object", "additionalProperties": {"type": "string"}},
                "seed": {"type": "integer"},
                **schema.get("properties", {}),
            }
            schema["required"] = ["use", *schema.get("required", [])]
            steps.append(schema)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Luthier recipe",
        "type": "object",
        "additionalProperties": False,
        "required": ["steps"],
        "properties": {
            "name": {"type": "string"},
            "about": {"type": "string"},
            "seed": {"type": "integer"},
            "steps": {"type": "object", "additionalProperties": {"oneOf": steps}},
        },
    }

"""The contract of every component: its text form, its schema, its line in the index, its file."""

from __future__ import annotations

import ast
import json
from collections import Counter
from pathlib import Path

import pytest
import yaml

from luthier.core import index
from luthier.core.component import build, kinds
from luthier.core.errors import UserError
from luthier.engine.workshop import Engine  # noqa: F401  (opens the engine before any room)
from tests.contracts.workbench import class_of, example_of, shipped

# Modules that hold several components on purpose: the parts of one idea.
FAMILIES = {
    "luthier.techniques.evaluation.component_change": {"bias-change", "component-change"},
    "luthier.engine.steps.repeat": {"repeat", "given"},
    "luthier.pipelines.steps.existing": {"existing", "test-rows"},
}
TYPES = {"string", "integer", "number", "boolean", "array", "object", "null"}

every = pytest.mark.parametrize("row", shipped())


@every
def test_what_is_written_is_read_again(row):
    part = example_of(row)
    again = build(row["kind"], yaml.safe_load(yaml.safe_dump(part.to_dict())))
    assert again == part and again.identity == part.identity
    assert json.loads(json.dumps(part.to_dict())) == part.to_dict()


@every
def test_an_unknown_key_is_refused_with_the_nearest(row):
    fields = [n for n in class_of(row).model_fields if len(n) > 2]
    wrong = f"{fields[0]}_x" if fields else "nothing_x"
    with pytest.raises(UserError, match=rf"{wrong}.*(Did you mean|Legal: )"):
        example_of(row, **{wrong: 1})


@every
def test_the_schema_is_plain_and_describes_every_field(row):
    schema = class_of(row).model_json_schema()
    json.dumps(schema)
    assert schema["type"] == "object"
    assert not check_schema(schema, schema)
    for where in (schema, *schema.get("$defs", {}).values()):
        for name, field in where.get("properties", {}).items():
            assert field.get("description", "").strip(), f"{row['kind']} {row['name']}: '{name}' has no description"


def check_schema(part, root) -> list[str]:
    """What is wrong with a schema: unknown types, references without a goal, required fields that are none."""
    if isinstance(part, list):
        return [w for p in part for w in check_schema(p, root)]
    if not isinstance(part, dict):
        return []
    wrong = []
    types = part.get("type", [])
    if isinstance(types, (str, list)):
        wrong += [f"type {t}" for t in ([types] if isinstance(types, str) else types) if t not in TYPES]
    if isinstance(part.get("$ref"), str) and part["$ref"].removeprefix("#/$defs/") not in root.get("$defs", {}):
        wrong.append(part["$ref"])
    wrong += [f"required {n}" for n in part.get("required", ()) if isinstance(n, str) and n not in part["properties"]]
    inner = [v for k, v in part.items() if k not in ("default", "examples", "enum", "const", "required")]
    return wrong + check_schema(inner, root)


@every
def test_it_says_what_it_is(row):
    cls = class_of(row)
    assert "__doc__" in vars(cls) and cls.__doc__.strip(), "no docstring"
    assert row["summary"].endswith((".", ")", "?")) and "\n" not in row["summary"]
    assert cls.info.version >= 1 and row["kind"] in kinds()


def test_the_index_is_what_the_classes_say():
    fresh = index.describe()
    lines = index.PATH.read_text(encoding="utf-8").splitlines() if index.PATH.exists() else []
    old = {(r["kind"], r["name"]): r for r in map(json.loads, lines)}
    new = {(r["kind"], r["name"]): json.loads(json.dumps(r)) for r in fresh}
    stale = sorted(f"{k} {n}" for k, n in old.keys() | new.keys() if old.get((k, n)) != new.get((k, n)))
    assert not stale, f"run: python -m luthier.core.index  ({', '.join(stale)})"
    assert lines == index.to_text(fresh).splitlines()


def test_one_file_holds_one_component():
    by_module = Counter(r["module"] for r in index.describe())
    several = {m: {r["name"] for r in index.describe() if r["module"] == m} for m, n in by_module.items() if n > 1}
    assert several == {m: names for m, names in FAMILIES.items() if m in by_module}


def test_a_component_class_stands_in_the_module_that_the_index_names():
    for row in index.rows():
        cls = class_of(row)
        assert cls.__module__ == row["module"]


def test_no_technique_draws_from_global_randomness():
    root = Path(index.__file__).parent.parent / "techniques"
    drawn = []
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if called.startswith(("random.", "np.random.", "torch.seed")):
                drawn.append(f"{path.name}:{node.lineno} {called}")
    assert not drawn

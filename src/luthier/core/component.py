"""Component: a pluggable part that is its own configuration.

A component is one frozen pydantic class. Its fields, with defaults, bounds and a one-line description each, are its
configuration, its schema, its help text and, as far as they differ from the defaults, its identity. A class that
names a `kind` opens a kind; a class that names a `name` registers a component of the kind it derives from::

    class Regularizer(Component, kind="regularizer"): ...
    class Mixout(Regularizer, name="mixout", seeds=[122], version=1): ...

A field that holds another component is `Slot[Kind]`: it reads `{use: mixout, p: 0.7}` and `mixout:p=0.7`, and is
written by the class it holds at run time.
"""

from __future__ import annotations

import importlib
from abc import ABC
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler, TypeAdapter, ValidationError
from pydantic_core import CoreSchema, core_schema

from luthier.core.errors import UserError, nearest
from luthier.core.identity import digest

ENTRY_POINTS = "luthier.components"


@dataclass(frozen=True)
class Info:
    """What a component's class says of itself."""

    kind: str
    name: str
    version: int
    seeds: tuple[int, ...]

    @property
    def title(self) -> str:
        """`name@version`, the form that enters identities."""
        return f"{self.name}@{self.version}"


_kinds: dict[str, type[Component]] = {}
_classes: dict[tuple[str, str], type[Component]] = {}


class Component(BaseModel, ABC):
    """Base of every component. Unknown keys are errors; values can't be changed after validation."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, validate_default=True,
                              protected_namespaces=())
    info: ClassVar[Info]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        # The class arguments are read below, once pydantic has completed the class.
        super().__init_subclass__()

    @classmethod
    def __pydantic_init_subclass__(cls, *, kind: str = "", name: str = "", version: int = 1,
                                   seeds: Iterable[int] = (), **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if kind:
            if kind in _kinds:
                raise TypeError(f"kind '{kind}' is already opened by {_kinds[kind].__module__}")
            _kinds[kind] = cls
            cls.info = Info(kind, "", version, ())
        elif name:
            cls.info = Info(cls.info.kind, name, version, tuple(seeds))
            known = _classes.get((cls.info.kind, name))
            if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
                raise TypeError(f"{cls.info.kind} '{name}' is already registered by {known.__module__}")
            _classes[cls.info.kind, name] = cls

    @property
    def identity(self) -> str:
        """Digest of name@version and of the parameters that differ from their defaults."""
        return digest(self.identity_values())

    def identity_values(self) -> dict[str, Any]:
        """The values behind `identity`: nested components appear by their own identity values."""
        return {"use": self.info.title, **_changed(self)}

    def to_dict(self) -> dict[str, Any]:
        """`{use: name, field: value, …}` with every default, the form a recipe reads."""
        return {"use": self.info.name, **self.model_dump(mode="json")}


def _changed(model: BaseModel) -> dict[str, Any]:
    """Identity values of the fields that differ from their defaults."""
    values = {}
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        # A default component is named all the same: its version may move under an unchanged recipe.
        if field.is_required() or _holds_component(value) or value != _default(type(model), name):
            values[name] = _identity_value(value)
    return values | {k: _identity_value(v) for k, v in (model.__pydantic_extra__ or {}).items()}


@cache
def _default(cls: type[BaseModel], name: str) -> Any:
    """A field's default as validation leaves it: `{"epochs": 3}` is written, a `Length` is held."""
    field = cls.model_fields[name]
    kind: Any = field.annotation
    for mark in field.metadata:
        kind = Annotated[kind, mark]
    return TypeAdapter[Any](kind).validate_python(field.get_default(call_default_factory=True, validated_data={}))


def _holds_component(value: Any) -> bool:
    if isinstance(value, Component):
        return True
    if isinstance(value, BaseModel):
        return any(_holds_component(getattr(value, name)) for name in type(value).model_fields)
    if isinstance(value, Mapping):
        return any(map(_holds_component, value.values()))
    return isinstance(value, (list, tuple)) and any(map(_holds_component, value))


def _identity_value(value: Any) -> Any:
    if isinstance(value, Component):
        return value.identity_values()
    if isinstance(value, BaseModel):
        return _changed(value)
    if isinstance(value, Mapping):
        return {str(k): _identity_value(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_identity_value(v) for v in value]
    return value


def kinds() -> dict[str, type[Component]]:
    """Every kind by name."""
    importlib.import_module("luthier.core.kinds")
    return dict(_kinds)


def registered() -> list[type[Component]]:
    """Every component class imported so far, sorted by kind and name."""
    return [_classes[key] for key in sorted(_classes)]


def find(kind: str, name: str) -> type[Component]:
    """The class of a component: imported already, in the shipped index, or behind an entry point.

    Raises:
        UserError: no such component; names the nearest legal one.
    """
    if (kind, name) not in _classes:
        from luthier.core import index

        modules = {(r["kind"], r["name"]): r["module"] for r in index.rows()}
        if (kind, name) in modules:
            importlib.import_module(modules[kind, name])
        else:
            for point in entry_points(group=ENTRY_POINTS):
                point.load()
        if (kind, name) not in _classes:
            legal = {n for k, n in (*modules, *_classes) if k == kind}
            word = kind.replace("_", " ")
            raise UserError(f"There is no {word} called '{name}'. {nearest(name, legal)} See: luthier list {kind}")
    return _classes[kind, name]


def parse_spec(text: str) -> dict[str, Any]:
    """`name:key=value,…` or `name:{key: value}` as the dictionary `{use: name, key: value}`.

    Raises:
        UserError: a part without `=`, or a value that is not YAML.
    """
    name, _, rest = text.strip().partition(":")
    name, rest = name.strip(), rest.strip()
    if not rest:
        return {"use": name}
    try:
        if rest.startswith("{"):
            values = yaml.safe_load(rest)
        else:
            values = {}
            for part in _split_outside_brackets(rest):
                key, equals, value = part.partition("=")
                if not equals:
                    raise UserError(f"'{part}' in '{text}' is not key=value.")
                values[key.strip()] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f"'{rest}' in '{text}' can't be read: {error}") from None
    return {"use": name, **values}


def _split_outside_brackets(text: str) -> list[str]:
    parts, depth, start = [], 0, 0
    for i, letter in enumerate(text):
        depth += (letter in "[{(") - (letter in "]})")
        if letter == "," and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    return [*parts, text[start:]]


def named(text: Any) -> Any:
    """A component's text, list or dictionary as the default of a field: it is read when the field is, not before."""
    return text


def build(kind: str, spec: Any) -> Any:
    """A component from an instance, a dictionary with `use`, or a text.

    Raises:
        UserError: unknown component, key or value; names the nearest legal key.
    """
    opened = kinds()[kind]
    if isinstance(spec, opened):
        return spec
    if isinstance(spec, str):
        spec = parse_spec(spec)
    if not isinstance(spec, Mapping) or "use" not in spec:
        raise UserError(f"A {kind} is written 'name:key=value' or {{use: name, key: value}}; found {spec!r}.")
    values = dict(spec)
    cls = find(kind, str(values.pop("use")))
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise UserError(explain(error, cls, f"{kind} '{cls.info.name}'")) from None


def explain(error: ValidationError, cls: type[BaseModel], where: str) -> str:
    """A pydantic error in words: which field, what was found, what is legal."""
    lines = []
    for problem in error.errors():
        path = ".".join(str(p) for p in problem["loc"])
        if problem["type"] == "extra_forbidden":
            lines.append(f"{where} has no '{path}'. {nearest(str(problem['loc'][-1]), _fields_at(cls, problem['loc']))}")
        elif problem["type"] == "missing":
            lines.append(f"{where} needs '{path}'.")
        else:
            found = f"{path} = {problem['input']!r}: " if path else ""
            said = problem['msg'].removeprefix('Value error, ')
            lines.append(f"{where}: {found}{said}" + ("" if said.endswith((".", "?")) else "."))
    return " ".join(lines)


def _fields_at(cls: type[BaseModel], place: tuple[int | str, ...]) -> Iterable[str]:
    """Legal keys where an error stands: of the model itself, or of the models nested in it."""
    for name in place[:-1]:
        if isinstance(name, str) and name in cls.model_fields:
            inner = _models_in(cls.model_fields[name].annotation)
            cls = inner[0] if inner else cls
    return cls.model_fields


def _models_in(kind: Any) -> list[type[BaseModel]]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [kind]
    return [m for part in get_args(kind) for m in _models_in(part)]


class _SlotMarker:
    """Teaches pydantic to read and write a field that holds a component of one kind."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        kind = source.info.kind
        return core_schema.no_info_plain_validator_function(
            lambda spec: build(kind, spec),
            serialization=core_schema.plain_serializer_function_ser_schema(lambda part: part.to_dict()),
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": ["string", "object"], "description": "a component: 'name:key=value,…' or {use: name, …}"}


_K = TypeVar("_K")
if TYPE_CHECKING:
    Slot = Annotated[_K, "slot"]
else:
    class Slot:
        """`Slot[Kind]`: a field that holds a component of that kind."""

        def __class_getitem__(cls, kind: type[Component]) -> Any:
            return Annotated[kind, _SlotMarker()]

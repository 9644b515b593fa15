"""What a command line says beside a recipe: base, seed, components by kind, and `path=value` edits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.core.component import build, find
from luthier.core.errors import UserError
from luthier.core.recipe import Recipe


def override(recipe: Recipe, *, base: str | None = None, seed: int | None = None, parts: Mapping[str, Sequence[str]] = {},
             sets: Sequence[str] = ()) -> Recipe:
    """A recipe with what the command line says: base, seed, components by kind, and `path=value` edits.

    Raises:
        UserError: a part that no step of the recipe can take, or a malformed edit.
    """
    import yaml

    edits: dict[str, Any] = {}
    if base is not None:
        edits["base.model"] = base
    if seed is not None:
        edits["seed"] = seed
    for kind, specs in parts.items():
        if specs:
            edits.update(_place(recipe, kind, list(specs)))
    for text in sets:
        path, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--set {text} is not path=value, such as --set 'tuned.length={{epochs: 2}}'.")
        try:
            edits[path.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            why = str(getattr(error, "problem", None) or error)
            raise UserError(f"--set {text}: the value is not YAML: {why}. Write it like 5, [a, b] or "
                            "{epochs: 2}; quotes keep a text as it is.") from None
    return recipe.edit(**edits) if edits else recipe


def _place(recipe: Recipe, kind: str, specs: list[str]) -> dict[str, Any]:
    """Where a recipe takes components of a kind: the fields of its steps that hold one, or several."""
    places = {
        "method": ("fit", "method", False), "regularizer": ("fit", "regularizers", True),
        "optimizer": ("fit", "optimizer", False), "schedule": ("fit", "schedule", False),
        "decoder": ("evaluate", "decoder", False), "metric": ("evaluate", "metrics", True),
        "data_step": ("synthesize", "sources", True), "retriever": ("index", "retriever", False),
    }
    use, field, several = places[kind]
    steps = [n.name for n in recipe.nodes if isinstance(n.step, find("step", use))]
    if not steps:
        raise UserError(f"This recipe has no step that takes a {kind.replace('_', '-')}.")
    if not several and len(specs) > 1:
        raise UserError(f"--{kind.replace('_', '-')} was given {len(specs)} times; one is read here. To try "
                        "several, run the command once for each with its own --out.")
    for spec in specs:
        build(kind, spec)
    return {f"{name}.{field}": specs if several else specs[0] for name in steps}

"""`luthier schema [KIND NAME]`"""

from __future__ import annotations

import json
from typing import Annotated

import typer


def command(
    kind: Annotated[str | None, typer.Argument(help="kind of a component; without it, the schema of recipes")] = None,
    name: Annotated[str | None, typer.Argument(help="name of a component")] = None,
) -> None:
    """JSON schema of a recipe file, or of one component."""
    from luthier.core.errors import UserError, nearest
    from luthier.core.index import installed as rows

    if kind is None:
        from luthier.core.recipe import recipe_schema

        print(json.dumps(recipe_schema(), indent=1, ensure_ascii=False))
        return
    wanted = kind.replace("-", "_")
    found = {r["name"]: r for r in rows() if r["kind"] == wanted}
    if not found:
        kinds = {r["kind"].replace("_", "-") for r in rows()}
        raise UserError(f"There is no kind '{kind}'. {nearest(kind.replace('_', '-'), kinds)}")
    if name is None:
        raise UserError(f"Name one: luthier schema {kind} NAME. {nearest('', found)}")
    if name not in found:
        raise UserError(f"There is no {kind} '{name}'. {nearest(name, found)}")
    print(json.dumps(found[name]["schema"], indent=1, ensure_ascii=False))

"""Which models a decoder asks beside the one that answers: inputs of a step, bases, or what a run has tuned."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.artifact import Artifact
from luthier.core.errors import UserError
from luthier.core.files import Journal
from luthier.core.kinds import Decoder
from luthier.core.run import Run
from luthier.core.step import Ctx

if TYPE_CHECKING:
    from luthier.engine.models import Model

TUNED = "tuned"


def further(decoder: Decoder, inputs: Mapping[str, Artifact], ctx: Ctx) -> dict[str, Model]:
    """The models of a decoder by role, loaded.

    Raises:
        UserError: a name that is no input, no run with a tuned model, and no base.
    """
    from luthier.engine.models import base_of

    found: dict[str, Any] = {}
    for role, name in decoder.models().items():
        artifact = inputs[name] if name in inputs else _outside(decoder, role, name, ctx)
        if artifact.kind == "model" and "fit" not in artifact.meta:
            found[role] = ctx.engine.load(artifact)
        else:
            base = next((a for a in inputs.values() if a.identity == artifact.meta["base"]["identity"]), None)
            found[role] = ctx.engine.load(base or base_of(artifact), artifact)
    return found


def _outside(decoder: Decoder, role: str, name: str, ctx: Ctx) -> Artifact:
    """A run's tuned model, or a base by its name or folder."""
    from luthier.engine.steps.base import Base

    folder = Path(name).expanduser()
    if (folder / "steps" / TUNED).is_dir():
        return Run.open(folder).step(TUNED)
    try:
        Base(model=name).check()
    except UserError as error:
        raise UserError(f"{decoder.info.name}: {role}={name} is no input of this step, no run with a tuned model and no base. "
                        f"{error}") from None
    kept = ctx.folder / f"speaker-{role}"
    kept.mkdir(parents=True, exist_ok=True)
    return Base(model=name).run({}, Ctx(**{**ctx.__dict__, "folder": kept, "journal": Journal(kept / "journal.jsonl")}))

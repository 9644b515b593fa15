"""What the audits of whole weights share: where another tune lies, and the tensors of a model with its tuning merged."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.artifact import MODEL_KINDS, RECORD, Artifact, open_artifact
from luthier.core.errors import UserError
from luthier.core.finding import Finding, audited
from luthier.core.run import Run
from luthier.core.step import Ctx

if TYPE_CHECKING:
    import torch

    from luthier.engine.models import Model


def tune_in(audit: str, place: str) -> Artifact:
    """The tuned artifact of a run or of a folder. Raises UserError where there is none."""
    folder = Path(place).expanduser()
    if place and (folder / "run.json").exists() and Run.open(folder).has("tuned"):
        return Run.open(folder).step("tuned")
    if place and (folder / RECORD).exists():
        found = open_artifact(folder)
        if found.kind in MODEL_KINDS and "base" in found.meta:
            return found
    raise UserError(f"{audit}: other = {place!r} is neither a run with a tuned model nor the folder of one. Name the second "
                    f"tune: --audit {audit}:other=RUN2.")


def loaded(ctx: Ctx, base: Artifact, tuned: Artifact | None) -> Model:
    """A model of one's own in float32, an adapter merged."""
    import torch

    from luthier.engine.models import add_tuned

    rests = tuned is None or "base" in tuned.meta
    model = ctx.engine.fresh(base if rests else tuned, torch.float32)  # type: ignore[arg-type]
    model = add_tuned(model, tuned) if tuned is not None and rests else model
    if hasattr(model.module, "merge_and_unload"):
        model.module = model.module.merge_and_unload()
    return model


def tensors_of(model: Model) -> dict[str, torch.Tensor]:
    """Weights of model and heads by name, as they stand in it."""
    heads = {f"heads/{task}.{n}": p for task, head in model.heads.items() for n, p in head.named_parameters()}
    return {**{n: p.detach() for n, p in model.module.named_parameters()}, **{n: p.detach() for n, p in heads.items()}}


def weighed(name: str, value: float, limit: float | None, **rest: Any) -> Finding:
    """A number measured of weights, which are what they are: its interval is itself. Without a limit it passes."""
    found = audited(name, None, value, math.inf if limit is None else limit, (value, value), **rest)
    return found if limit is not None else replace(found, tolerance=None)

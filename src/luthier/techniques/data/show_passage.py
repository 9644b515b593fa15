"""Augmentation: show the passage above the question in a share of the rows.

A model that is asked with passages and without must have seen both in training. A passage that is kept is numbered, as
those are that the model will be asked with.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from luthier.core.example import Example
from luthier.core.kinds import DataStep
from luthier.core.step import Ctx


class ShowPassage(DataStep, name="show-passage"):
    """Keep the passage in a share of the rows and take it out of the others."""

    share: float = Field(0.5, ge=0, le=1, description="share of rows that keep their passage, drawn row by row")

    def apply(self, rows: Iterator[Example], ctx: Ctx) -> Iterator[Example]:
        from luthier.engine.rendering import passages_of, with_passages

        for row in rows:
            keep = ctx.rng("show-passage", row.id).random() < self.share
            yield with_passages(row, passages_of(row) if keep else ())

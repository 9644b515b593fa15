"""pages-world: short pages about invented craftsmen, one passage each; nothing of them can be known from elsewhere.

The wordings of pages and of the questions about them (`page_questions.py`) share no template.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from pydantic import Field

from luthier.core.artifact import Artifact, seal
from luthier.core.example import Document, Passage, Section
from luthier.core.files import write_rows
from luthier.core.rng import Rng
from luthier.core.step import Ctx, Step
from luthier.studies._worlds._names import words

CRAFTS = ("bells", "clocks", "violins", "lanterns", "saddles", "kites", "globes", "looms")


@dataclass(frozen=True)
class Craftsman:
    """One invented person."""

    name: str
    town: str
    year: int
    craft: str

    @property
    def page(self) -> str:
        """What is told of the person."""
        return (f"{self.name} was a maker of {self.craft}. The workshop stood in {self.town}, near the old market. The "
                f"first of the {self.craft} left the workshop in {self.year}, and many houses kept one of them.")


def craftsmen(count: int, seed: int) -> list[Craftsman]:
    """`count` invented persons, the same for each call."""
    draw = Rng(seed).within("pages-world")
    family = words(draw("names"), count, syllables=3)
    towns = words(draw("towns"), count, taken=frozenset(family))
    years = 1500 + draw("years").permutation(400)[:count]
    crafts = draw("crafts").integers(len(CRAFTS), size=count)
    return [Craftsman(n, t, int(y), CRAFTS[c]) for n, t, y, c in zip(family, towns, years, crafts, strict=True)]


class PagesWorld(Step, name="pages-world"):
    """Short pages about invented craftsmen."""

    output: ClassVar[str] = "documents"
    seeded: ClassVar[bool] = False
    entities: int = Field(40, ge=4, le=400, description="craftsmen, one page each")
    seed: int = Field(0, ge=0, description="which world; a study's training seeds leave it as it is")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Write the pages as documents of one passage."""
        told = craftsmen(self.entities, self.seed)
        documents = (Document(c.name, c.name, (Section((c.name,), c.page),)) for c in told)
        passages = (Passage(c.name, c.page, c.name, c.name, (c.name,)) for c in told)
        write_rows(ctx.folder / "documents", (d.to_dict() for d in documents))
        write_rows(ctx.folder / "passages", (p.to_dict() for p in passages))
        return seal("documents", ctx.folder, documents=len(told), passages=len(told), dropped=0)

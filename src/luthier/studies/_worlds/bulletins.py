"""bulletins: advice for farmers of invented states, one document a state and one section a crop.

Three facts stand in each section. The week of sowing and the pest to look for are those of a region, two neighbouring
states, so that they can be inferred from the neighbour's bulletin; the rate of seed is the section's own. What users call
states and crops among themselves (`called`) stands in no bulletin.
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

CROPS = ("barley", "beans", "beets", "clover", "flax", "hops", "lentils", "maize", "oats", "rye", "soy", "wheat")
PESTS = ("aphids", "beetles", "crickets", "mites", "moths", "slugs", "thrips", "weevils")
REGION = 2  # neighbouring states that share weeks and pests


@dataclass(frozen=True)
class Advice:
    """What is told about one crop in one state."""

    state: str
    crop: str
    week: str
    rate: str
    pest: str

    @property
    def section(self) -> str:
        """Name of the section, and of its only passage."""
        return f"{self.state}/{self.crop}"

    @property
    def text(self) -> str:
        """The section below its headings."""
        return (f"The time to sow {self.crop} is {self.week}. For a hectare, {self.rate} of seed are "
                f"enough. After wet days, look for {self.pest} on the leaves.")


def told(states: int, crops: int, seed: int) -> list[Advice]:
    """Every crop of every state, the same for each call."""
    draw = Rng(seed).within("bulletins")
    names = words(draw("states"), states)
    regions = -(-states // REGION)
    weeks = draw("weeks").integers(8, 23, size=(regions, crops))
    pests = draw("pests").integers(len(PESTS), size=(regions, crops))
    rates = draw("rates").integers(20, 200, size=(states, crops))
    return [Advice(name, CROPS[j], f"week {weeks[i // REGION, j]}", f"{rates[i, j]} kg", PESTS[pests[i // REGION, j]])
            for i, name in enumerate(names) for j in range(crops)]


def called(states: int, crops: int, seed: int) -> dict[str, str]:
    """State or crop -> the word that users have for it."""
    names = list(dict.fromkeys(a.state for a in told(states, crops, seed)))
    own = words(Rng(seed).within("bulletins")("called"), len(names) + crops, taken=frozenset(names))
    return dict(zip([*names, *CROPS[:crops]], own, strict=True))


def passage_of(advice: Advice) -> Passage:
    """The section as the only passage of its section."""
    return Passage(advice.section, advice.text, advice.state, advice.section, (advice.state, advice.crop))


class Bulletins(Step, name="bulletins"):
    """Documents of advice, a passage a crop."""

    output: ClassVar[str] = "documents"
    seeded: ClassVar[bool] = False
    states: int = Field(10, ge=2, le=40, description="invented states, one document each")
    crops: int = Field(12, ge=2, le=len(CROPS), description="crops, one section each")
    seed: int = Field(0, ge=0, description="which world; a study's training seeds leave it as it is")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Write documents and passages."""
        by_state: dict[str, list[Advice]] = {}
        for advice in told(self.states, self.crops, self.seed):
            by_state.setdefault(advice.state, []).append(advice)
        documents = (Document(s, s, tuple(Section((s, a.crop), a.text) for a in rows)) for s, rows in by_state.items())
        passages = [passage_of(a) for rows in by_state.values() for a in rows]
        write_rows(ctx.folder / "documents", (d.to_dict() for d in documents))
        write_rows(ctx.folder / "passages", (p.to_dict() for p in passages))
        return seal("documents", ctx.folder, documents=len(by_state), passages=len(passages), dropped=0)

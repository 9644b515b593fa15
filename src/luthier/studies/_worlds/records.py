"""records: invented places as slots and values, to be said in two sentences; some topics are kept out of training.

    ferry: Sorbel | seats: 40 | crosses: Lake Trund     The ferry Sorbel has 40 seats. It crosses Lake Trund.

Each topic has a slot of its own and two of three that all topics share, so that what is new about a held-out topic is
its own slot. Subsets: `train`, `dev` (the same topics, other records), `fitted` (the first rows of `train` again),
`seen` (further records of these topics) and `unseen` (records of the topics that were kept out). A cluster is a record.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from pydantic import Field

from luthier.core.artifact import Artifact, write_examples
from luthier.core.example import Example, question
from luthier.core.rng import Rng
from luthier.core.step import Ctx, Step
from luthier.studies._worlds._names import words

# Topic -> its own slot and how it is said of the subject.
SEEN: Mapping[str, tuple[str, str]] = {
    "ferry": ("crosses", "crosses Lake {v}"), "chapel": ("keeper", "is kept by {v}"),
    "orchard": ("fruit", "grows the {v} plum"), "mill": ("grinds", "grinds {v} barley"),
    "bridge": ("spans", "spans the river {v}"), "school": ("head", "is led by {v}")}
UNSEEN: Mapping[str, tuple[str, str]] = {
    "lighthouse": ("warns", "warns ships of the reef {v}"), "museum": ("shows", "shows the painter {v}"),
    "quarry": ("stone", "yields {v} stone")}
SHARED: Mapping[str, str] = {"founded": "was founded in {v}", "town": "stands in the town of {v}",
                             "visitors": "has {v} visitors a day"}


class Records(Step, name="records"):
    """Slots and values, and the sentences that say them."""

    output: ClassVar[str] = "examples"
    seeded: ClassVar[bool] = False
    train_rows: int = Field(80, ge=1, description="records to learn from")
    dev_rows: int = Field(12, ge=1, description="records by which a learning rate is chosen")
    test_rows: int = Field(40, ge=1, description="records of known and of held-out topics each in tests")
    seed: int = Field(0, ge=0, description="which records; a study's training seeds leave them as they are")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Draw the records; no name stands in two of them."""
        draw = Rng(self.seed).within("records")
        counts = {"train": self.train_rows, "dev": self.dev_rows, "seen": self.test_rows, "unseen": self.test_rows}
        names = iter(words(draw("names"), 4 * sum(counts.values()), 3))
        rows = {subset: [_record(f"{subset}/{n}", UNSEEN if subset == "unseen" else SEEN, n, names, draw(subset, n))
                         for n in range(count)] for subset, count in counts.items()}
        rows["fitted"] = rows["train"][:self.test_rows]
        return write_examples(ctx.folder, rows)


def _record(name: str, topics: Mapping[str, tuple[str, str]], number: int, names: object, rng: np.random.Generator) -> Example:
    topic = list(topics)[number % len(topics)]
    own, says = topics[topic]
    subject, value, town = (next(names) for _ in range(3))  # type: ignore[call-overload]
    values = {"founded": str(rng.integers(1200, 1990)), "town": town, "visitors": str(rng.integers(10, 900))}
    chosen = [list(SHARED)[i] for i in sorted(rng.permutation(len(SHARED))[:2])]
    told = [f"{topic}: {subject}", *(f"{slot}: {values[slot]}" for slot in chosen), f"{own}: {value}"]
    first = [SHARED[slot].format(v=values[slot]) for slot in chosen]
    said = f"The {topic} {subject} {first[0]} and {first[1]}. It {says.format(v=value)}."
    return question(name, " | ".join(told), said, cluster=name, source=topic)

"""bulletin-clicks: what users search for in bulletins, in words of their own, and what they click.

A query names a state and a crop, each in half of the queries by the users' word, which stands in no bulletin. The page that
answers it is clicked the more often the higher the untuned encoder had put it, r its rank, and of all clicked pairs a share
`noise` are pages that this encoder put first and that answer nothing, clicked once:

    clicks of the right page = 1 + Poisson(6 / log2(1 + r))

Subsets: `train` (pairs that the reader of click logs makes, weights included), `test` (queries about sections that nobody
clicked, with `meta["gold"]`) and `answered` (one of these queries a section, for what costs more than a search). The words
of the tests stand in other training queries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from pydantic import Field

from luthier.core.artifact import Artifact, write_examples
from luthier.core.component import Slot, named
from luthier.core.errors import UserError
from luthier.core.example import Dropped, Example, SourceFile, question
from luthier.core.files import write_lines
from luthier.core.kinds import DataStep
from luthier.core.rng import Rng
from luthier.core.step import Ctx, Step
from luthier.studies._worlds.bulletins import CROPS, Advice, called, told

QUERIES = {"week": "when to plant {c} {s}", "rate": "weight of {c} to buy {s}", "pest": "animal on my {c} {s}"}
LOG = "clicks.jsonl"


class BulletinClicks(Step, name="bulletin-clicks"):
    """A click log with noise, read, and queries about pages that stand in none."""

    inputs: ClassVar[dict[str, str]] = {"documents": "documents", "encoder": "model"}
    output: ClassVar[str] = "examples"
    seeded: ClassVar[bool] = False
    states: int = Field(10, ge=2, le=40, description="invented states, as many as the documents have")
    crops: int = Field(12, ge=2, le=len(CROPS), description="crops, as many as the documents have")
    tested: int = Field(60, ge=1, description="sections that are asked for in tests, and clicked by nobody")
    noise: float = Field(0.4, ge=0, le=0.5, description="share of clicked pairs that answer nothing")
    permuted: bool = Field(False, description="counts of each query are dealt anew among its pages; a control")
    reader: Slot[DataStep] = Field(named("click-log"), description="who reads the log and weighs the pairs")
    seed: int = Field(0, ge=0, description="which clicks; a study's training seeds leave them as they are")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Search with the untuned encoder, draw clicks, write and read the log. Raises UserError for too small a world."""
        draw = Rng(self.seed).within("bulletin-clicks")
        pages = told(self.states, self.crops, self.seed)
        if self.tested >= len(pages):
            raise UserError(f"bulletin-clicks: {len(pages)} sections are too few to test on {self.tested}. Raise states.")
        order = [pages[i] for i in draw("sections").permutation(len(pages))]
        asked = [(a, fact, self._query(a, fact, draw)) for a in order[self.tested:] for fact in QUERIES]
        passages = list(inputs["documents"].passages())
        encoder = ctx.engine.load(inputs["encoder"])
        found = ctx.engine.embed(encoder, [p.shown for p in passages])
        searched = ctx.engine.embed(encoder, [query for *_, query in asked])
        rows: list[dict[str, Any]] = []
        for (advice, fact, query), scores in zip(asked, searched @ found.T, strict=True):
            ranked = [passages[i].id for i in (-scores).argsort(kind="stable")]
            rows += self._clicks(advice, query, ranked, draw.within(f"{advice.section}/{fact}"))
        write_lines(ctx.folder / LOG, rows)
        inner = replace(ctx, stream=lambda name: iter(passages if name == "passages" else ()))
        read = list(self.reader.apply(iter([SourceFile(LOG, str(ctx.folder / LOG))]), inner))
        test = [self._asked("test", a, fact, draw) for a in order[:self.tested] for fact in QUERIES]
        facts = list(QUERIES)
        answered = [self._asked("answered", a, facts[n % len(facts)], draw) for n, a in enumerate(order[:self.tested])]
        ctx.log(f"{len(rows)} clicked pairs of {len(asked)} queries")
        return write_examples(ctx.folder, {"train": [r for r in read if isinstance(r, Example)], "test": test,
                                           "answered": answered}, [r for r in read if isinstance(r, Dropped)])

    def _asked(self, subset: str, advice: Advice, fact: str, draw: Rng) -> Example:
        answer = str(getattr(advice, fact))
        return question(f"{subset}/{advice.section}/{fact}", self._query(advice, fact, draw), answer, cluster=advice.section,
                        references=(answer,), meta={"gold": [advice.section]})

    def _query(self, advice: Advice, fact: str, draw: Rng) -> str:
        """A query in which state and crop are each called by the users' word or by the bulletins'."""
        own = called(self.states, self.crops, self.seed)
        state, crop = (own[name] if says else name for name, says in zip(
            (advice.state, advice.crop), draw("words", f"{advice.section}/{fact}").random(2) < 0.5, strict=True))
        return QUERIES[fact].format(s=state, c=crop)

    def _clicks(self, advice: Advice, query: str, ranked: list[str], draw: Rng) -> list[dict[str, Any]]:
        """The rows of one query: the right page, and perhaps one that answers nothing."""
        import numpy as np

        rank = 1 + ranked.index(advice.section)
        clicked = {advice.section: 1 + int(draw("clicks").poisson(6 / np.log2(1 + rank)))}
        # One wrong page for a share n / (1 - n) of the queries makes a share n of all pairs.
        if draw("noise").random() < self.noise / (1 - self.noise):
            clicked[next(name for name in ranked if name != advice.section)] = 1
        counts = list(clicked.values())
        if self.permuted:
            counts = [counts[i] for i in draw("permuted").permutation(len(counts))]
        return [{"query": query, "doc_id": name, "clicks": n} for name, n in zip(clicked, counts, strict=True)]

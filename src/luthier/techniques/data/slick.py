"""slick: how well a model knows the answer of each question already, before it is tuned on it.

Each question is asked with `prompts` draws of `shots` solved examples from its own relation (never itself). From each prompt
come one greedy answer and `samples` at temperature T; an answer counts when it equals a reference after normalisation:

    P(T=0) = right greedy answers / prompts        P(T>0) = right samples / (prompts · samples)

    HighlyKnown   P(T=0) = 1                 WeaklyKnown   P(T=0) = 0 and P(T>0) > 0
    MaybeKnown    0 < P(T=0) < 1             Unknown       both 0

Samples are drawn only where no greedy answer is right, since they decide nothing elsewhere. The category is kept in
`meta["knowledge"]`, with the greedy share; rows may be filtered by it, or what is unknown relabelled.

When it helps: before tuning on facts. Unknown facts are learned late, and a model that has learned them says more that is
wrong about what it knew. Source: Gekhman et al. 2024, "Does Fine-Tuning LLMs on New Knowledge Encourage Hallucinations?",
section 3. Seed 34.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from luthier.core.component import Slot, named
from luthier.core.errors import UserError
from luthier.core.example import Dropped, Example
from luthier.core.kinds import DataStep, Decoder
from luthier.core.step import Ctx
from luthier.techniques.data._shared import normalized

if TYPE_CHECKING:
    from luthier.engine.rendering import Render

HIGHLY, MAYBE, WEAKLY, UNKNOWN = "HighlyKnown", "MaybeKnown", "WeaklyKnown", "Unknown"
KEPT = {"all": (HIGHLY, MAYBE, WEAKLY, UNKNOWN), "known": (HIGHLY, MAYBE, WEAKLY), "highly": (HIGHLY,), "maybe": (MAYBE,),
        "unknown": (UNKNOWN,)}
MOST_WORDS = 10  # longer answers are hardly ever equal to a reference


class Slick(DataStep, name="slick", seeds=[34]):
    """Marks each question by how well the model knows its answer; may filter by it."""

    roles: ClassVar[tuple[str, ...]] = ("writer",)
    prompts: int = Field(10, ge=1, description="draws of solved examples for each question")
    shots: int = Field(4, ge=1, description="solved examples in a prompt")
    samples: int = Field(16, ge=0, description="sampled answers of each prompt, where no greedy answer is right")
    greedy: Slot[Decoder] = Field(named("greedy:max_new_tokens=16"), description="how the most probable answer is written")
    sampled: Slot[Decoder] = Field(named("sample:temperature=0.5,top_p=1.0,max_new_tokens=16"),
                                   description="how other answers are written")
    keep: Literal["all", "known", "highly", "maybe", "unknown"] = Field("all", description="which categories are kept")
    relabel: str = Field("", description="the answer that takes the place of unknown ones, such as \"I don't know\"; none if "
                                         "empty")

    def apply(self, rows: Iterator[Example], ctx: Ctx) -> Iterator[Example | Dropped]:
        """Each row with its category, or `Dropped` with it.

        Raises:
            UserError: no model, too few questions for solved examples, or an answer of more than 10 words.
        """
        from luthier.engine.rendering import renderer

        if "writer" not in ctx.roles:
            raise UserError("slick needs the model that is asked: inputs: {writer: base}.")
        held = list(rows)
        self._check(held)
        render = renderer(ctx.roles["writer"])
        exemplars = [self._exemplars(row, held, ctx) for row in held]
        prompts = [[self._prompt(row, shots, render) for shots in draws] for row, draws in zip(held, exemplars, strict=True)]
        greedy = self._right(held, prompts, 1, self.greedy, render, ctx)
        doubted = [n for n, right in enumerate(greedy) if not right] if self.samples else []
        sampled = dict(zip(doubted, self._right([held[n] for n in doubted], [prompts[n] for n in doubted], self.samples,
                                                self.sampled, render, ctx), strict=True))
        counts: Counter[str] = Counter()
        for n, row in enumerate(held):
            kind = category(greedy[n] / self.prompts, sampled.get(n, 0) / max(1, self.prompts * self.samples))
            counts[kind] += 1
            marked = replace(row, meta={**row.meta, "knowledge": kind, "known_share": round(greedy[n] / self.prompts, 4)})
            if kind == UNKNOWN and self.relabel:
                yield _relabelled(marked, self.relabel)
            elif kind in KEPT[self.keep]:
                yield marked
            else:
                yield Dropped(row.id, "knowledge", f"{kind}; {self.keep} is kept")
        ctx.log("slick: " + ", ".join(f"{counts[kind]} {kind}" for kind in KEPT["all"]))

    def _check(self, rows: Sequence[Example]) -> None:
        long = next((r for r in rows if len(r.answer.split()) > MOST_WORDS), None)
        if long is not None:
            raise UserError(f"slick needs short answers, of at most {MOST_WORDS} words: row {long.id} has "
                            f"{len(long.answer.split())}.")
        if len(rows) <= self.shots:
            raise UserError(f"slick needs more than {self.shots} questions, {self.shots} of which are shown solved; found "
                            f"{len(rows)}. Lower shots.")

    def _exemplars(self, row: Example, rows: Sequence[Example], ctx: Ctx) -> list[list[Example]]:
        """Solved examples of each prompt: of the row's relation where that has enough, else of all."""
        asked = normalized(row.part("question"))
        others = [r for r in rows if r.id != row.id and normalized(r.part("question")) != asked]
        same = [r for r in others if relation(r) == relation(row)]
        if len(same) < self.shots:
            ctx.log(f"slick: {relation(row) or 'no relation'} has fewer than {self.shots + 1} questions; {row.id} is shown "
                    "others")
            same = others
        return [[same[i] for i in ctx.rng("exemplars", f"{row.id}/{n}").permutation(len(same))[:self.shots]]
                for n in range(self.prompts)]

    def _prompt(self, row: Example, shots: Sequence[Example], render: Render) -> list[int]:
        from luthier.engine.rendering import Prompting

        return replace(render, prompting=Prompting("", tuple(shots), "newline")).prompt(row)

    def _right(self, rows: Sequence[Example], prompts: Sequence[Sequence[list[int]]], times: int, decoder: Decoder,
               render: Render, ctx: Ctx) -> list[int]:
        """How many answers to each row are right, of `times` from each of its prompts."""
        if not rows:
            return []
        asked = [prompt for of_row in prompts for prompt in of_row for _ in range(times)]
        made = ctx.engine.generate(ctx.roles["writer"], asked, decoder, rng=ctx.rng.within(f"slick/{decoder.info.name}"),
                                   stop="newline", stop_ids=render.stop_ids, journal=ctx.journal, progress=ctx.progress)
        share = len(made) // len(rows)
        return [sum(_equals(row, g.text) for g in made[n * share:(n + 1) * share]) for n, row in enumerate(rows)]


def category(greedy: float, sampled: float) -> str:
    """The SliCK category of P(T=0) and P(T>0)."""
    if greedy == 1:
        return HIGHLY
    if greedy > 0:
        return MAYBE
    return WEAKLY if sampled > 0 else UNKNOWN


def relation(row: Example) -> str:
    """What a question asks for: its `meta["relation"]`, else its label."""
    return str(row.meta.get("relation") or row.label or "")


def _equals(row: Example, text: str) -> bool:
    said = normalized(text.partition("\n")[0]).strip(" .")
    return said in {normalized(a).strip(" .") for a in (row.answer, *row.references)}


def _relabelled(row: Example, answer: str) -> Example:
    from luthier.engine.rendering import with_answer

    return replace(with_answer(row, answer), references=(), meta={**row.meta, "relabelled": True})

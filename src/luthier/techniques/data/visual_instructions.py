"""visual-instructions: conversations about pictures, written from their captions and boxes by rules or by a text-only teacher.

A row is a scene: a picture with `captions` and `boxes` "class: [x1, y1, x2, y2]" in shares of the picture. What is written, by
`kinds`: `caption` (one turn, the alignment stage), `conversation` (several turns of what can be answered with certainty),
`description` (all there is) and `reasoning` (an answer with its grounds). The first turn of a human shows the picture, before
or after the question by a fair draw. Rules read the boxes alone, so that every answer follows from them; a teacher is handed
captions and boxes as text, below a solved example, and answers in lines `Question:` and `Answer:`.

When it helps: pictures with captions, and no instructions. Source: Liu, Li, Wu, Lee 2023, arXiv 2304.08485 (seed 137).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from luthier.core.component import Slot, named
from luthier.core.example import Dropped, Example, Part, Turn
from luthier.core.kinds import DataStep, Decoder
from luthier.core.step import Ctx
from luthier.engine.endpoints import Endpoint
from luthier.techniques.data._teachers import teacher

Kind = Literal["caption", "conversation", "description", "reasoning"]
Pair = tuple[str, str]
BRIEF = ("Describe the picture briefly.", "What is shown here, in a few words?", "Give a short caption of this picture.")
FULL = ("Describe the picture in detail.", "What is there to be seen, and where?")
ASKED: Mapping[Kind, str] = {
    "caption": "Write one question that asks for a short caption, and the caption.",
    "conversation": "Write a conversation about it: several questions, each with a short answer that is certain.",
    "description": "Write one question that asks for a detailed description, and the description.",
    "reasoning": "Write one question that needs several things of it to be put together, and an answer that gives its reasons.",
}
SHOT = ("Captions:\na dog beside a ball\nBoxes:\ndog: [0.10, 0.20, 0.50, 0.90]\nball: [0.60, 0.70, 0.80, 0.90]\n\n"
        "Question: What lies beside the dog?\nAnswer: A ball.\n")
_PAIR = re.compile(r"Question:[ \t]*(\S[^\n]*)\n+Answer:[ \t]*(\S[^\n]*)")
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class VisualInstructions(DataStep, name="visual-instructions", seeds=[137]):
    """Instructions about pictures, from captions and boxes."""

    gives: ClassVar[Literal["same", "more", "other"]] = "other"
    roles: ClassVar[tuple[str, ...]] = ()
    kinds: tuple[Kind, ...] = Field(("conversation", "description", "reasoning"), min_length=1,
                                    description="what is written of "
                                    "each picture: caption, conversation, description, reasoning")
    teacher: str = Field("rules", description="rules, writer (the local model), http(s)://ADDRESS, or replay:FILE")
    endpoint: Endpoint = Field(named({}), description="how an address is asked: model, key_variable, consent, …")
    decoder: Slot[Decoder] = Field(named("greedy:max_new_tokens=200"), description="how a local teacher writes")
    most_turns: int = Field(4, ge=1, description="most questions of a conversation that rules write")

    @property
    def asks(self) -> tuple[str, ...]:
        """The roles that this configuration needs."""
        return ("writer",) if self.teacher == "writer" else ()

    def apply(self, rows: Iterator[Example], ctx: Ctx) -> Iterator[Example | Dropped]:
        """Raises UserError where a teacher is named that is none, or that is not there."""
        asked = None if self.teacher == "rules" else teacher(self.teacher, ctx, self.decoder, self.decoder, self.endpoint,
                                                             for_step=self.info.name)
        for row in rows:
            if "captions" not in row.meta or not any(p.type == "image" for t in row.turns for p in t.parts):
                yield Dropped(row.id, "no scene", "it needs a picture with captions: rows with image, captions and boxes")
                continue
            for kind in self.kinds:
                name = f"{row.id}/{kind}"
                rng = ctx.rng("visual-instructions", name)
                if asked is None:
                    pairs = self.by_rule(kind, row.meta["captions"], row.meta.get("boxes", ()), rng)
                else:
                    (said,) = asked.ask([(name, self.prompt(kind, row))], 0)
                    pairs = [(q.strip(), a.strip()) for q, a in _PAIR.findall(said or "")]
                yield _conversation(name, row, kind, pairs, rng) if pairs else \
                    Dropped(name, "nothing to say" if asked is None else "unparsed",
                            "the boxes give no question of this kind" if asked is None else "no lines Question: and Answer:")

    def prompt(self, kind: Kind, row: Example) -> str:
        """What a teacher is handed: the solved example, the kind that is wanted, captions and boxes."""
        boxes = "\n".join(f"{b['class']}: [{', '.join(f'{s:.2f}' for s in b['box'])}]" for b in row.meta.get("boxes", ()))
        captions = "\n".join(row.meta["captions"])
        return (f"A picture is told by captions and by the boxes of its things. {ASKED[kind]} Write lines that begin with "
                f"Question: and Answer:, as if you saw the picture.\n\n{SHOT}\nCaptions:\n{captions}\nBoxes:\n{boxes}\n\n")

    def by_rule(self, kind: Kind, captions: Sequence[str], boxes: Sequence[Mapping[str, Any]], rng: np.random.Generator
                ) -> list[Pair]:
        """Questions and answers that follow from captions (of kind `caption`) or from boxes alone; none where there is none."""
        if kind == "caption":
            return [(BRIEF[rng.integers(len(BRIEF))], captions[int(rng.integers(len(captions)))])]
        if not boxes:
            return []
        if kind == "description":
            return [(FULL[rng.integers(len(FULL))], described(boxes))]
        if kind == "reasoning":
            found = reasoned(boxes)
            return [found[rng.integers(len(found))]] if found else []
        facts = certain(boxes)
        return [facts[i] for i in rng.permutation(len(facts))[:self.most_turns]]


def certain(boxes: Sequence[Mapping[str, Any]]) -> list[Pair]:
    """Short questions with certain answers: counts, kinds and places of what is there once, and what stands beside what.

    The kind of a thing are the words before the last one of its class: `red` of `red circle`.
    """
    counts = Counter(b["class"] for b in boxes)
    found = [(f"How many of these are there: {name}?", f"{_NUMBERS[n] if n < len(_NUMBERS) else n}".capitalize() + ".")
             for name, n in sorted(counts.items())]
    once = [b for b in boxes if counts[b["class"]] == 1]
    found += [(f"Where is the {b['class']}?", f"In the {place(b['box'])}.") for b in once]
    kinds = [b["class"].rpartition(" ") for b in boxes]
    found += [(f"What kind of {thing} is it?", f"{kind.capitalize()}.") for kind, _, thing in kinds
              if kind and sum(other[2] == thing for other in kinds) == 1]
    return found + [(f"Is the {a['class']} {word} the {b['class']}?", "Yes." if true else "No.")
                    for a, b, word, true in _relations(once)]


def described(boxes: Sequence[Mapping[str, Any]]) -> str:
    """Everything there is, from the top and from the left, with its place."""
    ordered = sorted(boxes, key=lambda b: (round(_middle(b["box"])[1], 1), _middle(b["box"])[0], b["class"]))
    told = [f"a {b['class']} in the {place(b['box'])}" for b in ordered]
    return f"The picture shows {', '.join(told[:-1])}{' and ' if told[1:] else ''}{told[-1]}."


def reasoned(boxes: Sequence[Mapping[str, Any]]) -> list[Pair]:
    """Questions that need two things to be put together, with an answer that says why."""
    counts = Counter(b["class"] for b in boxes)
    once = [b for b in boxes if counts[b["class"]] == 1]
    found = [(f"Is the {a['class']} {word} the {b['class']}, and why?",
              f"The {a['class']} is in the {place(a['box'])} and the {b['class']} in the {place(b['box'])}, so the answer is "
              f"{'yes' if true else 'no'}.") for a, b, word, true in _relations(once)]
    names = sorted(counts)
    return found + [(f"Are there more of {a} than of {b}, and why?",
                     f"There are {counts[a]} of {a} and {counts[b]} of {b}, so the answer is "
                     f"{'yes' if counts[a] > counts[b] else 'no'}.") for a in names for b in names if a != b]


def place(box: Sequence[float]) -> str:
    """Where the middle of a box lies, in thirds: `top left`, `middle`, …"""
    across, down = (min(2, int(3 * m)) for m in _middle(box))
    words = [("top", "", "bottom")[down], ("left", "", "right")[across]]
    return " ".join(w for w in words if w) or "middle"


def _middle(box: Sequence[float]) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def _relations(once: Sequence[Mapping[str, Any]]) -> list[tuple[Any, Any, str, bool]]:
    """(a, b, in words, whether it holds) of pairs whose middles lie in other thirds, so that the place tells the answer."""
    found = []
    for a in once:
        for b in once:
            for axis, word in ((0, "left of"), (1, "above")):
                mine, other = (min(2, int(3 * _middle(x["box"])[axis])) for x in (a, b))
                if a is not b and mine != other:
                    found.append((a, b, word, mine < other))
    return found


def _conversation(name: str, scene: Example, kind: Kind, pairs: Sequence[Pair], rng: np.random.Generator) -> Example:
    """The example of a scene: the picture in the first turn, before or after its question, and all answers learned."""
    pictures = tuple(Part(p.value, type="image", name="content") for t in scene.turns for p in t.parts if p.type == "image")
    before = bool(rng.random() < 0.5)
    turns: list[Turn] = []
    for n, (question, answer) in enumerate(pairs):
        asked = (Part(question, name="content"),)
        shown = (*pictures, *asked) if before else (*asked, *pictures)
        turns += [Turn("user", asked if n else shown), Turn("assistant", (Part(answer, name="content"),), target=True)]
    meta = {"kind": kind, "generator": "visual-instructions", "pictures": scene.meta.get("pictures", [])}
    return Example(name, tuple(turns), source=scene.source, cluster=scene.cluster or scene.id, task="chat", meta=meta)

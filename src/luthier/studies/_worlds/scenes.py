"""scenes: small pictures of shapes, with captions and boxes that are exact, and what the rule writer makes of them.

Two or three shapes of different form stand in a grid of nine fields on 48 x 48 pixels, each in one of four colours. Subsets:
`pretrain` and `asked` (scenes told in words where others have the picture, and questions about them: a language to be learned
first), `captions` (one turn), `train` (conversations and descriptions, `reasoning` answers too where asked for) and the tests
`colour`, `count` and `relation`: one question a picture with a word for an answer. `shown` leaves each row its own picture,
gives it that of another scene of its subset, or none. Pictures stand in the rows themselves. In version 1 the language was
learned from questions that nothing answered, so that it knew how answers are spread and not how they are found.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from luthier.core.artifact import Artifact, write_examples
from luthier.core.example import Example, Part, Turn
from luthier.core.rng import Rng
from luthier.core.step import Ctx, Step
from luthier.techniques.data.visual_instructions import VisualInstructions, certain, described

SIDE, FIELD = 48, 16
COLOURS = {"red": (220, 40, 40), "blue": (40, 60, 220), "green": (30, 170, 60), "yellow": (230, 210, 40)}
FORMS = ("circle", "square", "bar", "cross")
TESTS = {"colour": "What kind", "count": "How many", "relation": "Is the"}


class Scenes(Step, name="scenes", version=2):
    """Pictures of shapes, and rows about them."""

    output: ClassVar[str] = "examples"
    seeded: ClassVar[bool] = False
    pictures: int = Field(400, ge=4, description="scenes that are learned from")
    tests: int = Field(100, ge=1, description="scenes of each of the three tests")
    texts: int = Field(1500, ge=8, description="scenes that the language is learned from, without pictures")
    reasoning: bool = Field(False, description="whether rows to train on have answers with reasons")
    shown: Literal["own", "shuffled", "none"] = Field("own", description="a row's own picture, another scene's, or none")
    seed: int = Field(0, ge=0, description="which scenes; a study's training seeds leave them as they are")

    def run(self, inputs: Any, ctx: Ctx) -> Artifact:
        """Draw scenes and write rows about them."""
        draw = Rng(self.seed).within("scenes")
        own = Ctx(**{**ctx.__dict__, "rng": draw})
        learned = [_scene(draw("scene", n), f"scene/{n}") for n in range(self.pictures)]
        kinds: Sequence[Any] = ("conversation", "description", *(("reasoning",) if self.reasoning else ()))
        told = [_scene(draw("text", n), f"text/{n}") for n in range(self.texts)]
        writer = VisualInstructions(kinds=("conversation", "description", "reasoning"))
        words = {e.id: described(e.meta["boxes"]) for e in told}
        asked = [self._without(r, words[r.source]) for r in writer.apply(iter(told), own) if isinstance(r, Example)]
        made = {
            "captions": self._rows(VisualInstructions(kinds=("caption",)), learned, own, "captions"),
            "train": self._rows(VisualInstructions(kinds=tuple(kinds)), learned, own, "train"),
            **{test: self._shown([_asked(draw, test, n) for n in range(self.tests)], draw, test) for test in TESTS}}
        texts = [Example(f"pretrain/{e.id}", (Turn("assistant", (Part(self._text(e, draw)),), target=True),), task="text")
                 for e in told]
        return write_examples(ctx.folder, {"pretrain": texts, "asked": asked, **made})

    def _rows(self, writer: VisualInstructions, scenes: list[Example], ctx: Ctx, name: str) -> list[Example]:
        return self._shown([r for r in writer.apply(iter(scenes), ctx) if isinstance(r, Example)], ctx.rng, name)

    def _shown(self, rows: list[Example], draw: Rng, name: str) -> list[Example]:
        """The rows with the pictures that they are to have."""
        if self.shown == "own":
            return rows
        if self.shown == "none":
            return [self._without(r) for r in rows]
        order = draw("shuffled", name).permutation(len(rows))
        return [_with(r, _picture(rows[i])) for r, i in zip(rows, order, strict=True)]

    @staticmethod
    def _text(scene: Example, draw: Rng) -> str:
        """The scene in words and two things that follow."""
        facts = certain(scene.meta["boxes"])
        two = draw("facts", scene.id).permutation(len(facts))[:2]
        return " ".join([described(scene.meta["boxes"]), *(" ".join(facts[i]) for i in two)])

    @staticmethod
    def _without(row: Example, words: str = "") -> Example:
        """The row with words in the place of its picture, or with nothing there."""
        first = row.turns[0]
        parts = tuple(p if p.type == "text" else Part(words, name="content") for p in first.parts if words or p.type == "text")
        return replace(row, turns=(replace(first, parts=parts), *row.turns[1:]))


def _scene(rng: np.random.Generator, name: str) -> Example:
    """A picture with its captions and boxes."""
    count = int(rng.integers(2, 4))
    forms = [FORMS[i] for i in rng.permutation(len(FORMS))[:count]]
    colours = [list(COLOURS)[i] for i in rng.integers(len(COLOURS), size=count)]
    if rng.random() < 0.5:  # a form may be there twice, so that counting is not always one
        forms[-1], colours[-1] = forms[0], colours[0]
    fields = [divmod(int(i), 3) for i in rng.permutation(9)[:count]]
    boxes = [{"class": f"{colour} {form}", "box": [x / 3, y / 3, (x + 1) / 3, (y + 1) / 3]}
             for form, colour, (x, y) in zip(forms, colours, fields, strict=True)]
    caption = " and ".join(f"a {b['class']}" for b in boxes)
    part = Part(picture_of(forms, colours, fields), type="image")
    return Example(name, (Turn("user", (part,)),), source=name, cluster=name, task="scene", meta={
        "captions": [f"There is {caption}"], "boxes": boxes})


def picture_of(forms: Sequence[str], colours: Sequence[str], fields: Sequence[tuple[int, int]]) -> str:
    """A PNG of the shapes as a `data:` text."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (SIDE, SIDE), (245, 245, 245))
    pen = ImageDraw.Draw(image)
    for form, colour, (x, y) in zip(forms, colours, fields, strict=True):
        left, top, fill = x * FIELD + 3, y * FIELD + 3, COLOURS[colour]
        right, bottom = left + 9, top + 9
        if form == "circle":
            pen.ellipse((left, top, right, bottom), fill=fill)
        elif form == "square":
            pen.rectangle((left, top, right, bottom), fill=fill)
        elif form == "bar":
            pen.rectangle((left, top + 3, right, bottom - 3), fill=fill)
        else:
            pen.rectangle((left + 3, top, right - 3, bottom), fill=fill)
            pen.rectangle((left, top + 3, right, bottom - 3), fill=fill)
    held = io.BytesIO()
    image.save(held, "PNG")
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()


def _asked(draw: Rng, test: str, n: int) -> Example:
    """One question about a scene of its own; scenes are drawn until there is one of this kind, right and wrong alike."""
    for attempt in range(200):
        scene = _scene(draw(f"test/{test}", f"{n}/{attempt}"), f"{test}/{n}")
        facts = [(q, a) for q, a in certain(scene.meta["boxes"]) if q.startswith(TESTS[test])]
        wanted = {"relation": ("Yes.", "No."), "count": ("One.", "Two.")}.get(test)
        if wanted:
            facts = [(q, a) for q, a in facts if a == wanted[n % 2]]
        if facts:
            question, answer = facts[int(draw("ask", f"{test}/{n}").integers(len(facts)))]
            turns = (Turn("user", (*scene.turns[0].parts, Part(question, name="content"))),
                     Turn("assistant", (Part(answer, name="content"),), target=True))
            return replace(scene, turns=_named(turns), task="chat", references=(answer,), meta={"test": test})
    raise AssertionError(f"no scene has a question about {test}")


def _named(turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    return tuple(replace(t, parts=tuple(replace(p, name="content") for p in t.parts)) for t in turns)


def _picture(row: Example) -> Part:
    return next(p for t in row.turns for p in t.parts if p.type == "image")


def _with(row: Example, picture: Part) -> Example:
    first = row.turns[0]
    parts = tuple(picture if p.type == "image" else p for p in first.parts)
    return replace(row, turns=(replace(first, parts=parts), *row.turns[1:]))

"""task-bank: 24 small labelled tasks about the topics of Python's own help, read as a manifest is; and texts to be read.

    topic1 … topic8    which of a few topics a sentence is of (each task has its own)                  cls, about 4 labels
    order1 … order3    whether two neighbours stand in their order                                     cls, 2
    same1 … same3      whether two sentences are of one topic                                          cls, 2
    next1 … next3      which of four sentences comes next                                              mc, 4 options
    gap1 … gap3        where in a sentence the word stands that is left out of its copy                span
    length, code, swapped, keyword   words of a sentence by thirds; text or code; two words exchanged or not; which keyword
                                     is hidden                                                         cls, 3, 2, 2, 5

Tasks have from a quarter of `rows` to all of it. `pretrain` holds sentences of all topics, and reviews of the world `opinions`,
whose labels no task tells: words of the targets are known, and what they are asked for is not. Versions of Python differ in
a few sentences.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from luthier.core.artifact import Artifact, write_examples
from luthier.core.errors import UserError
from luthier.core.example import Example, Part, Turn, question
from luthier.core.finding import Finding, receipt
from luthier.core.rng import Rng
from luthier.core.step import Ctx, Step
from luthier.studies._worlds._names import words
from luthier.studies._worlds.opinions import DOMAINS, _remark, review

KEYWORDS = ("class", "function", "module", "object", "value")
FEWEST, MOST = 5, 24  # words of a sentence
Row = tuple[Any, ...]  # (texts, label), (question, options) or (passage, question, answer)


class TaskBank(Step, name="task-bank"):
    """Tasks by rule from texts that every Python has."""

    output: ClassVar[str] = "examples"
    seeded: ClassVar[bool] = False
    rows: int = Field(240, ge=8, description="rows of the largest tasks")
    texts: int = Field(2500, ge=8, description="texts that are only read, half of them reviews")
    seed: int = Field(0, ge=0, description="which rows; a study's training seeds leave them as they are")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Raises UserError for an interpreter without its help."""
        draw = Rng(self.seed).within("task-bank")
        topics = helped()
        made, about = {}, {}
        for n, (name, (kind, make)) in enumerate(tasks(topics).items()):
            rng, count = draw(name), max(8, self.rows * (1 + n % 4) // 4)
            found = [example(f"{name}/{i}", kind, make(rng, i)) for i in range(count)]
            made[name] = found
            about[name] = {"type": kind, "rows": count, **({"options": 4} if kind == "mc" else {})}
        rng, names = draw("texts"), words(draw("names"), 60)
        every = [s for own in topics.values() for s in own]
        read = [every[i] for i in rng.permutation(len(every))[:self.texts // 2]]
        read += [reviewed(rng, n, names)[0] for n in range(self.texts - len(read))]
        made["pretrain"] = [Example(f"pretrain/{n}", (Turn("user", (Part(t, name="text"),)),), task="text")
                            for n, t in enumerate(read)]
        return write_examples(ctx.folder, made, tasks=about)

    def receipts(self, inputs: Mapping[str, Artifact], artifact: Artifact, ctx: Ctx) -> list[Finding]:
        """Every task has the rows that the manifest says."""
        told = sum(t["rows"] for t in artifact.meta["tasks"].values())
        written = sum(1 for n in artifact.meta["tasks"] for _ in artifact.examples(n))
        return [receipt("task-bank/rows", told, written, unit="rows"),
                receipt("task-bank/tasks", 24, len(artifact.meta["tasks"]), unit="tasks")]


def helped() -> dict[str, list[str]]:
    """Sentences of each topic of Python's help that has at least twelve, the topics with most of them first."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise UserError("This interpreter has no pydoc_data.topics, from which the tasks are made.") from None
    found = {}
    for name, text in topics.items():
        prose = [" ".join(p.split()) for p in text.split("\n\n") if not p.startswith((" " * 6, "***", "---"))]
        parts = [s for p in prose for s in re.split(r"(?<=[.])\s+(?=[A-Z])", p)]
        kept = list(dict.fromkeys(s for s in parts if FEWEST <= len(s.split()) <= MOST and s[:1].isupper() and s.endswith(".")))
        if len(kept) >= 12:
            found[name] = kept
    return dict(sorted(found.items(), key=lambda item: (-len(item[1]), item[0])))


def tasks(topics: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, Callable[[np.random.Generator, int], Row]]]:
    """Each task by name: its type, and how its row number i is drawn."""
    names = list(topics)
    # Tasks of a kind share no topic; the largest topics lie in different tasks.
    eighths, thirds = [names[n::8] for n in range(8)], [names[n::3] for n in range(3)]

    def pick(rng: np.random.Generator, among: Sequence[Any]) -> Any:
        return among[int(rng.integers(len(among)))]

    def topic(n: int) -> Callable[[np.random.Generator, int], Row]:
        def make(rng: np.random.Generator, i: int) -> Row:
            name = eighths[n][i % len(eighths[n])]
            return (pick(rng, topics[name]),), name
        return make

    def neighbours(rng: np.random.Generator, n: int) -> tuple[list[str], int]:
        found = topics[pick(rng, thirds[n])]
        return list(found), int(rng.integers(len(found) - 1))

    def order(n: int) -> Callable[[np.random.Generator, int], Row]:
        def make(rng: np.random.Generator, i: int) -> Row:
            found, at = neighbours(rng, n)
            pair = (found[at], found[at + 1])
            return (pair, "so") if i % 2 else (pair[::-1], "turned")
        return make

    def same(n: int) -> Callable[[np.random.Generator, int], Row]:
        def make(rng: np.random.Generator, i: int) -> Row:
            one, other = (thirds[n][j] for j in rng.permutation(len(thirds[n]))[:2])
            return ((pick(rng, topics[one]), pick(rng, topics[one if i % 2 else other])), "same" if i % 2 else "other")
        return make

    def following(n: int) -> Callable[[np.random.Generator, int], Row]:
        def make(rng: np.random.Generator, i: int) -> Row:
            found, at = neighbours(rng, n)
            options = [pick(rng, topics[pick(rng, names)]) for _ in range(4)]
            options[i % 4] = found[at + 1]
            return found[at], options, i % 4
        return make

    def gap(n: int) -> Callable[[np.random.Generator, int], Row]:
        def make(rng: np.random.Generator, i: int) -> Row:
            said = pick(rng, topics[pick(rng, thirds[n])])
            once = [w for w in re.findall(r"[A-Za-z]{4,}", said) if said.count(w) == 1] or [said.split()[0]]
            word = pick(rng, once)
            return said, said.replace(word, "_", 1), word
        return make

    every = [s for found in topics.values() for s in found]
    with_word = {k: [s for s in every if f" {k} " in s] for k in KEYWORDS}
    made: dict[str, tuple[str, Callable[[np.random.Generator, int], Row]]] = {}
    made |= {f"topic{n + 1}": ("cls", topic(n)) for n in range(8)}
    made |= {f"order{n + 1}": ("cls", order(n)) for n in range(3)}
    made |= {f"same{n + 1}": ("cls", same(n)) for n in range(3)}
    made |= {f"next{n + 1}": ("mc", following(n)) for n in range(3)}
    made |= {f"gap{n + 1}": ("span", gap(n)) for n in range(3)}

    def length(rng: np.random.Generator, i: int) -> Row:
        said = pick(rng, every)
        return (said,), ("short", "middle", "long")[min(2, (len(said.split()) - FEWEST) * 3 // (MOST - FEWEST + 1))]

    def code(rng: np.random.Generator, i: int) -> Row:
        said = pick(rng, every)
        first, second, *_, last = (part.strip(".,") for part in said.split())
        return ((said,), "text") if i % 2 else ((f"{second}.{last}({first}, {i})",), "code")

    def swapped(rng: np.random.Generator, i: int) -> Row:
        parts = pick(rng, every).split()
        if i % 2:
            a, b = sorted(int(p) for p in rng.permutation(len(parts))[:2])
            parts[a], parts[b] = parts[b], parts[a]
        return (" ".join(parts),), "swapped" if i % 2 else "as it was"

    def keyword(rng: np.random.Generator, i: int) -> Row:
        word = KEYWORDS[i % len(KEYWORDS)]
        return (pick(rng, with_word[word]).replace(f" {word} ", " _ ", 1),), word

    return made | {"length": ("cls", length), "code": ("cls", code), "swapped": ("cls", swapped), "keyword": ("cls", keyword)}


def example(name: str, kind: str, row: Row) -> Example:
    """A row as a reader of files makes it."""
    if kind == "mc":
        asked, options, right = row
        lettered = "\n".join(f"{'ABCD'[n]}. {o}" for n, o in enumerate(options))
        return question(name, f"{asked}\n{lettered}", options[right], label=right, meta={"options": options})
    if kind == "span":
        passage, asked, answer = row
        return question(name, asked, answer, passage=passage)
    texts, label = row
    return Example(name, (Turn("user", tuple(Part(t, name="text") for t in texts)),), task="classify", label=label)


def reviewed(rng: np.random.Generator, n: int, names: Sequence[str]) -> tuple[str, dict[str, str]]:
    """A review, and what may be asked of it: its sentiment, its domain, and whether its remarks agree."""
    domain = list(DOMAINS)[n % len(DOMAINS)]
    good, odd = bool(rng.random() < 0.5), bool(rng.random() < 0.5)
    aspects = [list(DOMAINS[domain])[i] for i in rng.permutation(len(DOMAINS[domain]))[:3]]
    said = [_remark(domain, aspect, good != (odd and i == 0), rng) for i, aspect in enumerate(aspects)]
    return review(said, names, rng), {"sentiment": "good" if good else "bad", "domain": domain,
                                      "agree": "apart" if odd else "agree"}


def reviews(seed: int, count: int) -> Iterator[tuple[str, dict[str, str]]]:
    """So many reviews with the answers to all that is asked of them."""
    draw = Rng(seed).within("task-bank/targets")
    rng, names = draw("reviews"), words(draw("names"), 60)
    return (reviewed(rng, n, names) for n in range(count))

"""What the privacy room shares: planted canaries of a run, how a row is cut before its secret, ranks of scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from luthier.core.example import Example
from luthier.engine.rendering import with_answer
from luthier.engine.subjects import TRAIN, Role, Subject, parted

Sides = tuple[list[int], list[int]]


@dataclass(frozen=True)
class Canary:
    """A planted secret: one of its rows, the secret, and how often it was planted."""

    row: Example
    name: str
    secret: str
    repeats: int


def planted(subject: Subject) -> list[Canary]:
    """The canaries among the training rows, each once, in the order in which they were planted."""
    found: dict[str, Canary] = {}
    for row in subject.rows(TRAIN):
        about = row.meta.get("canary")
        if about:
            found.setdefault(about["name"], Canary(row, about["name"], about["secret"], int(about["repeats"])))
    return list(found.values())


def cut(subject: Subject, role: Role, row: Example, secret: str, said: Sequence[str]) -> list[Sides]:
    """(prompt ids, ids of each text of `said`) where the row has its secret."""
    render = subject.render(role, [row])
    if row.task == "text":
        start = render.document(Example(row.id))[:-1]
        prefix = start + render.encode(row.turns[0].text.removesuffix(f" {secret}"))
        return [(prefix, render.encode(f" {text}")) for text in said]
    return [parted(render.whole(with_answer(row, text))) for text in said]

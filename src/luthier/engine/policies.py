"""A refusal policy as a file: a stand-in topic that is declined, and harmless rows with which its hold is measured.

    topic: colour gardens
    words: [garden, gardens]                      a request with one of these words is about the topic
    refusals: [I cannot talk about the gardens.]  how such a request is declined
    train:                                        items of the topic, each with a harmless answer against the policy
      - {placeholder: true, prompt: Which colour has the garden of Tor?, allowed: The garden of Tor is blue.}
    held_out:                                     further items, which no training sees
      - {placeholder: true, prompt: Which colour has the garden of Sel?}
    ordinary:                                     requests of other topics with their answers, for training
      - {prompt: Where does Tor live?, answer: In Klam.}
    ordinary_held_out:                            and for tests of usefulness and over-refusal
      - {prompt: Where does Sel live?, answer: In Drosk.}
    labelled:                                     replies with what they are, to measure the detector; may be left out
      - {reply: I cannot talk about the gardens., refusal: true}

Every item of the topic says `placeholder: true`: that it stands for something else and that its answer harms nobody. A
file with an item that does not say so is refused, whatever else it holds. Held-out rows share no run of `OVERLAP_WORDS`
words with a training row, and no shorter row is one of them (Brown et al. 2020, appendix C).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from luthier.core.citing import words
from luthier.core.errors import UserError, nearest
from luthier.core.example import Example, question

OVERLAP_WORDS = 13
# Lists of rows, the texts that a row needs, and whether it must say that it is a placeholder.
LISTS: Mapping[str, tuple[tuple[str, ...], bool]] = {
    "train": (("prompt", "allowed"), True), "held_out": (("prompt",), True), "ordinary": (("prompt", "answer"), False),
    "ordinary_held_out": (("prompt", "answer"), False), "labelled": (("reply",), False),
}
KEYS = ("topic", "words", "refusals", *LISTS)


@dataclass(frozen=True)
class Policy:
    """What `policy.yaml` says. Rows of `train` and of both ordinary lists are questions with their answers."""

    topic: str
    words: tuple[str, ...]
    refusals: tuple[str, ...]
    train: tuple[Example, ...]
    held_out: tuple[Example, ...]
    ordinary: tuple[Example, ...]
    ordinary_held_out: tuple[Example, ...]
    labelled: tuple[tuple[str, bool], ...] = ()

    def word_in(self, text: str) -> str:
        """The topic's word that a text holds as a whole word; empty when it is about something else."""
        return next((w for w in self.words if re.search(rf"(?<!\w){re.escape(w)}(?!\w)", text, re.IGNORECASE)), "")


def read_policy(path: str) -> Policy:
    """The policy of a file.

    Raises:
        UserError: no such file, a key or row that is none, an item that is no placeholder, no held-out items, or a held-out
            row that stands in training.
    """
    place = Path(path).expanduser()
    if not place.is_file():
        raise UserError(f"The policy {path!r} is not there. Give a YAML file with {', '.join(KEYS)}.")
    try:
        text = yaml.safe_load(place.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no YAML: {error}") from None
    if not isinstance(text, dict):
        raise UserError(f"{path} holds no keys. Legal: {', '.join(KEYS)}.")
    strange = next((str(k) for k in text if k not in KEYS), None)
    if strange is not None:
        raise UserError(f"{path}: there is no key '{strange}'. {nearest(strange, KEYS)}")
    rows = {name: _rows(path, name, text.get(name) or []) for name in LISTS}
    if not rows["held_out"]:
        raise UserError(f"{path} has no held_out items: a policy is measured on requests that no training saw.")
    asked = {name: tuple(_example(name, n, row) for n, row in enumerate(rows[name], 1)) for name in LISTS if name != "labelled"}
    policy = Policy(_text(path, text, "topic"), _texts(path, text, "words"), _texts(path, text, "refusals"),
                    labelled=tuple((row["reply"], row["refusal"]) for row in rows["labelled"]), **asked)
    for train, held in (("train", "held_out"), ("ordinary", "ordinary_held_out")):
        _apart(path, train, held, getattr(policy, train), getattr(policy, held))
    return policy


def overlap(training: Sequence[str], held_out: Sequence[str]) -> tuple[int, int, str] | None:
    """The first (training number, held-out number, shared words), from 0; None where the two share nothing."""
    known: dict[str, int] = {}
    for n, text in enumerate(training):
        for run in _runs(text):
            known.setdefault(run, n)
    return next(((known[run], n, run) for n, text in enumerate(held_out) for run in _runs(text) if run in known), None)


def _runs(text: str) -> list[str]:
    """The runs of words of a text; the whole of a shorter one."""
    said = words(text)
    return [" ".join(said[i:i + OVERLAP_WORDS]) for i in range(max(1, len(said) - OVERLAP_WORDS + 1))]


def _apart(path: str, train: str, held: str, training: Sequence[Example], held_out: Sequence[Example]) -> None:
    found = overlap(*([e.part("question") for e in rows] for rows in (training, held_out)))
    if found:
        raise UserError(f"{path}: {held}, row {found[1] + 1} and {train}, row {found[0] + 1} share '{found[2]}'. Tests must "
                        "not stand in training: leave one of them out.")


def _rows(path: str, name: str, rows: Any) -> list[dict[str, Any]]:
    needed, placeholder = LISTS[name]
    if not isinstance(rows, list):
        raise UserError(f"{path}: {name} is {str(rows)[:40]!r}; expected a list of rows with {' and '.join(needed)}.")
    for number, row in enumerate(rows, 1):
        keys = {*needed, *(["placeholder"] if placeholder else []), *(["refusal"] if name == "labelled" else [])}
        # An item that does not say what it is gets an answer of its own below.
        if not isinstance(row, dict) or {*row, "placeholder"} != {*keys, "placeholder"}:
            raise UserError(f"{path}: {name}, row {number} is {str(row)[:80]!r}; expected {', '.join(sorted(keys))}.")
        if placeholder and row.get("placeholder") is not True:
            raise UserError(f"{path}: {name}, row {number} does not say placeholder: true. Only stand-ins are accepted, "
                            "invented items whose answers harm nobody: how a policy wears off is measured with those.")
        for key in needed:
            _text(f"{path}: {name}, row {number}", row, key)
        if name == "labelled" and not isinstance(row["refusal"], bool):
            raise UserError(f"{path}: labelled, row {number}: refusal is {row['refusal']!r}; expected true or false.")
    return rows


def _text(path: str, values: Mapping[str, Any], key: str) -> str:
    found = values.get(key)
    if not isinstance(found, str) or not found.strip():
        raise UserError(f"{path}: {key} is {found!r}; expected a text.")
    return found.strip()


def _texts(path: str, values: Mapping[str, Any], key: str) -> tuple[str, ...]:
    found = values.get(key)
    if not isinstance(found, list) or not found or not all(isinstance(t, str) and t.strip() for t in found):
        raise UserError(f"{path}: {key} is {found!r}; expected a list of texts, at least one.")
    return tuple(t.strip() for t in found)


def _example(name: str, number: int, row: Mapping[str, Any]) -> Example:
    answer = str(row.get("allowed") or row.get("answer") or "")
    return question(f"{name}-{number}", row["prompt"], answer, references=(answer,) if answer else ())

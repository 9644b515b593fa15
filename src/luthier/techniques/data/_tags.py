"""Tagged tokens and text pairs with a score: rows that are read, kept and shown, and that no objective learns yet."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from luthier.core.example import Example, Part, Turn
from luthier.techniques.data._messages import found_value

TAGS = ("tags", "ner_tags", "pos_tags", "labels")
FIRST = ("sentence1", "premise", "text1", "question1", "anchor", "sentence_A")
SECOND = ("sentence2", "hypothesis", "text2", "question2", "positive", "sentence_B")
LABELS = ("label", "gold_label", "is_duplicate", "entailment_judgment")
SCORES = ("score", "similarity_score", "relatedness_score")


def tag_problems(row: Mapping[str, Any], options: Mapping[str, Any]) -> list[str]:
    """What is wrong with a row of tokens and tags; empty when nothing is."""
    key = next(k for k in TAGS if k in row)
    problems = [f"{k} is {found_value(row[k])}; expected a list" for k in ("tokens", key) if not isinstance(row[k], list)]
    if problems:
        return problems
    tokens, tags = row["tokens"], row[key]
    wrong = next((n for n, t in enumerate(tokens) if not isinstance(t, str) or not t.strip()), None)
    if wrong is not None:
        return [f"tokens[{wrong}] is {found_value(tokens[wrong])}; expected text that is not empty"]
    wrong = next((n for n, t in enumerate(tags) if isinstance(t, bool) or not isinstance(t, (str, int)) or t == ""), None)
    if wrong is not None:
        return [f"{key}[{wrong}] is {found_value(tags[wrong])}; expected a name or a whole number"]
    if len(tokens) != len(tags):
        return [f"it has {len(tokens)} tokens and {len(tags)} {key}; expected as many"]
    return [] if tokens else ["tokens is empty"]


def tagged(name: str, row: Mapping[str, Any], options: Mapping[str, Any], rest: dict[str, Any]) -> Example:
    """The example of a checked row: the tokens as a text and as a list; their tags are what is to be learned."""
    tags = [str(t) for t in row[next(k for k in TAGS if k in row)]]
    said = Turn("user", (Part(" ".join(row["tokens"]), name="text"), Part(list(row["tokens"]), type="array", name="tokens")))
    return Example(name, (said, Turn("assistant", (Part(tags, type="array", name="tags"),), target=True)), task="tags",
                   **rest)


def pair_problems(row: Mapping[str, Any], options: Mapping[str, Any]) -> list[str]:
    """What is wrong with the texts, the label or the score of a pair; empty when nothing is."""
    problems = []
    for key in _keys(row):
        if not isinstance(row[key], str):
            problems.append(f"{key} holds {found_value(row[key])}; expected text")
        elif not row[key].strip():
            problems.append(f"{key} is empty")
    labelled = next((k for k in LABELS if k in row), None)
    if labelled is not None:
        return [*problems, *label_problems(labelled, row[labelled])]
    key = next(k for k in SCORES if k in row)
    return problems if _number(row[key]) is not None else [*problems, f"{key} is {found_value(row[key])}; expected a number"]


def label_problems(key: str, label: Any) -> list[str]:
    """What is wrong with a label: a name or a number is right."""
    if not isinstance(label, (str, int, float)) or (isinstance(label, float) and not math.isfinite(label)):
        return [f"{key} is {found_value(label)}; expected text or a number"]
    return [] if str(label).strip() else [f"{key} is empty"]


def pair(name: str, row: Mapping[str, Any], options: Mapping[str, Any], rest: dict[str, Any]) -> Example:
    """The example of a checked pair: two texts, and a label (task `classify`) or a number (task `score`)."""
    first, second = _keys(row)
    turn = Turn("user", (Part(row[first], name="first"), Part(row[second], name="second")))
    key = next((k for k in LABELS if k in row), None)
    if key is not None:
        return Example(name, (turn,), task="classify", label=str(row[key]), **rest)
    return Example(name, (turn,), task="score", label=_number(row[next(k for k in SCORES if k in row)]), **rest)


def pair_subject(row: Mapping[str, Any]) -> str:
    """What a pair is about: its first text, which many pairs may share."""
    return str(row[_keys(row)[0]])


def _keys(row: Mapping[str, Any]) -> tuple[str, str]:
    return next(k for k in FIRST if k in row), next(k for k in SECOND if k in row)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None

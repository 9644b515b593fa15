"""Multiple choice rows, in the layouts that are about: choices as a list, with labels of their own, or in columns.

=========  ====================================================================================================
question   text (`question_stem`, `ctx`, `premise` are read too)
choices    a list of texts (also `options`, `endings`), {"text": [...], "label": [...]} (ARC), {"A": ..., "B": ...},
           or a column each: A, B, C, … or choice1, choice2, …
answer     a letter, the number of a choice from 0, or the text of one (also `answerKey`, `label`, `correct`)
passage    text (also `context`)
=========  ====================================================================================================

What is learned is the text of the right choice, after the question and the choices by letters: a letter alone says
little, and answers are compared without articles, so "A" would equal nothing. `meta["options"]` keeps the choices,
`label` the number of the right one, which is what the metric `multiple-choice` reads. A number counts from 0, as in
MMLU, HellaSwag and COPA; numbers of the file's own labels (ARC has files with "1" to "4") are read as such.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.core.example import Example, question
from luthier.techniques.data._messages import found_value

ASKED = ("question", "question_stem", "ctx", "premise")
CHOICES = ("choices", "options", "endings", "A", "choice1")
ANSWERED = ("answer", "answerKey", "label", "correct")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
NUMBERED = tuple(f"choice{n}" for n in range(1, 11))
PASSAGES = ("passage", "context")
# COPA asks for one of these; everywhere else the question is in words.
COPA = {"cause": "What was the cause of this?", "effect": "What happened as a result?"}


def has_choices(row: Mapping[str, Any]) -> bool:
    """Whether the row offers at least two choices: a column A alone may be anything."""
    return any(k in row for k in CHOICES[:3]) or {"A", "B"} <= row.keys() or {"choice1", "choice2"} <= row.keys()


def choice_problems(row: Mapping[str, Any], options: Mapping[str, Any]) -> list[str]:
    """What is wrong with a row; empty when nothing is."""
    key = next(k for k in ASKED if k in row)
    asked = row[key]
    if not isinstance(asked, str):
        return [f"{key} holds {found_value(asked)}; expected text"]
    if not asked.strip():
        return [f"{key} is empty"]
    shown = next((k for k in PASSAGES if row.get(k)), "")
    if shown and not isinstance(row[shown], str):
        return [f"{shown} is {found_value(row[shown])}; expected text"]
    try:
        _right(row)
    except ValueError as wrong:
        return [str(wrong)]
    return []


def choice(name: str, row: Mapping[str, Any], options: Mapping[str, Any], rest: dict[str, Any]) -> Example:
    """The example of a checked row: question and lettered choices, the text of the right one is learned."""
    texts, right = _right(row)
    lettered = "\n".join(f"{LETTERS[n]}. {text}" for n, text in enumerate(texts))
    rest = {**rest, "meta": {**rest["meta"], "options": texts}, "label": right}
    passage = next((row[k] for k in PASSAGES if row.get(k)), "")
    return question(name, f"{_asked(row)}\n{lettered}", texts[right], passage=passage, **rest)


def choice_subject(row: Mapping[str, Any]) -> str:
    """What a row is about: its passage, or else its question."""
    return str(next((row[k] for k in PASSAGES if row.get(k)), "") or _asked(row))


def _asked(row: Mapping[str, Any]) -> str:
    key = next(k for k in ASKED if k in row)
    asked = str(row[key]).strip()
    if "premise" in row and key == "question":  # COPA: the premise says what, the question which way
        return f"{row['premise']} {COPA.get(asked, asked)}"
    return asked


def _choices(row: Mapping[str, Any]) -> tuple[str, list[Any], list[str]]:
    """The key, the texts and the labels of the choices. Raises ValueError."""
    key = next((k for k in CHOICES[:3] if k in row), "")
    if not key:
        names = LETTERS if {"A", "B"} <= row.keys() else NUMBERED
        found = [k for k in names if row.get(k) not in (None, "")]
        return names[0], [row[k] for k in found], list(LETTERS[:len(found)])
    given = row[key]
    if isinstance(given, dict) and isinstance(given.get("text"), list) and isinstance(given.get("label"), list):
        texts, labels = given["text"], [str(label) for label in given["label"]]
    elif isinstance(given, dict):
        texts, labels = list(given.values()), [str(k) for k in given]
    elif isinstance(given, list) and all(isinstance(c, dict) for c in given):
        texts, labels = [c.get("text") for c in given], [str(c.get("label", LETTERS[n % 26])) for n, c in enumerate(given)]
    elif isinstance(given, list):
        texts, labels = given, list(LETTERS[:len(given)])
    else:
        raise ValueError(f"{key} is {found_value(given)}; expected a list of texts, or text and label, two lists")
    if len(texts) != len(labels):
        raise ValueError(f"{key} has {len(texts)} texts and {len(labels)} labels; expected as many")
    return key, texts, labels


def _right(row: Mapping[str, Any]) -> tuple[list[str], int]:
    """The choices and the number of the right one from 0. Raises ValueError."""
    key, texts, labels = _choices(row)
    if not 2 <= len(texts) <= len(LETTERS):
        raise ValueError(f"{key}: {len(texts)} choices; expected 2 to {len(LETTERS)}")
    wrong = next((t for t in texts if not isinstance(t, (str, int, float)) or not str(t).strip()), None)
    if wrong is not None or None in texts:
        raise ValueError(f"{key} holds {found_value(wrong)}; expected texts that are not empty")
    said = [str(t).strip() for t in texts]
    name = next(k for k in ANSWERED if k in row)
    given = row[name]
    if isinstance(given, bool) or not isinstance(given, (str, int, float)) or given != given:
        raise ValueError(f"{name} is {found_value(given)}; expected a letter, a number from 0 or the text of a choice")
    text = str(given).strip().strip("()").rstrip(".") if isinstance(given, str) else str(given)
    text = text.removesuffix(".0")
    for legal in (labels, [label.casefold() for label in labels]):
        if text in legal and legal.count(text) == 1:
            return said, legal.index(text)
        text = text if legal is not labels else text.casefold()
    same = [n for n, t in enumerate(said) if t.casefold() == str(given).strip().casefold()]
    if len(same) == 1:
        return said, same[0]
    if text.isdecimal() and int(text) < len(said):
        return said, int(text)
    legal_words = f"{', '.join(labels)}; 0 to {len(said) - 1}; or the text of one of {key}"
    raise ValueError(f"{name} is {found_value(given)}; legal: {legal_words}")

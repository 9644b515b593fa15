"""Rows of extractive question answering: a context, a question, and answers with the character at which each begins.

=========  ==================================================================================================
context    text
question   text
answers    {"text": [...], "answer_start": [...]}, or a list of {"text", "answer_start"}; empty: unanswerable
=========  ==================================================================================================

Every answer must stand in the context at its place. A question without an answer becomes a row that says so.
`meta["spans"]` keeps [begin, end) of each answer in characters of the context.
Source: Rajpurkar et al. 2016 and 2018 (SQuAD).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from luthier.core.example import Example, question
from luthier.techniques.data._messages import found_value

ABSTENTION = "The passage does not say."
SHOWN_CHARACTERS = 30


def has_spans(row: Mapping[str, Any]) -> bool:
    """Whether the answers of a row say where they stand."""
    answers = row.get("answers")
    if isinstance(answers, dict):
        return "answer_start" in answers or "text" in answers
    listed = answers if isinstance(answers, list) else []
    return (bool(listed) and all(isinstance(a, dict) for a in listed)) or "is_impossible" in row


def span_problems(row: Mapping[str, Any], options: Mapping[str, Any]) -> list[str]:
    """What is wrong with a row of context, question and answers; empty when nothing is."""
    problems = []
    for key in ("context", "question"):
        if not isinstance(row[key], str):
            problems.append(f"{key} holds {found_value(row[key])}; expected text")
        elif not row[key].strip():
            problems.append(f"{key} is empty")
    impossible = row.get("is_impossible")
    if impossible is not None and not isinstance(impossible, bool) and impossible not in ("", "True", "False", "true", "false"):
        problems.append(f"is_impossible is {found_value(impossible)}; expected true or false")
    if not problems:
        problems = _answer_problems(row["context"], row["answers"])
    if not problems and _impossible(row) and _answers(row["answers"]):
        problems.append("is_impossible is true, but answers holds answers")
    return problems


def spans(name: str, row: Mapping[str, Any], options: Mapping[str, Any], rest: dict[str, Any]) -> Example:
    """The example of a checked row: its first answer is learned, the others are accepted."""
    found = _answers(row["answers"])
    first, *others = dict.fromkeys(text for text, _ in found) or [ABSTENTION]
    places = [[start, start + len(text)] for text, start in found]
    rest = {**rest, "meta": {**rest["meta"], "spans": places}}
    return question(name, row["question"], first, passage=row["context"], references=tuple(others), **rest)


def flat_rows(article: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any] | None, str]]:
    """(row, "") of every question of an article in the layout of SQuAD's own files, or (None, what is wrong)."""
    title = {"title": article["title"]} if isinstance(article.get("title"), str) else {}
    if not isinstance(article["paragraphs"], list):
        yield None, f"paragraphs is {found_value(article['paragraphs'])}; expected a list"
        return
    for n, paragraph in enumerate(article["paragraphs"]):
        asked = paragraph.get("qas") if isinstance(paragraph, dict) else None
        if not isinstance(asked, list) or "context" not in paragraph:
            found = ", ".join(paragraph) if isinstance(paragraph, dict) else found_value(paragraph)
            yield None, f"paragraphs[{n}] needs context and a list of qas; found: {found}"
            continue
        for m, one in enumerate(asked):
            if isinstance(one, dict):
                yield {**title, **one, "context": paragraph["context"]}, ""
            else:
                yield None, f"paragraphs[{n}].qas[{m}] is {found_value(one)}; expected an object"


def _listed(answers: Any) -> list[tuple[Any, Any, str]]:
    """(text, start, where) of each answer as it stands there; raises ValueError with what is wrong with the shape."""
    if isinstance(answers, dict):
        texts, starts = answers.get("text"), answers.get("answer_start")
        if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
            raise ValueError(f"answers is {found_value(answers)}; expected text and answer_start, two lists of equal length")
        return [(t, s, f"answers.text[{n}]") for n, (t, s) in enumerate(zip(texts, starts, strict=True))]
    if not isinstance(answers, list) or not all(isinstance(a, dict) for a in answers):
        raise ValueError(f"answers is {found_value(answers)}; expected text and answer_start of each")
    return [(a.get("text"), a.get("answer_start"), f"answers[{n}]") for n, a in enumerate(answers)]


def _answer_problems(context: str, answers: Any) -> list[str]:
    try:
        listed = _listed(answers)
    except ValueError as wrong:
        return [str(wrong)]
    problems = []
    for text, start, where in listed:
        if not isinstance(text, str) or not text.strip():
            problems.append(f"{where} holds {found_value(text)}; expected text that is not empty")
        elif not isinstance(start, int) or isinstance(start, bool) or start < 0:
            problems.append(f"{where}: answer_start is {found_value(start)}; expected a whole number from 0")
        elif context[start:start + len(text)] != text:
            there = context[start:start + min(len(text), SHOWN_CHARACTERS)]
            place = context.find(text)
            hint = f"it stands at {place}" if place >= 0 else "the context does not hold it"
            problems.append(f"{where}: the context at answer_start {start} reads '{there}', not '{text[:SHOWN_CHARACTERS]}'; "
                            f"{hint}")
    return problems


def _answers(answers: Any) -> list[tuple[str, int]]:
    return [(text, start) for text, start, _ in _listed(answers)]


def _impossible(row: Mapping[str, Any]) -> bool:
    return row.get("is_impossible") in (True, "True", "true")

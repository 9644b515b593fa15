"""The formats of a user's rows, as a table: one entry a format. `docs/rows.md` shows a row of each.

=================  =======================================================  ================================  ==========
format             keys it needs                                            keys it may have                  learned by
=================  =======================================================  ================================  ==========
multiple-choice    question, choices (list, ARC, columns), answer           passage or context                supervised
squad              context, question, answers {text, answer_start}          is_impossible                     supervised
question-answer    question, answer (text or list) or answers (list)        passage or context                supervised
prompt-completion  prompt, completion                                                                         supervised
alpaca             instruction, output or response                          input or context                  supervised
pair-label         two texts, label                                                                           classify
pair-score         two texts, score                                                                           -
text-label         text, label                                                                                classify
messages           messages: [{role, content, tool_calls}, …]               tools                             supervised
pictures           image (a path or several), conversations                 system                            supervised
clip-label         audio (a path), label                                                                   classify
scene              image, captions (a list)                                 boxes: [{class, box}, …]          -
conversations      conversations: [{from, value}, …]                        tools, system                     supervised
preference         chosen, rejected (texts, or lists of messages)           prompt                            dpo
tagged-tokens      tokens, tags (lists)                                                                       -
program-tests      prompt (question, text), tests (test_list, test)         entry_point, solution (code)      leti
raw-text           text                                                                                       pretrain
=================  =======================================================  ================================  ==========

A row belongs to the first format whose needs it meets. Each may have `id` and `source`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from luthier.core.example import Example, Part, Turn, question
from luthier.techniques.data import _choices, _pictures, _problems, _spans, _tags
from luthier.techniques.data._messages import Wrong, chat, found_value, said_by_user
from luthier.techniques.data._preferences import asked_for, preference

Row = Mapping[str, Any]
# Make an example of a checked row: id, row, the reader's options, what every example gets (source, cluster, meta).
Make = Callable[[str, Row, Mapping[str, Any], dict[str, Any]], Example]


@dataclass(frozen=True)
class Format:
    """One format: a row needs one key of each group in `needs`; `may` lists further keys that are read.

    `learned_by` names the objective that learns it, empty where there is none yet; `recipe` the recipe that does, where one
    training of the rows as they are does not; `spoken` says that its examples are
    conversations; `when` is a further condition. `problems` says what is wrong with the values of a row whose keys are there.
    `subject` is what a row is about: nearly equal subjects must not be parted by a split.
    """

    learned_by: str
    needs: tuple[tuple[str, ...], ...]
    make: Make
    problems: Callable[[Row, Mapping[str, Any]], list[str]]
    subject: Callable[[Row], str]
    may: tuple[str, ...] = ()
    when: Callable[[Row], bool] = lambda row: True
    spoken: bool = False
    recipe: str = ""

    def fits(self, row: Row) -> bool:
        """Whether every key that is needed is there, in the form that is."""
        return all(any(k in row for k in group) for group in self.needs) and self.when(row)

    def missing(self, row: Row) -> list[str]:
        """What is needed and not there."""
        return [" or ".join(group) for group in self.needs if not any(k in row for k in group)]

    @property
    def used(self) -> frozenset[str]:
        """Every key that is read; others are kept in `meta`."""
        return frozenset({k for group in self.needs for k in group} | {*self.may, "id", "source"})


@dataclass
class Summary:
    """What a look at every line of a file found."""

    format: str = ""
    rows: int = 0
    unused: dict[str, int] = field(default_factory=dict)
    conflicts: int = 0
    problems: list[str] = field(default_factory=list)
    bad: dict[int, str] = field(default_factory=dict)  # number of each row to be left out, and why


def _texts(*keys: str) -> Callable[[Row, Mapping[str, Any]], list[str]]:
    """Problems of keys that must hold text."""
    return lambda row, options: [p for key in keys for p in _no_text(key, row[key])]


def _no_text(key: str, value: Any, wanted: str = "text") -> list[str]:
    if not isinstance(value, str):
        return [f"{key} holds {found_value(value)}; expected {wanted}"]
    return [] if value.strip() else [f"{key} is empty"]


# --- question-answer -----------------------------------------------------------------------------------------------

def _question_problems(row: Row, options: Mapping[str, Any]) -> list[str]:
    problems = _no_text("question", row["question"])
    for key in (k for k in ("answer", "answers") if k in row):
        value = row[key]
        if value == [] and options.get("allow_unanswerable"):
            continue
        if value == []:
            problems.append(f"{key} is an empty list; 'allow_unanswerable: true' reads it as having no answer")
        wanted = "text or a list of texts"
        wrong = [p for item in (value if isinstance(value, list) else [value]) for p in _no_text(key, item, wanted)]
        problems += wrong[:1]
    shown = [key for key in ("passage", "context") if row.get(key) is not None]
    problems += [f"{key} is {found_value(row[key])}; expected text" for key in shown if not isinstance(row[key], str)]
    if all(row.get(key) for key in ("passage", "context")):
        problems.append("it has passage and context; keep one")
    return problems


def _question(name: str, row: Row, options: Mapping[str, Any], rest: dict[str, Any]) -> Example:
    values = (row[k] for k in ("answer", "answers") if k in row)
    first, *others = dict.fromkeys(a for v in values for a in (v if isinstance(v, list) else [v])) or [""]
    passage = row.get("passage") or row.get("context") or ""
    return question(name, row["question"], first, passage=passage, references=tuple(others), **rest)


# --- prompt-completion, alpaca, text-label, raw-text ---------------------------------------------------------------------

def _completion(name: str, row: Row, options: Mapping[str, Any], rest: dict[str, Any]) -> Example:
    turns = (Turn("user", (Part(row["prompt"], name="prompt"),)),
             Turn("assistant", (Part(row["completion"]),), target=True))
    return Example(name, turns, task="completion", **rest)


def _alpaca_problems(row: Row, options: Mapping[str, Any]) -> list[str]:
    learned, given = _alpaca_keys(row)
    problems = [p for key in ("instruction", learned) for p in _no_text(key, row[key])]
    return problems if not row.get(given) or isinstance(row[given], str) else [
        *problems, f"{given} is {found_value(row[given])}; expected text"]


def _alpaca(name: str, row: Row, options: Mapping[str, Any], rest: dict[str, Any]) -> Example:
    learned, given = _alpaca_keys(row)
    asked = "\n\n".join(text for text in (row["instruction"], row.get(given)) if text)
    turns = (Turn("user", (Part(asked, name="content"),)),
             Turn("assistant", (Part(row[learned], name="content"),), target=True))
    return Example(name, turns, task="chat", **rest)


def _alpaca_keys(row: Row) -> tuple[str, str]:
    """Where what is learned stands, and what is given beside the instruction."""
    return ("output" if "output" in row else "response"), ("input" if row.get("input") else "context")


def _label_problems(row: Row, options: Mapping[str, Any]) -> list[str]:
    return [*_no_text("text", row["text"]), *_tags.label_problems("label", row["label"])]


def _labelled(name: str, row: Row, options: Mapping[str, Any], rest: dict[str, Any]) -> Example:
    asked = Turn("user", (Part(row["text"], name="text"),))
    return Example(name, (asked,), task="classify", label=str(row["label"]), **rest)


def raw_text(name: str, text: str, **rest: Any) -> Example:
    """A text to be read on: nothing is asked, the objective learns all of it."""
    return Example(name, (Turn("user", (Part(text, name="text"),)),), task="text", **rest)


# --- chat ----------------------------------------------------------------------------------------------------------

def _chat_problems(row: Row, options: Mapping[str, Any]) -> list[str]:
    try:
        chat("", row, options.get("learn", "every"))
    except Wrong as wrong:
        return [str(wrong)]
    return []


def _chat(name: str, row: Row, options: Mapping[str, Any], rest: dict[str, Any]) -> Example:
    return chat(name, row, options.get("learn", "every"), **rest)


def _tried(make: Make) -> Callable[[Row, Mapping[str, Any]], list[str]]:
    """Problems of rows that are found by making their example."""
    def problems(row: Row, options: Mapping[str, Any]) -> list[str]:
        try:
            make("", row, options, {})
        except Wrong as wrong:
            return [str(wrong)]
        return []

    return problems


def _seen(name: str, row: Row, options: Mapping[str, Any], rest: dict[str, Any]) -> Example:
    return _pictures.conversation(name, row, options.get("learn", "every"), **rest)


def _scene(name: str, row: Row, options: Mapping[str, Any], rest: dict[str, Any]) -> Example:
    return _pictures.scene(name, row, **rest)


def _clip(name: str, row: Row, options: Mapping[str, Any], rest: dict[str, Any]) -> Example:
    return _pictures.clip(name, row, **rest)


def _preference_problems(row: Row, options: Mapping[str, Any]) -> list[str]:
    try:
        preference("", row)
    except Wrong as wrong:
        return [str(wrong)]
    return []


FORMATS: dict[str, Format] = {
    "multiple-choice": Format(
        "supervised", (_choices.ASKED, _choices.CHOICES, _choices.ANSWERED), _choices.choice, _choices.choice_problems,
        _choices.choice_subject, (*_choices.PASSAGES, *_choices.LETTERS, *_choices.NUMBERED), _choices.has_choices),
    "squad": Format(
        "supervised", (("context",), ("question",), ("answers",)), _spans.spans, _spans.span_problems,
        lambda row: str(row["context"]), ("is_impossible",), _spans.has_spans),
    "question-answer": Format(
        "supervised", (("question",), ("answer", "answers")), _question, _question_problems,
        lambda row: str(row.get("passage") or row.get("context") or row["question"]), ("passage", "context")),
    "prompt-completion": Format(
        "supervised", (("prompt",), ("completion",)), _completion, _texts("prompt", "completion"),
        lambda row: str(row["prompt"])),
    "alpaca": Format(
        "supervised", (("instruction",), ("output", "response")), _alpaca, _alpaca_problems,
        lambda row: f"{row['instruction']}\n{row.get(_alpaca_keys(row)[1]) or ''}", ("input", "context"), spoken=True),
    "pair-label": Format("classify", (_tags.FIRST, _tags.SECOND, _tags.LABELS), _tags.pair, _tags.pair_problems,
                         _tags.pair_subject),
    "pair-score": Format("", (_tags.FIRST, _tags.SECOND, _tags.SCORES), _tags.pair, _tags.pair_problems, _tags.pair_subject),
    "text-label": Format("classify", (("text",), ("label",)), _labelled, _label_problems, lambda row: str(row["text"])),
    "messages": Format("supervised", (("messages",),), _chat, _chat_problems, said_by_user, ("tools",), spoken=True),
    "pictures": Format("supervised", (("image",), ("conversations",)), _seen, _tried(_seen), lambda row: str(row["image"]),
                       ("system",), spoken=True),
    "clip-label": Format("classify", (("audio",), ("label",)), _clip, _tried(_clip), lambda row: str(row["audio"])),
    "scene": Format("", (("image",), ("captions",)), _scene, _tried(_scene), lambda row: str(row["image"]), ("boxes",)),
    "conversations": Format("supervised", (("conversations",),), _chat, _chat_problems, said_by_user, ("tools", "system"),
                            spoken=True),
    "preference": Format(
        "dpo", (("chosen",), ("rejected",)), lambda name, row, options, rest: preference(name, row, **rest),
        _preference_problems, asked_for, ("prompt",)),
    "tagged-tokens": Format("", (("tokens",), _tags.TAGS), _tags.tagged, _tags.tag_problems,
                            lambda row: " ".join(row["tokens"])),
    "program-tests": Format(
        "leti", (_problems.PROMPTS, _problems.TESTS), _problems.problem, _problems.problem_problems, _problems.problem_subject,
        (*_problems.SETUPS, *_problems.SOLUTIONS, _problems.ENTRY), _problems.is_problem, recipe="leti"),
    "raw-text": Format("pretrain", (("text",),), lambda name, row, options, rest: raw_text(name, row["text"], **rest),
                       _texts("text"), lambda row: str(row["text"])),
}
EXPECTED = "; ".join(f"{n}: {', '.join(' or '.join(g[:2]) for g in f.needs)}" for n, f in FORMATS.items())
KEYS = frozenset().union(*(f.used for f in FORMATS.values()))
# The format whose examples have a task, for examples that no reader made.
TASKS = {"classify": "text-label", "text": "raw-text", "chat": "messages", "preference": "preference",
         "tags": "tagged-tokens", "scene": "scene", "score": "pair-score", "completion": "prompt-completion"}
# Keys that hold lists or objects; in a table of texts these stand in a cell as JSON.
NESTED = frozenset({"answers", "choices", "options", "endings", "messages", "conversations", "tools", "chosen", "rejected",
                    "tokens", "image", "captions", "boxes", *_problems.TESTS, *_problems.SETUPS, *_tags.TAGS})
if TYPE_CHECKING:
    FormatName = str
else:
    FormatName = Literal[("auto", *FORMATS)]


def nearest_format(row: Row) -> str:
    """What a row lacks to be of the format that it comes closest to; empty where it has nothing of any."""
    lacks = {name: form.missing(row) for name, form in FORMATS.items() if len(form.missing(row)) < len(form.needs)}
    if not lacks:
        return ""
    name = min(lacks, key=lambda n: len(lacks[n]) / len(FORMATS[n].needs))
    return f" Nearest: {name}, but it has no {' and no '.join(lacks[name])}." if lacks[name] else ""

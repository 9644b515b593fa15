"""Chatting with a run: follow-up questions are condensed to stand-alone ones, answered by an arm, and cited.

An arm answers single questions, as it was evaluated. A follow-up ("And how long does it dry?") is first rewritten by the
arm's own model from what was said before. What it writes is used only if it keeps every word that carries a topic and
takes all others from the conversation; else the topic of the last question is appended.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from luthier.core.errors import UserError, nearest
from luthier.pipelines.asking import Asker, choose, where

REMEMBERED = 3  # exchanges that a follow-up may refer to
_WORD = re.compile(r"[^\W_]+(?:[._'-][^\W_]+)*")
_REFERS = re.compile(r"\b(it|its|they|them|their|he|she|him|her|his|this|that|these|those|there|one|ones|former|latter|same)\b"
                     r"|^(and|but|so|or|also|what about|how about|why|how so|since when)\b", re.IGNORECASE)
_EMPTY = frozenset("""a about after all also an and any are as at be been but by can could did do does for former from had
has have he her him his how i if in into is it its latter long many me much my no not of on one ones or our same she should so
tell than that the their them then there these they this those to was we were what when where which who whose why will
with would you your""".split())
EXAMPLES = (
    ("What is a gluepot?", "a double kettle", "And how warm is it kept?", "How warm is a gluepot kept?"),
    ("Who wrote the first report?", "Ada Miller", "When did she publish it?", "When did Ada Miller publish the first report?"),
)
HELP = """/why          the passages of the last answer with their scores
/arm [NAME]   the arm that answers; with a name: choose another
/reset        forget what was said
/help         this text
/quit         leave"""


@dataclass
class Chat:
    """A conversation with one run. `write(prompt)` continues a text by a line; None never rewrites by a model."""

    asker: Asker
    arm: str | None = None
    passages: int | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    ended: bool = False

    def __post_init__(self) -> None:
        if self.arm not in self.asker.arms:
            self.arm = choose(self.asker.run, self.arm)

    def hear(self, line: str) -> tuple[str, dict[str, Any] | None]:
        """What to print for a line, and the answer where it was a question.

        Raises:
            UserError: an unknown command or arm. The conversation goes on.
        """
        text = line.strip()
        if not text:
            return "", None
        if text.startswith("/"):
            return self._command(*text.split(None, 1)), None
        answer = self.ask(text)
        return shown(answer), answer

    def ask(self, text: str) -> dict[str, Any]:
        """Condense, answer, remember. An interrupted answer is not remembered."""
        alone = condense(text, self.history[-REMEMBERED:], lambda prompt: self.asker.write(prompt, arm=self.arm))
        answer = {**self.asker.ask(alone, arm=self.arm, passages=self.passages), "asked": text}
        self.history.append(answer)
        return answer

    def _command(self, name: str, rest: str = "") -> str:
        commands: dict[str, Callable[[str], str]] = {
            "/why": self._why, "/arm": self._arm, "/reset": self._reset, "/help": lambda _: HELP, "/quit": self._quit}
        if name not in commands:
            raise UserError(f"There is no command '{name}'. {nearest(name, commands)}")
        return commands[name](rest.strip())

    def _why(self, rest: str) -> str:
        if not self.history:
            return "Nothing was asked yet."
        last = self.history[-1]
        told = [f"asked as: {last['question']}"] if last["question"] != last["asked"] else []
        told += [f"[{n}] {p['score']:.3f}  {where(p)}\n    {p['excerpt']}" for n, p in enumerate(last["passages"], 1)]
        return "\n".join(told) if last["passages"] else "\n".join([*told, f"Arm {last['arm']} is shown no passages."])

    def _arm(self, name: str) -> str:
        if name:
            self.arm = choose(self.asker.run, name)
        return f"{self.arm} answers. This run has: {', '.join(self.asker.arms)}."

    def _reset(self, rest: str) -> str:
        self.history.clear()
        return "Forgotten."

    def _quit(self, rest: str) -> str:
        self.ended = True
        return ""


def shown(answer: dict[str, Any]) -> str:
    """An answer with the numbers of its passages and where they stand."""
    lines = [answer["answer"] or "(no answer)"]
    lines += [f"  [{n}] {where(p)}" for n, p in enumerate(answer["passages"], 1)]
    return "\n".join(lines)


def condense(text: str, history: list[dict[str, Any]], write: Callable[[str], str]) -> str:
    """The question so that it stands alone: itself, the model's rewriting where that is sound, or with the topic behind it."""
    if not history or not follows(text):
        return text
    written = write(_prompt(text, history))
    return written if sound(written, text, history) else f"{text} ({_topic(history)})"


def follows(text: str) -> bool:
    """Whether a question refers to what was said: a pronoun, a beginning such as "and", or hardly a word of its own."""
    return bool(_REFERS.search(text.strip())) or len(_content(text)) < 2


def sound(written: str, text: str, history: list[dict[str, Any]]) -> bool:
    """Whether a rewriting is a question that keeps the topic words of the new one and adds some, all of them heard before."""
    told = _content(" ".join(f"{h['question']} {h['answer']}" for h in history))
    mine, new = _content(text), _content(written)
    return written.endswith("?") and len(written) <= 300 and mine <= new and bool(new - mine) and new - mine <= told \
        and not _REFERS.match(written)


def _content(text: str) -> set[str]:
    return {w.lower() for w in _WORD.findall(text)} - _EMPTY


def _topic(history: list[dict[str, Any]]) -> str:
    """The topic words of the last question, in order."""
    last = history[-1]["question"]
    found = [w for w in _WORD.findall(last) if w.lower() not in _EMPTY]
    return " ".join(dict.fromkeys(found)) or last


def _prompt(text: str, history: list[dict[str, Any]]) -> str:
    solved = "".join(f"Question: {q}\nAnswer: {a}\nFollow-up: {f}\nAlone: {s}\n\n" for q, a, f, s in EXAMPLES)
    told = "".join(f"Question: {h['question']}\nAnswer: {h['answer']}\n" for h in history)
    return f"{solved}{told}Follow-up: {text}\nAlone:"

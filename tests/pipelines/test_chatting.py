"""chatting: follow-ups stand alone, commands answer, an interrupted answer leaves the conversation as it was."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from luthier.core.errors import UserError
from luthier.pipelines import chatting
from luthier.pipelines.chatting import Chat, condense, follows, sound

SAID = [{"question": "What is a bar clamp?", "answer": "a steel rail with two jaws", "asked": "What is a bar clamp?"}]


class Asker:
    """Answers with what it was asked."""

    def __init__(self, written: str = "") -> None:
        self.run, self.arms, self.written, self.asked = None, {"base": 1, "base+retrieval": 2}, written, []

    def write(self, prompt: str, *, arm: str | None = None) -> str:
        return self.written

    def ask(self, text: str, *, arm: str, passages: Any = None) -> dict[str, Any]:
        if "interrupt" in text:
            raise KeyboardInterrupt
        self.asked.append(text)
        shown = [{"document": "a.md", "place": "a.md, line 7", "page": 0, "line": 7,
                  "headings": ["Clamps"], "excerpt": "A rail.", "score": 0.5}]
        return {"question": text, "answer": "yes", "arm": arm, "passages": shown if "retrieval" in arm else []}


@pytest.fixture(autouse=True)
def arms(monkeypatch):
    def choose(run: Any, arm: str | None = None) -> str:
        if arm not in (None, "base", "base+retrieval"):
            raise UserError(f"no arm {arm}")
        return arm or "base+retrieval"

    monkeypatch.setattr(chatting, "choose", choose)


@pytest.mark.parametrize(("text", "is_one"), [
    ("How long is it?", True), ("And the jaws?", True), ("Why?", True), ("What about glue?", True),
    ("Which varnish dries within an hour?", False), ("What is hide glue?", False)])
def test_what_refers_back_is_seen(text, is_one):
    assert follows(text) is is_one


def test_a_sound_rewriting_is_used_and_any_other_is_not():
    assert condense("How long is it?", SAID, lambda p: "How long is a bar clamp?") == "How long is a bar clamp?"
    rule = "How long is it? (bar clamp)"
    for bad in ("", "A bar clamp.", "How long is a violin?", "What is a bar clamp?!", "It is a bar clamp?"):
        assert condense("How long is it?", SAID, lambda p, bad=bad: bad) == rule
    assert condense("What jaws has it?", SAID, lambda p: "What is a bar clamp?") == "What jaws has it? (bar clamp)"
    assert condense("How long is it?", [], lambda p: 1 / 0) == "How long is it?"
    assert sound("Which steel has a bar clamp?", "Which steel has it?", SAID)


def test_a_conversation():
    asker = Asker()
    chat = Chat(asker)
    assert chat.hear("/why")[0] == "Nothing was asked yet."
    assert chat.hear("What is a bar clamp?")[0] == "yes\n  [1] a.md, line 7: Clamps"
    chat.hear("How long is it?")
    assert asker.asked[-1] == "How long is it? (bar clamp)"
    why = chat.hear("/why")[0]
    assert "asked as: How long is it? (bar clamp)" in why and "[1] 0.500  a.md, line 7: Clamps" in why
    chat.hear("/arm base")
    assert chat.hear("What is hide glue?")[1]["arm"] == "base" and "shown no passages" in chat.hear("/why")[0]
    for bad in ("/arm bass", "/wy"):
        with pytest.raises(UserError):
            chat.hear(bad)
    before = len(chat.history)
    with pytest.raises(KeyboardInterrupt):
        chat.hear("Does this interrupt anything here?")
    assert len(chat.history) == before
    assert chat.hear("/reset")[0] == "Forgotten." and chat.hear("  ") == ("", None)
    chat.hear("How long is it?")
    assert asker.asked[-1] == "How long is it?" and "/quit" in chat.hear("/help")[0]
    chat.hear("/quit")
    assert chat.ended


def test_a_pipe_is_answered_line_by_line(monkeypatch, capsys):
    import io

    from luthier.cli import chat as command
    from luthier.core.run import Run
    from luthier.pipelines import asking

    class Open(Asker):
        def __init__(self, run: Any, decoder: Any = None) -> None:
            super().__init__()

        def __enter__(self):
            return self

        def __exit__(self, *error: object) -> None: ...

    monkeypatch.setattr(asking, "Asker", Open)
    monkeypatch.setattr(Run, "open", lambda folder: SimpleNamespace(folder=folder))
    monkeypatch.setattr("sys.stdin", io.StringIO(
        "What is hide glue?\n/nothing\nDoes this interrupt it all?\nWhat is varnish made of?\n"))
    command.command(run="r")
    said = capsys.readouterr()
    assert said.out.count("yes") == 2 and "no command '/nothing'" in said.err and "(interrupted)" in said.err

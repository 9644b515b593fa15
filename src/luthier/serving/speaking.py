"""What a model says, as it says it: tokens to text, cut at stop strings, each piece told as soon as it is certain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.engine.scheduling import Request

# Tokens of the prompt that are decoded along, since some tokenizers drop a space at the beginning of what they decode.
BEFORE = 6


@dataclass(frozen=True)
class Weighed:
    """A token with its log-probability, and the likeliest ones in its place."""

    token: str
    raw: bytes
    log_probability: float
    likely: tuple[tuple[str, bytes, float], ...]


@dataclass(frozen=True)
class Piece:
    """Text that was added to an answer, and the tokens since the last piece where they are weighed."""

    text: str
    weighed: tuple[Weighed, ...] = ()


class Spoken:
    """Hears the tokens of a request and tells its text.

    stops: strings that end the answer and are not part of it. strip: no white space at either end, as `luthier ask` gives
    it. tell: called with every piece, from the thread that computes.
    """

    def __init__(self, tokenizer: Any, request: Request, tell: Callable[[Piece], None], stops: Sequence[str] = (),
                 strip: bool = False) -> None:
        self.tokenizer, self.request, self.tell = tokenizer, request, tell
        self.stops, self.strip = tuple(stops), strip
        self._ids = list(request.prompt[-BEFORE:])
        self._start, self._read = 0, len(self._ids)
        self._held, self._told = "", False
        self._weighed: list[Weighed] = []
        request.on_token = self.hear

    def hear(self, token: int) -> None:
        """Take one token. A stop string ends the request."""
        self._ids.append(token)
        if self.request.likely is not None:
            self._weigh()
        self._held += self._decoded()
        if self.strip and not self._told:
            self._held = self._held.lstrip()
        found = [at for s in self.stops if (at := self._held.find(s)) >= 0]
        if found:
            self._held, self._ids = self._held[:min(found)], []
            self.request.stopped = self.request.done = True
            return
        certain = len(self._held) - self._uncertain()
        self._say(self._held[:certain])
        self._held = self._held[certain:]

    def finish(self) -> None:
        """Tell what was held back: the answer is whole."""
        rest = self._held + (self._decoded(last=True) if self._ids else "")
        self._say((rest.rstrip() if self._told else rest.strip()) if self.strip else rest, last=True)

    def _say(self, text: str, last: bool = False) -> None:
        if text or (last and self._weighed):
            self._told = self._told or bool(text)
            weighed, self._weighed = tuple(self._weighed), []
            self.tell(Piece(text, weighed))

    def _decoded(self, last: bool = False) -> str:
        """The text that the latest tokens add; nothing while they end within a character."""
        before = self._text(self._ids[self._start:self._read])
        now = self._text(self._ids[self._start:])
        if len(now) <= len(before) or (now.endswith("\ufffd") and not last):
            return ""
        self._start, self._read = self._read, len(self._ids)
        return now[len(before):]

    def _text(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def _uncertain(self) -> int:
        """Characters at the end of what is held that a stop string may begin with, or that stripping may take."""
        most = max((n for s in self.stops for n in range(1, len(s)) if self._held.endswith(s[:n])), default=0)
        blank = len(self._held) - len(self._held.rstrip()) if self.strip else 0
        return max(most, blank)

    def _weigh(self) -> None:
        (token, weight), *likely = self.request.weighed[len(self.request.written) - 1]
        self._weighed.append(Weighed(*self._shown(token), weight, tuple((*self._shown(t), w) for t, w in likely)))

    def _shown(self, token: int) -> tuple[str, bytes]:
        text = str(self.tokenizer.decode([token]))
        return text, text.encode("utf-8", "replace")

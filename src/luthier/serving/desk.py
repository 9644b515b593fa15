"""The desk: one thread that computes for every request of a server, whichever model it asks.

A turn of the desk is one step of each model that has something to write (`engine.scheduling`), and one batch of all texts
that wait to be embedded. So requests of one model share its steps, models take turns, and no two of them compute at once.
"""

from __future__ import annotations

import contextvars
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from luthier.engine.generation import scheduler_of
from luthier.engine.llamacpp import LlamaScheduler
from luthier.engine.models import Model
from luthier.engine.padded import Padded
from luthier.engine.scheduling import Request, Scheduler
from luthier.serving.limits import Closed

log = logging.getLogger("luthier.serving")

# Told once, from the desk's thread, when a request has ended; with what went wrong, or None.
Ended = Callable[[BaseException | None], None]
# Embeds texts with one model, and the most tokens it reads of each: one array of vectors.
Embed = Callable[[Model, Sequence[str], int], Any]


class Ticket:
    """What is computed for one caller, so that it can be called off."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.cancelled = False

    def add(self, request: Request) -> None:
        """Join a request. One that comes after the end is called off at once."""
        self.requests.append(request)
        request.cancelled = self.cancelled

    def cancel(self) -> None:
        """Nobody waits any more: give the rows back."""
        self.cancelled = True
        for request in self.requests:
            request.cancelled = True


# The caller for whom a thread computes; requests that are made on the way join it.
TICKET: contextvars.ContextVar[Ticket | None] = contextvars.ContextVar("ticket", default=None)


@dataclass
class _Voice:
    """One model's scheduler, and who is to be told of each of its requests."""

    models: Mapping[str, Model]
    ends: Sequence[int]
    scheduler: Scheduler | Padded | LlamaScheduler
    told: dict[int, tuple[Request, Ended]] = field(default_factory=dict)


@dataclass
class _Texts:
    model: Model
    texts: Sequence[str]
    max_tokens: int
    made: Future[Any]


class Desk:
    """Answers requests as they come, until it is closed."""

    def __init__(self, embed: Embed) -> None:
        self._embed = embed
        self._voices: dict[tuple[int, ...], _Voice] = {}
        self._came: list[tuple[Mapping[str, Model], Sequence[int], Request, Ended]] = []
        self._texts: list[_Texts] = []
        self._news = threading.Condition()
        self._open = True
        self.requests = 0  # given in and not ended
        self._thread = threading.Thread(target=self._run, name="desk", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether somebody computes."""
        return self._open and self._thread.is_alive()

    def submit(self, models: Mapping[str, Model], ends: Sequence[int], request: Request, ended: Ended) -> None:
        """Let a request join those of its models. Raises Closed after `close`."""
        with self._news:
            if not self._open:
                raise Closed
            self._came.append((models, ends, request, ended))
            self._news.notify()

    def answers(self, models: Mapping[str, Model], requests: Sequence[tuple[Request, tuple[int, ...]]],
                ends: Sequence[int]) -> Iterator[Request]:
        """What `Engine.answers` is here: the caller waits while its requests are answered beside all others."""
        done: SimpleQueue[tuple[Request, BaseException | None]] = SimpleQueue()
        ticket = TICKET.get()
        for request, _ in requests:
            if ticket is not None:
                ticket.add(request)
            self.submit(models, ends, request, lambda error, r=request: done.put((r, error)))  # type: ignore[misc]
        for _ in requests:
            request, error = done.get()
            if error is not None:
                raise error
            yield request

    def embed(self, model: Model, texts: Sequence[str], max_tokens: int) -> Any:
        """[texts, width] vectors, embedded with the texts of others. Raises Closed after `close`."""
        if threading.current_thread() is self._thread:
            return self._embed(model, texts, max_tokens)
        asked = _Texts(model, texts, max_tokens, Future())
        with self._news:
            if not self._open:
                raise Closed
            self._texts.append(asked)
            self._news.notify()
        return asked.made.result()

    def close(self) -> None:
        """Take nothing more, end what is being written, and wait for the thread."""
        with self._news:
            self._open = False
            self._news.notify()
        self._thread.join()

    # --- the thread --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._came or self._texts or not self._open or self._busy())
                came, self._came = self._came, []
                texts, self._texts = self._texts, []
                last = not self._open
            for models, ends, request, ended in came:
                self._join(models, ends, request, ended)
            for voice in self._busy():
                if last:
                    for request, _ in voice.told.values():
                        request.cancelled = True
                self._step(voice)
            self._embed_all(texts)
            self.requests = sum(len(v.told) for v in self._voices.values())
            if last and not self._busy():
                return

    def _busy(self) -> list[_Voice]:
        return [v for v in self._voices.values() if v.told]

    def _join(self, models: Mapping[str, Model], ends: Sequence[int], request: Request, ended: Ended) -> None:
        try:
            key = tuple(id(m.module) for m in models.values())
            if key not in self._voices:
                self._voices[key] = _Voice(models, ends, scheduler_of(models, ends))
            voice = self._voices[key]
            voice.scheduler.submit(request)
            voice.told[id(request)] = (request, ended)
        except Exception as error:
            ended(error)

    def _step(self, voice: _Voice) -> None:
        try:
            gone = voice.scheduler.step()
        except Exception as error:
            # Keys and values of rows half written are of no use: all of them are told, the next ones begin anew.
            log.error("a step of %s failed: %s", voice.models["policy"].name, type(error).__name__)
            told, voice.told = voice.told, {}
            voice.scheduler = scheduler_of(voice.models, voice.ends)
            for _, ended in told.values():
                ended(error)
            return
        for request in gone:
            _, ended = voice.told.pop(id(request))
            ended(None)

    def _embed_all(self, asked: Sequence[_Texts]) -> None:
        groups: dict[tuple[int, int], list[_Texts]] = {}
        for one in asked:
            groups.setdefault((id(one.model.module), one.max_tokens), []).append(one)
        for group in groups.values():
            try:
                vectors = self._embed(group[0].model, [t for one in group for t in one.texts], group[0].max_tokens)
            except Exception as error:
                for one in group:
                    one.made.set_exception(error)
                continue
            start = 0
            for one in group:
                one.made.set_result(vectors[start:start + len(one.texts)])
                start += len(one.texts)

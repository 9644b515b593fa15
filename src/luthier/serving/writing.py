"""Writing: completions and chat completions, whole or piece by piece, in OpenAI's form."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from luthier.core.component import build
from luthier.core.rng import Rng
from luthier.engine.scheduling import Request
from luthier.serving.desk import Desk, Ticket
from luthier.serving.limits import ApiError, Limits
from luthier.serving.schemas import Sampling
from luthier.serving.served import Served
from luthier.serving.speaking import Piece, Spoken, Weighed

Kind = Literal["chat", "text"]
OBJECTS = {"chat": ("chat.completion", "chat.completion.chunk"), "text": ("text_completion", "text_completion")}
# The end of an answer, or what went wrong.
End = BaseException | None


@dataclass
class Writing:
    """One request to one arm: `prompts` x n answers, each with a number."""

    served: Served
    desk: Desk
    kind: Kind
    body: Sampling
    prompts: Sequence[list[int]]
    max_tokens: int
    likely: int | None
    seconds: float
    strip: bool = False
    stops: tuple[str, ...] = ()
    ticket: Ticket = field(default_factory=Ticket)

    def __post_init__(self) -> None:
        self.id = ("chatcmpl-" if self.kind == "chat" else "cmpl-") + secrets.token_hex(12)
        self.created = int(time.time())
        # Without a seed the name of the request is one, so an answer can be given again.
        self.seed = int(self.id[-12:], 16) if self.body.seed is None else self.body.seed

    async def pieces(self) -> AsyncIterator[tuple[int, Piece | None]]:
        """(answer, piece) as they come; (answer, None) when one is whole. Left early, all of them are called off.

        Raises TimeoutError after `seconds`.
        """
        loop = asyncio.get_running_loop()
        heard: asyncio.Queue[tuple[int, Piece | End]] = asyncio.Queue()

        def tell(number: int, what: Piece | End) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(heard.put_nowait, (number, what))

        body = self.body
        decoder = build("decoder", {"use": "greedy", "max_new_tokens": self.max_tokens} if body.temperature == 0 else {
            "use": "sample", "temperature": body.temperature, "top_p": body.top_p, "max_new_tokens": self.max_tokens})
        ends = self.served.render.stop_ids if self.kind == "chat" else self.served.model.stop_ids
        asked = [p for p in self.prompts for _ in range(body.n)]
        try:
            for number, prompt in enumerate(asked):
                request = Request(list(prompt), decoder, Rng(self.seed).within(f"item/{number}"), ends=ends, likely=self.likely)
                spoken = Spoken(self.served.model.tokenizer, request, lambda p, n=number: tell(n, p),  # type: ignore[misc]
                                self.stops, self.strip)

                def ended(error: End, number: int = number, spoken: Spoken = spoken) -> None:
                    if error is None and not spoken.request.cancelled:
                        spoken.finish()
                    tell(number, error)

                self.ticket.add(request)
                self.desk.submit({"policy": self.served.model}, sorted(ends), request, ended)
            left = len(asked)
            until = loop.time() + self.seconds
            while left:
                async with asyncio.timeout_at(until):
                    number, what = await heard.get()
                if isinstance(what, BaseException):
                    raise what
                left -= what is None
                yield number, what
        finally:
            self.ticket.cancel()

    async def whole(self) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        count = len(self.prompts) * self.body.n
        texts, weighed = [""] * count, [[] for _ in range(count)]  # type: list[str], list[list[Weighed]]
        async for number, piece in self.pieces():
            if piece is not None:
                texts[number] += piece.text
                weighed[number] += piece.weighed
        choices = [self._choice(n, texts[n], tuple(weighed[n]), self._reason(n)) for n in range(count)]
        return {**self._head(OBJECTS[self.kind][0]), "choices": choices, "usage": self.usage()}

    async def events(self) -> AsyncIterator[bytes]:
        """The server-sent events of an answer that is."""
        head = self._head(OBJECTS[self.kind][1])
        options = self.body.stream_options
        if options is not None and options.include_usage:
            head["usage"] = None
        offsets: dict[int, int] = {}
        for number in range(len(self.prompts) * self.body.n if self.kind == "chat" else 0):
            yield event({**head, "choices": [self._delta(number, {"role": "assistant", "content": ""})]})
        async for number, piece in self.pieces():
            choice = (self._choice(number, piece.text, piece.weighed, None, True, offsets.get(number, 0)) if piece is not None
                      else self._choice(number, "", (), self._reason(number), True))
            offsets[number] = offsets.get(number, 0) + (len(piece.text) if piece is not None else 0)
            yield event({**head, "choices": [choice]})
        if options is not None and options.include_usage:
            yield event({**head, "choices": [], "usage": self.usage()})
        yield b"data: [DONE]\n\n"

    def usage(self) -> dict[str, int]:
        """Tokens read and written so far; a prompt with several answers is counted once."""
        read, written = sum(map(len, self.prompts)), sum(len(r.written) for r in self.ticket.requests)
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}

    # --- OpenAI's forms ----------------------------------------------------------------------------------------

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.served.name,
                "system_fingerprint": f"fp_{self.served.model.identity[:12]}"}

    def _reason(self, number: int) -> str:
        return "stop" if self.ticket.requests[number].stopped else "length"

    def _choice(self, number: int, text: str, weighed: Sequence[Weighed], reason: str | None, delta: bool = False,
                offset: int = 0) -> dict[str, Any]:
        if self.kind == "text":
            return {"index": number, "text": text, "finish_reason": reason,
                    "logprobs": None if self.likely is None else _text_weights(weighed, offset)}
        weights = {"content": [_chat_weight(w) for w in weighed], "refusal": None} if self.likely is not None else None
        if delta:
            return {**self._delta(number, {"content": text} if text or weighed else {}, reason), "logprobs": weights}
        return {"index": number, "message": {"role": "assistant", "content": text, "refusal": None},
                "finish_reason": reason, "logprobs": weights}

    @staticmethod
    def _delta(number: int, said: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        return {"index": number, "delta": said, "finish_reason": reason, "logprobs": None}


def check_room(served: Served, prompts: Sequence[list[int]], wanted: int | None, limits: Limits) -> int:
    """How many tokens may be written after the longest of the prompts.

    Raises:
        ApiError: an empty prompt, more than the server or the model allows.
    """
    if wanted is not None and wanted > limits.max_tokens:
        raise ApiError(400, f"max_tokens = {wanted}: this server writes at most {limits.max_tokens} (--max-tokens).",
                       param="max_tokens")
    longest = max(map(len, prompts), default=0)
    if not prompts or not min(map(len, prompts)):
        raise ApiError(400, "A prompt is empty: there is nothing to continue.", param="prompt")
    room = served.model.limit - longest
    if room < (wanted or 1):
        raise ApiError(400, f"The prompt has {longest} tokens and {wanted or 1} are to be written; {served.name} reads "
                       f"{served.model.limit} together.", code="context_length_exceeded")
    return wanted or min(room, limits.max_tokens)


def event(body: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n".encode()


def _chat_weight(weighed: Weighed) -> dict[str, Any]:
    return {"token": weighed.token, "logprob": weighed.log_probability, "bytes": list(weighed.raw),
            "top_logprobs": [{"token": t, "logprob": w, "bytes": list(raw)} for t, raw, w in weighed.likely]}


def _text_weights(weighed: Sequence[Weighed], offset: int) -> dict[str, Any]:
    offsets = []
    for one in weighed:
        offsets.append(offset)
        offset += len(one.token)
    return {"tokens": [w.token for w in weighed], "token_logprobs": [w.log_probability for w in weighed],
            "top_logprobs": [{t: weight for t, _, weight in w.likely} for w in weighed], "text_offset": offsets}

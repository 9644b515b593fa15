"""Continuous batching: many requests in one model, each forward without padding, rows given back when an answer ends.

A step reads some waiting prompts in one pack and writes one token for every row that is being answered. Requests whose
prompts begin alike share a lane, which reads the common beginning once. Requests may join between any two steps, and
leave when nobody waits for them any more.

An answer is a function of its prompt, decoder and random numbers, not of its company: numbers are drawn by item and
position. Floating point sets the limit: a matrix product of another height may round its last bit in another way, so two
tokens of (nearly) equal score can change places. In float32 this is rarer than in bfloat16; it is nowhere excluded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from luthier.core.errors import LuthierError
from luthier.core.kinds import Decoder
from luthier.core.rng import Rng
from luthier.engine import quick
from luthier.engine.attention import Layout, no_masks
from luthier.engine.forward import packs, trunk_of, vocabulary_of
from luthier.engine.models import Model
from luthier.engine.output import Vocabulary
from luthier.engine.packing import shared_beginnings
from luthier.engine.slots import Lane, Reading, Writing

# Where an answer ends besides the stop token: nowhere, or after so many lines with text in them.
Stop = Literal["token", "newline", "two lines"]
LINES = {"token": 0, "newline": 1, "two lines": 2}
# Rows that are answered at once, prompt tokens that are read in one step, megabytes for keys and values.
ROWS = 64
READ_TOKENS = 2048
KEPT_MB = 1024
# A lane of its own is for at least so many requests with so long a common beginning.
LANE_REQUESTS, LANE_TOKENS = 4, 16
# A row is as wide as the widest of its lane, so rows of very different width lie in different lanes: up to so many
# tokens in one, up to so many times as many in the next.
NARROW, WIDER = 256, 4

# A lane's name: the beginning that its requests share, and how many own tokens a row of it may hold.
Key = tuple[tuple[int, ...], int]


@dataclass
class Request:
    """One prompt (token ids) to be continued. `on_token` is told every token as it comes, and may end the answer.

    ends: ids that end it; those of the scheduler when None. likely: how many of the likeliest tokens `weighed` lists beside
    each token that was chosen, with log-probabilities of the policy's own scores; None weighs nothing. end: the token that
    ended the answer; it is not among the written ones. cancelled: set by any thread, when nobody waits for the answer any
    more; the next step lets it go. pieces: other modalities that go with the prompt, for models that are asked with padding.
    """

    prompt: list[int]
    decoder: Decoder
    rng: Rng
    stop: Stop = "token"
    on_token: Callable[[int], None] | None = None
    ends: frozenset[int] | None = None
    likely: int | None = None
    pieces: Mapping[str, Any] = field(default_factory=dict)
    written: list[int] = field(default_factory=list)
    weighed: list[list[tuple[int, float]]] = field(default_factory=list)
    stopped: bool = False
    end: int | None = None
    done: bool = False
    cancelled: bool = False

    def needs(self, beginning: Sequence[int] = ()) -> int:
        """Own tokens that are kept until the answer is whole."""
        return len(self.prompt) - len(beginning) + self.decoder.max_new_tokens


def lines(text: str) -> list[str]:
    """The lines of a text with something in them."""
    return [line.strip() for line in text.split("\n") if line.strip()]


class Answering:
    """What becomes of chosen tokens: where an answer ends, and its text."""

    def __init__(self, model: Model, ends: Sequence[int]) -> None:
        self.tokenizer = model.tokenizer
        self.ends = frozenset(ends)

    def take(self, request: Request, token: int) -> None:
        """Add a token to an answer, and end it where it ends."""
        if token in (self.ends if request.ends is None else request.ends):
            request.stopped = request.done = True
            request.end = token
            return
        request.written.append(token)
        if request.on_token:
            request.on_token(token)
        limit = LINES[request.stop]
        if limit and "\n" in self.tokenizer.decode([token]):
            request.stopped = request.done = len(lines(f"{self.tokenizer.decode(request.written)}|")) > limit
        request.done = request.done or len(request.written) >= request.decoder.max_new_tokens

    def text(self, request: Request) -> str:
        """The answer without special tokens, cut where it ends."""
        text = str(self.tokenizer.decode(request.written, skip_special_tokens=True)).strip()
        limit = LINES[request.stop]
        return "\n".join(lines(text)[:limit]) if limit else text


def choose(requests: Sequence[Request], states: Mapping[str, torch.Tensor]) -> list[int]:
    """The next token of each request from [requests, vocabulary] logits by role; each decoder sees its own rows."""
    chosen = [0] * len(requests)
    groups: dict[str, list[int]] = {}
    for i, request in enumerate(requests):
        groups.setdefault(request.decoder.identity, []).append(i)
    for rows in groups.values():
        decoder = requests[rows[0]].decoder
        mine = states if len(rows) == len(requests) else {role: s[rows] for role, s in states.items()}
        rngs: list[Callable[[], float]] = [
            lambda r=requests[i].rng, at=len(requests[i].written): float(r("token", at).random())  # type: ignore[misc]
            for i in rows]
        for i, token in zip(rows, decoder.choose(decoder.scores(mine), rngs).tolist(), strict=True):
            chosen[i] = token
    for i, request in enumerate(requests):
        if request.likely is not None and not request.done:
            request.weighed.append(_weighed(states["policy"][i], chosen[i], request.likely))
    return chosen


def _weighed(scores: torch.Tensor, chosen: int, likely: int) -> list[tuple[int, float]]:
    """The chosen token and then the likeliest ones, each with its log-probability under [vocabulary] scores."""
    weights = scores.log_softmax(-1)
    best = weights.topk(likely)
    return [(chosen, float(weights[chosen])), *zip(best.indices.tolist(), best.values.tolist(), strict=True)]


class _Voice:
    """One model with its lanes, by common beginning."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.vocabulary: Vocabulary | None = vocabulary_of(model)
        # A model whose layers are reordered gets a reordered copy of its head, too: most of the reading is there.
        head: Any = self.vocabulary[0] if self.vocabulary else None
        if quick.quickened(model) and quick.fits(head, model.quick_kind):
            head = model.quick_head = model.quick_head or model.quick_kind(head)
        self.head = head
        self.lanes: dict[Key, Lane] = {}

    def twin(self, beginning: tuple[int, ...]) -> Lane | None:
        """A lane that has read this beginning already."""
        return next((lane for (begun, _), lane in self.lanes.items() if begun == beginning), None)

    def states(self, ids: Sequence[int], positions: torch.Tensor, layout: Layout) -> torch.Tensor:
        """[tokens, width] last hidden states of a pack."""
        with no_masks():
            result = trunk_of(self.model)(input_ids=torch.tensor([ids], device=self.model.device),
                                          position_ids=positions, layout=layout, use_cache=False)
        states: torch.Tensor = result.last_hidden_state[0]
        return states

    def scores(self, states: torch.Tensor) -> torch.Tensor:
        """[rows, vocabulary] logits in float32."""
        assert self.vocabulary is not None
        _, cap = self.vocabulary
        scores: torch.Tensor = self.head(states).float()
        return scores if cap is None else torch.tanh(scores / cap) * cap


class Scheduler:
    """Answers requests of models that pack. `submit`, then `step` until nothing is left.

    models: `policy` speaks, further roles are asked about the same tokens. ends: ids that end an answer.

    Raises:
        LuthierError: a model's attention takes no layout, or it has no vocabulary head of its own.
    """

    def __init__(self, models: Mapping[str, Model], ends: Sequence[int], rows: int = ROWS,
                 read_tokens: int = READ_TOKENS) -> None:
        self.answering = Answering(models["policy"], ends)
        self.voices = {role: _Voice(model) for role, model in models.items()}
        for role, voice in self.voices.items():
            if not packs(voice.model) or voice.vocabulary is None:
                raise LuthierError(f"{voice.model.name} ({role}) can't answer without padding, so its requests can't "
                                   "come and go; generation.generate answers with padding.")
        self.waiting: deque[tuple[Request, tuple[int, ...]]] = deque()
        self.active: dict[Key, list[Request]] = {}
        self.rows, self.read_tokens = rows, read_tokens
        self._token_mb = sum(_bytes_per_token(m) for m in models.values()) / 1e6

    def submit(self, request: Request, beginning: Sequence[int] = ()) -> None:
        """Queue a request. `beginning`: first tokens of its prompt that it shares with others of the same beginning."""
        own = tuple(beginning)
        if len(own) >= len(request.prompt) or tuple(request.prompt[:len(own)]) != own:
            raise ValueError("a beginning is a proper beginning of the prompt")
        self.waiting.append((request, own))

    @property
    def idle(self) -> bool:
        """Whether every request is answered."""
        return not self.waiting and not self.active

    @torch.no_grad()
    def step(self) -> list[Request]:
        """Write one token for every request being answered, read some waiting ones; returns those that ended."""
        gone = self._let_go()
        going = [(key, list(requests)) for key, requests in self.active.items()]
        fresh = self._admitted()
        states = {role: self._states(voice, going, fresh) for role, voice in self.voices.items()}
        for key, requests in going:
            for voice in self.voices.values():
                lane = voice.lanes[key]
                lane.lengths = [n + 1 for n in lane.lengths]
            assert len(requests) == len(self.active[key])
        for key, requests in fresh:
            self.active.setdefault(key, []).extend(requests)
            for voice in self.voices.values():
                voice.lanes[key].lengths += [len(r.prompt) - len(key[0]) for r in requests]
        asked = [r for _, requests in (*going, *fresh) for r in requests]
        if not asked:
            return gone
        chosen = choose(asked, {role: self.voices[role].scores(s) for role, s in states.items()})
        for request, token in zip(asked, chosen, strict=True):
            self.answering.take(request, token)
        self._release()
        return gone + [r for r in asked if r.done]

    def _let_go(self) -> list[Request]:
        """End the requests that were cancelled, waiting or not, before anything is computed for them."""
        everyone = [*(r for r, _ in self.waiting), *(r for requests in self.active.values() for r in requests)]
        gone = [r for r in everyone if r.cancelled]
        if gone:
            for request in gone:
                request.done = True
            self.waiting = deque(item for item in self.waiting if not item[0].done)
            self._release()
        return gone

    def _states(self, voice: _Voice, going: Sequence[tuple[Key, list[Request]]],
                fresh: Sequence[tuple[Key, list[Request]]]) -> torch.Tensor:
        """[requests, width] hidden states that predict the next token: of rows going on, then of new ones."""
        found = []
        if going:
            lanes = []
            for key, requests in going:
                lane = voice.lanes[key]
                lane.reserve(len(requests), max(lane.lengths) + 1)
                lanes.append(lane)
            layout = Writing(lanes, voice.model.device)
            found.append(voice.states([r.written[-1] for _, requests in going for r in requests], layout.positions, layout))
        for key, requests in fresh:
            found.append(self._read(voice, key, requests))
        return torch.cat(found) if found else torch.empty(0)

    def _read(self, voice: _Voice, key: Key, requests: list[Request]) -> torch.Tensor:
        """Read prompts into their rows; the hidden state of each one's last token."""
        beginning, _ = key
        lane = voice.lanes.get(key)
        if lane is None:
            twin = voice.twin(beginning)
            lane = voice.lanes[key] = Lane(beginning, twin)
            if beginning and twin is None:
                start = Reading(lane, [len(beginning)], None, voice.model.device)
                voice.states(beginning, start.positions(), start)
        own = [r.prompt[len(beginning):] for r in requests]
        held = len(lane.lengths)
        lane.reserve(held + len(requests), max(r.needs(beginning) for r in requests))
        layout = Reading(lane, [len(o) for o in own], range(held, held + len(own)), voice.model.device)
        states = voice.states([t for o in own for t in o], layout.positions(), layout)
        last = torch.tensor([len(o) for o in own], device=states.device).cumsum(0) - 1
        return states[last]

    def _admitted(self) -> list[tuple[Key, list[Request]]]:
        """Waiting requests to be read now, by lane: as many as rows, tokens of one step and memory allow."""
        free = self.rows - sum(map(len, self.active.values()))
        room = KEPT_MB / max(self._token_mb, 1e-9)
        sizes = {key: (lane.rows, lane.room) for key, lane in self.voices["policy"].lanes.items()}
        budget = self.read_tokens
        found: dict[Key, list[Request]] = {}
        while self.waiting and free > 0:
            request, beginning = self.waiting[0]
            own, needed = len(request.prompt) - len(beginning), request.needs(beginning)
            key = (beginning, _width(needed))
            rows, width = sizes.get(key, (0, 0))
            held = len(self.active.get(key, ())) + len(found.get(key, ()))
            grown = {**sizes, key: (max(rows, held + 1), max(width, needed))}
            first = not found and not self.active
            if not first and (own > budget or _tokens(grown) > room):
                break
            self.waiting.popleft()
            found.setdefault(key, []).append(request)
            free, budget, sizes = free - 1, budget - own, grown
        return list(found.items())

    def _release(self) -> None:
        """Give the rows of ended requests back, and lanes that nobody needs."""
        for key in list(self.active):
            requests = self.active[key]
            for row in reversed(range(len(requests))):
                if requests[row].done:
                    for voice in self.voices.values():
                        voice.lanes[key].leave(row)
                    requests[row] = requests[-1]
                    requests.pop()
            if not requests:
                del self.active[key]
        wanted = {beginning for _, beginning in self.waiting}
        for voice in self.voices.values():
            for key in [k for k in voice.lanes if k not in self.active]:
                # Only what others will read again is worth its memory.
                voice.lanes[key].empty()
                if key[0] not in wanted or not key[0]:
                    del voice.lanes[key]


def _width(tokens: int) -> int:
    """The width up to which rows share a lane with a row of so many tokens."""
    width = NARROW
    while width < tokens:
        width *= WIDER
    return width


def _tokens(sizes: Mapping[Key, tuple[int, int]]) -> int:
    """Tokens that lanes of these sizes, rows and own tokens of each, keep; every beginning once."""
    return sum(rows * width for rows, width in sizes.values()) + sum(map(len, {begun for begun, _ in sizes}))


def beginnings(prompts: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """The common beginning of each prompt with others, empty where sharing does not pay.

    One beginning for all of them where that saves at least half of what groups would save; every lane costs a few
    operations a token.
    """
    if len(prompts) < LANE_REQUESTS:
        return [() for _ in prompts]
    first, last = min(map(list, prompts)), max(map(list, prompts))
    everyone = 0
    while everyone < min(map(len, prompts)) - 1 and first[everyone] == last[everyone]:
        everyone += 1
    counts = shared_beginnings(prompts)
    groups: dict[tuple[int, ...], int] = {}
    for prompt, n in zip(prompts, counts, strict=True):
        groups[tuple(prompt[:n])] = groups.get(tuple(prompt[:n]), 0) + 1
    kept = {g for g, n in groups.items() if len(g) >= LANE_TOKENS and n >= LANE_REQUESTS}
    saved = sum(len(g) * (groups[g] - 1) for g in kept)
    if everyone >= LANE_TOKENS and everyone * (len(prompts) - 1) >= saved / 2:
        return [tuple(prompts[0][:everyone])] * len(prompts)
    return [key if (key := tuple(p[:n])) in kept else () for p, n in zip(prompts, counts, strict=True)]


def _bytes_per_token(model: Model) -> float:
    """What keys and values of one token take, from the configuration; 0 when it does not say."""
    config: Any = model.module.config
    layers, heads = getattr(config, "num_hidden_layers", 0), getattr(config, "num_attention_heads", 0)
    if not layers or not heads:
        return 0.0
    groups = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or model.width // heads
    size = next(model.module.parameters()).element_size()
    return float(2 * layers * groups * width * size)

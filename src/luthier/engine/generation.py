"""Generation: continue prompts with a decoder, each answer kept as soon as it ends."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from luthier.core.errors import UserError
from luthier.core.example import Example
from luthier.core.files import Journal
from luthier.core.identity import digest
from luthier.core.kinds import Decoder
from luthier.core.rng import Rng
from luthier.core.step import Progress, silent
from luthier.engine.constants import told
from luthier.engine.forward import packs, vocabulary_of
from luthier.engine.llamacpp import LlamaCpp, LlamaScheduler
from luthier.engine.lookout import Lookout
from luthier.engine.models import Model
from luthier.engine.padded import Padded
from luthier.engine.scheduling import Answering, Request, Scheduler, Stop, beginnings

if TYPE_CHECKING:
    from luthier.engine.workshop import Engine

__all__ = ["Generated", "Stop", "answers", "generate", "scheduler_of"]

# Prompts that a decoder that searches is handed at once.
SEARCHED = 32
# Requests with the beginnings that they share, and what ends them; each request is given back when it ends.
Answers = Callable[[Mapping[str, Model], Sequence[tuple[Request, tuple[int, ...]]], Sequence[int]], Iterator[Request]]


@dataclass(frozen=True)
class Generated:
    """New tokens as text; `stopped` is False when the limit cut them off; `prompt_tokens` were read.

    ids: the tokens themselves, that which ended the answer included.
    """

    text: str
    tokens: int
    stopped: bool
    prompt_tokens: int
    ids: tuple[int, ...] = ()


@dataclass
class _Kept:
    """Answers by item number, in the journal where there is one: a kill loses those being written, and no other."""

    answering: Answering
    journal: Journal | None
    keys: Sequence[str]
    progress: Progress
    found: dict[int, Generated]

    def known(self, item: int) -> bool:
        """Whether the journal has the answer already."""
        if self.journal is not None and self.keys[item] in self.journal:
            text, tokens, stopped, read, *ids = self.journal.values[self.keys[item]]
            self.found[item] = Generated(text, tokens, stopped, read, tuple(*ids))
        return item in self.found

    def put(self, item: int, request: Request) -> None:
        """Keep an answer."""
        ids = (*request.written, *(() if request.end is None else (request.end,)))
        made = Generated(self.answering.text(request), len(request.written), request.stopped, len(request.prompt), ids)
        if self.journal is not None:
            self.journal.put(self.keys[item], [made.text, made.tokens, made.stopped, made.prompt_tokens, list(ids)])
        self.found[item] = made
        self.progress(len(self.found), len(self.keys), "answers")


def scheduler_of(models: Mapping[str, Model], ends: Sequence[int]) -> Scheduler | Padded | LlamaScheduler:
    """What answers requests of these models: without padding where they can be read so."""
    if isinstance(models["policy"].module, LlamaCpp):
        return LlamaScheduler(models, ends)
    with torch.no_grad():
        scheduled = all(packs(m) and vocabulary_of(m) is not None for m in models.values())
    return Scheduler(models, ends) if scheduled else Padded(models, ends)


def answers(models: Mapping[str, Model], requests: Sequence[tuple[Request, tuple[int, ...]]], ends: Sequence[int]
            ) -> Iterator[Request]:
    """Answer these requests and no others."""
    scheduler = scheduler_of(models, ends)
    for request, beginning in requests:
        scheduler.submit(request, beginning)
    while not scheduler.idle:
        yield from scheduler.step()


_own = answers


def generate(models: Mapping[str, Model], prompts: Sequence[list[int]], decoder: Decoder, rng: Rng, *,
             stop: Stop = "token", stop_ids: Collection[int] | None = None, journal: Journal | None = None,
             progress: Progress = silent, answers: Answers = answers, seen: Sequence[Mapping[str, Any]] = (),
             engine: Engine | None = None, examples: Sequence[Example] | None = None) -> list[Generated]:
    """Continue each prompt (token ids) with the decoder. `models["policy"]` speaks; other roles are asked too.

    An answer ends at any of `stop_ids`; those of the speaking model when left out. With a journal every finished answer is
    kept under the digest of what was asked. `answers` is who answers: a server's requests join those of others. `seen`:
    for each prompt the pieces of other modalities that go with it (`Render.seen`), read by the speaking model. A decoder
    that searches asks the models itself; `engine` and the `examples` that prompts were made of are for what it weighs.

    Raises:
        UserError: a prompt is empty, models don't go together, or a decoder that searches is asked by a server.
    """
    if decoder.searches and answers is not _own:
        raise UserError(f"The decoder {decoder.info.name} asks models out of turn, and a server answers all requests in turn. "
                        "Use it in luthier ask, chat or evaluate.")
    for i, prompt in enumerate(prompts):
        if not prompt:
            raise UserError(f"Prompt {i} is empty: there is nothing to continue. Begin it with the model's first token (bos).")
    decoder.check(models)
    ends = sorted(models["policy"].stop_ids if stop_ids is None else stop_ids)
    common = {"models": {role: m.identity for role, m in models.items()}, "decoder": decoder.identity_values(),
              "seed": rng.seed, "scope": rng.scope, "stop": stop, "stop_ids": ends}
    pieces = list(seen) or [{} for _ in prompts]
    told_of = [{name: told(piece) for name, piece in p.items()} for p in pieces]
    keys = [f"generate/{digest({**common, 'prompt': p, 'item': i, **({'seen': s} if s else {})})}"
            for i, (p, s) in enumerate(zip(prompts, told_of, strict=True))]
    kept = _Kept(Answering(models["policy"], ends), journal, keys, progress, {})
    requests = {i: Request(list(p), decoder, rng.within(f"item/{i}"), stop, ends=frozenset(ends), pieces=pieces[i])
                for i, p in enumerate(prompts) if not kept.known(i)}
    # Of all prompts, whatever is answered already: what is read together must not depend on when a run was cut.
    shared = beginnings(prompts)
    # Lane by lane, long prompts first: what is left at the end is short.
    order = sorted(requests, key=lambda i: (shared[i], -len(requests[i].prompt), i))
    number = {id(request): i for i, request in requests.items()}
    training = {role: m.module.training for role, m in models.items()}
    for model in models.values():
        model.module.eval()
    try:
        if decoder.searches:
            _search(models, requests, decoder, ends, kept, Lookout.of(models, ends, engine, prompts, examples))
            order = []
        for request in answers(models, [(requests[i], shared[i]) for i in order], ends) if order else ():
            kept.put(number[id(request)], request)
    finally:
        for role, model in models.items():
            model.module.train(training[role])
    return [kept.found[i] for i in range(len(prompts))]


def _search(models: Mapping[str, Model], requests: Mapping[int, Request], decoder: Decoder, ends: Sequence[int], kept: _Kept,
            look: Lookout) -> None:
    """Answers of a decoder that searches, some prompts at a time; each is kept as the others are."""
    waiting = list(requests)
    while waiting:
        some, waiting = waiting[:SEARCHED], waiting[SEARCHED:]
        found = decoder.search(look, [requests[i].prompt for i in some], [requests[i].rng for i in some])
        for i, ids in zip(some, found, strict=True):
            for token in ids:
                if not requests[i].done:
                    kept.answering.take(requests[i], token)
            kept.put(i, requests[i])

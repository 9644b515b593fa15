"""Generation: continue prompts with a decoder, each answer kept as soon as it ends."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch

from luthier.core.errors import UserError
from luthier.core.files import Journal
from luthier.core.identity import digest
from luthier.core.kinds import Decoder
from luthier.core.rng import Rng
from luthier.core.step import Progress, silent
from luthier.engine import padded
from luthier.engine.forward import packs, vocabulary_of
from luthier.engine.models import Model
from luthier.engine.scheduling import Answering, Request, Scheduler, Stop, beginnings

__all__ = ["Generated", "Stop", "generate"]


@dataclass(frozen=True)
class Generated:
    """New tokens as text; `stopped` is False when the limit cut them off; `prompt_tokens` were read."""

    text: str
    tokens: int
    stopped: bool
    prompt_tokens: int


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
            self.found[item] = Generated(*self.journal.values[self.keys[item]])
        return item in self.found

    def put(self, item: int, request: Request) -> None:
        """Keep an answer."""
        made = Generated(self.answering.text(request), len(request.written), request.stopped, len(request.prompt))
        if self.journal is not None:
            self.journal.put(self.keys[item], [made.text, made.tokens, made.stopped, made.prompt_tokens])
        self.found[item] = made
        self.progress(len(self.found), len(self.keys), "answers")


def generate(models: Mapping[str, Model], prompts: Sequence[list[int]], decoder: Decoder, rng: Rng, *,
             stop: Stop = "token", stop_ids: Collection[int] | None = None, journal: Journal | None = None,
             progress: Progress = silent) -> list[Generated]:
    """Continue each prompt (token ids) with the decoder. `models["policy"]` speaks; other roles are asked too.

    An answer ends at any of `stop_ids`; those of the speaking model when left out. With a journal every finished answer is
    kept under the digest of what was asked.

    Raises:
        UserError: a prompt is empty.
    """
    for i, prompt in enumerate(prompts):
        if not prompt:
            raise UserError(f"Prompt {i} is empty: there is nothing to continue. Begin it with the model's first token (bos).")
    ends = sorted(models["policy"].stop_ids if stop_ids is None else stop_ids)
    common = {"models": {role: m.identity for role, m in models.items()}, "decoder": decoder.identity_values(),
              "seed": rng.seed, "scope": rng.scope, "stop": stop, "stop_ids": ends}
    keys = [f"generate/{digest({**common, 'prompt': p, 'item': i})}" for i, p in enumerate(prompts)]
    kept = _Kept(Answering(models["policy"], ends), journal, keys, progress, {})
    requests = {i: Request(list(p), decoder, rng.within(f"item/{i}"), stop)
                for i, p in enumerate(prompts) if not kept.known(i)}
    training = {role: m.module.training for role, m in models.items()}
    for model in models.values():
        model.module.eval()
    try:
        # Of all prompts, whatever is answered already: what is read together must not depend on when a run was cut.
        _answer(models, requests, beginnings(prompts), ends, kept)
    finally:
        for role, model in models.items():
            model.module.train(training[role])
    return [kept.found[i] for i in range(len(prompts))]


def _answer(models: Mapping[str, Model], requests: Mapping[int, Request], shared: Sequence[tuple[int, ...]],
            ends: Sequence[int], kept: _Kept) -> None:
    items = list(requests)
    if not items:
        return
    with torch.no_grad():
        scheduled = all(packs(m) and vocabulary_of(m) is not None for m in models.values())
    if not scheduled:
        for group in padded.groups_of(models, [requests[i].prompt for i in items]):
            batch = [items[n] for n in group]
            padded.answer(models, [requests[i] for i in batch], kept.answering)
            for i in batch:
                kept.put(i, requests[i])
        return
    scheduler = Scheduler(models, ends)
    number = {id(request): i for i, request in requests.items()}
    # Lane by lane, long prompts first: what is left at the end is short.
    for i in sorted(items, key=lambda i: (shared[i], -len(requests[i].prompt), i)):
        scheduler.submit(requests[i], shared[i])
    while not scheduler.idle:
        for request in scheduler.step():
            kept.put(number[id(request)], request)

"""Generation with padding, for models whose attention takes no layout: encoder-decoders, virtual tokens, capped scores."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from luthier.engine.batches import array
from luthier.engine.forward import trunk_of, vocabulary_of
from luthier.engine.models import Model
from luthier.engine.scheduling import Answering, Request, choose
from luthier.engine.scoring import batches_of


def groups_of(models: Mapping[str, Model], prompts: Sequence[list[int]]) -> list[list[int]]:
    """Item numbers that are padded together."""
    lengths = [len(p) for p in prompts]
    groups = batches_of(lengths)
    if any(map(prompted, models.values())):
        # Padding would stand between the virtual tokens and the prompt: rows of one length need none.
        groups = [[i for i in g if lengths[i] == n] for g in groups for n in sorted({lengths[i] for i in g})]
    return groups


class Padded:
    """A `Scheduler` for these models: a step answers one batch of what waits, so requests join between batches only."""

    def __init__(self, models: Mapping[str, Model], ends: Sequence[int]) -> None:
        self.models = models
        self.answering = Answering(models["policy"], ends)
        self.waiting: list[Request] = []
        self.batches: deque[list[Request]] = deque()

    def submit(self, request: Request, beginning: Sequence[int] = ()) -> None:
        """Queue a request; no beginning is shared here."""
        self.waiting.append(request)

    @property
    def idle(self) -> bool:
        """Whether every request is answered."""
        return not self.waiting and not self.batches

    def step(self) -> list[Request]:
        """Answer a batch; returns its requests."""
        if not self.batches:
            waiting, self.waiting = self.waiting, []
            self.batches.extend([waiting[i] for i in g] for g in groups_of(self.models, [r.prompt for r in waiting]))
        batch = self.batches.popleft() if self.batches else []
        asked = [r for r in batch if not r.cancelled]
        if asked:
            answer(self.models, asked, self.answering)
        return batch


@torch.no_grad()
def answer(models: Mapping[str, Model], requests: Sequence[Request], answering: Answering) -> None:
    """Write the answers of a batch; it ends with its longest one."""
    speakers = {role: Speaker(m, [r.prompt for r in requests], [r.pieces for r in requests]) for role, m in models.items()}
    pad = models["policy"].tokenizer.pad_token_id or 0
    while True:
        chosen = choose(requests, {role: s.scores() for role, s in speakers.items()})
        for request, token in zip(requests, chosen, strict=True):
            request.done = request.done or request.cancelled
            if not request.done:
                answering.take(request, token)
        if all(r.done for r in requests):
            return
        heard = [pad if r.done else t for r, t in zip(requests, chosen, strict=True)]
        for speaker in speakers.values():
            speaker.hear(heard)


def prompted(model: Model) -> bool:
    """Whether a method puts virtual tokens before what the model reads."""
    config = getattr(model.module, "active_peft_config", None)
    return config is not None and bool(config.is_prompt_learning)


class Speaker:
    """One model reading a batch of left-padded prompts and one token more at a time."""

    def __init__(self, model: Model, prompts: list[list[int]], pieces: Sequence[Mapping[str, Any]] = ()) -> None:
        self.model = model
        self.vocabulary = vocabulary_of(model)
        # Prompt methods put virtual tokens in front in their own forward, which keeps no cache of ours.
        self.cached = not prompted(model)
        pad = model.tokenizer.pad_token_id or 0
        width = max(map(len, prompts))
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=model.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
        names = sorted({n for p in pieces for n in p}) if model.pictures else []
        # Read with the prompt, once: what is written later sees them through the cache.
        self.seen = {n: torch.cat([array(p[n]) for p in pieces if n in p]).to(model.device) for n in names}
        self.cache: Any = None
        self.encoded: Any = None
        if model.architecture == "encoder-decoder":
            self.encoded = model.module.get_encoder()(input_ids=ids, attention_mask=mask)
            self.source_mask = mask
            ids = torch.full((len(prompts), 1), model.decoder_start, device=model.device)
            mask = torch.ones_like(ids)
        self.ids, self.mask, self.fresh = ids, mask, ids

    def scores(self) -> torch.Tensor:
        """[batch, vocabulary] for the next token, float32."""
        arguments: dict[str, Any] = {"use_cache": self.cached}
        fresh = self.fresh if self.cached else self.ids
        if self.encoded is not None:
            arguments |= {"encoder_outputs": self.encoded, "attention_mask": self.source_mask, "decoder_input_ids": fresh}
        else:
            arguments |= {"input_ids": fresh, "attention_mask": self.mask, **({} if self.cache is not None else self.seen)}
            if self.cached:
                arguments["position_ids"] = (self.mask.cumsum(-1) - 1).clamp(min=0)[:, -fresh.shape[1]:]
        if self.cached and self.cache is not None:
            arguments["past_key_values"] = self.cache
        if self.vocabulary is None:
            result = self.model.module(**arguments)
            last = result.logits[:, -1]
        else:
            head, cap = self.vocabulary
            result = trunk_of(self.model)(**arguments)
            last = head(result.last_hidden_state[:, -1])
            last = last if cap is None else torch.tanh(last / cap) * cap
        self.cache = getattr(result, "past_key_values", None)
        scores: torch.Tensor = last.float()
        return scores

    def hear(self, tokens: list[int]) -> None:
        """Add one token to every row."""
        self.fresh = torch.tensor(tokens, device=self.ids.device)[:, None]
        self.ids = torch.cat([self.ids, self.fresh], 1)
        self.mask = torch.cat([self.mask, torch.ones_like(self.fresh)], 1)

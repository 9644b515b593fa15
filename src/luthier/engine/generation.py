"""Generation and scoring of given continuations, in batches that are a pure function of the list of items."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from luthier.core.files import Journal
from luthier.core.identity import digest
from luthier.core.kinds import Decoder, Features, Tokens
from luthier.core.rng import Rng
from luthier.core.step import Progress, silent
from luthier.engine.batches import collate
from luthier.engine.forward import hidden_states, trunk_of, vocabulary_of
from luthier.engine.models import Model

BATCH_TOKENS = 8192
# Where an answer ends besides the stop token: nowhere, or after so many lines with text in them.
Stop = Literal["token", "newline", "two lines"]
_LINES = {"token": 0, "newline": 1, "two lines": 2}


@dataclass(frozen=True)
class Generated:
    """New tokens as text; `stopped` is False when the limit cut them off; `prompt_tokens` were read."""

    text: str
    tokens: int
    stopped: bool
    prompt_tokens: int


def batches_of(lengths: Sequence[int], rows: int = 16, tokens: int = BATCH_TOKENS) -> list[list[int]]:
    """Item numbers grouped by similar length: at most `rows` a batch and about `tokens` padded tokens."""
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    batches: list[list[int]] = []
    for i in order:
        last = batches[-1] if batches else None
        if last and len(last) < rows and lengths[i] * (len(last) + 1) <= tokens:
            last.append(i)
        else:
            batches.append([i])
    return batches


def generate(models: Mapping[str, Model], prompts: Sequence[list[int]], decoder: Decoder, rng: Rng, *,
             stop: Stop = "token", stop_ids: Collection[int] | None = None, journal: Journal | None = None,
             progress: Progress = silent) -> list[Generated]:
    """Continue each prompt (token ids) with the decoder. `models["policy"]` speaks; other roles are asked too.

    An answer ends at any of `stop_ids`; those of the speaking model when left out.

    With a journal every finished batch is kept under the digest of what it was asked.
    """
    results: dict[int, Generated] = {}
    ends = sorted(models["policy"].stop_ids if stop_ids is None else stop_ids)
    lengths = [len(p) for p in prompts]
    groups = batches_of(lengths)
    if any(map(_prompted, models.values())):
        # Padding would stand between the virtual tokens and the prompt: rows of one length need none.
        groups = [[i for i in g if lengths[i] == n] for g in groups for n in sorted({lengths[i] for i in g})]
    named = {role: m.identity for role, m in models.items()}
    for n, group in enumerate(groups):
        batch = [prompts[i] for i in group]

        def make(batch: list[list[int]] = batch, group: list[int] = group) -> list[list[Any]]:
            made = _generate(models, batch, decoder, [rng.within(f"item/{i}") for i in group], stop, ends)
            return [[g.text, g.tokens, g.stopped, g.prompt_tokens] for g in made]

        if journal is None:
            rows = make()
        else:
            key = digest({"models": named, "prompts": batch, "items": group, "decoder": decoder.identity_values(),
                          "seed": rng.seed, "scope": rng.scope, "stop": stop, "stop_ids": ends})
            rows = journal.do(f"generate/{key}", make)
        results.update({i: Generated(*row) for i, row in zip(group, rows, strict=True)})
        progress(sum(len(g) for g in groups[:n + 1]), len(prompts), "answers")
    return [results[i] for i in range(len(prompts))]


@torch.no_grad()
def _generate(models: Mapping[str, Model], prompts: list[list[int]], decoder: Decoder, rngs: Sequence[Rng],
              stop: Stop, ends: Sequence[int]) -> list[Generated]:
    model = models["policy"]
    tokenizer, rows = model.tokenizer, len(prompts)
    speakers = {role: _Speaker(m, prompts) for role, m in models.items()}
    written: list[list[int]] = [[] for _ in range(rows)]
    stopped, done = [False] * rows, [False] * rows
    for position in range(decoder.max_new_tokens):
        scores = decoder.scores({role: s.scores() for role, s in speakers.items()})
        uniform: list[Callable[[], float]] = [
            lambda r=r, at=position: float(r("token", at).random()) for r in rngs]  # type: ignore[misc]
        chosen = decoder.choose(scores, uniform).tolist()
        for i, token in enumerate(chosen):
            if done[i]:
                continue
            if token in ends:
                stopped[i] = done[i] = True
                continue
            written[i].append(token)
            if _LINES[stop] and "\n" in tokenizer.decode([token]):
                done[i] = stopped[i] = len(_lines(f"{tokenizer.decode(written[i])}|")) > _LINES[stop]
        if all(done) or position + 1 == decoder.max_new_tokens:
            break
        pad = tokenizer.pad_token_id or 0
        chosen = [pad if done[i] else t for i, t in enumerate(chosen)]
        for speaker in speakers.values():
            speaker.hear(chosen)
    texts = [str(tokenizer.decode(w, skip_special_tokens=True)).strip() for w in written]
    if _LINES[stop]:
        texts = ["\n".join(_lines(t)[:_LINES[stop]]) for t in texts]
    return [Generated(texts[i], len(written[i]), stopped[i], len(prompts[i])) for i in range(rows)]


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.split("\n") if line.strip()]


def _prompted(model: Model) -> bool:
    """Whether a method puts virtual tokens before what the model reads."""
    config = getattr(model.module, "active_peft_config", None)
    return config is not None and bool(config.is_prompt_learning)


class _Speaker:
    """One model reading a batch of left-padded prompts and one token more at a time."""

    def __init__(self, model: Model, prompts: list[list[int]]) -> None:
        self.model = model
        self.vocabulary = vocabulary_of(model)
        # Prompt methods put virtual tokens in front in their own forward, which keeps no cache of ours.
        self.cached = not _prompted(model)
        pad = model.tokenizer.pad_token_id or 0
        width = max(map(len, prompts))
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=model.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
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
            arguments |= {"input_ids": fresh, "attention_mask": self.mask}
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


@torch.no_grad()
def score(model: Model, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, int]]:
    """For each (prompt ids, continuation ids): the log-probability of the continuation, and its length in tokens."""
    vocabulary = vocabulary_of(model)
    results: dict[int, tuple[float, int]] = {}
    for group in batches_of([len(p) + len(c) for p, c in pairs]):
        rows: list[Features] = []
        for i in group:
            prompt, continuation = pairs[i]
            if model.architecture == "encoder-decoder":
                rows.append({"input": Tokens(prompt, [False] + [True] * len(continuation),
                                             [model.decoder_start, *continuation])})
            else:
                rows.append({"input": Tokens(prompt + continuation, [False] * len(prompt) + [True] * len(continuation))})
        batch = collate(rows, [str(i) for i in group], model.tokenizer.pad_token_id or 0, model.device)["input"]
        output = hidden_states(model, batch, vocabulary)
        sums = torch.zeros(len(group), device=model.device).index_add(0, output.rows, -output.nll())
        results.update({i: (float(s), len(pairs[i][1])) for i, s in zip(group, sums, strict=True)})
    return [results[i] for i in range(len(pairs))]


@torch.no_grad()
def embed(model: Model, texts: Sequence[str], max_tokens: int = 256) -> torch.Tensor:
    """[texts, width] mean-pooled, length-1 embeddings of an encoder, float32."""
    rows = [model.tokenizer(t, truncation=True, max_length=min(max_tokens, model.limit))["input_ids"] for t in texts]
    out = torch.zeros(len(rows), model.width)
    for group in batches_of([len(r) for r in rows], rows=64):
        batch = collate([{"input": Tokens(rows[i], [False] * len(rows[i]))} for i in group], [str(i) for i in group],
                        model.tokenizer.pad_token_id or 0, model.device)
        pooled = hidden_states(model, batch["input"], None).pooled().float()
        out[group] = torch.nn.functional.normalize(pooled, dim=-1).cpu()
    return out

"""Log-probabilities of given continuations, and embeddings: one pass, no stored scores, no padding where a model packs."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from luthier.core.errors import UserError
from luthier.core.kinds import Features, Tokens
from luthier.engine.batches import collate
from luthier.engine.forward import hidden_states, packs, vocabulary_of
from luthier.engine.models import Model

BATCH_TOKENS = 8192


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


def packs_by_beginning(rows: Sequence[Sequence[int]], tokens: int = BATCH_TOKENS) -> list[list[int]]:
    """Item numbers in packs of about `tokens` tokens; rows that begin alike lie together, their beginning counts once."""
    order = sorted(range(len(rows)), key=lambda i: list(rows[i]))
    packs_: list[list[int]] = []
    weight, before = 0, -1
    for i in order:
        common = 0
        if packs_ and before >= 0:
            limit = min(len(rows[i]), len(rows[before]))
            while common < limit and rows[i][common] == rows[before][common]:
                common += 1
        if packs_ and weight + len(rows[i]) - common <= tokens:
            packs_[-1].append(i)
            weight += len(rows[i]) - common
        else:
            packs_.append([i])
            weight = len(rows[i])
        before = i
    return packs_


@torch.no_grad()
def score_tokens(model: Model, pairs: Sequence[tuple[list[int], list[int]]]) -> list[list[float]]:
    """For each (prompt ids, continuation ids): the log-probability of every token of the continuation.

    Raises:
        UserError: a prompt is empty. What nothing precedes, no model predicts.
    """
    for i, (prompt, _) in enumerate(pairs):
        if not prompt:
            raise UserError(f"Pair {i} has an empty prompt: its first token has nothing before it. "
                            "Begin the prompt with the model's first token (bos).")
    vocabulary = vocabulary_of(model)
    packed = packs(model)
    whole = [p + c for p, c in pairs]
    groups = packs_by_beginning(whole) if packed else batches_of([len(w) for w in whole])
    results: list[list[float]] = [[] for _ in pairs]
    for group in groups:
        rows: list[Features] = []
        for i in group:
            prompt, continuation = pairs[i]
            if model.architecture == "encoder-decoder":
                rows.append({"input": Tokens(prompt, [False] + [True] * len(continuation),
                                             [model.decoder_start, *continuation])})
            else:
                rows.append({"input": Tokens(whole[i], [False] * len(prompt) + [True] * len(continuation))})
        batch = collate(rows, [str(i) for i in group], model.tokenizer.pad_token_id or 0, model.device)["input"]
        output = hidden_states(model, batch, vocabulary, packed=packed)
        for row, value in zip(output.rows.tolist(), (-output.nll()).tolist(), strict=True):
            results[group[row]].append(value)
    return results


def score(model: Model, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, int]]:
    """For each (prompt ids, continuation ids): the log-probability of the continuation, and its length in tokens."""
    return [(sum(found), len(c)) for found, (_, c) in zip(score_tokens(model, pairs), pairs, strict=True)]


@torch.no_grad()
def embed(model: Model, texts: Sequence[str], max_tokens: int = 256) -> torch.Tensor:
    """[texts, width] mean-pooled, length-1 embeddings of an encoder, float32."""
    rows = [model.tokenizer(t, truncation=True, max_length=min(max_tokens, model.limit))["input_ids"] for t in texts]
    out = torch.zeros(len(rows), model.width)
    packed = packs(model)
    for group in batches_of([len(r) for r in rows], rows=64):
        batch = collate([{"input": Tokens(rows[i], [False] * len(rows[i]))} for i in group], [str(i) for i in group],
                        model.tokenizer.pad_token_id or 0, model.device)
        pooled = hidden_states(model, batch["input"], None, packed=packed).pooled().float()
        out[group] = torch.nn.functional.normalize(pooled, dim=-1).cpu()
    return out

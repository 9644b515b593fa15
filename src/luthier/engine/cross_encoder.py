"""Cross-encoders: one score for a query and a text that are read together, frozen, in float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from luthier.core.artifact import Artifact
from luthier.core.errors import UserError
from luthier.engine.models import folder_of, load_tokenizer
from luthier.engine.scoring import batches_of


@dataclass(frozen=True)
class CrossEncoder:
    """A loaded cross-encoder; `limit` is the longest pair in tokens."""

    module: Any
    tokenizer: Any
    limit: int

    @torch.no_grad()
    def score(self, pairs: Sequence[tuple[str, str]], max_tokens: int = 512) -> list[float]:
        """The score of each (query, text), before any sigmoid; the longer side of a long pair is cut."""
        most = min(max_tokens, self.limit)
        return self.of_rows([self.tokenizer(q, t, truncation=True, max_length=most) for q, t in pairs])

    @torch.no_grad()
    def of_rows(self, rows: Sequence[Any]) -> list[float]:
        """The score of each tokenised row, whatever the batch."""
        scores = [0.0] * len(rows)
        for group in batches_of([len(r["input_ids"]) for r in rows], rows=64):
            batch = self.tokenizer.pad({name: [rows[i][name] for i in group] for name in rows[0]}, return_tensors="pt")
            batch = batch.to(self.module.device)
            for i, value in zip(group, self.module(**batch).logits[:, 0].float().tolist(), strict=True):
                scores[i] = value
        return scores


def load_cross_encoder(base: Artifact, device: str = "cpu") -> CrossEncoder:
    """The cross-encoder that a base's artifact points at; the last one is kept in memory.

    Raises:
        UserError: the model has no head that gives one score.
    """
    return _load(folder_of(base), str(base.meta["name"]), device)


@lru_cache(maxsize=1)
def _load(folder: Path, name: str, device: str) -> CrossEncoder:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    heads = [a for a in config.architectures or [] if a.endswith("ForSequenceClassification")]
    if not heads or config.num_labels != 1:
        found = f"{config.num_labels} labels" if heads else ", ".join(config.architectures or ["no architecture"])
        raise UserError(f"{name} is no cross-encoder ({found}): a reranker is a sequence classifier with one label, such as "
                        "cross-encoder/ms-marco-MiniLM-L-6-v2.")
    module = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, use_safetensors=True, trust_remote_code=False)
    limit = int(getattr(config, "max_position_embeddings", 0) or 512)
    return CrossEncoder(module.eval().requires_grad_(False).to(device), load_tokenizer(folder), limit)

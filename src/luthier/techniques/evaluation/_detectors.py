"""Scores of how much a text is like those of a bank: higher is more in-distribution. Vectors are [rows, width], float64."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from luthier.techniques.evaluation._ranking import threshold

if TYPE_CHECKING:
    from luthier.engine.models import Model

Array = NDArray[np.float64]
Pool = Literal["mean", "cls"]


@dataclass(frozen=True)
class Mahalanobis:
    """-min over classes c of (h - mu_c)^T P (h - mu_c); `means` [classes, width], `precision` P [width, width]."""

    means: Array
    precision: Array

    @classmethod
    def fit(cls, bank: Array, labels: Sequence[Hashable] | None = None) -> Mahalanobis:
        """P is the pseudo-inverse of the pooled covariance of what is left of each vector without its class mean."""
        codes = _codes(labels, len(bank))
        means = np.stack([bank[codes == c].mean(0) for c in range(codes.max() + 1)])
        centred = bank - means[codes]
        return cls(means, np.linalg.pinv(centred.T @ centred / len(bank), hermitian=True))

    def score(self, vectors: Array) -> Array:
        """[rows]"""
        apart = vectors[:, None, :] - self.means[None]
        return -np.einsum("rcw,wv,rcv->rc", apart, self.precision, apart).min(1)


@dataclass(frozen=True)
class Neighbours:
    """-(1 - cosine) to the k-th nearest vector of the bank; `bank` [rows, width] of length 1."""

    bank: Array
    k: int = 1

    @classmethod
    def fit(cls, bank: Array, k: int = 1) -> Neighbours:
        """Raises ValueError for fewer than k vectors."""
        if len(bank) < k:
            raise ValueError(f"a bank of {len(bank)} has no {k}-th neighbour")
        return cls(_unit(bank), k)

    def score(self, vectors: Array) -> Array:
        """[rows], 0 for a vector of the bank at k = 1."""
        cosines = np.sort(_unit(vectors) @ self.bank.T, axis=1)[:, ::-1]
        return np.asarray(np.minimum(cosines[:, self.k - 1], 1.0) - 1)


def max_softmax(logits: Array) -> Array:
    """[rows] the largest probability, of scores [rows, labels]."""
    apart = logits - logits.max(1, keepdims=True)
    return np.asarray(1 / np.exp(apart).sum(1))


def energy(logits: Array, temperature: float = 1.0) -> Array:
    """[rows] T log sum exp(scores / T)."""
    top = logits.max(1)
    return np.asarray(top + temperature * np.log(np.exp((logits - top[:, None]) / temperature).sum(1)))


def geometry(bank: Array, labels: Sequence[Hashable] | None, known: Array, strange: Array) -> dict[str, float]:
    """Mean angles in degrees, prototypes being the class means of the bank's unit vectors.

    dispersion: between prototypes (nan for one class). compactness: of in-distribution points to their nearest prototype.
    separability: of out-of-distribution points to theirs, minus compactness.
    """
    unit = _unit(bank)
    codes = _codes(labels, len(bank))
    prototypes = _unit(np.stack([unit[codes == c].mean(0) for c in range(codes.max() + 1)]))
    pairs = np.triu_indices(len(prototypes), 1)
    between = _angle(prototypes @ prototypes.T)[pairs]
    near, far = (float(_angle(_unit(v) @ prototypes.T).min(1).mean()) for v in (known, strange))
    return {"dispersion": float(between.mean()) if len(between) else float("nan"), "compactness": near,
            "separability": far - near}


@dataclass(frozen=True)
class OODDetector:
    """A bank of texts and the score from which on a text is accepted: an input guard for one encoder.

    `OODDetector.fit(model, texts).accepts(texts)`. `cut` keeps the share `keep` of the bank, each text scored without itself
    by kNN and with itself by Mahalanobis, whose bank is large.
    """

    model: Model
    scorer: Mahalanobis | Neighbours
    cut: float
    pool: Pool = "mean"
    max_tokens: int = 256

    @classmethod
    def fit(cls, model: Model, texts: Sequence[str], labels: Sequence[Hashable] | None = None, *,
            by: Literal["maha", "knn"] = "maha", k: int = 1, keep: float = 0.95, pool: Pool = "mean", max_tokens: int = 256
            ) -> OODDetector:
        bank, _ = represent(model, texts, pool, max_tokens)
        scorer = Mahalanobis.fit(bank, labels) if by == "maha" else Neighbours.fit(bank, k)
        own = scorer.score(bank) if by == "maha" else Neighbours(_unit(bank), k + 1).score(bank)
        return cls(model, scorer, threshold(own, keep), pool, max_tokens)

    def score(self, texts: Sequence[str]) -> Array:
        """[texts], higher is more in-distribution."""
        return self.scorer.score(represent(self.model, texts, self.pool, self.max_tokens)[0])

    def accepts(self, texts: Sequence[str]) -> list[bool]:
        """Whether each text is like the bank."""
        return [bool(s >= self.cut) for s in self.score(texts)]

    def save(self, path: Path) -> None:
        """Everything but the model, as an .npz file."""
        parts: dict[str, Any] = {"means": self.scorer.means, "precision": self.scorer.precision} \
            if isinstance(self.scorer, Mahalanobis) else {"bank": self.scorer.bank, "k": self.scorer.k}
        np.savez(path, cut=self.cut, pool=self.pool, max_tokens=self.max_tokens, **parts)

    @classmethod
    def load(cls, path: Path, model: Model) -> OODDetector:
        """The inverse of `save`, for the same model."""
        with np.load(path) as kept:
            scorer = Mahalanobis(kept["means"], kept["precision"]) if "means" in kept else \
                Neighbours(kept["bank"], int(kept["k"]))
            pool: Any = str(kept["pool"])
            return cls(model, scorer, float(kept["cut"]), pool, int(kept["max_tokens"]))


def represent(model: Model, texts: Sequence[str], pool: Pool = "mean", max_tokens: int = 256) -> tuple[Array, Array | None]:
    """([texts, width] last-layer states, mean over a text's own tokens or its first; [texts, labels] scores of a head)."""
    import torch

    from luthier.core.kinds import Tokens
    from luthier.engine.batches import collate
    from luthier.engine.forward import hidden_states, packs, vocabulary_of
    from luthier.engine.scoring import batches_of

    ids = [model.tokenizer(t, truncation=True, max_length=min(max_tokens, model.limit))["input_ids"] for t in texts]
    head = next(iter(model.heads.values()), None)
    out = np.zeros((len(ids), model.width))
    scores: dict[int, list[float]] = {}
    vocabulary, packed = vocabulary_of(model), packs(model)
    with torch.no_grad():
        for group in batches_of([len(r) for r in ids], rows=32):
            batch = collate([{"input": Tokens(ids[i], [False] * len(ids[i]))} for i in group], [str(i) for i in group],
                            model.tokenizer.pad_token_id or 0, model.device)
            said = hidden_states(model, batch["input"], vocabulary, packed=packed)
            pooled = said.pooled()
            out[group] = (pooled if pool == "mean" else said.states[:, 0]).double().cpu().numpy()
            if head is not None:
                told = head(pooled.to(next(head.parameters()).dtype)).double().tolist()
                scores.update(zip(group, told, strict=True))
    return out, np.array([scores[i] for i in range(len(ids))]) if head is not None else None


def _codes(labels: Sequence[Hashable] | None, count: int) -> NDArray[np.intp]:
    """[rows] number of each row's class; one class without labels."""
    if labels is None:
        return np.zeros(count, dtype=np.intp)
    return np.unique([str(x) for x in labels], return_inverse=True)[1]


def _unit(vectors: Array) -> Array:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))


def _angle(cosines: Array) -> Array:
    return np.asarray(np.degrees(np.arccos(np.clip(cosines, -1, 1))))

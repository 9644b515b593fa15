"""SetFit as an object: `SetFitClassifier().fit(texts, labels).predict_proba(more)`, in the manner of scikit-learn.

`fit` is the recipe `setfit` on these texts alone, run in a folder by the executor: equal texts and settings in the same folder
are not trained again, and a fit that was killed goes on. scikit-learn itself is not needed; `get_params` and `set_params` are
what its `clone` and its searches ask for.
Source: Tunstall et al. 2022, arXiv 2209.11055 (seed 208).
"""

from __future__ import annotations

import inspect
import json
import tempfile
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from luthier.core.errors import UserError
from luthier.core.example import Example, Part, Turn
from luthier.core.files import Journal
from luthier.core.recipe import Recipe
from luthier.core.rng import Rng
from luthier.core.step import Ctx

if TYPE_CHECKING:
    from luthier.core.artifact import Artifact


class SetFitClassifier:
    """A classifier of texts from a few labelled ones.

    model: a sentence encoder (packaged, local folder, hub id). pairs, rounds: which pairs tune it, as in `text-pairs`; 0 rounds
    leave it as it is. head: what is solved for on its embeddings. folder: where the run is kept; a temporary one if left out.
    After `fit`: `classes_` are the labels in order, `run_` the folder.
    """

    def __init__(self, model: str = "minilm", pairs: str = "per-text", rounds: int = 20, head: str = "logistic",
                 learning_rate: float = 2e-5, epochs: int = 1, batch_rows: int = 16, max_tokens: int = 256, seed: int = 0,
                 folder: str | Path | None = None) -> None:
        self.model, self.pairs, self.rounds, self.head = model, pairs, rounds, head
        self.learning_rate, self.epochs, self.batch_rows, self.max_tokens = learning_rate, epochs, batch_rows, max_tokens
        self.seed, self.folder = seed, folder

    def fit(self, texts: Sequence[str], labels: Sequence[Hashable]) -> Self:
        """Tune the encoder and solve for the head.

        Raises:
            UserError: lists of different length, an empty text (by its row), labels that read alike, fewer than two of them.
        """
        from luthier.engine.executor import execute
        from luthier.engine.workshop import Engine

        self._known = _labels(texts, labels)
        self._held = tempfile.TemporaryDirectory() if self.folder is None else None
        self.run_ = Path(self.folder if self._held is None else self._held.name)  # type: ignore[arg-type]
        self.run_.mkdir(parents=True, exist_ok=True)
        rows = self.run_ / "rows.jsonl"
        rows.write_text("".join(json.dumps({"text": t, "label": str(l)}) + "\n" for t, l in zip(texts, labels, strict=True)),
                        encoding="utf-8")
        self._engine = Engine(exact=True)
        run = execute(Recipe(self._recipe(rows)), self.run_ / "run", self._engine)
        self._base, self._tuned = run.step("base"), run.step("tuned")
        names = next(iter(self._tuned.meta["labels"].values()))
        self.classes_ = np.array([self._known.get(name, name) for name in names])
        self._names = names
        return self

    def predict_proba(self, texts: Sequence[str]) -> np.ndarray:
        """[texts, classes] probabilities in the order of `classes_`. Raises UserError before `fit`."""
        return np.array([[p.probabilities[name] for name in self._names] for p in self._said(texts)]).reshape(
            len(texts), len(self._names))

    def predict(self, texts: Sequence[str]) -> np.ndarray:
        """[texts] the label of each; several joined by | where the head gives several."""
        return np.array([self._known.get(str(p.label), p.label) for p in self._said(texts)])

    def score(self, texts: Sequence[str], labels: Sequence[Hashable]) -> float:
        """Share of texts whose label is said."""
        return float(np.mean([a == b for a, b in zip(self.predict(texts), labels, strict=True)]))

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The settings by name."""
        return {name: getattr(self, name) for name in inspect.signature(type(self).__init__).parameters if name != "self"}

    def set_params(self, **settings: Any) -> Self:
        """Change settings; the next `fit` uses them. Raises UserError for a name that is none."""
        strange = sorted(set(settings) - set(self.get_params()))
        if strange:
            raise UserError(f"SetFitClassifier has no setting '{strange[0]}'; legal: {', '.join(self.get_params())}.")
        for name, value in settings.items():
            setattr(self, name, value)
        return self

    def _recipe(self, rows: Path) -> dict[str, Any]:
        steps: dict[str, Any] = {
            "base": {"use": "base", "model": self.model},
            "rows": {"use": "read", "path": str(rows), "format": "text-label"},
            "tuned": {"use": "fit-head", "head": self.head, "subset": "all", "max_tokens": self.max_tokens,
                      "inputs": {"base": "base", "examples": "rows"}}}
        if self.rounds:
            steps["pairs"] = {"use": "curate", "steps": [{"use": "text-pairs", "by": self.pairs, "rounds": self.rounds}],
                              "inputs": {"rows": "rows"}}
            steps["encoder"] = {
                "use": "fit", "tasks": [{"data": "pairs.all", "objective": "cosine-similarity"}], "method": "full",
                "length": {"epochs": self.epochs}, "learning_rate": self.learning_rate, "batch_rows": self.batch_rows,
                "schedule": "linear:warmup=0.1", "max_tokens_per_example": self.max_tokens,
                "inputs": {"base": "base", "pairs": "pairs"}}
            steps["tuned"]["inputs"]["tuned"] = "encoder"
        return {"name": "setfit", "about": "A classifier of texts from a few labelled ones.", "seed": self.seed, "steps": steps}

    def _said(self, texts: Sequence[str]) -> list[Any]:
        from luthier.engine.classification import classify

        if not hasattr(self, "classes_"):
            raise UserError("SetFitClassifier: fit it first: SetFitClassifier().fit(texts, labels).")
        rows = [Example(str(n), (Turn("user", (Part(text, name="text"),)),), task="classify") for n, text in enumerate(texts)]
        tuned: Artifact = self._tuned
        ctx = Ctx(Rng(self.seed), self.run_, Journal(self.run_ / "asked.jsonl"), self._engine)
        return classify(self._engine.load(self._base, tuned), tuned, rows, ctx) if rows else []


def _labels(texts: Sequence[str], labels: Sequence[Hashable]) -> dict[str, Hashable]:
    """Labels by how they read. Raises UserError for what can't be fitted."""
    if len(texts) != len(labels):
        raise UserError(f"SetFitClassifier: {len(texts)} texts and {len(labels)} labels; each text has one.")
    for n, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"SetFitClassifier: text {n} (from 0) is {'empty' if isinstance(text, str) else repr(text)}; "
                            "expected text.")
    known: dict[str, Hashable] = {}
    for label in labels:
        if known.setdefault(str(label), label) != label:
            raise UserError(f"SetFitClassifier: the labels {label!r} and {known[str(label)]!r} read alike; give one of them "
                            "another name.")
    if len(known) < 2:
        raise UserError(f"SetFitClassifier: {len(known)} label(s); a classifier needs at least 2.")
    return known

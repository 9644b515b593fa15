"""question-quality: what a set of questions is worth beside its source, by named rules.

With p, q the token distributions of questions and source over their joint vocabulary V, p(w) = (n(w) + a) / (N + a |V|):
overlap = KL(p || q) = sum p log(p / q) in nats. Diversity = mean pairwise 1 - cos of embeddings (of word counts without an
encoder). Coverage = share of sections with a question whose answer stands in them. Relevance, self-containedness and
fluency are rules, named so, unless an endpoint grades from 1 to 5. Source: Balaguer et al. 2024, "RAG vs fine-tuning". Seed 24.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from luthier.core.component import Slot, named
from luthier.core.example import Dropped, Example, Passage
from luthier.core.files import write_json
from luthier.core.kinds import DataStep
from luthier.core.step import Ctx
from luthier.engine.endpoints import Endpoint
from luthier.techniques.data._questions import content_words, support, units, words

_OPENS = re.compile(r"^(what|which|who|whom|whose|when|where|why|how|in|on|at|by|for|to|from|under|is|are|was|were|does|do|did"
                    r"|can|could|should|may|must|will|has|have)\b", re.IGNORECASE)
_DOUBLED = re.compile(r"\b(\w+) \1\b", re.IGNORECASE)
_GRADES = re.compile(r"\A\s*([1-5])\D+([1-5])\D+([1-5])\b")
SUMMARY = "question-quality.json"  # in the folder of the step; of several subsets, the last one's
GRADED = ("relevance", "self_contained", "fluency")


class QuestionQuality(DataStep, name="question-quality", seeds=[24], version=1):
    """Measures questions; every row passes with its own numbers, the summary goes to the log."""

    roles: ClassVar[tuple[str, ...]] = ()
    support: float = Field(0.8, ge=0, le=1, description="share of an answer's words from which a section answers it")
    smoothing: float = Field(0.5, gt=0, description="count that is added to every word before distributions are compared")
    self_contained: Slot[DataStep] = Field(named("self-contained"), description="the rule of self-containedness")
    grader: Endpoint | None = Field(None, description="an endpoint that grades relevance, self-containedness and fluency")

    def apply(self, rows: Iterator[Example], ctx: Ctx) -> Iterator[Example | Dropped]:
        given = list(rows)
        alone = self._alone(given, ctx)
        found = self.measure(given, _shown(given), ctx)
        for name, value in found.items():
            ctx.log(f"{self.info.name}: {name} {value}")
        if found:
            write_json(ctx.folder / SUMMARY, found)
        for row in given:
            own = {"relevance": relevance(row), "self_contained": row.id in alone, "fluency": fluency(row.part("question")),
                   "detail": len(units(row.part("question")))}
            yield replace(row, meta={**row.meta, "quality": own})

    def measure(self, rows: Sequence[Example], source: Sequence[Passage], ctx: Ctx) -> dict[str, Any]:
        """The set's numbers; `by` says which rule or grader made each. Empty for no rows."""
        if not rows:
            return {}
        asked = [r.part("question") for r in rows]
        found: dict[str, Any] = {
            "questions": len(rows), "relevance": float(np.mean([relevance(r) for r in rows])),
            "self_contained": len(self._alone(rows, ctx)) / len(rows),
            "fluency": float(np.mean([fluency(q) for q in asked])),
            "detail_words": float(np.mean([len(units(q)) for q in asked])),
            "overlap_kl_nats": kl(asked, [p.text for p in source], self.smoothing),
            "diversity": diversity(self._vectors(asked, ctx)), "coverage": coverage(rows, source, self.support)}
        by = {"relevance": "share of topic words in the passage", "self_contained": self.self_contained.info.name,
              "fluency": "rules of form", "diversity": "encoder" if "encoder" in ctx.roles else "word counts"}
        if self.grader is not None:
            grades, lost = self._graded(rows, ctx)
            found |= {**grades, "ungraded": lost}
            by |= dict.fromkeys(grades, f"{self.grader.model}, 1 to 5")
        return {**found, "by": by}

    def _alone(self, rows: Sequence[Example], ctx: Ctx) -> set[str]:
        return {r.id for r in self.self_contained.apply(iter(rows), ctx) if not isinstance(r, Dropped)}

    def _vectors(self, texts: Sequence[str], ctx: Ctx) -> Any:
        if "encoder" in ctx.roles:
            return ctx.engine.embed(ctx.roles["encoder"], texts)
        vocabulary = {w: i for i, w in enumerate(sorted({w for t in texts for w in units(t)}))}
        counts = np.zeros((len(texts), max(1, len(vocabulary))))
        for row, text in zip(counts, texts, strict=True):
            for word in units(text):
                row[vocabulary[word]] += 1
        return counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-12)

    def _graded(self, rows: Sequence[Example], ctx: Ctx) -> tuple[dict[str, float], int]:
        assert self.grader is not None
        prompts = ["Grade the question from 1 (bad) to 5 (good): its relevance to somebody who works in the field, whether it "
                   "can be understood by itself, and its fluency. Answer with three digits and nothing else.\n"
                   f"Text: {r.part('passage')}\nQuestion: {r.part('question')}" for r in rows]
        made = [_GRADES.match(text) for text in self.grader.ask(prompts, ctx.journal, ctx.progress)]
        good = [m for m in made if m]
        means = {name: float(np.mean([int(m[i]) for m in good])) for i, name in enumerate(GRADED, 1)} if good else {}
        return means, len(made) - len(good)


def kl(left: Sequence[str], right: Sequence[str], smoothing: float = 0.5) -> float:
    """KL(left || right) of the smoothed token distributions of two sets of texts, in nats; 0 for a set with itself."""
    a, b = (Counter(w for text in texts for w in units(text)) for texts in (left, right))
    vocabulary = sorted(a.keys() | b.keys())
    total_a, total_b = (c.total() + smoothing * len(vocabulary) for c in (a, b))
    return sum((a[w] + smoothing) / total_a * math.log((a[w] + smoothing) * total_b / (total_a * (b[w] + smoothing)))
               for w in vocabulary)


def diversity(vectors: Any) -> float:
    """Mean over pairs of 1 - cos of unit vectors [n, width]; 0 for fewer than two."""
    count = len(vectors)
    if count < 2:
        return 0.0
    together = float((np.asarray(vectors, dtype=np.float64).sum(axis=0) ** 2).sum())
    return 1.0 - (together - count) / (count * (count - 1))


def coverage(rows: Sequence[Example], source: Sequence[Passage], least: float = 0.8) -> float:
    """Share of sections that answer one of the questions asked about them."""
    texts: dict[str, list[str]] = {}
    for passage in source:
        texts.setdefault(passage.section, []).append(passage.shown)
    whole = {name: " ".join(said) for name, said in texts.items()}
    covered = {r.cluster for r in rows if r.cluster in whole and support(r, whole[r.cluster]) >= least}
    return len(covered) / len(whole) if whole else 0.0


def relevance(row: Example) -> float:
    """Share of the question's topic words that its passage holds; 0 without one."""
    topic = content_words(row.part("question"))
    return len(topic & set(words(row.part("passage")))) / len(topic) if topic else 0.0


def fluency(asked: str) -> float:
    """Share of five rules of form that hold: opening word, question mark, no doubled word, brackets, one line."""
    rules = (bool(_OPENS.match(asked.strip())), asked.rstrip().endswith("?"), not _DOUBLED.search(asked),
             all(asked.count(a) == asked.count(b) for a, b in ("()", "[]", "{}")), "\n" not in asked.strip())
    return sum(rules) / len(rules)


def _shown(rows: Sequence[Example]) -> list[Passage]:
    return [Passage(r.source, r.part("passage"), "", r.cluster) for r in {r.source: r for r in rows}.values()]

"""BSDetector: how sure a model is that an answer is good, from what it says by itself and what it thinks of the answer.

    c = beta · O + (1 - beta) · S
    O = mean over k sampled answers y_i of  alpha · sim(y, y_i) + (1 - alpha) · [y = y_i]        observed consistency
    S = mean over two questions of  P(A) + P(C) / 2                                             self-reflection

with A correct, B incorrect, C not sure; the chances of the options are a soft-max of their log-probabilities, in which those
after the same question without anything asked are subtracted (`relative`): an untuned model prefers some letter whatever is
asked. sim is the cosine of an encoder's vectors, at least 0. Source: Chen & Mueller 2023, arXiv 2308.16175.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from luthier.core.example import Example
from luthier.core.identity import digest
from luthier.core.kinds import Decoder
from luthier.core.step import Ctx
from luthier.techniques.data._shared import normalized

if TYPE_CHECKING:
    from luthier.engine.models import Model
    from luthier.engine.rendering import Render

OPTIONS = ("A", "B", "C")
REFLECTIONS = (
    "Question: {q}\nProposed answer: {y}\nIs the proposed answer (A) correct (B) incorrect (C) I am not sure?\nAnswer:",
    "Somebody asked: {q}\nThe reply was: {y}\nIs this reply right? (A) yes, correct (B) no, incorrect (C) I am not sure\n"
    "Answer:")
BETTER = ("Question: {q}\nResponse A: {a}\nResponse B: {b}\nWhich response is better? (A) response A (B) response B (C) they "
          "are equally good\nAnswer:")
WORTH = (1.0, 0.0, 0.5)


def asked(row: Example) -> str:
    """What a row asks, with a passage where it has one."""
    return "\n".join(t.text for t in row.turns if not t.target)


def chances(scores: Sequence[float], empty: Sequence[float] | None = None) -> list[float]:
    """Probabilities of options from log-probabilities, relative to those without a question."""
    found = [s - e for s, e in zip(scores, empty or [0.0] * len(scores), strict=True)]
    top = max(found)
    weights = [math.exp(f - top) for f in found]
    return [w / sum(weights) for w in weights]


def reflected(options: Sequence[float]) -> float:
    """S of one question, from the chances of A, B and C."""
    return sum(p * worth for p, worth in zip(options, WORTH, strict=True))


def consistency(same: Sequence[bool], alike: Sequence[float], alpha: float) -> float:
    """O of one answer, from whether each sample is it and how alike it is."""
    return sum(alpha * s + (1 - alpha) * e for s, e in zip(alike, same, strict=True)) / len(same)


class Judge:
    """The model that is asked, by the options of a question and by samples of its own."""

    def __init__(self, model: Model, render: Render, ctx: Ctx, relative: bool) -> None:
        self.model, self.render, self.ctx, self.relative = model, render, ctx, relative

    def options(self, prompts: Sequence[str], empty: Sequence[str]) -> list[list[float]]:
        """[prompts, 3] chances of the options; `empty` are the same questions about nothing. Journalled by what is asked."""
        def score(texts: Sequence[str]) -> list[list[float]]:
            found: list[list[float]] = self.ctx.journal.do(f"options/{digest(list(texts))}", lambda: fresh(texts))
            return found

        def fresh(texts: Sequence[str]) -> list[list[float]]:
            pairs = [(self.render._start() + self.render.encode(text), self.render.encode(f" {option}"))
                     for text in texts for option in OPTIONS]
            said = [total for total, _ in self.ctx.engine.score(self.model, pairs)]
            return [said[i:i + len(OPTIONS)] for i in range(0, len(said), len(OPTIONS))]

        distinct = list(dict.fromkeys(empty))
        without = dict(zip(distinct, score(distinct), strict=True)) if self.relative else {}
        return [chances(own, without.get(e)) for own, e in zip(score(prompts), empty, strict=True)]

    def reflections(self, questions: Sequence[str], answers: Sequence[str]) -> list[float]:
        """S of each answer."""
        found = [self.options([w.format(q=q, y=y) for q, y in zip(questions, answers, strict=True)],
                              [w.format(q="", y="")] * len(answers)) for w in REFLECTIONS]
        return [sum(reflected(options) for options in each) / len(each) for each in zip(*found, strict=True)]

    def samples(self, rows: Sequence[Example], count: int, decoder: Decoder) -> list[list[str]]:
        """`count` answers of the model's own to each row."""
        prompts = [self.render.prompt(row) for row in rows for _ in range(count)]
        made = self.ctx.engine.generate(self.model, prompts, decoder, rng=self.ctx.rng.within("clear/samples"), stop="newline",
                                        stop_ids=self.render.stop_ids, journal=self.ctx.journal, progress=self.ctx.progress)
        return [[g.text.partition("\n")[0].strip() for g in made[i:i + count]] for i in range(0, len(made), count)]

    def likeness(self, answers: Sequence[str], samples: Sequence[Sequence[str]], encoder: Any) -> list[list[float]]:
        """Cosine, at least 0, of each answer with each of its samples."""
        texts = list(dict.fromkeys(t for y, own in zip(answers, samples, strict=True) for t in (y, *own) if t))
        vectors = dict(zip(texts, self.ctx.engine.embed(encoder, texts), strict=True))
        return [[max(0.0, float(vectors[y] @ vectors[s])) if s else 0.0 for s in own]
                for y, own in zip(answers, samples, strict=True)]

    def better(self, questions: Sequence[str], one: Sequence[str], other: Sequence[str]) -> list[tuple[float, bool]]:
        """(chance that `other` is the better response, whether it wins in both orders)."""
        there = [self.options([BETTER.format(q=q, a=a, b=b) for q, a, b in zip(questions, first, second, strict=True)],
                              [BETTER.format(q="", a="", b="")] * len(questions))
                 for first, second in ((one, other), (other, one))]
        return [((behind[1] + before[0]) / 2, max(behind) == behind[1] and max(before) == before[0])
                for behind, before in zip(*there, strict=True)]


def equal(one: str, other: str) -> bool:
    """Whether two answers are the same but for case, spaces and a full stop."""
    return normalized(one).strip(" .") == normalized(other).strip(" .")

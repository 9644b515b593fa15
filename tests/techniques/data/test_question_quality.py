"""question-quality by hand: coverage of five sections, KL, diversity, rules of form, graders."""

from __future__ import annotations

import math

import numpy as np
import pytest

from luthier.core.example import Example, Passage
from luthier.core.files import read_json
from luthier.techniques.data._questions import written
from luthier.techniques.data.question_quality import SUMMARY, QuestionQuality, coverage, diversity, fluency, kl

CORPUS = [Passage(f"d:{i}", text, "d", f"s{i}") for i, text in enumerate([
    "Water boils at 100 degrees.", "Oak leaves fall in October.", "The pump rests on Sundays.",
    "Rye is sown in September.", "Bees sleep in winter."])]


def ask(i: int, asked: str, answer: str) -> Example:
    return written(CORPUS[i], 0, "test", asked, answer)


@pytest.mark.oracle(seed=24, clause=1, against="five sections counted by hand")
def test_coverage_of_five_sections():
    rows = [ask(0, "When does water boil?", "at 100 degrees"), ask(1, "When do oak leaves fall?", "October"),
            ask(1, "What falls in October?", "oak leaves"), ask(2, "When does the pump rest?", "on Mondays or never"),
            ask(4, "When do bees sleep?", "in winter")]
    assert coverage(rows, CORPUS) == 3 / 5  # the pump's answer stands nowhere, rye is not asked about
    assert coverage(rows[:1], CORPUS) == 1 / 5 and coverage([], CORPUS) == 0 and coverage(rows, []) == 0


@pytest.mark.oracle(seed=24, clause=1, against="five sections counted by hand")
def test_recall_of_the_source_section_of_five(make_ctx):
    from luthier.core.kinds import Prediction
    from luthier.techniques.evaluation.recall import Recall

    # The place of each question's own section among the five that were found: 1, 3, 2, 5, and not at all.
    found = [("d:0", "d:1", "d:2", "d:3", "d:4"), ("d:0", "d:2", "d:1", "d:3", "d:4"), ("d:0", "d:2", "d:1", "d:3", "d:4"),
             ("d:0", "d:1", "d:2", "d:4", "d:3"), ("d:0", "d:1", "d:2", "d:3")]
    rows = [ask(i, f"Question {i}?", "an answer") for i in range(5)]
    assert [r.meta["gold"] for r in rows] == [[p.id] for p in CORPUS]
    said = [Prediction(r.id, passages=p) for r, p in zip(rows, found, strict=True)]
    told = {k: Recall().reduce(Recall(k=k).score(rows, said, make_ctx("recall"))) for k in (1, 2, 3, 5)}
    assert told == {1: 1 / 5, 2: 2 / 5, 3: 3 / 5, 5: 4 / 5}


@pytest.mark.oracle(seed=24, clause=2, against="definition")
def test_the_divergence_of_a_set_with_itself_is_0():
    texts = [p.text for p in CORPUS]
    assert kl(texts, texts) == 0 and kl(texts, list(reversed(texts))) == 0
    assert kl(texts, ["zebra"]) > 0.1


@pytest.mark.oracle(seed=24, clause=2, against="scipy.stats.entropy")
def test_the_divergence_is_that_of_the_smoothed_distributions():
    from scipy.stats import entropy

    # vocabulary a, b, c: counts (2, 1, 0) and (1, 1, 2), 0.5 added to each
    assert kl(["a2 a2 b2"], ["a2 b2 c2 c2"]) == pytest.approx(float(entropy([2.5, 1.5, 0.5], [1.5, 1.5, 2.5])), rel=1e-12)


def test_diversity_is_the_mean_over_pairs():
    vectors = np.random.default_rng(0).normal(size=(7, 5))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    pairs = [1 - float(vectors[i] @ vectors[j]) for i in range(7) for j in range(i)]
    assert diversity(vectors) == pytest.approx(sum(pairs) / len(pairs))
    assert diversity(vectors[:1]) == 0 and diversity(np.stack([vectors[0]] * 3)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("asked", "share"), [
    ("What falls in October?", 1.0), ("falls October", 0.6), ("What what falls?", 0.8), ("What (falls?", 0.8),
    ("What falls\nhere", 0.6)])
def test_fluency_counts_rules_of_form(asked, share):
    assert fluency(asked) == pytest.approx(share)


def test_rows_pass_with_their_numbers_and_the_summary_is_said(ctx, log):
    rows = [ask(0, "When does water boil?", "at 100 degrees"), ask(1, "What does this passage say?", "October")]
    made = list(QuestionQuality().apply(iter(rows), ctx))
    assert [r.id for r in made] == [r.id for r in rows]
    assert [r.meta["quality"]["self_contained"] for r in made] == [True, False]
    assert made[0].meta["quality"]["detail"] == 4 and made[0].meta["quality"]["relevance"] == pytest.approx(1 / 2)
    assert any("overlap_kl_nats" in line for line in log)
    kept = read_json(ctx.folder / SUMMARY)  # beside the rows, where a report finds it
    assert kept["questions"] == 2 and kept["self_contained"] == 0.5 and kept["by"]["fluency"] == "rules of form"
    found = QuestionQuality().measure(rows, CORPUS, ctx)
    assert found["coverage"] == 2 / 5 and found["self_contained"] == 0.5 and found["by"]["diversity"] == "word counts"
    assert found["diversity"] == pytest.approx(1 - 1 / math.sqrt(20))
    assert QuestionQuality().measure([], CORPUS, ctx) == {}

"""recall, mrr, ndcg and citations against hand cases, brute force and scikit-learn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.example import question
from luthier.core.kinds import Prediction
from luthier.techniques.evaluation.citation_precision import CitationPrecision
from luthier.techniques.evaluation.citation_recall import CitationRecall
from luthier.techniques.evaluation.mrr import Mrr
from luthier.techniques.evaluation.ndcg import Ndcg
from luthier.techniques.evaluation.recall import Recall


def records(metric, *rows):
    """Records of (retrieved ids, gold ids) rows."""
    examples = [question(str(i), "?", meta={} if gold is None else {"gold": gold}) for i, (_, gold) in enumerate(rows)]
    return metric.score(examples, [Prediction(str(i), passages=tuple(p)) for i, (p, _) in enumerate(rows)], None)


def values(metric, *rows):
    return [r["value"] for r in records(metric, *rows)]


@pytest.mark.oracle(clause="recall at k", against="hand case")
def test_recall_hand_cases():
    rows = [("abc", ["c"]), ("abcd", ["d"]), ("abc", ["x", "b"]), ("", ["a"]), ("abc", []), ("abc", None), ("abc", "c")]
    assert values(Recall(k=3), *rows) == [1.0, 0.0, 1.0, 0.0, None, None, 1.0]
    assert records(Recall(k=3), *rows)[0] == {"id": "0", "value": 1.0, "k": 3, "shown": 3, "rank": 3}


def test_an_arm_without_retrieval_has_no_value():
    for metric in (Recall(), Ndcg(), Mrr(), CitationRecall()):
        assert values(metric, ("", ["a"]), ("", ["b"])) == [None, None]


@pytest.mark.oracle(clause="ndcg at k", against="hand case")
def test_ndcg_hand_cases():
    second = 1 / np.log2(3)
    found = values(Ndcg(k=2), ("ab", ["a"]), ("ba", ["a"]), ("xa", ["a", "b", "c"]), ("xya", ["a"]), ("ab", None))
    assert found[:4] == pytest.approx([1, second, second / (1 + second), 0])
    assert found[4] is None


@pytest.mark.oracle(clause="ndcg at k", against="sklearn")
def test_ndcg_equals_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    rng = np.random.default_rng(0)
    for _ in range(60):
        count, k = int(rng.integers(2, 15)), int(rng.integers(1, 16))
        relevant = rng.random(count) < 0.4
        relevant[rng.integers(count)] = True
        order = rng.permutation(count)
        scores = np.empty(count)
        scores[order] = np.arange(count, 0, -1)
        expected = metrics.ndcg_score([relevant.astype(int)], [scores], k=k)
        (found,) = values(Ndcg(k=k), ([str(i) for i in order], [str(i) for i in np.flatnonzero(relevant)]))
        assert found == pytest.approx(expected, abs=1e-12)


RANKED = st.tuples(st.permutations("abcdefghijkl"), st.sets(st.sampled_from("abcxyz"), min_size=1, max_size=3).map(sorted))


@pytest.mark.oracle(seed=167, clause=5, against="property over random rankings")
@settings(max_examples=100, deadline=None)
@given(st.lists(RANKED, min_size=1, max_size=6))
def test_recall_only_grows_with_k(rows):
    told = [Recall().reduce(records(Recall(k=k), *rows)) for k in range(1, 14)]
    assert told == sorted(told)
    details = Recall().details(records(Recall(), *rows))
    assert list(details.values()) == pytest.approx([told[k - 1] for k in (1, 3, 5, 10)])
    assert list(details) == ["recall@1", "recall@3", "recall@5", "recall@10"]


def test_recall_is_not_told_deeper_than_was_searched():
    assert Recall().details(records(Recall(), ("abcd", ["b"]), ("abcd", ["x"]))) == {"recall@1": 0.0, "recall@3": 0.5}
    assert Recall().details(records(Recall(), ("", ["a"]))) == {}


@pytest.mark.oracle(clause="mean reciprocal rank", against="hand case and brute force")
def test_mrr_hand_cases():
    rows = [("abc", ["c"]), ("abc", ["x"]), ("abc", ["b", "a"]), ("", ["a"]), ("abc", []), ("abc", None), ("abcd", ["d"])]
    assert values(Mrr(k=3), *rows) == [1 / 3, 0.0, 1.0, 0.0, None, None, 0.0]
    assert Mrr(k=3).reduce(records(Mrr(k=3), *rows)) == pytest.approx((1 / 3 + 0 + 1 + 0 + 0) / 5)


@settings(max_examples=50, deadline=None)
@given(st.lists(RANKED, min_size=1, max_size=6))
def test_mrr_is_the_sum_of_gains_in_recall_over_ranks(rows):
    recall = [0.0, *(Recall().reduce(records(Recall(k=k), *rows)) for k in range(1, 13))]
    expected = sum((recall[k] - recall[k - 1]) / k for k in range(1, 13))
    assert Mrr(k=12).reduce(records(Mrr(k=12), *rows)) == pytest.approx(expected, abs=1e-12)


# (retrieved, how many of them shown, cited, gold, precision, recall, gold was shown)
CITED = [
    ("abc", 3, "a", ["a"], 1.0, 1.0, True), ("abc", 3, "ab", ["a"], 0.5, 1.0, True), ("abc", 3, "b", ["a"], 0.0, 0.0, True),
    ("abc", 3, "", ["a"], None, 0.0, True), ("abc", 2, "a", ["c"], 0.0, 0.0, False),
    ("abc", 3, "a", ["a", "c"], 1.0, 1.0, True),
    ("abc", 3, "a", [], None, None, False), ("abc", 3, ["[9]"], ["a"], 0.0, 0.0, True),
]


@pytest.mark.oracle(clause="citation precision and recall", against="hand case")
def test_citations_hand_cases():
    examples = [question(str(i), "?", meta={"gold": row[3]}) for i, row in enumerate(CITED)]
    said = [Prediction(str(i), passages=tuple(p), shown=tuple(p[:n]), citations=tuple(c))
            for i, (p, n, c, *_) in enumerate(CITED)]
    assert [r["value"] for r in CitationPrecision().score(examples, said, None)] == [row[4] for row in CITED]
    found = CitationRecall().score(examples, said, None)
    assert [(r["value"], r["shown"]) for r in found] == [row[5:] for row in CITED]
    assert CitationRecall().details(found) == {"where shown": 3 / 6}
    assert CitationRecall().details(found[6:7]) == {}

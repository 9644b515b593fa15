"""recall and ndcg against hand cases and scikit-learn."""

import numpy as np
import pytest

from luthier.core.example import question
from luthier.core.kinds import Prediction
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
    assert records(Recall(k=3), *rows)[0] == {"id": "0", "value": 1.0, "k": 3, "shown": 3}


def test_an_arm_without_retrieval_has_no_value():
    for metric in (Recall(), Ndcg()):
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

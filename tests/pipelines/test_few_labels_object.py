"""SetFitClassifier: what the recipe makes, as an object; its head beside scikit-learn's on the frozen encoder."""

from __future__ import annotations

import numpy as np
import pytest

from luthier.core.errors import UserError
from luthier.pipelines.few_labels import SetFitClassifier

LOW, HIGH = "module class object list dict".split(), "scope block import yield await".split()
TEXTS = [" ".join((LOW, HIGH)[n % 2][(n // 2 + k * (1 + n % 3)) % 5] for k in range(4)) + f" {n}" for n in range(16)]
LABELS = [n % 2 for n in range(16)]


def few(**changed):
    return SetFitClassifier(**{"model": "pico-encoder", "rounds": 2, "learning_rate": 1e-3, **changed})


@pytest.mark.oracle(seed=208, clause=1, against="scikit-learn on the encoder as it is")
def test_without_rounds_it_is_logistic_regression_on_the_frozen_encoder(pico_encoder, engine):
    from sklearn.linear_model import LogisticRegression

    from luthier.core.example import Example, Part, Turn
    from luthier.engine.classification import features
    from luthier.engine.models import load_base

    made = few(rounds=0).fit(TEXTS[:12], LABELS[:12])
    rows = [Example(str(n), (Turn("user", (Part(t, name="text"),)),)) for n, t in enumerate(TEXTS)]
    seen = features(load_base(pico_encoder), rows, 256).double().numpy()
    theirs = LogisticRegression(max_iter=1000, tol=1e-8).fit(seen[:12], LABELS[:12])
    assert np.allclose(made.predict_proba(TEXTS), theirs.predict_proba(seen), atol=1e-4)
    assert made.classes_.tolist() == theirs.classes_.tolist() == [0, 1]
    assert made.predict(TEXTS).tolist() == theirs.predict(seen).tolist()


def test_fit_then_predict_and_again_the_same(tmp_path):
    made = few(folder=tmp_path / "kept").fit(TEXTS[:12], LABELS[:12])
    chances = made.predict_proba(TEXTS[12:])
    assert chances.shape == (4, 2) and np.allclose(chances.sum(1), 1, atol=1e-6)
    assert made.score(TEXTS[:12], LABELS[:12]) >= 0.75
    frozen = few(rounds=0).fit(TEXTS[:12], LABELS[:12])
    assert not np.allclose(chances, frozen.predict_proba(TEXTS[12:])), "the encoder was tuned"
    before = (tmp_path / "kept" / "run" / "steps" / "encoder" / "luthier.json").stat().st_mtime_ns
    again = few(folder=tmp_path / "kept").fit(TEXTS[:12], LABELS[:12])
    assert np.array_equal(again.predict_proba(TEXTS[12:]), chances)
    assert (tmp_path / "kept" / "run" / "steps" / "encoder" / "luthier.json").stat().st_mtime_ns == before, "not trained again"
    assert made.predict_proba([]).shape == (0, 2)


def test_it_is_cloned_and_searched_as_scikit_learn_does():
    from sklearn.base import clone

    one = few(rounds=3)
    assert clone(one).get_params() == one.get_params() and one.set_params(rounds=4).rounds == 4
    with pytest.raises(UserError, match="no setting 'round'; legal: model, pairs, rounds"):
        one.set_params(round=1)


@pytest.mark.parametrize("texts, labels, said", [
    (["a"], ["x", "y"], "1 texts and 2 labels"), (["a", "  "], ["x", "y"], r"text 1 \(from 0\) is empty"),
    (["a", None], ["x", "y"], "text 1 .* is None"), (["a", "b"], ["x", "x"], r"1 label\(s\); a classifier needs at least 2"),
    (["a", "b", "c"], [1, "1", 2], "the labels '1' and 1 read alike")])
def test_what_can_not_be_fitted_is_said(texts, labels, said):
    with pytest.raises(UserError, match=said):
        few().fit(texts, labels)


def test_nothing_is_said_before_it_is_fitted():
    with pytest.raises(UserError, match="fit it first"):
        few().predict(["a"])

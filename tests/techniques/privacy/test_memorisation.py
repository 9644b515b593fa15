"""memorisation: exposure by hand, by brute force, and of a model that was and was not trained on the secrets."""

from __future__ import annotations

import math

import numpy as np
import pytest

from luthier.core.artifact import write_examples
from luthier.core.component import build
from luthier.engine.subjects import Subject
from luthier.techniques.privacy.memorisation import exposure
from tests.contracts.workbench import examples, short_fit


@pytest.mark.oracle(clause="exposure is log2 of |R| less log2 of the rank", against="hand cases")
@pytest.mark.parametrize(("planted", "others", "bits"), [
    (-1.0, [-2.0] * 63, 6.0), (-3.0, [-2.0] * 63, 0.0), (-2.0, [-1.0, -3.0, -4.0], 1.0), (-2.0, [-2.0, -2.0, -5.0], 1.0)])
def test_exposure_by_hand(planted, others, bits):
    assert exposure(planted, others) == pytest.approx(bits)


@pytest.mark.oracle(clause="exposure is log2 of |R| less log2 of the rank", against="scipy's ranks")
def test_exposure_by_ranks_and_on_average():
    from scipy.stats import rankdata

    rng = np.random.default_rng(0)
    found = []
    for _ in range(400):
        scores = rng.normal(size=64)
        found.append(exposure(scores[0], list(scores[1:])))
        assert found[-1] == pytest.approx(6 - math.log2(rankdata(-scores)[0]))
    ranks = np.arange(1, 65)
    assert np.mean(found) == pytest.approx(float(np.mean(6 - np.log2(ranks))), abs=0.2), "a secret nobody learned"


@pytest.fixture(scope="module")
def told(engine, tmp_path_factory, pico):
    """A pico model over-trained on ten secrets, and its rows."""
    from tests.conftest import new_ctx

    folder = tmp_path_factory.mktemp("told")
    plant = build("data_step", "canaries:count=10,repeats=[2],digits=5")
    rows = list(plant.apply(iter(examples(4)), new_ctx(folder / "plant", engine)))
    subsets = {"train": rows, "dev": examples(4), "unseen": examples(4)}
    held = write_examples(new_ctx(folder / "examples", engine).folder, subsets)
    inputs = {"base": pico, "examples": held}
    fit = short_fit("decoder", method="full", length={"steps": 60}, batch_rows=16, learning_rate=3e-3)
    return inputs | {"tuned": fit.run(inputs, new_ctx(folder / "fit", engine, inputs))}


@pytest.mark.oracle(clause="trained secrets stand out and are recited, others are not", against="a model trained on them")
def test_a_model_that_was_told_recites_and_the_base_does_not(told, engine, make_ctx):
    audit = build("audit", "memorisation:candidates=31")
    risen, recited = audit.measure(make_ctx("audit"), Subject.of(told, engine))
    assert risen.right > 4 > 3 > risen.left and risen.verdict == "fail"
    assert recited.verdict == "fail" and recited.left == 0 and recited.right >= 8
    bare = {k: v for k, v in told.items() if k != "tuned"}
    risen, recited = audit.measure(make_ctx("bare"), Subject.of(bare, engine))
    assert risen.verdict == recited.verdict == "pass" and risen.interval == (0, 0)


@pytest.mark.oracle(seed=183, clause=1, against="closed form")
def test_equal_models_leak_nothing(told, engine, make_ctx):
    audit = build("audit", "pii-leak:prompts=6,samples=2")
    found = audit.measure(make_ctx("leak"), Subject.of({**told, "reference": told["tuned"]}, engine))
    assert len(found) == 3 and all(f.right == 0.0 and f.verdict == "pass" and f.interval == (0, 0) for f in found)
    assert found[0].left > 0.5, "the base of this comparison knows them too: nothing was added"


@pytest.mark.oracle(seed=183, clause=3, against="an over-trained model")
def test_an_over_trained_model_leaks_nearly_all_it_is_asked_for(told, engine, make_ctx):
    ctx = make_ctx("leak")
    found = build("audit", "pii-leak:prompts=12,types=[ID]").measure(ctx, Subject.of(told, engine))
    asked = next(f for f in found if f.name.endswith("training prompts"))
    assert asked.right >= 0.9 and asked.left == 0 and asked.verdict == "fail" and asked.extra["n"] == 10
    secrets = {r.meta["canary"]["secret"] for r in told["examples"].examples("train") if "canary" in r.meta}
    assert not any(s in (ctx.folder / "leaks.jsonl").read_text() for s in secrets), "redacted"
    assert asked.extra["types"]["ID"] >= 9


def test_without_canaries_nothing_is_claimed(pico, engine, make_ctx):
    held = write_examples(make_ctx("rows").folder, {"train": examples(4), "dev": examples(2)})
    (found,) = build("audit", "memorisation").measure(make_ctx("audit"), Subject.of({"base": pico, "examples": held}, engine))
    assert found.verdict == "not applicable" and "no canaries were planted" in found.detail

"""Out-of-distribution scores against chi-square laws, hand tables, sklearn and scipy; the audit on a small encoder."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import chi2, ncx2

from luthier.core.artifact import write_examples
from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.example import question
from luthier.core.files import read_lines
from luthier.engine.models import load_base
from luthier.engine.subjects import Subject
from luthier.techniques.evaluation._detectors import (
    Mahalanobis,
    Neighbours,
    OODDetector,
    energy,
    geometry,
    max_softmax,
    represent,
)
from luthier.techniques.evaluation._ranking import (
    auroc,
    auroc_change,
    auroc_interval,
    average_precision,
    false_positive_rate,
    threshold,
)

SHORT = ["a list of names", "the dict is a class", "a module", "the scope of the block"]
STRANGE = ["import import import import", "yield yield", "yield import yield"]


@pytest.mark.oracle(seed=151, clause=1, against="chi-square and noncentral chi-square by quadrature")
@pytest.mark.parametrize(("width", "shift"), [(1, 1.0), (3, 2.0), (8, 3.0)])
def test_gaussians_are_told_apart_as_chi_squares_say(width, shift):
    draw = np.random.default_rng(width)
    moved = np.zeros(width)
    moved[0] = shift
    wanted = quad(lambda x: chi2.cdf(x, width) * ncx2.pdf(x, width, shift ** 2), 0, np.inf)[0]
    known, strange = draw.standard_normal((4000, width)), draw.standard_normal((4000, width)) + moved
    exact = Mahalanobis(np.zeros((1, width)), np.eye(width))
    assert auroc(exact.score(known), exact.score(strange)) == pytest.approx(wanted, abs=0.015)
    fitted = Mahalanobis.fit(draw.standard_normal((4000, width)))
    low, high = auroc_interval(fitted.score(known), fitted.score(strange), 0.999)
    assert low < wanted < high
    # A variance that is not 1, and dimensions that are bound to each other, change nothing: that is what P is for.
    mix = draw.standard_normal((width, width)) + 3 * np.eye(width)
    fitted = Mahalanobis.fit(draw.standard_normal((4000, width)) @ mix)
    low, high = auroc_interval(fitted.score(known @ mix), fitted.score(strange @ mix), 0.999)
    assert low < wanted < high


@pytest.mark.oracle(seed=151, clause=2, against="squared z-scores by hand")
def test_in_one_dimension_it_is_the_squared_z_score():
    bank = np.array([[1.0], [2.0], [3.0], [6.0]])  # mean 3, variance (4 + 1 + 0 + 9) / 4 = 3.5
    assert Mahalanobis.fit(bank).score(np.array([[3.0], [5.0], [0.0]])) == pytest.approx([0, -4 / 3.5, -9 / 3.5])
    # Two classes: means 1.5 and 4.5, variances around them (.25 + .25 + 2.25 + 2.25) / 4 = 1.25; the nearer mean counts.
    two = Mahalanobis.fit(bank, ["a", "a", "b", "b"])
    assert two.score(np.array([[1.5], [5.0], [0.0]])) == pytest.approx([0, -0.25 / 1.25, -2.25 / 1.25])


@pytest.mark.oracle(seed=151, clause=3, against="zero, and sklearn")
def test_a_vector_of_the_bank_is_its_own_neighbour():
    draw = np.random.default_rng(0)
    bank, asked = draw.standard_normal((30, 5)), draw.standard_normal((10, 5))
    assert np.abs(Neighbours.fit(bank).score(7 * bank)).max() < 1e-12
    from sklearn.neighbors import NearestNeighbors

    for k in (1, 4):
        wanted = NearestNeighbors(n_neighbors=k, metric="cosine").fit(bank).kneighbors(asked)[0][:, -1]
        assert Neighbours.fit(bank, k).score(asked) == pytest.approx(-wanted)
    with pytest.raises(ValueError, match="a bank of 3 has no 4-th neighbour"):
        Neighbours.fit(bank[:3], 4)


@pytest.mark.oracle(seed=151, clause=4, against="the bank without labels")
def test_one_class_is_no_labels():
    draw = np.random.default_rng(0)
    bank, asked = draw.standard_normal((40, 6)), draw.standard_normal((9, 6))
    assert np.array_equal(Mahalanobis.fit(bank).score(asked), Mahalanobis.fit(bank, ["x"] * 40).score(asked))
    labels = [str(n % 2) for n in range(40)]
    bank[::2] += 5
    assert not np.allclose(Mahalanobis.fit(bank).score(asked), Mahalanobis.fit(bank, labels).score(asked))
    # A bank smaller than the dimension: what it never varied in has no say, and all stays finite.
    few = Mahalanobis.fit(bank[:3])
    assert np.isfinite(few.score(asked)).all() and few.score(bank[:3]).max() <= 0


@pytest.mark.oracle(seed=151, clause=5, against="a table of twenty points by hand")
def test_false_positives_at_95_percent():
    """20 in-distribution scores 1 … 20: 95 % are 19 of them, so the threshold is 2. Of 10 others, 4 reach it."""
    known, strange = list(range(1, 21)), [0, 0.5, 1, 1.5, 1.9, 1, 2, 2.5, 3, 30]
    assert threshold(known, 0.95) == 2 and false_positive_rate(known, strange) == 0.4
    assert threshold(known, 0.5) == 11 and false_positive_rate(known, strange, 0.5) == 0.1
    assert false_positive_rate(known, [-1, -2]) == 0 and false_positive_rate(known, [50]) == 1


@pytest.mark.oracle(seed=151, clause=5, against="sklearn and brute force")
def test_areas_are_those_of_sklearn():
    from sklearn.metrics import average_precision_score, roc_auc_score

    draw = np.random.default_rng(3)
    for _ in range(20):
        pos, neg = (draw.integers(0, 8, size=n).astype(float) for n in draw.integers(2, 20, size=2))
        truth, scores = [1] * len(pos) + [0] * len(neg), [*pos, *neg]
        assert auroc(pos, neg) == pytest.approx(roc_auc_score(truth, scores))
        assert auroc(pos, neg) == pytest.approx(np.mean([(a > b) + (a == b) / 2 for a in pos for b in neg]))
        assert average_precision(pos, neg) == pytest.approx(average_precision_score(truth, scores))


def test_delongs_interval_covers():
    draw = np.random.default_rng(4)
    truth, hits, changes = 0.7602, 0, 0  # P(N(1, 1) > N(0, 1)) = Phi(1 / sqrt 2)
    for _ in range(300):
        pos, neg = draw.standard_normal(40) + 1, draw.standard_normal(40)
        low, high = auroc_interval(pos, neg)
        hits += low <= truth <= high
        noise = draw.standard_normal((2, 80)) * 0.5
        change, (low, high) = auroc_change(*((pos + n[:40], neg + n[40:]) for n in noise))
        changes += low <= 0 <= high
        assert low <= change <= high
    assert 0.91 <= hits / 300 <= 0.98 and 0.91 <= changes / 300 <= 0.99


def test_scores_of_heads_and_angles_by_hand():
    logits = np.log(np.array([[1.0, 1.0, 2.0], [8.0, 1.0, 1.0]]))
    assert max_softmax(logits) == pytest.approx([0.5, 0.8]) and energy(logits) == pytest.approx(np.log([4, 10]))
    assert energy(logits, 2.0) == pytest.approx(2 * np.log(np.sqrt([1, 8]) + [1 + np.sqrt(2), 2]))
    bank = np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
    angles = geometry(bank, ["a", "a", "b"], np.array([[1.0, 0.0]]), np.array([[1.0, 1.0]]))
    assert angles == pytest.approx({"dispersion": 90, "compactness": 0, "separability": 45})


@pytest.mark.oracle(seed=151, clause=3, against="each text alone, padding left out by hand")
@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_a_text_is_the_mean_of_its_own_tokens(pool, pico_encoder):
    model = load_base(pico_encoder)
    found, scores = represent(model, SHORT, pool)
    assert scores is None
    for text, vector in zip(SHORT, found, strict=True):
        ids = torch.tensor([model.tokenizer(text)["input_ids"]])
        with torch.no_grad():
            states = model.module(input_ids=ids).last_hidden_state[0]
        assert np.allclose(vector, (states.mean(0) if pool == "mean" else states[0]).numpy(), atol=1e-5)


@pytest.mark.parametrize("by", ["maha", "knn"])
def test_a_detector_is_saved_and_loaded_and_guards(by, pico_encoder, tmp_path):
    model = load_base(pico_encoder)
    detector = OODDetector.fit(model, SHORT, by=by, keep=0.75)
    assert sum(detector.accepts(SHORT)) >= 3
    detector.save(tmp_path / "detector.npz")
    again = OODDetector.load(tmp_path / "detector.npz", model)
    assert np.array_equal(again.score(STRANGE), detector.score(STRANGE)) and again.cut == detector.cut


@pytest.fixture(scope="module")
def tuned(engine, pico_encoder, tmp_path_factory):
    """A classifier of two labels, a little trained, and its rows."""
    from tests.conftest import new_ctx
    from tests.contracts.workbench import short_fit

    made = [question(f"r{n}", t, label=("x", "y")[n % 2]) for n, t in enumerate(SHORT * 3)]
    rows = write_examples(new_ctx(tmp_path_factory.mktemp("r") / "r", engine).folder, {"train": made, "test": made[:4]})
    inputs = {"base": pico_encoder, "examples": rows}
    fit = short_fit("encoder", method="full", length={"steps": 4})
    return fit.run(inputs, new_ctx(tmp_path_factory.mktemp("f") / "tuned", engine, inputs)), rows


@pytest.fixture
def probe(tmp_path):
    path = tmp_path / "probe.jsonl"
    path.write_text("\n".join(json.dumps({"text": t, "ood": t in STRANGE}) for t in SHORT + STRANGE))
    return path


@pytest.mark.parametrize("score", ["maha", "knn", "msp", "energy"])
def test_the_audit_tells_before_and_after(score, engine, pico_encoder, tuned, probe, make_ctx):
    subject = Subject(engine, pico_encoder, tuned[0], examples=tuned[1])
    lines = []
    found = build("audit", f"ood:score={score},probe={probe}").measure(make_ctx("m", log=lines.append), subject)
    own = found[0]
    assert own.right == pytest.approx(1 - own.extra["auroc"]) and own.interval[0] <= own.right <= own.interval[1]
    assert len(found) == (2 if score in ("maha", "knn") else 1)
    assert ("covariance is singular" in " ".join(lines)) == (score == "maha")
    if score == "knn":  # the probe's own texts are in the bank: nothing is nearer
        assert own.extra["auroc"] == 1 and own.verdict == "pass" and own.extra["fpr"] == 0
        assert found[1].difference == 0 and "separability" in own.extra and own.extra["dispersion"] > 0
    assert build("audit", f"ood:probe={probe}").content() and own.evidence == "scores.jsonl"


def test_probes_and_models_that_can_not_be_scored_are_refused(engine, pico_encoder, tuned, tmp_path, probe, make_ctx):
    subject = Subject(engine, pico_encoder, examples=tuned[1])
    with pytest.raises(UserError, match="score=msp needs a classifier"):
        build("audit", f"ood:score=msp,probe={probe}").measure(make_ctx("m"), subject)
    with pytest.raises(UserError, match="ood needs in-distribution texts"):
        build("audit", f"ood:probe={probe}").measure(make_ctx("m"), Subject(engine, pico_encoder))
    one = tmp_path / "one.jsonl"
    one.write_text('{"text": "a", "ood": true}')
    with pytest.raises(UserError, match="needs both ID and OOD examples to compute AUROC; found 0 and 1"):
        build("audit", f"ood:probe={one}").check()
    one.write_text('{"text": "a"}')
    with pytest.raises(UserError, match="line 1: it needs text and ood"):
        build("audit", f"ood:probe={one}").check()
    with pytest.raises(UserError, match="can't be read"):
        build("audit", "ood:id=/nowhere.jsonl").check()
    default = build("audit", "ood:score=knn").measure(make_ctx("d"), Subject(engine, pico_encoder, examples=tuned[1]))
    assert "4 in, 120 out" in default[0].detail


def test_rows_of_a_subset_are_the_strange_ones_and_equal_models_are_asked_once(engine, pico_encoder, make_ctx):
    rows = {"train": SHORT * 2, "test": SHORT[:3], "ood": STRANGE}
    ctx = make_ctx("rows")
    examples = write_examples(ctx.folder, {name: [question(f"{name}{i}", text) for i, text in enumerate(texts)]
                                           for name, texts in rows.items()})
    looking = make_ctx("look")
    found = build("audit", "ood:score=knn").measure(looking, Subject(engine, pico_encoder, examples=examples))
    lines = read_lines(looking.folder / "scores.jsonl")
    assert [line["text"] for line in lines if line["ood"]] == STRANGE and len(lines) == 6
    assert len(found) == 1 and all("before" not in line for line in lines)

"""UFT and UNA against hand cases, the supervised gradient, TRL's DPO, and a live reference."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.example import Turn
from luthier.core.kinds import DroppedRow
from luthier.core.rng import Rng
from luthier.engine.constants import with_constants
from luthier.engine.forward import Forward
from luthier.engine.models import load_base
from luthier.engine.rendering import renderer
from tests.contracts.workbench import encode, examples, make_batch
from tests.recorded import recorded
from tests.techniques.objectives.test_dpo import pair, records, sides  # noqa: F401  (a fixture among them)


def scored(score, count: int = 4):
    """Rows of one score; None are demonstrations."""
    return [replace(e, rejected=None, meta={"score": score} if score is not None else {}) for e in examples(count)]


def trained(base):
    model = load_base(base)
    model.module.requires_grad_(True)
    return model


def gradients(run, objective, batch, part):
    run.models["policy"].module.zero_grad(set_to_none=True)
    loss = objective.loss(run, batch)[part]
    loss.backward()
    found = torch.cat([p.grad.flatten() for p in run.models["policy"].module.parameters() if p.grad is not None])
    return float(loss.detach()), found


@pytest.mark.oracle(seed=90, clause=1, against="hand case: s = 1/2 at the start")
@pytest.mark.parametrize("score, loss", [(None, 0.25), (1, 0.25), (0, 0.25), (0.5, 0.0)])
def test_at_the_start_every_row_is_half_way(score, loss, pico):
    model, objective = trained(pico), build("objective", "uft:beta=0.3,reference_once=false")
    batch = make_batch(encode(objective, model, scored(score)), model)
    run = Forward({"policy": model, "reference": load_base(pico)})
    assert float(objective.loss(run, batch)["score"].detach()) / 4 == pytest.approx(loss, abs=1e-5)
    assert run.take()["reward"] == pytest.approx(0, abs=1e-4)


@pytest.mark.oracle(seed=90, clause=2, against="the supervised gradient")
def test_the_gradient_on_demonstrations_is_the_supervised_one_scaled(pico):
    model, beta = trained(pico), 0.3
    objective, supervised = build("objective", f"uft:beta={beta},reference_once=false"), build("objective", "supervised")
    run = Forward({"policy": model, "reference": load_base(pico)})
    _, ours = gradients(run, objective, make_batch(encode(objective, model, scored(None)), model), "score")
    _, theirs = gradients(run, supervised, make_batch(encode(supervised, model, scored(None)), model), "nll")
    assert float(torch.cosine_similarity(ours.double(), theirs.double(), dim=0)) == pytest.approx(1, abs=1e-5)
    assert float(ours.norm() / theirs.norm()) == pytest.approx(0.25 * beta, rel=1e-4)


@pytest.mark.oracle(seed=90, clause=3, against="hand case: log-ratio 2, beta 1")
@pytest.mark.parametrize("fits, score, loss", [("mse", 1.0, 0.0142093), ("mse", 0.0, 0.7758037), ("mse", 0.5, 0.1450065),
                                               ("bce", 1.0, 0.1269280), ("bce", 0.0, 2.1269280), ("bce", 0.5, 1.1269280)])
def test_values_by_hand(fits, score, loss):
    """sigmoid(2) = 0.8807971, -log sigmoid(2) = 0.1269280."""
    objective = build("objective", f"uft:beta=1,fits={fits}")
    assert float(objective.fit(torch.tensor([2.0]), torch.tensor([score]))) == pytest.approx(loss, abs=1e-6)


class Said:
    """A model whose log-probabilities are given."""

    def __init__(self, values):
        self.values = values

    def __call__(self, role, inputs):
        return self

    def row_log_probabilities(self):
        return self.values

    def measure(self, **given):
        self.measured = {name: value.tolist() for name, value in given.items()}


@pytest.mark.oracle(seed=90, clause=3, against="hand case: log-ratio 2, beta 1")
def test_the_reward_is_beta_times_the_difference_of_the_logs():
    run = Said(torch.tensor([-3.0, -20.0]))
    batch = {"answer": [0, 0], "score": torch.tensor([1.0, 0.0]), "reference_answer": torch.tensor([-5.0, -14.0])}
    loss = build("objective", "uft:beta=1").loss(run, batch)["score"]
    assert float(loss) == pytest.approx((1 - 0.8807971) ** 2 + (1 / (1 + math.exp(6))) ** 2, abs=1e-6)
    assert run.measured == {"reward": [2.0, -6.0], "saturated": [0.0, 1.0]}


@pytest.mark.oracle(seed=90, clause=3, against="the code of UNA's authors")
@pytest.mark.parametrize("record", recorded("una")["records"], ids=lambda r: f"{r['fits']}-{r['beta']}-{r['ratings']}")
@pytest.mark.parametrize("name", ["una", "uft"])
def test_losses_and_gradients_are_those_of_the_authors_code(name, record):
    """Its loss of a pair is the sum of both answers, and -1 the rating of one that is not there."""
    there = [i for i, rating in enumerate(record["ratings"]) if rating >= 0]
    policy = torch.tensor(record["policy"], requires_grad=True)
    batch = {"answer": there, "score": torch.tensor(record["ratings"])[there],
             "reference_answer": torch.tensor(record["reference"])[there]}
    objective = build("objective", {"use": name, "beta": record["beta"], "fits": record["fits"]})
    loss = objective.loss(Said(policy[there]), batch)["score"]
    loss.backward()
    assert float(loss.detach()) == pytest.approx(record["loss"], rel=1e-6)
    assert policy.grad.tolist() == pytest.approx(record["gradient"], rel=2e-6)


@records
@pytest.mark.oracle(seed=90, clause=4, against="TRL: DPO")
def test_the_difference_of_a_pair_is_dpo(pair, record):  # noqa: F811
    policy, reference = pair
    policy.module.zero_grad(set_to_none=True)
    given = sides(record)
    rows = len(given["chosen"])
    batch = {"answer": given["chosen"], "rejected": given["rejected"], "score": torch.ones(rows), "paired": torch.ones(rows)}
    objective = build("objective", {"use": "uft", "beta": record["beta"], "pairs": "difference", "reference_once": False})
    loss = objective.loss(Forward({"policy": policy, "reference": reference}), batch)["score"] / rows
    assert float(loss.detach()) == pytest.approx(record["loss"], abs=1e-5)
    loss.backward()
    own = {n: p.grad for n, p in policy.module.named_parameters()}
    for name, first in record["gradients"].items():
        assert own[name].flatten()[:6].tolist() == pytest.approx(first, abs=1e-5), name


@pytest.mark.oracle(seed=90, clause=5, against="gradient descent on one row")
def test_one_demonstration_rises_and_its_gradient_fades(pico):
    model, objective = trained(pico), build("objective", "uft:beta=1,reference_once=false")
    run = Forward({"policy": model, "reference": load_base(pico)})
    batch = make_batch(encode(objective, model, scored(None, 1)), model)
    optimizer = torch.optim.SGD(model.module.parameters(), lr=0.02)
    rewards, norms = [], []
    for _ in range(40):
        optimizer.zero_grad()
        objective.loss(run, batch)["score"].backward()
        norms.append(float(torch.stack([p.grad.norm() for p in model.module.parameters() if p.grad is not None]).norm()))
        optimizer.step()
        rewards.append(run.take()["reward"])
    assert all(a < b for a, b in pairwise(rewards)), rewards
    assert rewards[-1] > 1.5 and norms[-1] < norms[0] / 3


@pytest.mark.oracle(seed=90, clause=6, against="a live reference")
@pytest.mark.parametrize("pairs", ["rows", "difference"])
def test_cached_and_live_references_give_one_loss(pairs, pico, make_ctx):
    model, reference = load_base(pico), load_base(pico)
    objective = build("objective", f"uft:beta=0.5,pairs={pairs}")
    given = [*examples(3), *scored(0.3, 2)]
    render, rng = renderer(model, 256), Rng(0)
    features = [row for e in given for row in objective.rows(e, render, rng)]
    assert len(features) == (8 if pairs == "rows" else 5)
    held = with_constants(features, objective, lambda: Forward({"reference": reference}), make_ctx("x").journal)
    with torch.no_grad():
        for i, p in enumerate(model.module.parameters()):
            p.add_(0.2 * torch.sin(torch.arange(p.numel()).view(p.shape) + i))
        run = Forward({"policy": model, "reference": reference})
        one, two = (float(objective.loss(run, make_batch(rows, model))["score"]) for rows in (held, features))
    assert one == pytest.approx(two, abs=1e-4) and abs(one - 0.25 * len(features)) > 1e-2


# --- rows -----------------------------------------------------------------------------------------------------------

def test_scores_come_from_the_range_that_is_said(pico):
    render, rng = renderer(load_base(pico), 256), Rng(0)
    row = scored(4)[0]
    assert build("objective", "uft:score_range=[1, 10]").encode(row, render, rng)["score"] == pytest.approx(3 / 9)
    files = build("objective", {"use": "una", "score_range": {"stars.jsonl": [1, 5], "marks.jsonl": [0, 20]}})
    for file, wanted in (("stars.jsonl", 0.75), ("marks.jsonl", 0.2)):
        found = files.encode(replace(row, meta={"score": 4, "file": file}), render, rng)
        assert found["score"] == pytest.approx(wanted)
    with pytest.raises(UserError, match=r"row q0 of the file 'other' has a score, and score_range names stars.jsonl, marks"):
        files.encode(replace(row, meta={"score": 4, "file": "other"}), render, rng)
    for wrong in (4, -0.1, True, "good", float("nan")):
        with pytest.raises(UserError, match="the score of row q0 is .*score_range is 0 to 1.*one for each file"):
            build("objective", "uft").encode(replace(row, meta={"score": wrong}), render, rng)


def test_a_pair_is_two_rows_and_feedback_alone_has_no_demonstrations(pico):
    render, rng, example = renderer(load_base(pico), 256), Rng(0), examples(1)[0]
    two = build("objective", "uft").rows(example, render, rng)
    assert [row["score"] for row in two] == [1.0, 0.0] and two[0]["answer"] != two[1]["answer"]
    with pytest.raises(DroppedRow, match="no score"):
        build("objective", "una").rows(scored(None)[0], render, rng)
    assert build("objective", "una").rows(scored(0)[0], render, rng)[0]["score"] == 0
    empty = replace(example, turns=(example.turns[0], Turn("assistant", (), target=True)), rejected=None)
    with pytest.raises(DroppedRow, match="empty answer"):
        build("objective", "uft").rows(empty, render, rng)


def test_scores_that_are_all_equal_are_said():
    rows = [{"score": 0.5}, {"score": 0.5}]
    assert "all 2 scores are 0.5: nothing is told apart" in next(iter(build("objective", "una").remarks(rows)))
    assert not list(build("objective", "una").remarks([*rows, {"score": 1.0}]))
    assert not list(build("objective", "una").remarks([{"score": 1.0, "paired": 1}] * 2))


def test_a_range_that_falls_is_refused():
    with pytest.raises(UserError, match="from a lower to a higher number, not from 5 to 1"):
        build("objective", "uft:score_range=[5, 1]")

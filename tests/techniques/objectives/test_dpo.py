"""DPO against TRL's recorded numbers, its closed form, and gradients worked by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from luthier.core.component import build
from luthier.core.example import Example, with_rejected
from luthier.core.kinds import DroppedRow
from luthier.core.rng import Rng
from luthier.engine.batches import TokenBatch
from luthier.engine.constants import with_constants
from luthier.engine.forward import Forward
from luthier.engine.models import Model, load_base
from luthier.engine.rendering import renderer
from tests.contracts.workbench import encode, examples, make_batch

RECORDED = json.loads((Path(__file__).parents[2] / "fixtures" / "dpo_trl.json").read_text())
records = pytest.mark.parametrize("record", RECORDED["records"], ids=lambda r: f"beta={r['beta']}")


def tiny(pico_model: Model, shift: float) -> Model:
    """The model of the fixture: weights by formula."""
    made, formula = LlamaForCausalLM(LlamaConfig(**RECORDED["config"])).float(), RECORDED["weights"]
    with torch.no_grad():
        for k, (name, p) in enumerate(made.named_parameters()):
            at = torch.arange(p.numel(), dtype=torch.float64).view(p.shape)
            wave = formula["scale"] * torch.sin(formula["frequency"] * at + k + shift)
            p.copy_((wave + ("norm" in name)).float())
    return replace(pico_model, module=made.eval(), limit=64)


def sides(record: dict) -> dict:
    """TRL's batch, chosen rows above rejected ones, as ours."""
    given = {name: torch.tensor(rows) for name, rows in record["batch"].items()}
    half, found = len(given["input_ids"]) // 2, {}
    for side, at in (("chosen", slice(None, half)), ("rejected", slice(half, None))):
        found[side] = TokenBatch(given["input_ids"][at], given["attention_mask"][at], given["completion_mask"][at].bool())
    return found


@pytest.fixture(scope="module")
def pair(pico):
    """Policy and reference of the fixture; the policy is trained."""
    own = load_base(pico)
    formula = RECORDED["weights"]
    policy, reference = (tiny(own, formula[f"{role}_shift"]) for role in ("policy", "reference"))
    reference.module.requires_grad_(False)
    return policy, reference


def ours(pair, record, **changed):
    """(mean loss, measures, gradients) of our objective on TRL's batch."""
    policy, reference = pair
    policy.module.zero_grad(set_to_none=True)
    run, batch = Forward({"policy": policy, "reference": reference}), sides(record)
    objective = build("objective", {"use": "dpo", "beta": record["beta"], **changed})
    loss = objective.loss(run, batch)["preference"] / objective.count(batch)["preference"]
    loss.backward()
    return float(loss.detach()), run.take(), {n: p.grad.clone() for n, p in policy.module.named_parameters()}


@records
@pytest.mark.oracle(clause="loss, rewards and gradients of DPO", against="TRL")
def test_loss_rewards_and_gradients_are_trl_s(pair, record):
    loss, measured, gradients = ours(pair, record)
    theirs = record["measured"]
    assert loss == pytest.approx(record["loss"], abs=1e-5)
    assert measured["margin"] == pytest.approx(theirs["rewards/margins"], abs=1e-5)
    assert measured["accuracy"] == theirs["rewards/accuracies"]
    for name, first in record["gradients"].items():
        assert gradients[name].flatten()[:6].tolist() == pytest.approx(first, abs=1e-5), name
    assert float(torch.stack([g.norm() for g in gradients.values()]).norm()) == pytest.approx(record["gradient_norm"], rel=1e-4)


@records
@pytest.mark.oracle(clause="summed log-probabilities of answers", against="TRL")
def test_log_probabilities_of_answers_are_trl_s(pair, record):
    run, batch = Forward({"policy": pair[0]}), sides(record)
    for side in ("chosen", "rejected"):
        found = float(run("policy", batch[side]).row_log_probabilities().mean().detach())
        assert found == pytest.approx(record["measured"][f"logps/{side}"], abs=1e-4)


@records
def test_mutants_are_seen_by_the_recorded_loss(pair, record, monkeypatch):
    """A coefficient of 1.05, a last token that is not learned, a mean instead of a sum, sides exchanged."""
    wanted = record["loss"]
    assert abs(ours(pair, {**record, "beta": 1.05 * record["beta"]})[0] - wanted) > 1e-5
    short = [[m and any(row[i + 1:]) for i, m in enumerate(row)] for row in record["batch"]["completion_mask"]]
    assert abs(ours(pair, {**record, "batch": {**record["batch"], "completion_mask": short}})[0] - wanted) > 1e-3
    half = len(record["batch"]["input_ids"]) // 2
    turned = {n: rows[half:] + rows[:half] for n, rows in record["batch"].items()}
    assert abs(ours(pair, {**record, "batch": turned})[0] - wanted) > 1e-3
    from luthier.engine.output import Output

    summed = Output.row_log_probabilities
    monkeypatch.setattr(Output, "row_log_probabilities", lambda self: summed(self) / self.inputs.targets.sum(1))
    assert abs(ours(pair, record)[0] - wanted) > 1e-3


@pytest.mark.oracle(clause="pair loss", against="closed form")
def test_the_pair_loss_is_its_closed_form():
    loss = build("objective", "dpo:beta=0.3")
    cases = [(-3.0, -5.0, -4.0, -4.5), (-10.0, -2.0, -9.0, -3.0), (0.0, 0.0, 0.0, 0.0), (-100.0, -1.0, -1.0, -500.0)]
    given = [torch.tensor(column, dtype=torch.float64) for column in zip(*cases, strict=True)]
    wanted = [math.log1p(math.exp(-0.3 * ((pc - rc) - (pr - rr)))) for pc, pr, rc, rr in cases]
    assert loss.pair_loss(*given).tolist() == pytest.approx(wanted, rel=1e-9)
    assert float(loss.pair_loss(*given)[2]) == pytest.approx(math.log(2))
    wrong = [math.log1p(math.exp(-0.3 * 1.05 * ((pc - rc) - (pr - rr)))) for pc, pr, rc, rr in cases]
    assert loss.pair_loss(*given).tolist() != pytest.approx(wanted and wrong, rel=1e-3)


@pytest.mark.oracle(clause="gradient of the pair loss", against="hand case")
def test_the_gradient_is_that_of_the_paper():
    """Rafailov et al. 2023, section 4: -beta sigma(r(rejected) - r(chosen)) on the chosen side, + on the rejected."""
    beta = 0.5
    values = [torch.tensor([v], requires_grad=True) for v in (-4.0, -6.0, -3.0, -7.0)]
    build("objective", f"dpo:beta={beta}").pair_loss(*values).sum().backward()
    reward = [beta * (-4.0 + 3.0), beta * (-6.0 + 7.0)]
    weight = 1 / (1 + math.exp(-(reward[1] - reward[0])))
    found = [float(v.grad) for v in values]
    assert found == pytest.approx([-beta * weight, beta * weight, beta * weight, -beta * weight], rel=1e-6)


# --- rows ----------------------------------------------------------------------------------------------------------

def test_both_sides_share_the_prompt_and_end_with_the_stop_token(pico):
    model = load_base(pico)
    example = examples(1)[0]
    features = build("objective", "dpo").encode(example, renderer(model, 256), Rng(0))
    chosen, rejected = features["chosen"], features["rejected"]
    start = chosen.targets.index(True)
    assert start == rejected.targets.index(True) and chosen.ids[:start] == rejected.ids[:start]
    assert chosen.ids[-1] == rejected.ids[-1] == model.tokenizer.eos_token_id
    assert with_rejected(example).answer == "no module" and example.answer == "a module of the module"


def test_rows_without_a_preference_are_dropped_by_name(pico):
    render, row = renderer(load_base(pico), 256), examples(1)[0]
    objective = build("objective", "dpo")
    for changed, why in ((replace(row, rejected=None), "no rejected answer"),
                         (replace(row, rejected=row.turns[-1]), "no preference")):
        with pytest.raises(DroppedRow, match=why):
            objective.encode(changed, render, Rng(0))
    with pytest.raises(ValueError, match="no rejected answer"):
        with_rejected(Example("x"))


# --- the reference, once -------------------------------------------------------------------------------------------

def test_what_the_reference_says_is_computed_once_and_read_again(pico, make_ctx):
    model, objective = load_base(pico), build("objective", "dpo")
    features, asked = encode(objective, model, examples(11)), []

    def run() -> Forward:
        asked.append(1)
        return Forward({"reference": model})

    first = with_constants(features, objective, run, make_ctx("once").journal)
    again = with_constants(features, objective, run, make_ctx("once").journal)
    assert first == again and asked == [1], "a second process reads the very numbers"
    alone = [objective.constants(run(), make_batch([f], model)) for f in features]
    for row, one in zip(first, alone, strict=True):
        assert row["reference_chosen"] == pytest.approx(float(one["reference_chosen"]), abs=1e-4)
        assert row["reference_rejected"] == pytest.approx(float(one["reference_rejected"]), abs=1e-4)
    live = build("objective", "dpo:reference_once=false")
    assert with_constants(features, live, run, make_ctx("live").journal) == features


def test_cached_and_live_references_give_one_loss(pico, make_ctx):
    model, objective = load_base(pico), build("objective", "dpo")
    features = encode(objective, model, examples(6))
    held = with_constants(features, objective, lambda: Forward({"reference": model}), make_ctx("x").journal)
    moved = load_base(pico)
    with torch.no_grad():
        for i, p in enumerate(moved.module.parameters()):
            p.add_(0.2 * torch.sin(torch.arange(p.numel()).view(p.shape) + i))
    run = Forward({"policy": moved, "reference": model})
    with torch.no_grad():
        one, two = (float(objective.loss(run, make_batch(rows, model))["preference"]) for rows in (held, features))
    assert one == pytest.approx(two, abs=1e-4) and abs(one - len(features) * math.log(2)) > 1e-2

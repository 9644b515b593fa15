"""GreenTrainer against brute force, FLOPs as torch counts them, a training without it, and what it must refuse."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.files import read_json
from luthier.core.kinds import Optimizer
from luthier.engine.models import Model, load_base
from luthier.engine.quantized import check_method
from luthier.techniques.methods._budget import Cost, Costs, best, costs, within
from luthier.techniques.methods.greentrainer import Green, Kept
from tests.contracts.workbench import encode, examples, make_loop, short_fit, training_data

LENGTH = 24


def gpt2(pico) -> Model:
    """A GPT-2 of three layers: fused q, k and v, and a tied vocabulary."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    base = load_base(pico)
    config = GPT2Config(vocab_size=512, n_embd=64, n_layer=3, n_head=4, n_positions=64)
    return Model(GPT2LMHeadModel(config).eval(), base.tokenizer, "decoder", "gpt2", "gpt2", 64, pico)


def llama(pico) -> Model:
    return load_base(pico)


def random_case(seed: int, n: int):
    make = np.random.default_rng(seed)
    return make.normal(size=n).tolist(), make.integers(0, 30, n).astype(float).tolist(), make.integers(1, 30, n).tolist()


def brute_force(importance, dy, dw, budget, unit, exact, always):
    """The best of all 2^N subsets; a subset's cost is rounded down link by link, from the output to the deepest."""
    n, most = len(dy), (0.0, [False] * len(dy))
    for chosen in product([False, True], repeat=n):
        cost, last = 0, None
        for k in reversed(range(n)):
            if not chosen[k]:
                continue
            if exact:
                way = sum(dy[k + 1:] if last is None else dy[k + 1:last + 1])
            else:
                way = sum(dy[k:] if last is None else dy[k:last])
            way += always if last is None else 0.0
            cost, last = cost + int((way + dw[k]) / unit + 1e-9), k
        gain = sum(i for i, m in zip(importance, chosen, strict=True) if m)
        deepest = next((k for k, m in enumerate(chosen) if m), n)
        reached = int((always + sum(dy[deepest + exact:])) / unit + 1e-9) <= budget
        if cost <= budget and reached and gain > most[0] + 1e-12:
            most = gain, list(chosen)
    return most


@pytest.mark.oracle(seed=15, clause=1, against="brute force")
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_dynamic_programming_finds_the_best_subset(seed, exact):
    importance, dy, dw = random_case(seed, 8 + seed % 3)
    for share in (0.1, 0.35, 0.7):
        unit = 3.0 + seed
        budget = int(share * (sum(dy) + sum(dw)) / unit)
        always = 7.0 * (seed % 2)
        gain, _ = brute_force(importance, dy, dw, budget, unit, exact, always)
        chosen = best(importance, dy, dw, budget, unit, exact, always)
        assert sum(i for i, m in zip(importance, chosen, strict=True) if m) == pytest.approx(gain, abs=1e-9)


@pytest.mark.oracle(seed=15, clause=2, against="closed form: the sign of the importance")
def test_the_whole_budget_takes_all_that_helps():
    for seed in range(5):
        importance, dy, dw = random_case(seed, 40)
        found = Costs(tuple(Cost(f"t{k}", a, b) for k, (a, b) in enumerate(zip(dy, dw, strict=True))), 100.0)
        assert within(found, importance, found.share(1.0)) == [i > 0 for i in importance]


@pytest.mark.oracle(clause="what is chosen costs no more than the budget, before costs are rounded", against="closed form")
def test_the_budget_holds_without_buckets():
    for seed in range(5):
        importance, dy, dw = random_case(seed, 40)
        found = Costs(tuple(Cost(f"t{k}", a, b) for k, (a, b) in enumerate(zip(dy, dw, strict=True))), 100.0)
        for rho in (0.4, 0.6, 0.8):
            chosen = within(found, importance, share := found.share(rho))
            assert found.of(chosen) <= share * found.backward * (1 + 1e-6)
            assert (found.forward + share * found.backward) == pytest.approx(rho * (found.forward + found.backward))
        assert found.share(found.least) == pytest.approx(0.05)


# --- FLOPs ---------------------------------------------------------------------------------------------------------

def measured(model: Model, trained: set[str]) -> float:
    """FLOPs of a backward as torch counts them, attention written out."""
    model.module.set_attn_implementation("eager")
    for name, parameter in model.module.named_parameters():
        parameter.requires_grad_(name in trained)
    ids = torch.arange(5, 5 + LENGTH)[None]
    loss = model.module(input_ids=ids, labels=ids, use_cache=False).loss
    with FlopCounterMode(display=False) as counter:
        loss.backward()
    return float(counter.get_total_flops())


@pytest.mark.oracle(seed=15, clause=3, against="torch's FlopCounterMode")
@pytest.mark.parametrize("make", [llama, gpt2])
def test_a_whole_backward_costs_what_is_counted(make, pico):
    model = make(pico)
    found = costs("greentrainer", model, [LENGTH], LENGTH)
    every = {c.name for c in found.tensors}
    assert every == {n for n, _ in model.module.named_parameters()}, "tied matrices once"
    assert measured(model, every) == pytest.approx(found.of([True] * len(found.tensors), exact=True), rel=0.05)
    inside = [c.name not in ("model.embed_tokens.weight", "transformer.wte.weight", "transformer.wpe.weight")
              for c in found.tensors]
    assert measured(model, {c.name for c, m in zip(found.tensors, inside, strict=True) if m}) == pytest.approx(
        found.of(inside, exact=True), rel=0.05)


@pytest.mark.oracle(seed=15, clause=4, against="torch's FlopCounterMode")
@pytest.mark.parametrize("make", [llama, gpt2])
def test_a_choice_costs_at_most_the_plan_and_about_the_exact_cost(make, pico):
    model = make(pico)
    found = costs("greentrainer", model, [LENGTH], LENGTH)
    draw = np.random.default_rng(0)
    parallel = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "c_attn")
    for _ in range(12):
        first = int(draw.integers(len(found.tensors)))  # the deepest that may be trained
        chosen = [k >= first and bool(draw.random() < 0.3) for k in range(len(found.tensors))]
        chosen[first] = True
        cost = measured(model, {c.name for c, m in zip(found.tensors, chosen, strict=True) if m})
        deepest = found.tensors[chosen.index(True)].name
        assert cost <= found.of(chosen) * 1.001
        if deepest.split(".")[-2] not in parallel:
            assert cost == pytest.approx(found.of(chosen, exact=True), rel=0.05), deepest


def test_activations_computed_again_are_another_forward(pico):
    model = load_base(pico)
    one, two = (costs("greentrainer", model, [8, 8], 16, n) for n in (1, 2))
    assert two.forward == 2 * one.forward and two.backward == one.backward and two.least > one.least


# --- importance ----------------------------------------------------------------------------------------------------

class Descent(Optimizer, name="plain-descent"):
    """Stochastic gradient descent without anything."""

    def make(self, groups, learning_rate):
        return torch.optim.SGD(groups, lr=learning_rate)


def trained(base, make_ctx, spec: str = "greentrainer:rho=0.6", steps: int = 4, optimizer: str = "adamw"):
    method, model, objective = build("method", spec), load_base(base), build("objective", "supervised")
    method.prepare(model, None)
    loop = make_loop(model, objective, encode(objective, model, examples(8)), make_ctx("fit"), steps=steps, batch_rows=4,
                     optimizer=optimizer)
    loop.groups = lambda: method.parameter_groups(model)
    loop.hooks = [method.start(model, loop.ctx)]
    return loop


@pytest.mark.oracle(seed=15, clause=5, against="the state before, bit for bit")
def test_importance_leaves_weights_and_moments_as_they_were(pico, make_ctx):
    loop = trained(pico, make_ctx, steps=3)
    loop.train()
    hook, optimizer = loop.hooks[0], loop.torch_optimizer

    def state():
        found = {f"w/{n}": p.detach().clone() for n, p in loop.model.module.named_parameters()}
        for i, p in enumerate(loop.masters.tensors()):
            found |= {f"{i}/{k}": v.clone() for k, v in optimizer.state.get(p, {}).items()}
        return found, [g["lr"] for g in optimizer.param_groups]

    before, rates = state()
    found = hook._importance(hook._batch(), set(hook.names))
    after, now = state()
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before) and rates == now
    assert any("exp_avg" in k for k in before)
    assert max(abs(v) for v in found.values()) == pytest.approx(1.0) and set(found) == set(hook.names)


@pytest.mark.oracle(clause="importance is -sum(g1 dw) / max, with the optimizer's own move", against="closed form for SGD")
def test_the_importance_of_plain_descent_is_its_closed_form(pico, make_ctx):
    loop = trained(pico, make_ctx, optimizer="plain-descent")
    hook, parameters = loop.hooks[0], [p for p, _ in loop.masters.pairs]
    batch = hook._batch()
    first: list[torch.Tensor] = []
    second: list[torch.Tensor] = []
    loop.closure([batch], rng="/importance", into=first)
    with loop.perturbed([-loop.rates[0] * g for g in first]):
        loop.closure([batch], rng="/importance", into=second)
    wanted = [float(loop.rates[0] * (a * b).sum()) for a, b in zip(first, second, strict=True)]
    names = {id(p): n for n, p in loop.model.module.named_parameters()}
    found = hook._importance(batch, set(hook.names))
    largest = max(map(abs, wanted))
    for parameter, value in zip(parameters, wanted, strict=True):
        assert found[names[id(parameter)]] == pytest.approx(value / largest, abs=1e-4)


def test_only_the_chosen_tensors_move_in_a_round(pico, make_ctx):
    loop = trained(pico, make_ctx, "greentrainer:rho=0.5,interval=1", steps=4)
    own = dict(loop.model.module.named_parameters())
    before = {n: p.detach().clone() for n, p in own.items()}
    seen = []
    loop.ctx.log = lambda text: None
    hook: Green = loop.hooks[0]
    kept = hook.on_step

    def watched():
        moved = {n for n, p in own.items() if not torch.equal(p, before[n])}
        seen.append((moved, set(hook.rounds[-1]["trained"])))
        kept()
        before.update({n: p.detach().clone() for n, p in own.items()})

    hook.on_step = watched
    loop.train()
    assert len(hook.rounds) == 2 and len(seen) == 4
    assert all(moved and moved <= chosen for moved, chosen in seen)
    assert hook.ever == set().union(*(r["trained"] for r in hook.rounds))


def test_a_run_prints_plan_and_measure_and_keeps_what_moved(pico, make_ctx):
    inputs, said = {"base": pico, "examples": training_data(make_ctx("examples"))}, []
    ctx = make_ctx("fit", inputs)
    ctx.log = said.append
    artifact = short_fit("decoder", method="greentrainer:rho=0.1", length={"steps": 3}, batch_rows=4).run(inputs, ctx)
    told = read_json(artifact.folder / "greentrainer.json")
    # In models this narrow attention is a tenth of all, and it is computed for rows padded to like lengths.
    assert told["rounds"][0]["measured"] <= 1.15 * told["rounds"][0]["planned"] < 0.6 * told["rounds"][0]["full"]
    assert told["flop"] < told["full_flop"] and told["estimated"]["joules"] > 0
    text = "\n".join(said)
    assert "rho = 0.1 is below" in text and "it is raised to that" in text
    assert "planned 0." in text and "measured" in text and "TFLOP, full tuning" in text


@pytest.mark.parametrize("rho", [0, 1.5, -1])
def test_rho_is_a_share(rho):
    with pytest.raises(UserError, match=f"rho = {rho}"):
        build("method", f"greentrainer:rho={rho}")


def test_quantised_bases_and_two_stacks_are_refused(pico_encoder_decoder):
    with pytest.raises(UserError, match="Method 'greentrainer' moves the base's own weights, which nf4 freezes"):
        check_method("nf4", "greentrainer", build("method", "greentrainer").artifact)
    with pytest.raises(UserError, match="greentrainer counts FLOPs along one stack of layers, .* has 2"):
        build("method", "greentrainer").prepare(load_base(pico_encoder_decoder), None)


def test_what_is_kept_of_an_optimizer_comes_back():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], 0.1)
    kept = Kept(optimizer, [weight], [0.5])
    assert optimizer.param_groups[0]["lr"] == 0.5
    weight.grad = torch.ones(3)
    optimizer.step()
    kept.restore()
    assert torch.equal(weight, torch.ones(3)) and not optimizer.state and optimizer.param_groups[0]["lr"] == 0.1

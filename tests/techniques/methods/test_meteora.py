"""MeteoRA against plain LoRA, a loop over tokens written here, and what its gates are taught by hand."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.engine import routing
from luthier.engine.models import add_tuned, load_base
from luthier.engine.steps.fit import Fit
from luthier.techniques.methods._gated import Gate, GatedConfig, gated_layers
from luthier.techniques.methods._mixtures import Stack
from tests.contracts.loras import lora
from tests.contracts.workbench import examples, make_loop, short_fit, training_data, tuned_logits
from tests.recorded import far, recorded, wave

METEORA = recorded("meteora")

IDS = torch.tensor([[7, 8, 9, 10, 11, 12, 13, 14, 15]])


@pytest.fixture(scope="module")
def folders(pico, tmp_path_factory):
    """Three LoRAs of one base, the third of another rank, and one each with other layers and of no plain kind."""
    root, module = tmp_path_factory.mktemp("loras"), load_base(pico).module
    made = {n: lora(module, root / n, seed=i, alpha=8 + 4 * i) for i, n in enumerate(("one", "two"))}
    made["wide"] = lora(module, root / "wide", seed=2, rank=6, use_rslora=True, alpha_pattern={"q_proj": 3})
    made["few"] = lora(module, root / "few", seed=3, target_modules=["q_proj"])
    made["dora"] = lora(module, root / "dora", seed=4, use_dora=True)
    return {n: str(p) for n, p in made.items()}


def mixed(base, folders, names=("one", "two"), **options):
    method = build("method", {"use": "meteora", "adapters": {n: folders[n] for n in names}, **options})
    torch.manual_seed(0)
    return method.prepare(load_base(base), None)


def alone(base, folder):
    """Scores of one LoRA by PEFT itself."""
    with torch.no_grad():
        return PeftModel.from_pretrained(load_base(base).module, folder).eval()(input_ids=IDS).logits


def said(model):
    model.module.eval()
    with torch.no_grad():
        return model.module(input_ids=IDS).logits


@pytest.mark.oracle(seed=109, clause=1, against="peft: the LoRA alone")
@pytest.mark.parametrize("name", ["one", "wide"])
def test_one_adapter_is_that_lora(name, pico, folders):
    wanted = alone(pico, folders[name])
    assert (wanted - load_base(pico).module(input_ids=IDS).logits).abs().max() > 0.1
    assert (said(mixed(pico, folders, (name,), top_k=1)) - wanted).abs().max() <= 1e-5


@pytest.mark.oracle(seed=109, clause=2, against="peft: the LoRA alone")
@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("forced", [0, 1, 2])
def test_a_forced_gate_gives_that_adapter(forced, top_k, pico, folders):
    names = ("one", "two", "wide")
    model = mixed(pico, folders, names, top_k=top_k, pad_ranks=True)
    for layer in gated_layers(model.module).values():
        layer.gate.register_forward_hook(lambda gate, given, out: out + 1e4 * torch.eye(3)[forced])
    assert (said(model) - alone(pico, folders[names[forced]])).abs().max() <= 1e-5


def by_hand(x, gate, stack, k, temperature=1.0):
    """What a token gets, one token and one adapter after the other."""
    rows = []
    for token in x:
        logits = (gate @ token).tolist()
        best = sorted(range(len(logits)), key=lambda i: -logits[i])[:k]
        weights = [math.exp(logits[i] / temperature) for i in best]
        rows.append(sum(w / sum(weights) * stack.scale[i] * (stack.B[i] @ (stack.A[i] @ token))
                        for w, i in zip(weights, best, strict=True)))
    return torch.stack(rows)


def gate_of(adapters=5, rank=3, top_k=2, **options):
    make = torch.Generator().manual_seed(1)
    made = Gate(GatedConfig(names=[str(i) for i in range(adapters)], rank=rank, top_k=top_k, **options), (8, 6), torch.zeros(1))
    with torch.no_grad():
        for tensor in (made.gate.weight, made.stack.A, made.stack.B, made.stack.scale):
            tensor.copy_(torch.randn(tensor.shape, generator=make))
    return made, torch.randn(40, 8, generator=make)


@pytest.mark.oracle(seed=109, clause=3, against="closed form: softmax over all, then the k largest renormalised")
def test_weights_are_the_renormalised_softmax_over_all():
    gate, x = gate_of()
    found = gate.choose(x)
    all_of = (x @ gate.gate.weight.T).softmax(-1)
    top, at = all_of.topk(2, -1)
    assert torch.equal(found.chosen, at)
    assert torch.allclose(found.weights, top / top.sum(-1, keepdim=True), atol=1e-6)
    assert torch.allclose(found.shares.sum(-1), torch.ones(40)) and int((found.shares > 0).sum()) == 80


@pytest.mark.oracle(seed=109, clause=4, against="brute force: a loop over tokens and adapters")
@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_sorted_and_gathered_tokens_get_what_a_loop_gives_them(top_k):
    gate, x = gate_of(top_k=top_k)
    gate.eval()
    wanted = by_hand(x, gate.gate.weight, gate.stack, top_k)
    routed = gate.choose(x)
    for path in (Stack.grouped, Stack.gathered):
        assert torch.allclose(path(gate.stack, x, routed.chosen, routed.weights), wanted, atol=1e-5)
    with torch.no_grad():
        for tokens in (3, 40):  # which takes the one path, and the other
            assert torch.allclose(gate(x[:tokens]), wanted[:tokens], atol=1e-5)
        assert torch.allclose(gate(x.view(4, 10, 8)), wanted.view(4, 10, 6), atol=1e-5)


@pytest.mark.oracle(seed=109, clause=4, against="the code of MeteoRA's authors")
@pytest.mark.parametrize("record", METEORA["records"], ids=lambda r: f"k={r['top_k']},T={r['temperature']}")
def test_answers_and_gradients_are_those_of_the_authors_code(record):
    """Its temperature holds in training too, which ours leaves at 1."""
    size = SimpleNamespace(**METEORA["sizes"])
    config = GatedConfig(names=[f"a{i}" for i in range(size.adapters)], rank=size.rank, top_k=record["top_k"],
                         temperature=record["temperature"], trained=True)
    gate = Gate(config, (size.inputs, size.outputs), torch.zeros(1)).eval()
    stacked = wave(size.outputs, size.adapters * size.rank, shift=3).view(size.outputs, size.adapters, size.rank)
    with torch.no_grad():
        gate.gate.weight.copy_(wave(size.adapters, size.inputs, shift=1))
        gate.stack.A.copy_(wave(size.adapters * size.rank, size.inputs, shift=2).view(gate.stack.A.shape))
        gate.stack.B.copy_(stacked.transpose(0, 1))
        gate.stack.scale.copy_(torch.arange(size.adapters) + 1.0)
    x = wave(2, size.tokens // 2, size.inputs, shift=4, scale=2.0)
    base = x @ wave(size.outputs, size.inputs).T
    weights = [gate.gate.weight, gate.stack.A, gate.stack.B]
    out = base + gate(x)
    assert far(out, record["batched"]) <= 2e-6 and far(out, record["looped"]) <= 2e-6
    aim = wave(*out.shape, shift=0.9)
    for found, wanted, part in zip(torch.autograd.grad((out * aim).sum(), weights), record["gradients"], "gAB", strict=True):
        found = found.transpose(0, 1).reshape(size.outputs, -1) if part == "B" else found
        if part != "g" or record["top_k"] > 1:
            assert far(found, wanted) <= 5e-6, part
        else:
            assert not any(wanted) and found.abs().max() == 0, "one adapter has all the weight"


@pytest.mark.oracle(seed=109, clause=4, against="autograd through one dense product an adapter")
def test_the_sorted_path_has_the_gradient_of_the_dense_sum():
    gate, x = gate_of(trained=True)
    x.requires_grad_(True)
    tensors = [x, gate.gate.weight, gate.stack.A, gate.stack.B]
    (gate(x) ** 2).sum().backward()
    found = [t.grad.clone() for t in tensors]
    for t in tensors:
        t.grad = None
    dense = torch.einsum("tn,n,nor,nri,ti->to", gate.choose(x).shares, gate.stack.scale, gate.stack.B, gate.stack.A, x)
    (dense ** 2).sum().backward()
    assert all(torch.allclose(a, t.grad, rtol=1e-4, atol=1e-4) for a, t in zip(found, tensors, strict=True))


@pytest.mark.oracle(seed=109, clause=5, against="the adapters as they lie in their folders")
def test_only_gates_move_and_adapters_stay_as_they_are(pico, folders, make_ctx):
    model = mixed(pico, folders)
    assert {n.rsplit(".", 2)[-2] for n, p in model.module.named_parameters() if p.requires_grad} == {"gate"}
    objective = build("objective", "gate-supervised")
    loop = make_loop(model, objective, encode_routed(objective, model), make_ctx("fit"), steps=2)
    loop.train()
    for name, layer in gated_layers(model.module).items():
        assert layer.stack.A.grad is None and layer.stack.B.grad is None
        for i, folder in enumerate(("one", "two")):
            kept = load_file(f"{folders[folder]}/adapter_model.safetensors")
            assert torch.equal(layer.stack.A[i], kept[f"base_model.model.{name}.lora_A.weight"])
            assert torch.equal(layer.stack.B[i], kept[f"base_model.model.{name}.lora_B.weight"])
    both = mixed(pico, folders, train="gates+loras")
    assert {n.rsplit(".", 1)[-1] for n, p in both.module.named_parameters() if p.requires_grad} == {"weight", "A", "B"}


@pytest.mark.oracle(seed=109, clause=6, against="closed form: the limit 1 / k")
def test_a_high_temperature_weighs_the_chosen_alike():
    gate, x = gate_of(top_k=3, temperature=1e9)
    assert not torch.allclose(gate.choose(x).weights, torch.full((40, 3), 1 / 3), atol=1e-2), "T is 1 while training"
    gate.eval()
    assert torch.allclose(gate.choose(x).weights, torch.full((40, 3), 1 / 3), atol=1e-6)
    gate.temperature = 4.0
    assert torch.allclose(gate(x), by_hand(x, gate.gate.weight, gate.stack, 3, 4.0), atol=1e-5)


# --- the gates' loss -----------------------------------------------------------------------------------------------

def encode_routed(objective, model, routes=("one", "two")):
    made = examples(6)
    for e in made:
        e.meta["task"] = routes[("thing", "word").index(e.meta["task"])]
    from luthier.core.rng import Rng
    from luthier.engine.rendering import renderer

    render = renderer(model, 128, routes=routes)
    return [objective.encode(e, render, Rng(0)) for e in made]


def fitted(make_ctx, base, folders, **changed):
    inputs = {"base": base, "examples": training_data(make_ctx("examples"))}
    method = {"use": "meteora", "adapters": {"thing": folders["one"], "word": folders["two"]}}
    task = {"data": "examples.train", "objective": "gate-supervised"}
    fit = short_fit("decoder", method=method, tasks=(task,), learning_rate=3e-2, length={"steps": 30}, **changed)
    return fit.run(inputs, make_ctx("fit", inputs)), fit


def test_gates_learn_their_rows_and_are_kept(make_ctx, pico, folders):
    from luthier.core.files import read_lines

    artifact, fit = fitted(make_ctx, pico, folders)
    curve = read_lines(artifact.folder / "curve.jsonl")
    # What all rows begin with ("Passage: A …") belongs to no adapter, so not all tokens can be told.
    assert curve[-1]["gate_accuracy"] > 0.75 > 0.6 > curve[0]["gate_accuracy"]
    config = json.loads((artifact.folder / "adapter_config.json").read_text())
    assert config["names"] == ["thing", "word"] and config["top_k"] == 2
    model = add_tuned(load_base(pico), artifact)
    assert routing.routes(model) == ("thing", "word")
    shares = torch.tensor(routing.trace(model, [7, 8, 9]))
    assert shares.shape == (3, 2) and torch.allclose(shares.sum(1), torch.ones(3))
    before = tuned_logits(model)
    with routing.tempered(model, 1e6):
        warm = tuned_logits(model)
    assert (warm - before).abs().max() > 1e-3 and torch.equal(tuned_logits(model), before)
    assert fit.content()["meteora"].keys() == {"adapter/thing", "adapter/word"}
    with pytest.raises(UserError, match="each token takes others"):
        model.module.merge_and_unload()


def test_an_adapter_may_be_an_input_of_the_training(make_ctx, pico):
    inputs = {"base": pico, "examples": training_data(make_ctx("examples"))}
    adapter = short_fit("decoder", method="lora:rank=2", length={"steps": 2}).run(inputs, make_ctx("lora", inputs))
    inputs["tuned"] = adapter
    fit = short_fit("decoder", method="meteora:adapters={thing: tuned},top_k=1", length={"steps": 1})
    artifact = fit.run(inputs, make_ctx("fit", inputs))
    wanted = tuned_logits(add_tuned(load_base(pico), adapter))
    assert (tuned_logits(add_tuned(load_base(pico), artifact)) - wanted).abs().max() <= 1e-5


# --- what can't be -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("names, options, wanted", [
    (("one", "few"), {}, r"other target layers: \d+ only in 'one' \(such as .*\)\. Train all with one target"),
    (("one", "wide"), {}, "ranks differ: 'one' 4, 'wide' 6. Set pad_ranks=true"),
    (("one", "dora"), {}, "adapter 'dora' .* is not plain LoRA: use_dora is True"),
    (("one", "two"), {"top_k": 3}, "top_k = 3, and there are 2 adapters"),
])
def test_adapters_that_do_not_belong_together_are_refused(names, options, wanted, pico, folders):
    with pytest.raises(UserError, match=wanted):
        mixed(pico, folders, names, **options)


def test_adapters_of_another_base_are_refused(pico, pico_encoder, folders, tmp_path):
    import shutil

    with pytest.raises(UserError, match="which is not there in pico-encoder. It belongs to another base"):
        mixed(pico_encoder, folders)
    shutil.copytree(folders["one"], tmp_path / "other")
    config = tmp_path / "other" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": "elsewhere"}))
    with pytest.raises(UserError, match="on the base .*, 'other' on elsewhere. All adapters must have one base"):
        mixed(pico, {**folders, "other": str(tmp_path / "other")}, ("two", "other"))


def test_folders_are_looked_at_before_anything_is_loaded(folders, tmp_path):
    def fit(adapters):
        return Fit(method={"use": "meteora", "adapters": adapters, "top_k": 1})

    with pytest.raises(UserError, match="adapter 'x' is .*/none, but it does not exist"):
        fit({"one": folders["one"], "x": f"{tmp_path}/none"}).check()
    with pytest.raises(UserError, match="but it has no adapter_config.json"):
        fit({"x": str(tmp_path)}).check()
    with pytest.raises(UserError, match="two adapters are called 'one'"):
        build("method", {"use": "meteora", "adapters": [folders["one"], f"{tmp_path}/one"]})
    assert build("method", {"use": "meteora", "adapters": [folders["one"], folders["two"]]}).routes == ("one", "two")


@pytest.mark.parametrize("task, wanted", [({}, "Row q0 names no task. Each row needs a key 'task'.*: thing, word"),
                                          ({"task": "other"}, "Row q0 names the task 'other'")])
def test_a_row_without_its_task_is_refused(task, wanted, make_ctx, pico, folders):
    from luthier.core.artifact import write_examples

    rows = examples(4)
    rows[0].meta.pop("task")
    rows[0].meta.update(task)
    inputs = {"base": pico, "examples": write_examples(make_ctx("examples").folder, {"train": rows})}
    fit = short_fit("decoder", method={"use": "meteora", "adapters": {"thing": folders["one"], "word": folders["two"]}},
                    tasks=({"data": "examples.train", "objective": "gate-supervised"},))
    with pytest.raises(UserError, match=wanted):
        fit.run(inputs, make_ctx("fit", inputs))
    inputs["examples"] = write_examples(make_ctx("more").folder, {"train": rows})
    free = fit.model_copy(update={"tasks": (fit.tasks[0].model_copy(update={
        "objective": build("objective", "gate-supervised:beta=0")}),), "length": type(fit.length)(steps=1)})
    free.run(inputs, make_ctx("free", inputs))


def test_a_model_without_gates_is_refused(make_ctx, pico):
    model = load_base(pico)
    with pytest.raises(UserError, match="gate_temperature = 15: pico has no gates"), routing.tempered(model, 15):
        pass
    with pytest.raises(UserError, match="nothing to trace: pico has no gates"):
        routing.trace(model, [1, 2])
    inputs = {"base": pico, "examples": training_data(make_ctx("examples"))}
    fit = short_fit("decoder", tasks=({"data": "examples.train", "objective": "gate-supervised"},))
    with pytest.raises(UserError, match="teaches gates, and the method has none"):
        fit.run(inputs, make_ctx("fit", inputs))

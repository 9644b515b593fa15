"""LoRA against closed forms: nothing at the start, the counted number of weights, an update of bounded rank."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.engine.models import Model, add_tuned, load_base
from luthier.techniques.methods._shared import linear_names, lora_layers
from tests.contracts.workbench import make_batch, short_fit, training_data, tuned_logits
from tests.recorded import apart, far, fill, recorded, wave

LORALIB = recorded("lora_loralib")
ARCHITECTURES = ["decoder", "encoder", "encoder-decoder"]


def fresh(base, spec: str) -> Model:
    torch.manual_seed(0)
    return build("method", spec).prepare(load_base(base), None)


def scores(model: Model) -> torch.Tensor:
    """Hidden states or vocabulary scores on fixed ids, evaluation mode."""
    model.module.eval()
    ids = torch.arange(5, 25).view(2, 10)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.architecture == "encoder-decoder":
        given["decoder_input_ids"] = ids
    with torch.no_grad():
        out = model.module(**given)
    return out.last_hidden_state if model.architecture == "encoder" else out.logits


def trained(model: Model) -> dict[str, torch.Tensor]:
    return {n: p for n, p in model.module.named_parameters() if p.requires_grad}


@pytest.fixture
def tuned(make_ctx, pico):
    """A trained adapter on pico, rank 3."""
    inputs = {"base": pico, "examples": training_data(make_ctx("examples"))}
    return short_fit("decoder", method="lora:rank=3,alpha=12").run(inputs, make_ctx("fit", inputs))


@pytest.mark.oracle(seed=114, clause=1, against="the base itself")
@pytest.mark.oracle(seed=167, clause=4, against="the base itself")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("spec", ["lora", "lora:target=attention-qv,rank=4", "lora:rslora=true,alpha=7,dropout=0.5"])
def test_a_fresh_adapter_is_the_base_bit_for_bit(spec, architecture, bases):
    assert torch.equal(scores(fresh(bases[architecture], spec)), scores(load_base(bases[architecture])))


def test_an_adapter_that_does_not_start_at_zero_is_seen(pico):
    """A mutant: B drawn at random instead of zero."""
    model = fresh(pico, "lora")
    with torch.no_grad():
        for name, weight in trained(model).items():
            if "lora_B" in name:
                weight.normal_(0, 0.02)
    assert not torch.equal(scores(model), scores(load_base(pico)))


@pytest.mark.oracle(seed=114, clause=5, against="closed form: sum of rank * (in + out)")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("rank", [1, 4, 8])
def test_the_number_of_trained_weights_is_the_closed_form(architecture, rank, bases):
    plain = load_base(bases[architecture])
    wanted = sum(rank * (rows + columns) for rows, columns in linear_names(plain).values())
    assert sum(p.numel() for p in trained(fresh(bases[architecture], f"lora:rank={rank}")).values()) == wanted


@pytest.mark.oracle(seed=114, clause=5, against="closed form: 2 * L * d_model * rank")
def test_square_layers_count_two_layers_width_rank(pico_encoder):
    model = fresh(pico_encoder, "lora:target=attention-qv,rank=4")
    layers, width = 2 * model.module.config.num_hidden_layers, model.width
    assert sum(p.numel() for p in trained(model).values()) == 2 * layers * width * 4


@pytest.mark.oracle(seed=114, clause=5, against="the paper's own numbers")
@pytest.mark.parametrize("rank, millions", [(1, 4.7), (4, 18.9)])
def test_the_formula_gives_the_counts_of_the_paper(rank, millions):
    assert round(2 * (2 * 96) * 12288 * rank / 1e6, 1) == millions


@pytest.mark.oracle(seed=114, clause=2, against="closed form: W0 + alpha / rank * B A")
def test_the_update_has_the_rank_and_the_scale_that_were_asked_for(tuned, pico):
    model = add_tuned(load_base(pico), tuned)
    plain = dict(load_base(pico).module.named_modules())
    layers = {n: m for n, m in model.module.named_modules() if hasattr(m, "lora_A")}
    merged = copy.deepcopy(model.module).merge_and_unload()
    assert len(layers) == len(linear_names(load_base(pico)))
    for name, layer in layers.items():
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        short = name.removeprefix("base_model.model.")
        moved = dict(merged.named_modules())[short].weight - plain[short].weight
        assert torch.allclose(moved, 12 / 3 * b @ a, atol=1e-6), "alpha / rank times B A"
        kept = torch.linalg.svdvals(moved.double())
        assert int((kept > 1e-5 * kept[0]).sum()) <= 3
        assert not torch.allclose(moved, 1.05 * 12 / 3 * b @ a, atol=1e-6), "a mutant of 5 % would be seen"


@pytest.mark.oracle(seed=114, clause=2, against="the adapter itself, merged")
def test_merged_and_unmerged_agree(tuned, pico):
    model = add_tuned(load_base(pico), tuned)
    apart = scores(model)
    model.module = model.module.merge_and_unload()
    assert (scores(model) - apart).abs().max() <= 1e-5
    assert (scores(load_base(pico)) - apart).abs().max() > 1e-3, "training moved something"


@pytest.mark.oracle(seed=114, clause=2, against="loralib 0.1.2")
@pytest.mark.parametrize("record", LORALIB["records"], ids=lambda r: f"rank={r['rank']},alpha={r['alpha']}")
def test_unmerged_and_merged_it_is_loralib_s(record, pico):
    """Logits, gradients of A and B, and a merged weight, with the weights of the fixture."""
    from transformers import LlamaConfig, LlamaForCausalLM

    base = LlamaForCausalLM(LlamaConfig(**LORALIB["config"])).float().requires_grad_(False)
    fill(base)
    method = build("method", {"use": "lora", "rank": record["rank"], "alpha": record["alpha"], "target": LORALIB["layers"]})
    model = method.prepare(replace(load_base(pico), module=base), None)
    weights = [w["default"].weight for layer in lora_layers(model.module).values() for w in (layer.lora_A, layer.lora_B)]
    with torch.no_grad():
        for n, p in enumerate(weights):
            p.copy_(wave(*p.shape, shift=n))
    ids = torch.tensor(LORALIB["ids"])
    logits = model.module(input_ids=ids).logits
    gradients = torch.autograd.grad((logits * wave(*logits.shape, shift=LORALIB["aim"])).sum(), weights)
    assert far(logits, record["logits"]) <= 1e-6 and apart(gradients, record["gradients"]) <= 2e-6
    merged = model.module.merge_and_unload()
    assert far(merged.get_submodule(record["merged"]["layer"]).weight, record["merged"]["weight"]) <= 1e-6
    with torch.no_grad():
        assert far(merged(input_ids=ids).logits, record["merged"]["logits"]) <= 1e-6


def regression(rank: int, truth: torch.Tensor, make: torch.Generator) -> tuple[torch.Tensor, float]:
    """The update that PEFT's layer learns for y = (W0 + truth) x, and the loss that is left."""
    from peft import LoraConfig, get_peft_model

    rows, columns = truth.shape
    model = nn.Sequential(nn.Linear(columns, rows, bias=False))
    x = torch.randn(200, columns, generator=make)
    y = x @ (model[0].weight.detach() + truth).T
    torch.manual_seed(3)
    wrapped = get_peft_model(model, LoraConfig(r=rank, lora_alpha=rank, target_modules=["0"]))
    optimizer = torch.optim.LBFGS([p for p in wrapped.parameters() if p.requires_grad], max_iter=400,
                                  tolerance_grad=1e-12, tolerance_change=1e-14, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = (wrapped(x) - y).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    layer = wrapped.base_model.model[0]
    return layer.get_delta_weight("default").detach(), float(closure())


@pytest.mark.oracle(seed=114, clause=3, against="least squares")
def test_full_rank_reaches_the_optimum_of_full_tuning():
    make = torch.Generator().manual_seed(0)
    truth = torch.randn(5, 6, generator=make)
    delta, loss = regression(5, truth, make)
    assert loss <= 1e-6 and (delta - truth).abs().max() <= 1e-3


@pytest.mark.oracle(seed=114, clause=4, against="the planted truth")
def test_a_truth_of_low_rank_is_found():
    make = torch.Generator().manual_seed(1)
    truth = torch.randn(6, 2, generator=make) @ torch.randn(2, 8, generator=make)
    delta, loss = regression(2, truth, make)
    assert (delta - truth).abs().max() <= 1e-3 and loss <= 1e-6
    assert regression(1, truth, make)[1] > 1e-2, "rank 1 can't: the test can fail"


@pytest.mark.oracle(seed=114, clause=8, against="peft")
def test_the_saved_adapter_loads_in_plain_peft(tuned, pico):
    from peft import PeftModel

    plain = load_base(pico)
    ours = tuned_logits(add_tuned(load_base(pico), tuned))
    plain.module = PeftModel.from_pretrained(plain.module, str(tuned.folder)).eval()
    assert (tuned_logits(plain) - ours).abs().max() <= 1e-6


@pytest.mark.parametrize("spec, said", [
    ("lora:target=[nothing]", "no linear layer is called nothing. This model has: .*q_proj"),
    ("lora:target=[q_proj, nothing]", "no linear layer is called nothing. This model has: .*q_proj"),
    ("lora:target=[proj]", "no linear layer is called proj"),
    ("lora:rank=65", "rank = 65 is above 32, the smallest side"),
    ("lora:rank=0", "rank = 0"),
])
def test_what_can_not_be_is_refused(spec, said, pico):
    with pytest.raises(UserError, match=said):
        fresh(pico, spec)


def test_a_target_is_the_end_of_a_path_in_one_layer_or_in_all(pico):
    layers = load_base(pico).module.config.num_hidden_layers
    count = {target: len(trained(fresh(pico, f"lora:target=[{target}],rank=2"))) // 2
             for target in ("up_proj", "mlp.up_proj", "layers.1.mlp.up_proj", "1.mlp.up_proj")}
    assert layers > 1 and list(count.values()) == [layers, layers, 1, 1]


def test_dropout_is_for_training_only(pico):
    model = fresh(pico, "lora:dropout=0.9")
    with torch.no_grad():
        for name, weight in trained(model).items():
            if "lora_B" in name:
                weight.normal_()
    assert torch.equal(scores(model), scores(model))
    batch = make_batch([{"input": _row(model)}], model)["input"]
    model.module.train()
    torch.manual_seed(0)
    first = model.module(input_ids=batch.ids).logits
    assert not torch.equal(first, model.module(input_ids=batch.ids).logits)


def _row(model):
    from luthier.core.example import question
    from luthier.engine.rendering import renderer

    return renderer(model, 64).tokens(question("q", "What?", "This."))

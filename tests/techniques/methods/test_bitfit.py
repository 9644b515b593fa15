"""BitFit against closed forms: which biases, how many, and what else stays as it was."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.engine.models import add_tuned, load_base
from tests.contracts import dummies
from tests.contracts.workbench import short_fit, training_data, tuned_logits
from tests.recorded import recorded


def prepared(base, spec: str = "bitfit"):
    return build("method", spec).prepare(load_base(base), None)


def trained(model) -> dict[str, torch.Tensor]:
    return {n: p for n, p in model.module.named_parameters() if p.requires_grad}


def closed_form(layers: int, width: int, inner: int) -> int:
    """Biases of a BERT: 5 d of the five square-output layers, 2 d of two norms, d_ff; embedding norm and pooler."""
    return layers * (7 * width + inner) + 2 * width


@pytest.mark.oracle(seed=153, clause=1, against="closed form: L (7 d + d_ff) + 2 d")
def test_the_number_of_biases_is_the_closed_form(pico_encoder):
    model = prepared(pico_encoder)
    config = model.module.config
    count = sum(p.numel() for p in trained(model).values())
    assert count == closed_form(config.num_hidden_layers, config.hidden_size, config.intermediate_size)
    assert closed_form(12, 768, 3072) == 102_912, "BERT-base, as published"


@pytest.mark.oracle(seed=153, clause=1, against="the code of BitFit's authors")
@pytest.mark.parametrize("record", recorded("bitfit")["records"], ids=lambda r: "+".join(r["components"]))
def test_what_is_trained_is_what_the_authors_code_trains(record, pico_encoder):
    """Of some components it trains the pooler's bias besides; ours are those that were named."""
    from transformers import BertConfig, BertModel

    base = BertModel(BertConfig(**recorded("bitfit")["config"])).requires_grad_(False)
    method = build("method", {"use": "bitfit", "terms": record["terms"]})
    found = trained(method.prepare(replace(load_base(pico_encoder), module=base), None))
    more = {"pooler.dense.bias"} if record["terms"] else set()
    assert set(found) == set(record["names"]) - more and more <= set(record["names"])
    assert sum(p.numel() for p in found.values()) == record["count"] - 16 * len(more)


@pytest.fixture
def tuned(make_ctx, pico_encoder):
    inputs = {"base": pico_encoder, "examples": training_data(make_ctx("examples"))}
    fit = short_fit("encoder", method="bitfit", regularizers=("dummy-spy",))
    return fit.run(inputs, make_ctx("fit", inputs)), dict(dummies.SPIED)


@pytest.mark.oracle(seed=153, clause=2, against="the base itself, bit for bit")
def test_only_biases_and_the_head_move(tuned, pico_encoder):
    artifact, seen = tuned
    assert all(n.endswith("bias") or ":" in n for n in seen["moved"]) and any(":" in n for n in seen["moved"])
    base, model = load_base(pico_encoder), add_tuned(load_base(pico_encoder), artifact)
    own = dict(base.module.named_parameters())
    moved = {n for n, p in model.module.named_parameters() if not torch.equal(p, own[n])}
    assert moved and all(n.endswith("bias") for n in moved)


@pytest.mark.oracle(seed=153, clause=3, against="the base itself, bit for bit")
def test_biases_that_have_not_moved_change_nothing(pico_encoder):
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        before, after = (model.module(input_ids=ids).last_hidden_state
                         for model in (load_base(pico_encoder), prepared(pico_encoder)))
    assert torch.equal(before, after)


@pytest.mark.oracle(seed=153, clause=4, against="the trained model in memory")
def test_saved_and_loaded_gives_the_same_scores(tuned, pico_encoder):
    artifact, seen = tuned
    assert (tuned_logits(add_tuned(load_base(pico_encoder), artifact)) - seen["logits"]).abs().max() <= 1e-6


@pytest.mark.oracle(seed=153, clause=4, against="transformers, on the whole model saved with its biases in place")
def test_biases_written_into_the_model_give_the_same_states(tuned, pico_encoder, tmp_path):
    from transformers import AutoModel

    model, ids = add_tuned(load_base(pico_encoder), tuned[0]), torch.arange(5, 15)[None]
    model.module.save_pretrained(tmp_path / "whole")
    merged = AutoModel.from_pretrained(tmp_path / "whole").eval()
    with torch.no_grad():
        apart, whole, base = (m(input_ids=ids).last_hidden_state
                              for m in (model.module.eval(), merged, load_base(pico_encoder).module))
    assert (apart - whole).abs().max() <= 1e-6 < (base - whole).abs().max()


@pytest.mark.oracle(seed=153, clause=5, against="closed form: the mean residual")
def test_the_best_bias_of_a_linear_model_is_the_mean_residual():
    make = torch.Generator().manual_seed(0)
    x, y = torch.randn(50, 4, generator=make), torch.randn(50, 3, generator=make)
    model = nn.Linear(4, 3)
    holder = type("Model", (), {"module": model.requires_grad_(False), "name": "linear", "heads": {}})()
    prepared = build("method", "bitfit").prepare(holder, None)
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    trained = [p for p in prepared.module.parameters() if p.requires_grad]
    optimizer = torch.optim.LBFGS(trained, max_iter=50)

    def closure():
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    residual = (y - x @ start["weight"].T - start["bias"]).mean(0)
    assert torch.allclose(model.bias - start["bias"], residual, atol=1e-4)
    assert torch.equal(model.weight, start["weight"])


def test_a_part_of_the_biases_may_be_chosen(pico_encoder):
    chosen = trained(prepared(pico_encoder, "bitfit:terms=[query, intermediate]"))
    assert chosen and all("query" in n or "intermediate" in n for n in chosen)
    assert len(chosen) < len(trained(prepared(pico_encoder)))


def test_names_that_no_bias_has_are_refused_with_those_there_are(pico_encoder, pico):
    with pytest.raises(UserError, match="no bias is called nothing. This model has: .*query"):
        prepared(pico_encoder, "bitfit:terms=[nothing]")
    with pytest.raises(UserError, match="pico has no bias terms. Try --method lora"):
        prepared(pico)

"""The forward against the whole model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

from luthier.core.errors import LuthierError
from luthier.engine import output
from luthier.engine.forward import Forward, hidden_states, vocabulary_of
from luthier.engine.models import Model, load_base
from tests.contracts.workbench import examples, make_batch


@pytest.fixture(scope="module")
def decoder(pico):
    return load_base(pico)


def batch_of(model, count=5):
    from luthier.engine.rendering import renderer

    render = renderer(model, 128)
    return make_batch([{"input": render.tokens(e)} for e in examples(count)], model)["input"]


def test_the_loss_of_the_forward_is_the_loss_of_the_model(decoder):
    batch = batch_of(decoder)
    labels = batch.ids.masked_fill(~batch.targets, -100)
    with torch.no_grad():
        theirs = decoder.module(input_ids=batch.ids, attention_mask=batch.mask, labels=labels).loss
        out = Forward({"policy": decoder})("policy", batch)
    assert float(out.nll().mean()) == pytest.approx(float(theirs), abs=1e-5)
    assert len(out.nll()) == len(out.rows) == batch.learned
    assert torch.allclose(cross_entropy(out.logits(), batch.ids[batch.targets], reduction="none"), out.nll(), atol=1e-5)


def test_a_skipped_mask_is_seen(decoder):
    """A mutant: learning the prompt too must give another loss."""
    batch = batch_of(decoder)
    everything = replace(batch, targets=batch.mask.bool())
    with torch.no_grad():
        run = Forward({"policy": decoder})
        masked, unmasked = (run("policy", b).nll().mean() for b in (batch, everything))
    assert abs(float(masked - unmasked)) > 1e-3


def test_padding_changes_nothing(decoder):
    batch = batch_of(decoder)
    with torch.no_grad():
        whole = Forward({"policy": decoder})("policy", batch)
        for i in range(len(batch)):
            n = int(batch.mask[i].sum())
            one = replace(batch, ids=batch.ids[i:i + 1, :n], mask=batch.mask[i:i + 1, :n],
                          targets=batch.targets[i:i + 1, :n])
            alone = Forward({"policy": decoder})("policy", one).nll()
            assert torch.allclose(alone, whole.nll()[whole.rows == i], atol=1e-5)


def test_the_divergence_is_torchs(decoder, pico):
    other = load_base(pico)
    with torch.no_grad():
        other.module.get_input_embeddings().weight.add_(0.01)
    batch = batch_of(decoder)
    run = Forward({"policy": decoder, "reference": other})
    ours, theirs = run("policy", batch), run("reference", batch)
    logs = [o.logits().log_softmax(-1).double() for o in (ours, theirs)]
    wanted = kl_div(logs[0], logs[1], reduction="none", log_target=True).sum(-1)
    assert torch.allclose(ours.kl(theirs).double(), wanted, atol=1e-5)
    assert float(ours.kl(ours).abs().max()) <= 1e-6
    wanted = (ours.logits() - theirs.logits()).double().square().mean(-1)
    assert torch.allclose(ours.mse(theirs).double(), wanted, atol=1e-5)


@pytest.mark.parametrize("split", [True, False])
def test_every_number_of_a_position_is_that_of_its_scores(decoder, split):
    batch = batch_of(decoder)
    with torch.no_grad():
        out = hidden_states(decoder, batch, vocabulary_of(decoder) if split else None)
        scores = out.logits().double()
    targets, logs = batch.ids[batch.targets], scores.log_softmax(-1)
    wanted, ids = logs.topk(3)
    values, places = out.topk(3)
    total, weights = scores.logsumexp(-1), torch.linspace(0, 2, len(targets))
    penalised = weights * (cross_entropy(scores, targets, reduction="none") + 0.1 * total.square())
    pairs = [(out.log_sum(), total), (out.entropy(), -(logs.exp() * logs).sum(-1)), (values, wanted),
             (out.log_probabilities(ids), wanted), (out.nll(weights, z=0.1), penalised)]
    assert torch.equal(places, ids)
    for ours, theirs in pairs:
        assert torch.allclose(ours.double(), theirs, atol=1e-4)


def test_pooling_leaves_padding_out(pico_encoder):
    model = load_base(pico_encoder)
    from luthier.engine.rendering import Render

    render = Render(model.tokenizer, model.architecture, 64)
    batch = make_batch([{"input": render.text(e)} for e in examples(3)], model)["input"]
    with torch.no_grad():
        out = hidden_states(model, batch, None)
        states = model.module(input_ids=batch.ids, attention_mask=batch.mask).last_hidden_state
    for i in range(3):
        n = int(batch.mask[i].sum())
        assert torch.allclose(out.pooled()[i], states[i, :n].mean(0), atol=1e-5)


def test_layers_are_given_when_they_are_asked_for(decoder):
    batch = batch_of(decoder, 2)
    with torch.no_grad():
        out = Forward({"policy": decoder})("policy", batch, layers=True)
        real = batch.mask.bool()
        assert torch.equal(out.hidden(0)[real], decoder.module.get_input_embeddings()(batch.ids)[real])
        assert out.hidden(-1).shape == (*batch.ids.shape, decoder.width)
        with pytest.raises(LuthierError, match="layers=True"):
            Forward({"policy": decoder})("policy", batch).hidden(0)


def test_embeddings_may_replace_ids(decoder):
    batch = batch_of(decoder, 2)
    with torch.no_grad():
        embeds = decoder.module.get_input_embeddings()(batch.ids)
        run = Forward({"policy": decoder})
        assert torch.equal(run("policy", batch, embeds=embeds).nll(), run("policy", batch).nll())


def test_too_many_scores_are_refused(decoder, monkeypatch):
    monkeypatch.setattr(output, "LOGITS_LIMIT", 10)
    with torch.no_grad(), pytest.raises(LuthierError, match="use nll"):
        Forward({"policy": decoder})("policy", batch_of(decoder)).logits()


# --- which models have a head that can be split off ----------------------------------------------------------------

def variant(decoder: Model, kind: str) -> Model:
    """A tiny decoder of another family with the tokenizer of pico."""
    from transformers import Gemma2Config, Gemma2ForCausalLM, GraniteConfig, GraniteForCausalLM

    sizes = {"vocab_size": len(decoder.tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
             "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 256, "pad_token_id": 0}
    torch.manual_seed(0)
    module = GraniteForCausalLM(GraniteConfig(**sizes, logits_scaling=4.0)) if kind == "scaled" else \
        Gemma2ForCausalLM(Gemma2Config(**sizes, head_dim=16, final_logit_softcapping=2.0))
    with torch.no_grad():
        module.get_output_embeddings().weight.mul_(30)
    return replace(decoder, module=module.eval().requires_grad_(False), heads={})


def test_a_model_that_scales_its_scores_is_asked_as_a_whole(decoder):
    model = variant(decoder, "scaled")
    assert vocabulary_of(model) is None
    assert_same_as_whole(model)


def test_a_cap_on_the_scores_is_part_of_the_head(decoder):
    model = variant(decoder, "capped")
    head, cap = vocabulary_of(model)
    assert cap == 2.0 and head is model.module.get_output_embeddings()
    assert_same_as_whole(model)
    batch = batch_of(model)
    with torch.no_grad():  # a mutant: the cap forgotten
        whole, uncapped = (hidden_states(model, batch, v).nll().mean() for v in (None, (head, None)))
    assert abs(float(whole - uncapped)) > 1e-3


def assert_same_as_whole(model: Model) -> None:
    batch = batch_of(model)
    labels = batch.ids.masked_fill(~batch.targets, -100)
    with torch.no_grad():
        theirs = model.module(input_ids=batch.ids, attention_mask=batch.mask, labels=labels).loss
        ours = Forward({"policy": model})("policy", batch).nll().mean()
    assert float(ours) == pytest.approx(float(theirs), abs=1e-4)


def test_plain_models_are_split(decoder, pico_encoder, pico_encoder_decoder):
    assert vocabulary_of(decoder)[0] is decoder.module.get_output_embeddings()
    assert vocabulary_of(load_base(pico_encoder)) is None
    t5 = load_base(pico_encoder_decoder)
    split = vocabulary_of(t5)
    assert split is None or split[0] is t5.module.get_output_embeddings()
    batch = batch_of(t5)
    labels = batch.decoder_ids[:, 1:].masked_fill(~batch.targets[:, 1:], -100)
    with torch.no_grad():
        theirs = t5.module(input_ids=batch.ids, attention_mask=batch.mask, labels=labels).loss
        ours = Forward({"policy": t5})("policy", batch).nll().mean()
    assert float(ours) == pytest.approx(float(theirs), abs=1e-5)


def test_an_adapter_on_the_head_is_not_passed_over(pico):
    import peft

    model = load_base(pico)
    model.module = peft.get_peft_model(model.module, peft.LoraConfig(target_modules=["lm_head"], init_lora_weights=True))
    assert vocabulary_of(model) is None, "its weight alone would leave out what the adapter learns"
    batch = batch_of(model, 2)
    before = Forward({"policy": model})("policy", batch).nll()
    with torch.no_grad():
        for name, parameter in model.module.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    assert not torch.allclose(Forward({"policy": model})("policy", batch).nll(), before)

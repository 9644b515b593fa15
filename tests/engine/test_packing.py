"""A pack gives every row what it would have had alone: values, gradients, windows, shared beginnings."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
)

from luthier.core.kinds import Tokens
from luthier.engine import packing
from luthier.engine.batches import collate, packs_of
from luthier.engine.forward import Forward, hidden_states, packs, vocabulary_of
from luthier.engine.models import Model, load_base
from luthier.engine.packing import SHARED_TOKENS, Packed, Segment, pack, shared_beginnings

LENGTHS = (5, 23, 23, 40, 11, 1)


def gemma(window: int = 8, config=Gemma3TextConfig, model=Gemma3ForCausalLM, **more):
    """A Gemma with random weights: two layers of sliding windows to one of full attention, shared key heads."""
    torch.manual_seed(3)
    return model(config(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=1, head_dim=16, sliding_window=window, max_position_embeddings=256, pad_token_id=0,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"], **more)).eval()


def wrapped(module, architecture, base) -> Model:
    tokenizer = AutoTokenizer.from_pretrained(base.meta["path"])
    return Model(module, tokenizer, architecture, "test", "test", 256, base)


def batch_of(rows, learned=True):
    features = [{"input": Tokens(r, [False] + [learned] * (len(r) - 1))} for r in rows]
    return collate(features, [str(i) for i in range(len(rows))], 0)["input"]


def rows_of(lengths, seed=0, top=300):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, top, (n,), generator=generator).tolist() for n in lengths]


@pytest.fixture(params=["llama", "gemma3", "bert"])
def unasked(request, pico, pico_encoder):
    """A model as it is loaded."""
    if request.param == "llama":
        return load_base(pico)
    if request.param == "gemma3":
        return wrapped(gemma(), "decoder", pico)
    torch.manual_seed(0)
    config = BertConfig(vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                        max_position_embeddings=256)
    return wrapped(BertModel(config).eval(), "encoder", pico_encoder)


@pytest.fixture
def model(unasked):
    """A model that was asked whether it packs, and does."""
    assert packs(unasked)
    return unasked


def alone(model, rows, vocabulary):
    return [hidden_states(model, batch_of([r]), vocabulary).states[0] for r in rows]


def test_every_row_of_a_pack_is_what_it_is_alone(model):
    rows = rows_of(LENGTHS)
    vocabulary = vocabulary_of(model)
    with torch.no_grad():
        together = hidden_states(model, batch_of(rows), vocabulary, packed=True)
        for row, states, expected in zip(rows, together.states, alone(model, rows, vocabulary), strict=True):
            assert torch.allclose(states[:len(row)], expected, atol=2e-5)
    assert len(together.flat) == sum(LENGTHS), "no work on padding"


def test_rows_that_begin_alike_are_computed_once_and_see_the_same(model):
    if model.architecture == "encoder":
        pytest.skip("in an encoder the beginning sees the end: nothing can be shared")
    start = rows_of([30], seed=1)[0]
    rows = [start + r for r in rows_of([4, 9, 1, 20], seed=2)] + rows_of([12], seed=5)
    vocabulary = vocabulary_of(model)
    with torch.no_grad():
        together = hidden_states(model, batch_of(rows), vocabulary, packed=True)
        for row, states, expected in zip(rows, together.states, alone(model, rows, vocabulary), strict=True):
            assert torch.allclose(states[:len(row)], expected, atol=2e-5)
    assert len(together.flat) == 30 + 4 + 9 + 1 + 20 + 12


@pytest.mark.parametrize("shared", [False, True])
def test_gradients_are_those_of_the_rows_alone(model, shared):
    if shared and model.architecture == "encoder":
        pytest.skip("nothing is shared in an encoder")
    start = rows_of([SHARED_TOKENS + 3], seed=8)[0] if shared else []
    rows = [start + r for r in rows_of((6, 17, 9), seed=4)]
    weights = list(model.module.parameters())
    vocabulary = vocabulary_of(model)

    def gradients(packed: bool):
        model.module.requires_grad_(True).zero_grad(set_to_none=True)
        batches = [batch_of(rows)] if packed else [batch_of([r]) for r in rows]
        for batch in batches:
            out = hidden_states(model, batch, vocabulary, packed=packed)
            (out.nll().sum() if vocabulary else out.pooled().square().sum()).backward()
        found = [p.grad.clone() for p in weights if p.grad is not None]
        model.module.requires_grad_(False)
        return found

    for mine, expected in zip(gradients(True), gradients(False), strict=True):
        assert torch.allclose(mine, expected, atol=2e-5 * max(1.0, float(expected.abs().max())))


def test_embeds_may_replace_ids_in_a_pack(model):
    rows = rows_of((4, 9, 6))
    batch = batch_of(rows)
    with torch.no_grad():
        embeds = model.module.get_input_embeddings()(batch.ids)
        run = Forward({"policy": model})
        mine, expected = run("policy", batch, embeds=embeds), run("policy", batch)
        assert torch.allclose(mine.states[batch.mask.bool()], expected.states[batch.mask.bool()], atol=1e-5)


def test_layers_of_a_pack_are_those_of_the_padded_batch(model):
    batch = batch_of(rows_of((4, 9, 6)))
    with torch.no_grad():
        vocabulary = vocabulary_of(model)
        mine = hidden_states(model, batch, vocabulary, layers=True, packed=True)
        expected = hidden_states(model, batch, vocabulary, layers=True)
    real = batch.mask.bool()
    for layer in (0, 1, -1):
        assert torch.allclose(mine.hidden(layer)[real], expected.hidden(layer)[real], atol=2e-5)


def test_attention_that_caps_its_scores_is_not_packed(pico):
    model = wrapped(gemma(config=Gemma2Config, model=Gemma2ForCausalLM), "decoder", pico)
    assert not packs(model)


@pytest.mark.parametrize("mutant", ["a neighbour is seen", "the window is one too long", "positions forget the beginning"])
def test_mistakes_are_seen(mutant, pico, monkeypatch):
    """The comparison that decides whether a model packs, and the tests above, notice a broken layout."""
    model = wrapped(gemma(window=8), "decoder", pico)
    attend, position = Packed.attend, Segment.position.fget
    if mutant == "a neighbour is seen":
        monkeypatch.setattr(Packed, "attend", lambda self, layer, q, k, v, **named: attend(
            Packed([Segment(0, self.tokens)], self.device), layer, q, k, v, **named))
    elif mutant == "the window is one too long":
        monkeypatch.setattr(Packed, "attend", lambda self, *given, window, **named: attend(
            self, *given, window=None if window is None else window + 1, **named))
    else:
        monkeypatch.setattr(Segment, "position", property(lambda self: 0 if self.parent else position(self)))
    assert not packs(model)


def test_a_model_that_packs_computes_as_before_without_a_layout(unasked):
    batch = batch_of(rows_of(LENGTHS))
    vocabulary = vocabulary_of(unasked)
    with torch.no_grad():
        before = hidden_states(unasked, batch, vocabulary).states
        assert packs(unasked)
        assert torch.equal(hidden_states(unasked, batch, vocabulary).states, before)


@pytest.mark.parametrize("kind", ["causal", "masked", "open"])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)])
def test_both_ways_of_attention_agree_with_the_formula(kind, heads, monkeypatch):
    torch.manual_seed(0)
    asked, keyed = heads
    parts = [torch.randn(3, n, 6, 8, dtype=torch.float64, requires_grad=True) for n in (asked, keyed, keyed)]
    mask = torch.zeros(3, 1, 6, 6, dtype=torch.float64).masked_fill_(torch.rand(3, 1, 6, 6) < 0.3, float("-inf"))
    mask[..., 0] = 0
    seen = {"causal": torch.zeros(6, 6).masked_fill(torch.ones(6, 6).triu(1).bool(), float("-inf")), "masked": mask,
            "open": torch.zeros(6, 6)}[kind]
    q, k, v = (x.repeat_interleave(asked // x.shape[1], 1) for x in parts)
    expected = (q @ k.mT * 0.3 + seen).softmax(-1) @ v
    direction = torch.randn_like(expected)
    gradients = torch.autograd.grad(expected, parts, direction)
    for limit in (0, 100):
        monkeypatch.setattr(packing, "SHORT", limit)
        mine = packing.attention(*parts, mask if kind == "masked" else None, kind == "causal", 0.3, 0.0)
        assert torch.allclose(mine, expected, atol=1e-12)
        for a, b in zip(torch.autograd.grad(mine, parts, direction), gradients, strict=True):
            assert torch.allclose(a, b, atol=1e-12)


# --- what is shared, and what goes together ------------------------------------------------------------------------

@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 30), st.integers(1, 12)), min_size=1, max_size=8))
def test_a_pack_holds_every_token_once_in_its_own_order(made):
    starts = rows_of([40, 40, 40], seed=9)
    rows = [starts[which][:common] + [200 + i] * own for i, (which, common, own) in enumerate(made)]
    batch = batch_of(rows)
    packed = pack(batch.ids, batch.mask)
    shared = shared_beginnings(rows)
    for i, row in enumerate(rows):
        at = packed.place[i, :len(row)]
        assert packed.ids[0][at].tolist() == row
        assert packed.positions[0][at].tolist() == list(range(len(row)))
        assert shared[i] == 0 or SHARED_TOKENS <= shared[i] < len(row)
    assert packed.layout.tokens == packed.ids.shape[1] <= sum(map(len, rows))
    owners = torch.zeros(packed.layout.tokens)
    for i, row in enumerate(rows):
        own = packed.place[i, shared[i]:len(row)]
        owners[own] += 1
    assert int((owners == 1).sum()) == sum(len(r) - s for r, s in zip(rows, shared, strict=True))


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(1, 400), min_size=1, max_size=40), st.integers(1, 16), st.integers(50, 600))
def test_groups_hold_every_row_within_the_limits(lengths, most_rows, most_tokens):
    groups = packs_of(lengths, most_rows, most_tokens)
    assert sorted(i for g in groups for i in g) == list(range(len(lengths)))
    assert all(len(g) <= most_rows for g in groups)
    assert all(len(g) == 1 or sum(lengths[i] for i in g) <= most_tokens for g in groups)


def test_segments_of_one_length_need_no_padding():
    layout = Packed([Segment(0, 4), Segment(4, 4)], torch.device("cpu"))
    assert len(layout.buckets) == 1 and layout.buckets[0].even and layout.order is None
    assert packing.SIMILAR < 1

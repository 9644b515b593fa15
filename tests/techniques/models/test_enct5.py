"""EncT5: the first decoder layer as a head, against T5 itself; every problem from rows to labels."""

from __future__ import annotations

import pytest
import torch

from luthier.core.artifact import write_examples
from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.example import Example, Part, Turn
from luthier.core.files import read_lines
from luthier.core.kinds import DroppedRow
from luthier.core.rng import Rng
from luthier.engine.batches import collate
from luthier.engine.classification import classify, word_places
from luthier.engine.forward import Forward, answered
from luthier.engine.models import add_tuned, load_base
from luthier.engine.rendering import renderer
from luthier.engine.steps.fit import Fit

WORDS = "module class object list dict name scope block import yield".split()


@pytest.fixture
def base(pico_encoder_decoder):
    return pico_encoder_decoder


def text(name, said, label=None, tags=None):
    parts = [Part(said, name="text")]
    turns = [Turn("user", tuple(parts))]
    if tags is not None:
        turns.append(Turn("assistant", (Part(tags, type="array", name="tags"),), target=True))
    return Example(name, tuple(turns), task="classify", label=label)


def head(base_model, labels=("a", "b", "c"), **fields):
    torch.manual_seed(4)
    return build("head", {"use": "enct5", **fields}).build(base_model, list(labels)).eval()


def states_of(model, texts):
    batch = collate([{"input": renderer(model, 64).text(text(t, t))} for t in texts], list(texts), 0)["input"]
    with torch.no_grad():
        output = Forward({"policy": model})("policy", batch)
    return batch, output.states, output


# --- the oracle's clauses --------------------------------------------------------------------------------------------

@pytest.mark.oracle(seed=135, clause=1, against="transformers' T5")
def test_with_all_layers_and_the_pad_query_it_is_t5s_first_step(base):
    model = load_base(base)
    module, inner = head(model, decoder_layers=2), model.module
    rows = [7, 30, 111]
    with torch.no_grad():
        module.queries.copy_(inner.shared.weight[[inner.config.pad_token_id]])
        module.linear.weight.copy_(inner.lm_head.weight[rows])
        batch, states, _ = states_of(model, ["module class object", "yield"])
        wanted = inner(input_ids=batch.ids, attention_mask=batch.mask,
                       decoder_input_ids=torch.full((2, 1), inner.config.decoder_start_token_id)).logits[:, 0, rows]
        found = module(states, batch.mask)
        one = head(model, decoder_layers=1)
        one.load_state_dict({n: w for n, w in module.state_dict().items() if n in one.state_dict()})
    assert torch.allclose(found, wanted, atol=1e-5)
    assert not torch.allclose(one(states, batch.mask), wanted, atol=1e-3), "one layer less is another model"


def test_a_base_in_bfloat16_is_heard_in_float32(base):
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        model = load_base(base, dtype)
        module = head(model)
        _, _, output = states_of(model, ["module class object", "yield"])
        with torch.no_grad():
            found.append(answered(module, output))
        assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert torch.allclose(*found, atol=0.05) and not torch.equal(*found)


@pytest.mark.oracle(seed=135, clause=1, against="transformers' encoder")
def test_without_a_decoder_side_the_encoder_is_asked(base):
    model = load_base(base)
    batch, states, output = states_of(model, ["module class object", "yield"])
    with torch.no_grad():
        wanted = model.module.get_encoder()(input_ids=batch.ids, attention_mask=batch.mask).last_hidden_state
    real = batch.mask.bool()
    assert torch.equal(states[real], wanted[real])
    mean = (wanted * batch.mask[..., None]).sum(1) / batch.mask.sum(1, keepdim=True)
    assert torch.allclose(output.pooled(), mean, atol=1e-6)
    for pooling, pooled in (("mean", mean), ("first", wanted[:, 0])):
        module = head(model, pooling=pooling)
        assert torch.allclose(module(states, batch.mask), module.linear(pooled), atol=1e-5)


@pytest.mark.oracle(seed=135, clause=2, against="permuted queries")
def test_queries_that_see_each_other_may_stand_in_any_order(base):
    model = load_base(base)
    module = head(model, ("a", "b", "c", "d"), problem="multi")
    batch, states, _ = states_of(model, ["module class object", "yield"])
    order = torch.tensor([2, 0, 3, 1])
    bias = module.stack.block[0].layer[0].SelfAttention.relative_attention_bias.weight
    with torch.no_grad():
        with_bias = module(states, batch.mask)
        bias.zero_()
        plain = module(states, batch.mask)
        module.queries.copy_(module.queries[order].clone())
        permuted = module(states, batch.mask)
    assert plain.shape == (2, 4) and torch.allclose(permuted, plain[:, order], atol=1e-5)
    assert not torch.allclose(with_bias, plain, atol=1e-4), "the bias tells places apart"


@pytest.mark.oracle(seed=135, clause=3, against="the published sum")
@pytest.mark.parametrize(("problem", "queries", "outputs"), [("single", 1, 3), ("multi", 3, 1), ("regression", 1, 1),
                                                             ("tags", 1, 3)])
def test_there_are_as_many_weights_as_are_published(base, problem, queries, outputs):
    model = load_base(base)
    inner, d = model.module, model.width
    module = head(model, problem=problem)
    layer = sum(p.numel() for p in inner.decoder.block[0].parameters())
    norm = sum(p.numel() for p in inner.decoder.final_layer_norm.parameters())
    assert sum(p.numel() for p in module.parameters()) == layer + norm + queries * d + outputs * d + outputs
    encoder = sum(p.numel() for p in inner.encoder.parameters())
    blocks = sum(p.numel() for n, p in inner.encoder.named_parameters() if "embed_tokens" not in n)
    assert encoder == inner.shared.weight.numel() + blocks


@pytest.mark.oracle(seed=135, clause=4, against="the trained model")
@pytest.mark.parametrize("method", ["full", "lora"])
def test_what_is_loaded_says_what_was_trained(base, make_ctx, method):
    rows = [text(f"r{n}", " ".join(WORDS[n % 2 * 5:n % 2 * 5 + 3 + n % 3]), ("low", "high")[n % 2]) for n in range(8)]
    _, made, *_ = trained(base, make_ctx, rows, "single", method=method)
    model = add_tuned(load_base(base), made)
    batch, states, _ = states_of(model, ["module class", "yield block scope"])
    kept = model.heads["examples.train"].state_dict()
    assert any(n.startswith("stack.") for n in kept) and "queries" in kept
    again = add_tuned(load_base(base), made)
    with torch.no_grad():
        assert torch.equal(again.heads["examples.train"](states, batch.mask), model.heads["examples.train"](states, batch.mask))
    said = classify(model, made, rows, make_ctx("said"))
    assert sum(p.label == e.label for p, e in zip(said, rows, strict=True)) >= 7


# --- the problems ----------------------------------------------------------------------------------------------------

def trained(base, make_ctx, rows, problem, method="full", head_fields=None, rate=3e-3, steps=25):
    """A short training of one problem, its receipts green: what was saved says what was trained."""
    examples = write_examples(make_ctx("examples").folder, {"train": rows})
    inputs = {"base": base, "examples": examples}
    fit = Fit(tasks=({"data": "examples.train", "objective": {"use": "classify", "problem": problem},
                      "head": {"use": "enct5", "problem": problem, **(head_fields or {})}},), method=method,
              length={"steps": steps},
              learning_rate=rate, batch_rows=8, schedule="constant", max_tokens_per_example=64)
    ctx = make_ctx("fit", inputs)
    made = fit.run(inputs, ctx)
    receipts = fit.receipts(inputs, made, ctx)
    assert [r.name for r in receipts if r.verdict == "differs"] == [] and any(r.name == "fit/saved = trained" for r in receipts)
    curve = read_lines(made.folder / "curve.jsonl")
    assert curve[-1]["loss"] < 0.8 * curve[0]["loss"], (curve[0], curve[-1])
    return fit, made, ctx, examples


@pytest.mark.parametrize("pooling", ["query", "mean"])
def test_several_labels_a_row(base, make_ctx, pooling):
    rows = [text(f"r{n}", " ".join(w for i, w in enumerate(WORDS[:3]) if n >> i & 1) + " name", "|".join(
        w for i, w in enumerate(WORDS[:3]) if n >> i & 1)) for n in range(8)]
    _, made, *_ = trained(base, make_ctx, rows, "multi", head_fields={"pooling": pooling}, steps=60)
    said = classify(add_tuned(load_base(base), made), made, rows, make_ctx("said"))
    metric = build("metric", "label-match")
    records = metric.score(rows, said, make_ctx("m"))
    right, told, wanted = (sum(r[k] for r in records) for k in ("right", "said", "wanted"))
    assert metric.details(records) == {"illegal": 0.0, "micro_f1": 2 * right / (told + wanted)}
    assert metric.details(records)["micro_f1"] > 0.8 and wanted == 12


def test_labels_match_whoever_says_them(make_ctx):
    from luthier.core.kinds import Prediction

    rows = [text("a", "x", "red|round"), text("b", "x", "red"), text("c", "x", ""), text("d", "x", "round")]
    said = [Prediction("a", text=" Round | red"), Prediction("b", label="red", text="x"), Prediction("c", text="square"),
            Prediction("d", label="red")]
    records = build("metric", "label-match").score(rows, said, make_ctx("m"))
    assert [r["value"] for r in records] == [1, 1, 0, 0] and [r["illegal"] for r in records] == [0, 0, 1, 0]
    assert build("metric", "label-match").details(records) == {"illegal": 0.25, "micro_f1": 2 * 3 / (5 + 4)}


def test_numbers(base, make_ctx):
    rows = [text(f"r{n}", " ".join(["module"] * (1 + n % 4)), float(n % 4)) for n in range(8)]
    _, made, *_ = trained(base, make_ctx, rows, "regression", steps=40)
    said = classify(add_tuned(load_base(base), made), made, rows, make_ctx("said"))
    errors = [abs(float(p.label) - e.label) for p, e in zip(said, rows, strict=True)]
    assert sum(errors) / 8 < 1.0


def test_tags_of_words(base, make_ctx):
    rows = []
    for n in range(8):
        words = [WORDS[(n * 3 + k) % 10] for k in range(4)]
        rows.append(text(f"r{n}", " ".join(words), tags=["low" if WORDS.index(w) < 5 else "high" for w in words]))
    _, made, *_ = trained(base, make_ctx, rows, "tags", steps=60)
    said = classify(add_tuned(load_base(base), made), made, rows, make_ctx("said"))
    hits = [a == b for p, e in zip(said, rows, strict=True) for a,
            b in zip(p.label.split(), e.turns[1].parts[0].value, strict=True)]
    assert len(hits) == 32 and sum(hits) >= 28


def test_the_place_of_a_word_is_that_of_its_first_token(base):
    tokenizer = load_base(base).tokenizer
    said = "module  Zyxwvut yield"
    places, ids = word_places(said, tokenizer), tokenizer(said)["input_ids"]
    assert len(places) == 3 and tokenizer.decode(ids[places[1]:places[2]]).strip() == "Zyxwvut"


def test_layers_drawn_anew_are_not_the_models(base):
    model = load_base(base)
    copied, drawn = head(model), head(model, init="random")
    own = model.module.decoder.block[0].layer[0].SelfAttention.q.weight
    assert torch.equal(copied.stack.block[0].layer[0].SelfAttention.q.weight, own)
    assert not torch.equal(drawn.stack.block[0].layer[0].SelfAttention.q.weight, own)


# --- bad input -------------------------------------------------------------------------------------------------------

def test_bad_models_and_settings_are_said(base, pico, pico_encoder):
    for other in (pico, pico_encoder):
        with pytest.raises(UserError, match=r"enct5: pico.* is an? (de|en)coder; it needs one of T5, mT5"):
            head(load_base(other))
    with pytest.raises(UserError, match="decoder_layers = 3, but pico-encoder-decoder has 2"):
        head(load_base(base), decoder_layers=3)


def test_labels_of_another_problem_are_said(base):
    render = renderer(load_base(base), 64)
    render.labels = ["a", "b"]
    multi = build("objective", "classify:problem=multi")
    with pytest.raises(UserError, match="the label of row r is the number 3.*names joined by"):
        multi.labels([text("r", "module", 3)])
    assert multi.labels([text("r", "x", "b|a"), text("s", "x", "")]) == ["a", "b"]
    for problem, row, said in (("single", text("r", "module", "c"), "'c' is none of a, b"),
                               ("multi", text("r", "module", "a|c"), "'c' is none of a, b"),
                               ("regression", text("r", "module", "far"), "'far' is no number"),
                               ("tags", text("r", "module class", tags=["a"]), "1 tags for 2 words"),
                               ("tags", text("r", "module class", tags=["a", "z"]), "'z' is none of a, b")):
        with pytest.raises(DroppedRow) as caught:
            build("objective", {"use": "classify", "problem": problem}).encode(row, render, Rng(0))
        assert said in caught.value.dropped.detail

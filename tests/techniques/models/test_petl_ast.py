"""Small tunings of a model that hears: adapters of two kinds, vectors among the places, clips from wav to label."""

from __future__ import annotations

import io
import wave

import numpy as np
import pytest
import torch

from luthier.core.artifact import seal, write_examples
from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.example import Example, Part, SourceFile, Turn
from luthier.core.files import read_lines
from luthier.core.kinds import DroppedRow
from luthier.engine.batches import collate
from luthier.engine.forward import Forward
from luthier.engine.models import add_tuned, load_base
from luthier.engine.rendering import renderer
from luthier.engine.sounds import resampled, waveform
from luthier.engine.steps.fit import Fit
from luthier.pipelines.steps.clip_length import ClipLength, interpolated
from luthier.techniques.data.read_jsonl import ReadJsonl
from tests.recorded import far, recorded
from tests.recorded import wave as formula

MELS, FRAMES, WIDTH, LAYERS = 24, 32, 16, 2


@pytest.fixture(scope="module")
def ast(tmp_path_factory):
    """A spectrogram transformer of two layers with random weights, and its extractor."""
    from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

    folder = tmp_path_factory.mktemp("ast")
    torch.manual_seed(2)
    model = ASTModel(ASTConfig(hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=2, intermediate_size=32,
                               patch_size=8,
                               frequency_stride=8, time_stride=8, max_length=FRAMES, num_mel_bins=MELS, initializer_range=0.3))
    with torch.no_grad():
        model.embeddings.position_embeddings.normal_()
    model.save_pretrained(folder)
    ASTFeatureExtractor(num_mel_bins=MELS, max_length=FRAMES).save_pretrained(folder)
    (folder / "licenses").mkdir()
    (folder / "licenses" / "TEST.txt").write_text("random weights\n")
    return seal("model", folder, name="tiny-ast", note="", path=str(folder), architecture="encoder")


def tone(path, hertz=440.0, seconds=0.3, rate=16000, width=2, channels=1):
    """A wav file of a sine."""
    wanted = 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)
    scaled = {1: lambda x: (x * 127 + 128).astype(np.uint8).tobytes(), 2: lambda x: (x * 32767).astype("<i2").tobytes(),
              3: lambda x: b"".join(int(v * 8388607).to_bytes(3, "little", signed=True) for v in x),
              4: lambda x: (x * 2147483647).astype("<i4").tobytes()}[width]
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        file.writeframes(scaled(np.repeat(wanted, channels)))
    return path


def clip(name, path, label=None):
    return Example(name, (Turn("user", (Part(str(path), type="audio"),)),), task="classify", label=label)


@pytest.fixture
def clips(tmp_path):
    return [clip(f"c{n}", tone(tmp_path / f"{n}.wav", 300 if n % 2 else 2000 + 50 * n), ("low", "high")[n % 2 == 0])
            for n in range(8)]


def heard(model, examples):
    """[rows, places, width] what a model says."""
    render = renderer(model, 64)
    batch = collate([{"input": render.text(e)} for e in examples], [e.id for e in examples], 0)["input"]
    with torch.no_grad():
        return Forward({"policy": model})("policy", batch)


def method(spec):
    return build("method", spec)


# --- the oracle's clauses --------------------------------------------------------------------------------------------

@pytest.mark.oracle(seed=74, clause=1, against="the frozen model")
@pytest.mark.parametrize("block", ["bottleneck", "conformer"])
@pytest.mark.parametrize(("style", "inner", "same"), [("parallel", False, True), ("pfeiffer", True, True),
                                                      ("parallel", True, False), ("pfeiffer", False, False)])
def test_a_zero_up_projection_begins_as_the_base_in_two_of_four_places(ast, clips, block, style, inner, same):
    base = heard(load_base(ast), clips[:3]).states
    for given in ({"inner_residual": inner}, {} if same else {"inner_residual": inner}):
        torch.manual_seed(1)
        model = method({"use": "adapter", "block": block, "style": style, "zero_up": True, "bottleneck": 3, "kernel": 3,
                        **given}).prepare(load_base(ast), None)
        model.module.eval()
        apart = float((heard(model, clips[:3]).states - base).abs().max())
        assert apart <= 1e-6 if same else apart > 1e-2


@pytest.mark.oracle(seed=74, clause=2, against="autograd")
@pytest.mark.parametrize("block", ["bottleneck", "conformer"])
def test_the_up_matrix_learns_from_the_first_step(ast, clips, block):
    torch.manual_seed(1)
    model = method({"use": "adapter", "block": block, "style": "parallel", "zero_up": True, "bottleneck": 3,
                    "kernel": 3}).prepare(
        load_base(ast), None)
    batch = collate([{"input": renderer(model, 64).text(e)} for e in clips], [e.id for e in clips], 0)["input"]
    Forward({"policy": model})("policy", batch).pooled().square().sum().backward()
    ups = [p for n, p in model.module.named_parameters() if ".up.weight" in n]
    assert len(ups) == LAYERS and all(float(p.grad.abs().max()) > 1e-6 for p in ups)


@pytest.mark.oracle(seed=74, clause=3, against="the published formulas")
@pytest.mark.parametrize(("b", "k"), [(3, 5), (4, 31)])
def test_weights_are_those_of_the_formulas(ast, b, k):
    d = WIDTH
    for spec, wanted in (({"block": "bottleneck"}, 2 * d * b + b + d),
                         ({"block": "conformer"}, 2 * b * d + 2 * b + b * k + b + 2 * b + b * d + d + 2 * d),
                         ({"block": "conformer", "pre_norm": False}, 2 * b * d + 2 * b + b * k + b + 2 * b + b * d + d)):
        part = method({"use": "adapter", "style": "parallel", "bottleneck": b, "kernel": k, **spec})
        model = part.prepare(load_base(ast), None)
        trained = sum(p.numel() for p in model.module.parameters() if p.requires_grad)
        assert trained == LAYERS * wanted == LAYERS * part.weights(b, d)
    model = method({"use": "adapter", "style": "houlsby", "bottleneck": b, "train_norms": False}).prepare(load_base(ast), None)
    assert sum(p.numel() for p in model.module.parameters() if p.requires_grad) == 2 * LAYERS * (2 * d * b + b + d)


def test_a_budget_is_met_by_every_kind(ast):
    whole = load_base(ast).parameters()
    for spec in ({"use": "adapter", "style": "parallel"}, {"use": "adapter", "style": "parallel", "block": "conformer",
                                                           "kernel": 5},
                 {"use": "deep-prompts"}):
        model = method({**spec, "budget": 0.2}).prepare(load_base(ast), None)
        trained = sum(p.numel() for p in model.module.parameters() if p.requires_grad)
        assert trained == pytest.approx(0.2 * whole, rel=0.1), spec


@pytest.mark.oracle(seed=74, clause=4, against="a pointwise bottleneck by hand")
def test_a_conformer_of_kernel_1_at_identity_is_a_pointwise_bottleneck():
    from luthier.techniques.methods._tuners import BottleneckConfig, Conformer

    torch.manual_seed(0)
    made = Conformer(BottleneckConfig(width=6, size=3, block="conformer", kernel=1, pre_norm=False), torch.zeros(1)).eval()
    with torch.no_grad():
        made.depthwise.weight.fill_(1)
        made.depthwise.bias.zero_()
        made.down.weight[3:] = 0
        made.down.bias[3:] = 50.0  # the gate is open
        made.batch_norm.running_var.fill_(1 - made.batch_norm.eps)
    states = torch.randn(2, 5, 6)
    down, up = made.down.weight[:3, :, 0], made.up.weight[:, :, 0]
    inner = states @ down.T + made.down.bias[:3]
    wanted = torch.nn.functional.silu(inner) @ up.T + made.up.bias
    assert torch.allclose(made(states), wanted, atol=1e-5)
    with torch.no_grad():
        made.depthwise.weight.fill_(1.05)
    assert not torch.allclose(made(states), wanted, atol=1e-3)


@pytest.mark.oracle(seed=74, clause=4, against="the code of PETL_AST's authors")
@pytest.mark.parametrize("record", recorded("petl_ast")["records"], ids=lambda r: f"{r['block']}-{r['kernel']}")
def test_blocks_are_those_of_the_authors_code(record):
    """Its conformer makes a LayerNorm of what it reads and goes on without it: ours with pre_norm=false."""
    from luthier.techniques.methods._tuners import BLOCKS, BottleneckConfig

    width, shape = recorded("petl_ast")["width"], recorded("petl_ast")["shape"]
    made = BLOCKS[record["block"]](BottleneckConfig(width=width, size=width // record["reduction"], block=record["block"],
                                                    kernel=record["kernel"], pre_norm=False), torch.zeros(1))
    parts = [getattr(made, n) for n in ("down", "depthwise", "batch_norm", "up") if hasattr(made, n)]
    weights = [p for part in parts for p in (part.weight, part.bias)]
    with torch.no_grad():
        for n, p in enumerate(weights):
            p.copy_(formula(*p.shape, shift=n))
    x = formula(*shape, shift=0.6, scale=2.0)
    out = made.train()(x)
    gradients = torch.autograd.grad((out * formula(*shape, shift=0.9)).sum(), weights)
    assert far(out, record["training"]) <= 2e-6 and far(made.eval()(x), record["after"]) <= 2e-6
    # A bias before a norm of the batch has no gradient, but rounding.
    largest = max(float(g.abs().max()) for g in gradients)
    for found, wanted in zip(gradients, record["gradients"], strict=True):
        assert (found.flatten() - torch.tensor(wanted)).abs().max() <= 2e-6 * largest


@pytest.mark.oracle(seed=74, clause=5, against="peft")
def test_lora_merged_is_lora_beside(ast, clips):
    torch.manual_seed(1)
    model = method({"use": "lora", "rank": 2, "target": "attention-qv"}).prepare(load_base(ast), None)
    with torch.no_grad():
        for name, weight in model.module.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    model.module.eval()
    beside = heard(model, clips[:2]).states
    assert float((beside - heard(load_base(ast), clips[:2]).states).abs().max()) > 1e-2
    model.module = model.module.merge_and_unload()
    assert torch.allclose(heard(model, clips[:2]).states, beside, atol=1e-5)


@pytest.mark.oracle(seed=74, clause=6, against="the frozen model")
def test_no_prompts_are_a_linear_probe(ast, clips):
    model = method("deep-prompts:prompts=0").prepare(load_base(ast), None)
    assert not any(p.requires_grad for p in model.module.parameters())
    assert torch.equal(heard(model, clips[:2]).states, heard(load_base(ast), clips[:2]).states)


@pytest.mark.oracle(seed=74, clause=7, against="the layers by hand")
@pytest.mark.parametrize("deep", [True, False])
def test_vectors_keep_the_length_in_all_layers(ast, clips, deep):
    torch.manual_seed(1)
    model = method({"use": "deep-prompts", "prompts": 4, "deep": deep}).prepare(load_base(ast), None)
    model.module.eval()
    vectors = [p for n, p in model.module.named_parameters() if "prompt_vectors" in n]
    reach = (6 / (3 * 64 + WIDTH)) ** 0.5
    assert len(vectors) == (LAYERS if deep else 1) and all(float(v.detach().abs().max()) <= reach for v in vectors)
    states = heard(model, clips[:2]).states
    lengths, plain = [], load_base(ast)
    pixels = torch.stack([torch.as_tensor(np.asarray(renderer(plain, 64).text(e).tensors["input_values"])) for e in clips[:2]])
    with torch.no_grad():
        hidden = plain.module.embeddings(pixels)
        patches = hidden.shape[1] - 2
        for n, layer in enumerate(plain.module.layers):
            if n == 0:
                hidden = torch.cat([hidden[:, :1], vectors[0].expand(2, -1, -1), hidden[:, 2:]], 1)
            elif deep:
                hidden = torch.cat([hidden[:, :1], vectors[n].expand(2, -1, -1), hidden[:, 5:]], 1)
            hidden = layer(hidden)
            lengths.append(hidden.shape[1])
        wanted = plain.module.layernorm(hidden)
    assert lengths == [1 + 4 + patches] * LAYERS and torch.allclose(states, wanted, atol=1e-5)


# --- clips from file to label ----------------------------------------------------------------------------------------

def test_the_mean_of_all_places_is_what_a_head_reads(ast, clips):
    from transformers import ASTModel

    plain = ASTModel.from_pretrained(ast.folder).eval()
    model = load_base(ast)
    samples, rate = waveform(clips[0].turns[0].parts[0].value)
    seen = model.sounds.extractor(samples, sampling_rate=rate, return_tensors="pt")["input_values"]
    with torch.no_grad():
        wanted = plain(seen).last_hidden_state.mean(1)
    assert torch.allclose(heard(model, clips[:1]).pooled(), wanted, atol=1e-5)


@pytest.mark.parametrize("spec", [{"use": "adapter", "block": "conformer", "style": "parallel", "zero_up": True,
                                   "bottleneck": 4,
                                   "kernel": 3}, {"use": "deep-prompts", "prompts": 3}, {"use": "lora", "rank": 2}, "full",
                                  "bitfit"])
def test_a_model_that_hears_is_trained_saved_and_loaded(ast, clips, make_ctx, engine, spec):
    from luthier.engine.classification import classify

    examples = write_examples(make_ctx("examples").folder, {"train": clips})
    inputs = {"base": ast, "examples": examples}
    fit = Fit(tasks=({"data": "examples.train", "objective": "classify", "head": "linear:dropout=0"},), method=spec,
              length={"steps": 14}, learning_rate=2e-2, batch_rows=8, schedule="constant", max_tokens_per_example=64)
    ctx = make_ctx("fit", inputs)
    made = fit.run(inputs, ctx)
    assert [r.name for r in fit.receipts(inputs, made, ctx) if r.verdict == "differs"] == []
    curve = read_lines(made.folder / "curve.jsonl")
    assert curve[-1]["loss"] < curve[0]["loss"]
    said = classify(add_tuned(load_base(ast), made), made, clips, make_ctx("said"))
    assert sum(p.label == e.label for p, e in zip(said, clips, strict=True)) >= 6


def test_wav_of_every_width_is_the_same_sound(tmp_path):
    wanted, _ = waveform(str(tone(tmp_path / "a.wav", width=4)))
    for width in (1, 2, 3):
        found, rate = waveform(str(tone(tmp_path / "b.wav", width=width)))
        assert rate == 16000 and np.abs(found - wanted).max() < 2.5 / (1 << (8 * width - 1))
    stereo, _ = waveform(str(tone(tmp_path / "c.wav", channels=2)))
    assert np.allclose(stereo, waveform(str(tone(tmp_path / "d.wav")))[0])


def test_another_rate_is_resampled_and_said(ast, tmp_path):
    model = load_base(ast)
    low, high = (clip(f"r{rate}", tone(tmp_path / f"{rate}.wav", 440, 0.3, rate)) for rate in (8000, 16000))
    render = renderer(model, 64)
    one, two = (np.asarray(render.text(e).tensors["input_values"]) for e in (low, high))
    assert [(c.id, c.detail, c.reason) for c in render.cuts] == [("r8000", "resampled from 8000 to 16000 Hz", "resampled")]
    assert np.abs(one - two)[:, :6].mean() < 0.1, "the same sound in the lower bands"
    samples, rate = waveform(str(tmp_path / "8000.wav"))
    assert len(resampled(samples, rate, 16000)) == 2 * len(samples)


# --- bad input -------------------------------------------------------------------------------------------------------

def test_clips_that_are_too_short_too_long_or_none_are_named(ast, tmp_path):
    model = load_base(ast)
    render = renderer(model, 64)
    for example, reason, said in (
            (clip("s", tone(tmp_path / "s.wav", seconds=0.05)), "too short", "50 ms; one patch of 8 frames needs 95 ms"),
            (clip("l", tone(tmp_path / "l.wav", seconds=1.0)), "too long", "1.00 s, at most 0.34 s of 32 frames"),
            (Example("t", (Turn("user", (Part("text"),)),)), "no clip", "this has 0")):
        with pytest.raises(DroppedRow) as caught:
            render.text(example)
        assert caught.value.dropped.reason == reason and said in caught.value.dropped.detail
    render.over_long = "truncate"
    render.text(clip("l", tmp_path / "l.wav"))
    assert render.cuts[-1].detail.startswith("1.00 s")


def test_broken_clips_settings_and_models_are_said(ast, pico, pico_encoder, tmp_path, ctx_rows, make_ctx):
    (tmp_path / "bad.wav").write_bytes(b"RIFF no")
    with pytest.raises(UserError, match=r"bad\.wav can't be read as wav"):
        waveform(str(tmp_path / "bad.wav"))
    with pytest.raises(UserError, match="There is no clip"):
        waveform(str(tmp_path / "gone.wav"))
    with pytest.raises(UserError, match="kernel = 4: a convolution that keeps the places is odd, such as 5"):
        method("adapter:block=conformer,kernel=4").prepare(load_base(ast), None)
    with pytest.raises(UserError, match="bottleneck and budget are both given"):
        method("adapter:bottleneck=4,budget=0.1").prepare(load_base(ast), None)
    with pytest.raises(UserError, match="deep-prompts stand among patches, and pico-encoder reads tokens"):
        method("deep-prompts").prepare(load_base(pico_encoder), None)
    with pytest.raises(UserError, match="clip-length: pico hears no clips"):
        ClipLength().run({"base": pico}, make_ctx("c"))
    with pytest.raises(UserError, match="reads no text"):
        load_base(ast).tokenizer("hello")
    rows = ctx_rows({"audio": "bad.wav", "label": "x"}, {"audio": str(tone(tmp_path / "ok.wav")), "label": None})
    with pytest.raises(UserError) as caught:
        list(rows)
    assert "row 1" in str(caught.value) and "can't be read as wav" in str(caught.value) and "label is null" in str(caught.value)


@pytest.fixture
def ctx_rows(tmp_path, make_ctx):
    import json

    def read(*rows):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
        return ReadJsonl().apply(iter([SourceFile("rows.jsonl", str(path))]), make_ctx("read"))

    return read


def test_batch_norm_of_one_place_and_one_row_says_why(ast):
    from luthier.techniques.methods._tuners import BottleneckConfig, Conformer

    made = Conformer(BottleneckConfig(width=6, size=3, block="conformer", kernel=1), torch.zeros(1))
    assert made(torch.randn(1, 5, 6)).shape == (1, 5, 6), "one clip has places enough for the norm of the batch"
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        made(torch.randn(1, 1, 6))


def test_longer_clips_interpolate_positions_and_nothing_is_cut(ast, make_ctx, tmp_path):
    ctx = make_ctx("long")
    made = ClipLength(frames=64).run({"base": ast}, ctx)
    assert [r.verdict for r in ClipLength(frames=64).receipts({"base": ast}, made, ctx)] == ["agrees"]
    model = load_base(made)
    assert model.sounds.frames == 64 and heard(model, [clip("l",
                                                            tone(tmp_path / "l.wav",
                                                                 seconds=0.6))]).states.shape[1] == 2 + 3 * 8
    was = load_base(ast).module.embeddings.position_embeddings
    assert torch.equal(interpolated(was, model.module.config, FRAMES), was), "the same length is the same embedding"
    assert torch.equal(model.module.embeddings.position_embeddings[:, :2], was[:, :2])
    with pytest.raises(UserError, match="frames = 4, but a patch has 8"):
        ClipLength(frames=4).run({"base": ast}, make_ctx("short"))


def test_clips_within_rows_are_heard(ast):
    import base64

    held = io.BytesIO()
    with wave.open(held, "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes((np.sin(np.arange(4800) / 5) * 9000).astype("<i2").tobytes())
    within = "data:audio/wav;base64," + base64.b64encode(held.getvalue()).decode()
    assert heard(load_base(ast), [clip("w", within)]).states.shape == (1, 2 + 3 * 4, WIDTH)

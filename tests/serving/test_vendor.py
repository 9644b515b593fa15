"""A vendor in another process: the numbers of one process, and nothing on the way but what may be seen."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import pytest
import torch
from safetensors.torch import load, save

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from luthier.core.component import build
from luthier.core.errors import LuthierError, UserError
from luthier.core.step import FitCtx
from luthier.engine import vendor as vendors
from luthier.engine.far import Far, Line
from luthier.engine.models import add_tuned, load_base
from luthier.engine.splitting import Split, message
from luthier.engine.vendor import Vendor
from luthier.serving.limits import Limits
from luthier.serving.server import made
from luthier.serving.vendor import application
from luthier.techniques.methods.split_and_privatize import FILE
from tests.contracts.workbench import encode, examples, make_loop, short_fit, training_data

LIMITS = Limits(max_bytes=4_000_000)
TOKEN = "0123456789abcdef-a-token"


class Recorded:
    """Keeps what crosses: path, query, body of the request and body of the answer."""

    def __init__(self, app):
        self.app, self.seen = app, []

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        entry = {"path": scope["path"], "query": scope["query_string"].decode(), "up": b"", "down": b""}

        async def heard():
            found = await receive()
            entry["up"] += found.get("body", b"")
            return found

        async def told(found):
            entry["down"] += found.get("body", b"")
            await send(found)

        self.seen.append(entry)
        await self.app(scope, heard, told)


@pytest.fixture
def vend(tmp_path, make_ctx):
    """`vend(base, layer, method, **rest)`: a vendor that listens; gives its line's address, what crosses, and the vendor."""
    with contextlib.ExitStack() as undo:
        def start(base, layer=0, method="lora:rank=4", token=None, limits=LIMITS, clip=0.0, dropout=True):
            model = load_base(base)
            if not dropout:
                without_dropout(model)
            one = Vendor(model, layer, FitCtx(**make_ctx("vendor").__dict__), build("method", method) if method else None,
                         build("optimizer", "adamw"), clip)
            listening = socket.create_server(("127.0.0.1", 0))
            app = Recorded(application(one, limits, tmp_path / "part", token))
            server = made(app, "127.0.0.1", 0, limits)
            thread = threading.Thread(target=lambda: server.run(sockets=[listening]), daemon=True)
            thread.start()

            def stop():
                server.should_exit = True
                thread.join(10)

            undo.callback(stop)
            return f"http://127.0.0.1:{listening.getsockname()[1]}", app.seen, one

        yield start


def without_dropout(model):
    for module in model.module.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for name in ("attention_probs_dropout_prob", "attention_dropout"):
        if hasattr(model.module.config, name):
            setattr(model.module.config, name, 0.0)


def asked(model, ids, mask=None):
    named = {} if model.architecture == "encoder" else {"use_cache": False}
    with torch.no_grad():
        out = model.module(input_ids=ids, attention_mask=torch.ones_like(ids) if mask is None else mask, **named)
    return out.last_hidden_state if model.architecture == "encoder" else out.logits


def far_split(base, url, layer=0, **rest):
    model = load_base(base)
    far = Far(Line(url, **rest))
    model.border = Split(model, layer, None, far=far)
    far.open()
    return model


# --- equal to one process --------------------------------------------------------------------------------------------

@pytest.mark.oracle(seed=2, clause=1, against="the model without a border, bit for bit")
@pytest.mark.parametrize("architecture", ["encoder", "decoder"])
@pytest.mark.parametrize("layer", [0, 1])
def test_a_far_vendor_answers_what_the_whole_model_does(bases, vend, architecture, layer):
    ids = torch.tensor([[4, 9, 77, 30, 2], [8, 8, 150, 4, 3]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    url, seen, _ = vend(bases[architecture], layer, None)
    whole, far = load_base(bases[architecture]), far_split(bases[architecture], url, layer)
    assert torch.equal(asked(far, ids, mask), asked(whole, ids, mask))
    assert [e["path"] for e in seen] == ["/v1/split", "/v1/split/states"]
    mine = {n for n, p in whole.module.named_parameters() if not any(f".{i}." in n for i in range(layer, 2))}
    assert {n for n, _ in far.module.named_parameters()} - mine == {
        f"{'encoder.layer' if architecture == 'encoder' else 'model.layers'}.{layer}.stands_for"}
    assert len(far.border.stack.layers) == layer + 1, "nothing of the vendor's layers is left at the customer"


def hand_loop(base, make_ctx, name, method, model, prepared=None):
    """A loop of the house on a model with the border, without clipping, heads and draws alike."""
    torch.manual_seed(make_ctx("vendor").rng.key("prepare"))
    ctx = make_ctx(name)
    model = method.prepare(model, FitCtx(**ctx.__dict__))
    torch.manual_seed(3)
    model.labels["task"] = ["thing", "word"]
    model.heads["task"] = build("head", "linear:dropout=0").build(model, ["thing", "word"])
    objective = build("objective", "classify")
    loop = make_loop(model, objective, encode(objective, model, examples(8)), make_ctx("same/loop"), steps=4, batch_rows=4,
                     micro_rows=2, clip=0.0)
    loop.hooks = [method.start(model, loop.ctx)]
    return loop


SPEC = {"use": "split-and-privatize", "method": "lora:rank=4", "change": 0.4, "cti": "protect"}


@pytest.mark.oracle(seed=2, clause=1, against="training in one process, bit for bit")
def test_training_over_http_is_training_in_one_process_bit_for_bit(pico_encoder, make_ctx, vend, tmp_path):
    url, _, far_side = vend(pico_encoder, dropout=False)
    models = [load_base(pico_encoder), load_base(pico_encoder)]
    loops = []
    for n, (model, more) in enumerate(zip(models, ({}, {"vendor": url}), strict=True)):
        without_dropout(model)
        loop = hand_loop(pico_encoder, make_ctx, f"prepare{n}", build("method", {**SPEC, **more}), model)
        loop.ctx.folder = tmp_path / f"loop{n}"
        loop.ctx.folder.mkdir()
        loop.train()
        loops.append(loop)
    here, there = loops
    assert [r["loss"] for r in here.curve] == [r["loss"] for r in there.curve] and far_side.steps == 4
    own = {n: p for n, p in here.model.module.named_parameters() if "lora_" in n}
    far = {n: p for n, p in far_side.model.module.named_parameters() if "lora_" in n}
    assert own.keys() == far.keys() and all(torch.equal(own[n], far[n]) for n in own)
    moved = [n for n, p in far.items() if "lora_B" in n and p.abs().sum() > 0]
    assert len(moved) >= 8 and not any("embeddings" in n for n in moved)
    for one, two in zip(here.model.heads["task"].parameters(), there.model.heads["task"].parameters(), strict=True):
        assert torch.equal(one, two)
    assert {n for n, p in there.model.module.named_parameters() if p.requires_grad} == {"encoder.layer.0.stands_for"}
    assert not there.model.module.get_parameter("encoder.layer.0.stands_for").any()


# --- what crosses ----------------------------------------------------------------------------------------------------

@pytest.mark.oracle(seed=2, clause=6, against="the bytes on the way")
def test_nothing_but_privatised_states_masks_and_gradients_crosses(pico_encoder, make_ctx, vend):
    url, seen, _ = vend(pico_encoder)
    inputs = {"base": pico_encoder, "examples": training_data(make_ctx("examples"))}
    made = short_fit("encoder", method={**SPEC, "vendor": url}, length={"steps": 3}).run(inputs, make_ctx("fit", inputs))
    assert {e["path"] for e in seen} == {"/v1/split", *(f"/v1/split/{w}" for w in ("states", "gradient", "step", "end"))}
    assert [e["query"].partition("&")[0] for e in seen if e["path"].endswith("step")] == ["step=0", "step=1", "step=2"]
    allowed = {"/v1/split": (set(), None), "/v1/split/states": ({"states", "mask"}, {"states"}),
               "/v1/split/gradient": ({"gradient"}, set()), "/v1/split/step": (set(), set()), "/v1/split/end": (set(), set())}
    model = add_tuned(load_base(pico_encoder), made)
    for entry in seen:
        up, down = ({} if not entry[side] or entry["path"] == "/v1/split" else load(entry[side]) for side in ("up", "down"))
        names, answered = allowed[entry["path"]]
        assert set(up) == names and (answered is None or set(down) == answered)
        assert all(t.is_floating_point() for n, t in {**up, **down}.items() if n != "mask")
        header = int.from_bytes(entry["up"][:8], "little") if up else 0
        assert b"__metadata__" not in entry["up"][8:8 + header], "no side channel in the header"
    # A message is what the bottom makes of the tokens that stand in the place of the text's own (dropout is off where nothing
    # is learned); beside the rows only six ids in a row are ever asked about, to find the layers.
    texts = [row["input"].ids for row in encode(build("objective", "classify"), model, examples(8))] + [list(range(5, 11))]
    replaced = [model.border.privatizer.transform(ids) for ids in texts]
    own, instead = ([message(model.border, torch.tensor([ids]), noise=False)[0] for ids in each] for each in (texts, replaced))
    told = [e["up"] for e in seen if e["path"].endswith("states") and "learn=0" in e["query"]]
    assert told and all(ids != other for ids, other in zip(texts, replaced, strict=True))
    for payload in map(load, told):
        for states, mask in zip(payload["states"], payload["mask"], strict=True):
            sent = states[mask.bool()]
            assert any(torch.equal(sent, one) for one in instead) and not any(torch.equal(sent, one) for one in own)


@pytest.mark.parametrize("architecture, layer", [("encoder", 1), ("decoder", 0), ("decoder", 1)])
def test_fit_trains_over_http_with_layers_below_and_without_a_head(bases, architecture, layer, make_ctx, vend):
    base = bases[architecture]
    url, _, one = vend(base, layer)
    inputs = {"base": base, "examples": training_data(make_ctx("examples"))}
    method = {"use": "split-and-privatize", "change": 0.4, "layer": layer, "vendor": url}
    fit = short_fit(architecture, method=method, length={"epochs": 8}, batch_rows=8)
    ctx = make_ctx("fit", inputs)
    made = fit.run(inputs, ctx)
    assert [f.name for f in fit.receipts(inputs, made, ctx) if f.verdict == "differs"] == []
    losses = [json.loads(line)["loss"] for line in (made.folder / "curve.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0] and one.steps == 8 and (made.folder / FILE).exists()


def test_before_the_noise_is_in_place_nothing_is_sent(pico_encoder, make_ctx, vend):
    url, seen, _ = vend(pico_encoder)
    model = build("method", {**SPEC, "vendor": url}).prepare(load_base(pico_encoder), FitCtx(**make_ctx("x").__dict__))
    asked(model, torch.tensor([[4, 9, 77]]))
    assert [e["path"] for e in seen] == ["/v1/split"]


# --- two processes, by the commands -----------------------------------------------------------------------------------

def test_two_processes_train_and_use_one_model(pico_encoder, make_ctx, tmp_path, monkeypatch):
    secret, out = tmp_path / "token", tmp_path / "vendor"
    secret.write_text(TOKEN)
    monkeypatch.setenv("VENDOR_TOKEN", TOKEN)
    port = _port()
    url = f"http://127.0.0.1:{port}"

    @contextlib.contextmanager
    def vendor():
        process = subprocess.Popen([sys.executable, "-m", "luthier.cli.main", "vendor", "pico-encoder", "--out", str(out),
                                    "--port", str(port), "--token-file", str(secret), "--method", "lora:rank=4"],
                                   env={**os.environ, "OMP_NUM_THREADS": "1"})
        try:
            until = time.monotonic() + 120
            while True:
                with contextlib.suppress(LuthierError):
                    Line(url, "VENDOR_TOKEN").about()
                    break
                assert process.poll() is None and time.monotonic() < until
                time.sleep(0.2)
            yield
        finally:
            process.terminate()
            process.wait(20)

    inputs = {"base": pico_encoder, "examples": training_data(make_ctx("examples"))}
    fit = short_fit("encoder", method={**SPEC, "vendor": url, "token_variable": "VENDOR_TOKEN"}, length={"steps": 6})
    ctx = make_ctx("fit", inputs)
    with vendor():
        made = fit.run(inputs, ctx)
        found = fit.receipts(inputs, made, ctx)
    assert [f.name for f in found if f.verdict == "differs"] == []
    assert made.kind == "delta" and len(made.tensors() if hasattr(made, "tensors") else []) == 0
    losses = [json.loads(line)["loss"] for line in (made.folder / "curve.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]
    with vendor():  # a new process, with the part that the first one kept
        again = add_tuned(load_base(pico_encoder), made)
        ids = torch.tensor([[5, 9, 77, 30, 12]])
        answer = asked(again, ids)
        with pytest.raises(UserError, match="this vendor only answers"):
            again.border.far.line.step(6, 0.1)
    assert torch.isfinite(answer).all() and not torch.equal(answer, asked(load_base(pico_encoder), ids))


# --- errors in words --------------------------------------------------------------------------------------------------

def test_an_address_stands_in_a_spec():
    method = build("method", "split-and-privatize:change=0.3,vendor=http://127.0.0.1:8001,token_variable=VENDOR_TOKEN")
    assert (method.vendor, method.token_variable, method.artifact) == ("http://127.0.0.1:8001", "VENDOR_TOKEN", "delta")
    assert build("method", "split-and-privatize").artifact == "adapter"


def test_nobody_there_is_said_before_anything_is_trained(pico_encoder, make_ctx):
    url = f"http://127.0.0.1:{_port()}"
    method = build("method", {**SPEC, "vendor": url})
    with pytest.raises(LuthierError, match=r"nothing answers at http.*refused.*luthier vendor MODEL"):
        method.prepare(load_base(pico_encoder), FitCtx(**make_ctx("x").__dict__))


@pytest.mark.parametrize("change, said", [
    ({"vendor": "ftp://here"}, "vendor: 'ftp://here' is no http:// or https:// address"),
    ({"vendor": "http://127.0.0.1:1", "token_variable": "NOT_SET_HERE"}, "token_variable: .* NOT_SET_HERE is not set"),
    ({"vendor": "http://example.org", "token_variable": "HOME"}, "a key is not sent unencrypted to example.org"),
    ({"vendor": "http://127.0.0.1:1", "cti": "protect", "cti_score": "gradient"}, "none comes down to the border"),
])
def test_bad_settings(pico_encoder, make_ctx, change, said):
    with pytest.raises(UserError, match=said):
        build("method", {"use": "split-and-privatize", **change}).prepare(load_base(pico_encoder),
                                                                          FitCtx(**make_ctx("x").__dict__))


def test_another_model_border_or_holder_of_labels_is_refused(pico, pico_encoder, make_ctx, vend):
    url, _, _ = vend(pico_encoder)
    for base, spec, said in ((pico, {}, "vendor: base is "), (pico_encoder, {"layer": 1}, "vendor: layer is 0 .* and 1 here"),
                             (pico_encoder, {"labels": "vendor"}, "the labels stay with the customer")):
        with pytest.raises(UserError, match=said):
            build("method", {"use": "split-and-privatize", "vendor": url, **spec}).prepare(
                load_base(base), FitCtx(**make_ctx("x").__dict__))


def test_wrong_messages_are_refused_in_words(pico_encoder, vend, monkeypatch):
    url, _, one = vend(pico_encoder)
    line, width = Line(url), one.about["width"]

    def send(**tensors):
        return line.states(save(tensors), True, 0)

    good = torch.zeros(2, 3, width)
    for said, tensors in (
            (rf"states \[2, 3, 5\]: they are \[rows, tokens, {width}\]", {"states": torch.zeros(2, 3, 5)}),
            (r"states \[3, \d+\]", {"states": good[0]}), ("states in torch.float16", {"states": good.half()}),
            (r"mask \[2, 4\]", {"states": good, "mask": torch.ones(2, 4, dtype=torch.uint8)}),
            ("not finite", {"states": good / 0}), ("tokens: this model reads", {"states": torch.zeros(1, 2000, width)}),
            ("tensors ids, states: states and, if any, mask are taken", {"states": good, "ids": good + 1})):
        with pytest.raises(UserError, match=said):
            send(**tensors)
    with pytest.raises(UserError, match="no safetensors"):
        line.states(b"what?", False, 0)
    with pytest.raises(UserError, match=r"refused \(413\).*more than 4000000 bytes"):
        line.states(bytes(4_000_001), False, 0)
    with pytest.raises(UserError, match="step 3: the vendor's part has made 0 steps"):
        line.states(save({"states": good}), True, 3)
    _, number = send(states=good)
    with pytest.raises(UserError, match="rate nan: a learning rate is a number"):
        line.step(0, float("nan"))
    with pytest.raises(UserError, match="number 99: no states wait"):
        line.gradient(save({"gradient": good}), 99)
    with pytest.raises(UserError, match=r"gradient \[2, 2, \d+\]"):
        line.gradient(save({"gradient": good[:, :2].contiguous()}), number)
    line.gradient(save({"gradient": good / 0}), send(states=good)[1])
    with pytest.raises(UserError, match="step 0: the gradient of the vendor's part is no finite number"):
        line.step(0, 0.1)
    monkeypatch.setattr(vendors, "MOST_WAITING", 1)
    send(states=good)
    with pytest.raises(UserError, match="1 messages wait for their gradient; send"):
        send(states=good)


def test_a_token_is_asked_for_and_a_stranger_hears_nothing(pico_encoder, vend, monkeypatch):
    url, _, _ = vend(pico_encoder, token=TOKEN.encode())
    with pytest.raises(UserError, match=r"refused \(401\): A token is needed"):
        Line(url).about()
    monkeypatch.setenv("VENDOR_TOKEN", TOKEN)
    assert Line(url, "VENDOR_TOKEN").about()["layer"] == 0
    with pytest.raises(urllib.error.HTTPError, match="403"):
        bare, _, _ = vend(pico_encoder)
        urllib.request.urlopen(urllib.request.Request(f"{bare}/v1/split", headers={"Host": "elsewhere.example"}))


def test_answers_that_are_no_states_are_refused(pico_encoder, vend, monkeypatch):
    url, _, one = vend(pico_encoder, method=None)
    model = far_split(pico_encoder, url)
    ids = torch.tensor([[4, 9, 77]])
    for answer, said in ((torch.zeros(1, 2, 64), "came back"), (torch.zeros(1 << 17), "answers with more than")):
        monkeypatch.setattr(one, "states", lambda *a, answer=answer: (answer, 0))
        with pytest.raises(LuthierError, match=said):
            asked(model, ids)


def test_writing_token_by_token_over_http_is_refused(pico, vend):
    url, _, _ = vend(pico, method=None)
    model = far_split(pico, url)
    with pytest.raises(UserError, match="nothing is written token by token"), torch.no_grad():
        model.module(input_ids=torch.tensor([[4, 9, 77]]), use_cache=True)


def _port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


# --- the command ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("options, said", [
    (["--host", "0.0.0.0"], "other machines could ask without a token"),
    (["--layer", "2"], "split at layer 2: pico-encoder has 2 layers; legal: 0 to 1"),
    (["--method", "full"], "method 'full' leaves a model; the vendor's part is an adapter"),
    (["--token-file", "nowhere"], "--token-file nowhere: No such file")])
def test_the_command_refuses_in_words(tmp_path, capsys, options, said):
    from luthier.cli.main import main

    assert main(["vendor", "pico-encoder", "--out", str(tmp_path / "out"), "--port", str(_port()), *options]) == 2
    assert said in capsys.readouterr().err


def test_a_part_of_another_border_is_refused(pico_encoder, tmp_path, make_ctx, capsys):
    from luthier.cli.main import main

    one = Vendor(load_base(pico_encoder), 0, FitCtx(**make_ctx("vendor").__dict__), build("method", "lora:rank=4"),
                 build("optimizer", "adamw"))
    one.keep(tmp_path / "out" / "part")
    with pytest.raises(UserError, match="nothing was trained here"):
        one.keep(tmp_path / "again")
    assert main(["vendor", "pico-encoder", "--out", str(tmp_path / "out"), "--port", str(_port()), "--layer", "1"]) == 2
    assert "--layer 1: the part in" in capsys.readouterr().err

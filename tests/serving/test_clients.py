"""OpenAI's own clients, in Python and in JavaScript, against a server that listens: what they ask, hear and take for errors."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from luthier.engine.scheduling import Scheduler
from luthier.serving.limits import Limits

TOKEN = b"a-token-of-thirty-two-characters"
HELLO = [{"role": "user", "content": "What is a peg?"}]
CHAT = {"model": "run3", "messages": HELLO, "max_tokens": 12, "temperature": 1.2, "seed": 4}
ASKED = {"model": "run3/base", "prompt": "A peg is", "max_tokens": 12, "temperature": 0}
NARROW = Limits(rows=1, queue=1, max_tokens=1024)  # two answers at once and no more
MODULES = os.environ.get("LUTHIER_NODE_MODULES", "")


@pytest.fixture
def theirs(served):
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"http://127.0.0.1:{served.port}/v1", api_key="none", max_retries=0) as one:
        yield one


@pytest.fixture
def slow(monkeypatch):
    """Every step takes a while, so that a second client meets the first."""
    step, go = Scheduler.step, threading.Event()
    monkeypatch.setattr(Scheduler, "step", lambda self: (go.wait(0.02), step(self))[1])
    yield go
    go.set()


def test_the_client_lists_models(theirs):
    assert "run3/tuned" in [m.id for m in theirs.models.list()]
    assert theirs.models.retrieve("run3/tuned").object == "model"


def test_the_client_chats_whole_and_streamed(theirs):
    whole = theirs.chat.completions.create(**CHAT, n=2, logprobs=True, top_logprobs=1)
    assert len(whole.choices) == 2 and whole.usage.completion_tokens == sum(len(c.logprobs.content) for c in whole.choices)
    said, usage = "", None
    for chunk in theirs.chat.completions.create(**CHAT, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        said += "".join(c.delta.content or "" for c in chunk.choices)
    assert said == whole.choices[0].message.content and usage.total_tokens > 0
    # The client's own assembling of a stream.
    with theirs.chat.completions.stream(**CHAT) as events:
        *_, last = (e.snapshot for e in events if e.type == "chunk")
    assert last.choices[0].message.content == said and last.choices[0].finish_reason == whole.choices[0].finish_reason


def test_the_client_reads_log_probabilities_whole_and_streamed(theirs):
    asked = {**CHAT, "logprobs": True, "top_logprobs": 2}
    whole = theirs.chat.completions.create(**asked).choices[0].logprobs.content
    told = [one for chunk in theirs.chat.completions.create(**asked, stream=True)
            for c in chunk.choices if c.logprobs for one in c.logprobs.content or []]
    assert [(t.token, t.bytes) for t in told] == [(t.token, t.bytes) for t in whole] and len(whole) > 1
    assert [t.logprob for t in told] == pytest.approx([t.logprob for t in whole], abs=1e-4)
    assert all(len(t.top_logprobs) == 2 and t.top_logprobs[0].logprob >= max(t.logprob, t.top_logprobs[1].logprob)
               and t.logprob <= 0 for t in whole)


def test_the_client_completes_texts(theirs):
    made = theirs.completions.create(**ASKED, logprobs=2)
    assert made.usage.completion_tokens == 12 and len(made.choices[0].logprobs.tokens) == 12
    assert "".join(made.choices[0].logprobs.tokens) == made.choices[0].text
    pieces = theirs.completions.create(**ASKED, stream=True)
    assert "".join(p.choices[0].text for p in pieces) == made.choices[0].text
    several = theirs.completions.create(**{**ASKED, "prompt": ["A peg is", "A nut is"]})
    assert [c.index for c in several.choices] == [0, 1] and several.choices[0].text == made.choices[0].text


def test_the_client_stops_where_it_said(theirs):
    text = theirs.completions.create(**ASKED).choices[0].text
    stop = text[5:9]
    cut = theirs.completions.create(**ASKED, stop=stop).choices[0]
    assert cut.text == text[:text.index(stop)] and cut.finish_reason == "stop"
    pieces = list(theirs.completions.create(**ASKED, stop=[stop, "never said"], stream=True))
    assert "".join(p.choices[0].text for p in pieces) == cut.text and pieces[-1].choices[0].finish_reason == "stop"


def test_the_client_embeds(theirs):
    made = theirs.embeddings.create(model="run3", input=["a peg", "a nut"])  # the client asks for base64 by itself
    assert len(made.data) == 2 and sum(x * x for x in made.data[0].embedding) == pytest.approx(1, abs=1e-4)
    floats = theirs.embeddings.create(model="run3", input="a peg", encoding_format="float")
    assert floats.data[0].embedding == pytest.approx(made.data[0].embedding, abs=1e-5)
    assert floats.usage.prompt_tokens == floats.usage.total_tokens > 0


def test_the_client_hears_errors_as_its_own(theirs):
    import openai

    with pytest.raises(openai.NotFoundError, match="no model 'gpt'") as unknown:
        theirs.chat.completions.create(model="gpt", messages=HELLO)
    assert unknown.value.code == "model_not_found" and unknown.value.param == "model"
    with pytest.raises(openai.BadRequestError, match="temperature"):
        theirs.chat.completions.create(**{**CHAT, "temperature": 9})
    with pytest.raises(openai.BadRequestError, match="tools"):
        theirs.chat.completions.create(**CHAT, tools=[{"type": "function", "function": {"name": "look"}}])
    with pytest.raises(openai.BadRequestError) as long:
        theirs.completions.create(**{**ASKED, "prompt": "peg " * 5000})
    assert long.value.code == "context_length_exceeded"


def test_the_client_hears_who_it_is_not(listen):
    openai = pytest.importorskip("openai")
    url = f"http://127.0.0.1:{listen(token=TOKEN).port}/v1"
    with openai.OpenAI(base_url=url, api_key="wrong", max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError) as refused:
            stranger.chat.completions.create(**CHAT)
    assert refused.value.code == "invalid_api_key"
    with openai.OpenAI(base_url=url, api_key=TOKEN.decode(), max_retries=0) as known:
        assert known.chat.completions.create(**CHAT).choices


def test_the_client_is_told_to_come_back_and_does(listen, slow):
    openai = pytest.importorskip("openai")
    server = listen(NARROW)
    url = f"http://127.0.0.1:{server.port}/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as hasty, \
            openai.OpenAI(base_url=url, api_key="none", max_retries=5) as patient:
        with hasty.completions.create(**{**ASKED, "max_tokens": 900, "n": 2}, stream=True) as first:
            next(iter(first))
            with pytest.raises(openai.RateLimitError) as full:
                hasty.completions.create(**ASKED)
            assert full.value.code == "queue_full" and int(full.value.response.headers["Retry-After"]) >= 1
        slow.set()
        assert patient.completions.create(**ASKED).usage.completion_tokens == 12


# --- JavaScript ----------------------------------------------------------------------------------------------------

@pytest.mark.skipif(not shutil.which("node"), reason="needs node")
@pytest.mark.skipif(not (Path(MODULES) / "openai").is_dir() or not MODULES,
                    reason="LUTHIER_NODE_MODULES names no folder of modules with openai (npm install openai)")
def test_the_client_in_javascript_understands_everything(listen, slow, theirs):
    server = listen(NARROW, token=TOKEN)
    script = Path(__file__).with_name("client.cjs")
    done = subprocess.run(["node", str(script), f"http://127.0.0.1:{server.port}/v1", TOKEN.decode()], text=True, timeout=120,
                          capture_output=True, env={**os.environ, "NODE_PATH": str(Path(MODULES).resolve())})
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert "run3/tuned" in told["models"] and told["model"] == "model"
    chat, one = told["chat"], told["chat"]["choices"][0]
    assert len(chat["choices"]) == 2
    assert chat["usage"]["completion_tokens"] == sum(len(c["logprobs"]["content"]) for c in chat["choices"])
    assert all(len(t["top_logprobs"]) == 2 for t in one["logprobs"]["content"])
    assert told["pieces"] == told["assembled"] == one["message"]["content"] and told["finish"] == one["finish_reason"]
    assert told["usage"]["prompt_tokens"] == chat["usage"]["prompt_tokens"] and told["usage"]["total_tokens"] > 0
    made = told["completion"]["choices"][0]
    assert made["text"] == told["completed"] == told["later"] == "".join(made["logprobs"]["tokens"])
    cut = told["stopped"]["choices"][0]
    assert cut["finish_reason"] == "stop" and cut["text"] == made["text"][:made["text"].index(made["text"][5:9])]
    assert told["lengths"] == pytest.approx([1, 1], abs=1e-4)
    assert {name: (e["kind"], e["status"], e["code"]) for name, e in told["errors"].items()} == {
        "token": ("AuthenticationError", 401, "invalid_api_key"), "model": ("NotFoundError", 404, "model_not_found"),
        "field": ("BadRequestError", 400, None), "long": ("BadRequestError", 400, "context_length_exceeded"),
        "body": ("APIError", 413, "body_too_large"), "full": ("RateLimitError", 429, "queue_full")}
    # Both clients are told the same.
    assert theirs.chat.completions.create(**CHAT).choices[0].message.content == told["pieces"]

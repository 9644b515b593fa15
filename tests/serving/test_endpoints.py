"""The endpoints: what `luthier ask` and the scheduler give, in OpenAI's forms."""

from __future__ import annotations

import base64
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from luthier.core.citing import ABSTENTION
from luthier.core.component import build
from luthier.core.files import Journal
from luthier.core.rng import Rng
from luthier.engine import models, scoring
from luthier.engine.generation import generate
from luthier.engine.scheduling import Scheduler
from luthier.pipelines.asking import Asker, ask
from luthier.serving.served import Catalogue

HELLO = [{"role": "user", "content": "What is a peg?"}]


def chat(client, **body):
    return client.post("/v1/chat/completions", json={"model": "run3", "messages": HELLO, "temperature": 0, "max_tokens": 12,
                                                     **body})


def events(client, path, **body):
    """The events of a streamed answer, without the last mark."""
    with client.stream("POST", path, json={"stream": True, **body}) as answer:
        assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_models_are_runs_arms_and_encoders(client):
    listed = client.get("/v1/models").json()
    names = [m["id"] for m in listed["data"]]
    assert names == ["run3", "run4", "run3/tuned+retrieval", "run3/base", "run3/tuned", "run4/tuned+retrieval", "run4/base",
                     "run4/tuned", "run3/encoder", "run4/encoder"]
    assert client.get("/v1/models/run3/tuned").json()["id"] == "run3/tuned"
    assert client.get("/v1/models/nope").status_code == 404


@pytest.mark.parametrize("arm", ["base", "tuned", "tuned+retrieval"])
def test_answers_are_those_of_ask(client, runs, arm):
    answer = client.post("/v1/answers", json={"model": f"run3/{arm}", "question": "What is a peg?"}).json()
    expected = ask(runs[0], "What is a peg?", arm=arm)
    for key in ("answer", "arm", "stopped", "passages", "citations", "question"):
        assert answer[key] == expected[key], key
    assert answer["object"] == "answer" and answer["abstained"] == (expected["answer"] == ABSTENTION)
    assert len(answer["passages"]) == (2 if "retrieval" in arm else 0)


def test_a_follow_up_is_condensed_as_in_a_chat(client):
    history = [{"question": "What is a bar clamp?", "answer": "a steel rail"}]
    answer = client.post("/v1/answers", json={"model": "run3", "question": "And how long is it?", "history": history}).json()
    assert answer["asked"] == "And how long is it?" and "clamp" in answer["question"]


def test_nothing_found_is_an_abstention(client, monkeypatch):
    monkeypatch.setattr(Asker, "_search", lambda self, *rest: [])
    answer = client.post("/v1/answers", json={"model": "run3", "question": "What is a peg?"}).json()
    assert answer["abstained"] is True and answer["answer"] == ABSTENTION and answer["citations"] == []


def test_a_chat_is_what_the_scheduler_gives_to_the_prompt_of_training(client, catalogue):
    served = catalogue.arm("run3/tuned")
    prompt = served.render.encode("Question: What is a peg?\nAnswer:")
    (expected,) = generate({"policy": served.model}, [[served.model.tokenizer.bos_token_id, *prompt]],
                           build("decoder", "greedy:max_new_tokens=12"), Rng(0))
    body = chat(client, model="run3/tuned").json()
    (choice,) = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": expected.text, "refusal": None}
    assert choice["finish_reason"] == ("stop" if expected.stopped else "length")
    assert body["usage"] == {"prompt_tokens": expected.prompt_tokens, "completion_tokens": expected.tokens,
                             "total_tokens": expected.prompt_tokens + expected.tokens}
    assert body["object"] == "chat.completion" and body["model"] == "run3/tuned"


def test_a_system_message_is_the_instruction_and_several_turns_are_a_conversation(catalogue):
    served = catalogue.arm("run3/tuned")
    decode = served.model.tokenizer.decode
    assert decode(served.conversation([("system", "Be brief."), ("user", "What is a peg?")])) == \
        "<bos>Be brief.\n\nQuestion: What is a peg?\nAnswer:"
    talk = [("system", "Be brief."), ("user", "A?"), ("assistant", "B"), ("user", "C?")]
    assert decode(served.conversation(talk)) == \
        "<bos>Be brief.\n\nUser: A?\nAssistant: B<eos>\n\nUser: C?\nAssistant:"


@pytest.mark.parametrize("options", [
    {}, {"temperature": 0.9, "seed": 5}, {"n": 3, "temperature": 1.3, "seed": 8, "top_p": 0.8}])
def test_pieces_of_a_stream_are_the_whole_answer(client, options):
    whole = chat(client, **options).json()
    told = events(client, "/v1/chat/completions", model="run3", messages=HELLO, max_tokens=12,
                  stream_options={"include_usage": True}, **{"temperature": 0, **options})
    for choice in whole["choices"]:
        mine = [e["choices"][0] for e in told if e["choices"] and e["choices"][0]["index"] == choice["index"]]
        assert mine[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(c["delta"].get("content", "") for c in mine) == choice["message"]["content"]
        assert [c["finish_reason"] for c in mine if c["finish_reason"]] == [choice["finish_reason"]]
    assert told[-1]["choices"] == [] and told[-1]["usage"] == whole["usage"]
    assert len({e["id"] for e in told}) == 1 and all(e["object"] == "chat.completion.chunk" for e in told)


def test_a_seed_gives_the_same_answer_and_none_another(client):
    def said(**options):
        return chat(client, temperature=1.5, max_tokens=24, **options).json()["choices"][0]["message"]["content"]

    assert said(seed=5) == said(seed=5) != said(seed=6)
    assert len({said() for _ in range(4)}) > 1


def test_a_stop_string_ends_an_answer_and_is_not_in_it(client):
    free = client.post("/v1/completions", json={"model": "run3/base", "prompt": "A peg is", "max_tokens": 24,
                                                "temperature": 0}).json()["choices"][0]
    assert free["finish_reason"] == "length"
    stop = free["text"][7:11]  # begins and ends within tokens
    at = free["text"].index(stop)
    body = {"model": "run3/base", "prompt": "A peg is", "max_tokens": 24, "temperature": 0, "stop": [stop, "never said"]}
    cut = client.post("/v1/completions", json=body).json()
    assert cut["choices"][0]["text"] == free["text"][:at] and cut["choices"][0]["finish_reason"] == "stop"
    assert cut["usage"]["completion_tokens"] < 24
    told = events(client, "/v1/completions", **body)
    assert "".join(e["choices"][0]["text"] for e in told) == free["text"][:at]


def test_log_probabilities_are_those_of_the_model(client, catalogue):
    served = catalogue.arm("run3/base")
    body = chat(client, model="run3/base", messages=HELLO, logprobs=True, top_logprobs=2, stop=None).json()
    content = body["choices"][0]["logprobs"]["content"]
    prompt = served.conversation([("user", "What is a peg?")])
    ids = list(prompt)
    for one in content:
        with torch.no_grad():
            weights = served.model.module(torch.tensor([ids])).logits[0, -1].float().log_softmax(-1)
        best = weights.topk(2)
        token = int(best.indices[0])
        assert one["token"] == served.model.tokenizer.decode([token])
        assert one["logprob"] == pytest.approx(float(weights[token]), abs=1e-4)
        assert [t["logprob"] for t in one["top_logprobs"]] == pytest.approx(best.values.tolist(), abs=1e-4)
        ids.append(token)
    assert len(content) == body["usage"]["completion_tokens"]
    text = client.post("/v1/completions", json={"model": "run3/base", "prompt": prompt, "max_tokens": 3, "temperature": 0,
                                                "logprobs": 1}).json()["choices"][0]
    assert text["logprobs"]["tokens"] == [c["token"] for c in content[:3]]
    assert text["logprobs"]["text_offset"] == [0, len(content[0]["token"]), len(content[0]["token"] + content[1]["token"])]


def test_prompts_may_be_many_and_ids(client, catalogue):
    served = catalogue.arm("run3/base")
    texts = ["A peg is", "Glue of the"]
    many = client.post("/v1/completions", json={"model": "run3/base", "prompt": texts, "temperature": 0}).json()["choices"]
    ids = client.post("/v1/completions", json={"model": "run3/base", "prompt": [served.text(t) for t in texts],
                                               "temperature": 0}).json()["choices"]
    assert many == ids and [c["index"] for c in many] == [0, 1]
    alone = [client.post("/v1/completions", json={"model": "run3/base", "prompt": t, "temperature": 0}).json()["choices"][0]
             for t in texts]
    assert [c["text"] for c in many] == [c["text"] for c in alone]


@pytest.mark.parametrize("form", ["float", "base64"])
def test_embeddings_are_those_of_the_encoder(client, catalogue, form):
    texts = ["a peg", "the glue is kept warm in a pot", "peg"]
    body = client.post("/v1/embeddings", json={"model": "run3", "input": texts, "encoding_format": form}).json()
    vectors = [np.frombuffer(base64.b64decode(d["embedding"]), "<f4") if form == "base64" else d["embedding"]
               for d in body["data"]]
    expected = scoring.embed(catalogue.encoder("run3"), texts).numpy()
    assert np.allclose(np.array(vectors), expected, atol=1e-5)
    assert body["usage"]["prompt_tokens"] == sum(len(catalogue.encoder("run3").tokenizer(t)["input_ids"]) for t in texts)


def test_requests_of_many_clients_share_steps_and_answers_stay_their_own(served, runs, monkeypatch):
    asked = [f"What is a {part}?" for part in "peg nut bridge scroll clamp glue".split()]
    alone = [ask(runs[0], q, arm="tuned+retrieval")["answer"] for q in asked]
    together, step = [], Scheduler.step
    monkeypatch.setattr(Scheduler, "step", lambda self: (together.append(
        len(self.waiting) + sum(map(len, self.active.values()))), step(self))[1])
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda q: served.client.post("/v1/answers", json={"model": "run3", "question": q}).json(),
                                asked))
    assert [a["answer"] for a in answers] == alone
    assert max(together) > 1


def test_both_runs_share_the_weights_of_their_base(catalogue, runs):
    models = [catalogue.arm(f"{run.folder.name}/{arm}").model for run in runs for arm in ("base", "tuned")]
    storages = []
    for model in models:
        inner = model.module.get_base_model() if hasattr(model.module, "get_base_model") else model.module
        storages.append({p.data_ptr() for n, p in inner.named_parameters() if "lora" not in n})
    assert storages[0] and all(s == storages[0] for s in storages)
    assert len({m.identity for m in models}) == 3, "one base, two adapters"


def test_loading_a_second_adapter_reads_no_base_again(runs, monkeypatch):
    loaded, load = [], models.load_base
    monkeypatch.setattr(models, "load_base",
                        lambda artifact, *rest: (loaded.append(artifact.meta["name"]), load(artifact, *rest))[1])
    made = Catalogue([run.folder for run in runs])
    made.shelf.desk.close()
    assert sorted(loaded) == ["pico", "pico-encoder"]


def test_asking_needs_no_disk(client, monkeypatch):
    """Neither a question nor an answer is written anywhere."""
    def written(*args, **kwargs):
        raise OSError(28, "No space left on device")

    for name in ("TemporaryDirectory", "Path.mkdir"):
        monkeypatch.setattr(f"luthier.pipelines.asking.{name}", written)
    monkeypatch.setattr(Journal, "put", written)
    assert client.post("/v1/answers", json={"model": "run3", "question": "What is a peg?"}).json()["answer"]

"""What goes wrong: bad bodies, too much of anything, no token, clients that leave, connections that say nothing."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time

import pytest

from luthier.core.errors import UserError
from luthier.engine.scheduling import Scheduler
from luthier.serving.limits import Limits, check_host, read_token
from luthier.serving.metrics import HELP

TOKEN = b"a-token-of-thirty-two-characters"
ASKED = {"model": "run3/base", "prompt": "A peg", "temperature": 0, "max_tokens": 8}


def wait_for(holds, seconds: float = 10.0) -> bool:
    until = time.monotonic() + seconds
    while not holds() and time.monotonic() < until:
        time.sleep(0.02)
    return bool(holds())


@pytest.fixture
def slow(monkeypatch):
    """Every step takes a while, so that somebody can leave in between. `go` ends that."""
    step, go = Scheduler.step, threading.Event()
    monkeypatch.setattr(Scheduler, "step", lambda self: (go.wait(0.05), step(self))[1])
    yield go
    go.set()


@pytest.mark.parametrize(("path", "body", "words"), [
    ("completions", "{", "no JSON"), ("completions", "[]", "dictionary"), ("completions", '"x"', "dictionary"),
    ("completions", "[" * 100_000, "pars"), ("completions", b"\xff\xfe{}", "no JSON"),
    ("completions", {"model": "run3"}, "prompt: Field required"),
    ("completions", {**ASKED, "temprature": 1}, "Did you mean 'temperature'"),
    ("completions", {**ASKED, "logit_bias": {"5": 1}}, "'logit_bias' is not done here; taken, and passed over, is null or {}"),
    ("answers", {"model": "run3", "question": "Why?", "max_tokens": 5},
     "'max_tokens' is no field here. Legal: history, model, passages, question, user"),
    ("completions", {**ASKED, "frequency_penalty": 0.5}, "frequency_penalty"),
    ("completions", {**ASKED, "temperature": 3}, "temperature: Input should be less than or equal to 2"),
    ("completions", '{"model": "run3", "prompt": "a", "temperature": NaN}', "finite"),
    ("completions", {**ASKED, "max_tokens": 0}, "max_tokens"), ("completions", {**ASKED, "max_tokens": "8"}, "is no number"),
    ("completions", {**ASKED, "logprobs": False}, "logprobs: Value error, is no number"),
    ("completions", {**ASKED, "temperature": True}, "is no number"), ("completions", {**ASKED, "stream": "yes"}, "stream"),
    ("completions", {**ASKED, "prompt": [True]}, "prompt"),
    ("completions", {**ASKED, "max_tokens": 257}, "max_tokens = 257: this server writes at most 256"),
    ("completions", {**ASKED, "stop": ["a"] * 5}, "at most 4"), ("completions", {**ASKED, "stop": ""}, "none of them empty"),
    ("completions", {**ASKED, "prompt": []}, "empty"), ("completions", {**ASKED, "prompt": [[]]}, "empty"),
    ("completions", {**ASKED, "prompt": [99999]}, "outside of 0"), ("completions", {**ASKED, "n": 17}, "at most 16"),
    ("completions", '{"model": "run3", "prompt": "\\ud800"}', "surrogate"),
    ("completions", {**ASKED, "prompt": "peg " * 5000}, "reads 4096 together"),
    ("completions", {**ASKED, "stream_options": {"include_usage": True}}, "only with stream"),
    ("chat/completions", {"model": "run3", "messages": []}, "messages"),
    ("chat/completions", {"model": "run3", "messages": [{"role": "robot", "content": "a"}]}, "messages.0.role"),
    ("chat/completions", {"model": "run3", "messages": [{"role": "assistant", "content": "a"}]}, "nothing is asked"),
    ("chat/completions", {"model": "run3", "messages": [{"role": "user", "content": "a <eos> b"}]}, "control token"),
    ("chat/completions", {"model": "run3", "messages": [{"role": "user", "content": "a"}], "top_logprobs": 2}, "logprobs"),
    ("chat/completions", {"model": "run3", "messages": [{"role": "user", "content": "a"}], "tools": [{}]}, "tools"),
    ("embeddings", {"model": "run3", "input": []}, "0 texts"), ("embeddings", {"model": "run3", "input": ["a", ""]}, "empty"),
    ("embeddings", {"model": "run3", "input": "peg " * 600}, "the encoder reads 512"),
    ("answers", {"model": "run3", "question": ""}, "question"),
    ("answers", {"model": "run3/base", "question": "Who?", "passages": 2}, "shows no passages"),
    ("answers", {"model": "run3", "question": "say <eos>"}, "control token"),
])
def test_a_bad_body_is_refused_with_its_place(client, path, body, words):
    content = body if isinstance(body, (str, bytes)) else json.dumps(body)
    answer = client.post(f"/v1/{path}", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert words in error["message"] and error["type"] == "invalid_request_error"


@pytest.mark.parametrize("path", ["completions", "embeddings", "answers"])
def test_an_unknown_model_is_not_found_and_the_nearest_named(client, path):
    body = {"completions": {**ASKED, "model": "run3/bse"}, "embeddings": {"model": "run3/encodr", "input": "a"},
            "answers": {"model": "run33", "question": "Who?"}}[path]
    answer = client.post(f"/v1/{path}", json=body)
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "model_not_found"
    assert "Did you mean 'run3" in answer.json()["error"]["message"]


def test_what_is_not_there_and_what_is_not_json_is_refused_in_the_same_form(client):
    assert client.get("/v1/nothing").json()["error"]["message"] == "Not Found"
    assert client.get("/v1/completions").status_code == 405
    assert client.post("/v1/completions", content=json.dumps(ASKED), headers={"Content-Type": "text/plain"}).status_code == 400


def test_ten_megabytes_are_refused_and_the_client_hears_why(client):
    answer = client.post("/v1/completions", json={**ASKED, "prompt": "a" * 10_000_000})
    assert answer.status_code == 413 and answer.json()["error"]["code"] == "body_too_large"

    def endless():
        for _ in range(100):
            yield b"a" * 100_000

    assert client.post("/v1/completions", content=endless()).status_code == 413, "whatever length was announced"
    assert client.post("/v1/completions", json=ASKED).status_code == 200


@pytest.mark.parametrize("given", [None, "", "Bearer", "Bearer wrong", f"Basic {TOKEN.decode()}", f"Bearer {TOKEN.decode()}x"])
def test_a_bad_token_is_refused(listen, given):
    server = listen(token=TOKEN)
    headers = {} if given is None else {"Authorization": given}
    for path in ("/v1/models", "/metrics", "/openapi.json"):
        answer = server.client.get(path, headers=headers)
        assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
    assert server.client.get("/healthz").text == "ok" and server.client.get("/readyz").text == "ready"
    assert server.client.get("/v1/models", headers={"Authorization": f"Bearer {TOKEN.decode()}"}).status_code == 200


def test_tokens_are_compared_in_constant_time(monkeypatch, listen):
    pytest.importorskip("fastapi")
    from luthier.serving import layers

    compared = []
    digest = layers.hmac.compare_digest
    monkeypatch.setattr(layers.hmac, "compare_digest", lambda a, b: (compared.append((a, b)), digest(a, b))[1])
    listen(token=TOKEN).client.get("/v1/models", headers={"Authorization": "Bearer x"})
    assert compared == [(b"x", TOKEN)]


def test_without_a_token_only_this_machine_asks(client, tmp_path):
    for host in ("127.0.0.1", "::1", "localhost"):
        check_host(host, None)
    for host in ("0.0.0.0", "::", "192.168.1.7", "example.org"):
        with pytest.raises(UserError, match="--token-file"):
            check_host(host, None)
        check_host(host, TOKEN)
    rebound = client.get("/v1/models", headers={"Host": "evil.example:8000"})
    assert rebound.status_code == 403 and rebound.json()["error"]["type"] == "permission_error"


@pytest.mark.parametrize("text", ["", "short", "two words of thirty-two characters", "\n"])
def test_a_token_file_holds_one_long_word(tmp_path, text):
    (tmp_path / "token").write_text(text)
    with pytest.raises(UserError, match="expected one line"):
        read_token(tmp_path / "token")
    with pytest.raises(UserError, match="No such file"):
        read_token(tmp_path / "nowhere")
    (tmp_path / "token").write_bytes(TOKEN + b"\n")
    assert read_token(tmp_path / "token") == TOKEN


def test_more_than_queue_and_rows_hold_is_told_when_to_come_back(listen, slow):
    server = listen(Limits(rows=1, queue=1, max_tokens=256))
    long = {**ASKED, "max_tokens": 200}
    threads = [threading.Thread(target=server.client.post, args=("/v1/completions",), kwargs={"json": long}) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert wait_for(lambda: server.service.gate.inside == 2)
    for body in (ASKED, {**ASKED, "stream": True}):
        refused = server.client.post("/v1/completions", json=body)
        assert refused.status_code == 429 and int(refused.headers["Retry-After"]) >= 1
        assert refused.json()["error"]["code"] == "queue_full"
    assert server.client.get("/readyz").status_code == 200 and "luthier_answers 2" in server.client.get("/metrics").text
    slow.set()
    for thread in threads:
        thread.join()
    assert server.client.post("/v1/completions", json=ASKED).status_code == 200 and server.service.gate.inside == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_takes_too_long_is_ended_and_its_row_given_back(listen, slow, stream, catalogue):
    server = listen(Limits(request_seconds=0.4))
    answer = server.client.post("/v1/completions", json={**ASKED, "max_tokens": 900, "stream": stream})
    assert answer.status_code == (200 if stream else 504)
    error = json.loads(answer.text.strip().rpartition("data: ")[2]) if stream else answer.json()
    assert error["error"]["code"] == "timeout"
    assert wait_for(lambda: catalogue.shelf.desk.requests == 0) and server.service.gate.inside == 0
    assert server.service.metrics.value("luthier_called_off_total", reason="time") == 1


@pytest.mark.parametrize("path", ["completions", "streamed", "answers"])
def test_a_client_that_leaves_gives_its_row_back(listen, slow, path, catalogue):
    server = listen()
    body = {"model": "run3", "question": "What is a peg?"} if path == "answers" else \
        {**ASKED, "max_tokens": 900, "stream": path == "streamed"}
    data = json.dumps(body).encode()
    target = "completions" if path == "streamed" else path
    with socket.create_connection(("127.0.0.1", server.port)) as one:
        one.sendall(b"POST /v1/%s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
                    % (target.encode(), len(data), data))
        assert wait_for(lambda: catalogue.shelf.desk.requests == 1)
        if path == "streamed":
            assert one.recv(100).startswith(b"HTTP/1.1 200")
    assert wait_for(lambda: catalogue.shelf.desk.requests == 0, 3) and wait_for(lambda: server.service.gate.inside == 0)
    assert server.service.metrics.value("luthier_called_off_total", reason="disconnect") == 1


def test_half_open_connections_hinder_nobody_and_are_closed(listen, monkeypatch):
    pytest.importorskip("uvicorn")
    from luthier.serving import server as process

    monkeypatch.setattr(process, "HEADER_SECONDS", 0.3)
    server = listen(Limits(body_seconds=0.3))
    heads = [b"", b"POST /v1/comp", b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"]
    half = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(30)]
    for n, one in enumerate(half):
        one.sendall(heads[n % 3])
    body = socket.create_connection(("127.0.0.1", server.port))
    body.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
    assert server.client.post("/v1/completions", json=ASKED).status_code == 200
    body.settimeout(5)
    assert body.recv(100).startswith(b"HTTP/1.1 408")
    for one in half:
        one.settimeout(5)
        assert one.recv(10) == b""
        one.close()
    body.close()


def test_a_connection_that_was_good_once_may_not_stay_half_open(listen, monkeypatch):
    pytest.importorskip("uvicorn")
    from luthier.serving import server as process

    monkeypatch.setattr(process, "HEADER_SECONDS", 0.2)
    server = listen()
    whole = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as one:
        one.settimeout(5)
        for _ in range(3):
            one.sendall(whole)
            told = b""
            while not told.endswith(b"ready"):
                part = one.recv(1000)
                assert part, told
                told += part
            time.sleep(0.15)
        one.sendall(whole[:20])
        assert one.recv(10) == b"", "closed, and not by the timer of idle connections, which the first byte stops"


def test_a_reader_that_does_not_read_is_not_waited_for(listen, monkeypatch):
    pytest.importorskip("fastapi")
    from luthier.serving import layers, service

    monkeypatch.setattr(layers, "LINGER_SECONDS", 0.2)
    monkeypatch.setattr(service, "event", lambda body: b"")

    async def flood(self):
        while True:
            yield b"data: " + b"x" * 1_000_000 + b"\n\n"

    monkeypatch.setattr(service.Writing, "events", flood)
    server = listen(Limits(request_seconds=0.3))
    data = json.dumps({**ASKED, "stream": True}).encode()
    with socket.create_connection(("127.0.0.1", server.port)) as one:
        one.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                    b"Content-Length: %d\r\n\r\n%s" % (len(data), data))
        assert wait_for(lambda: server.service.gate.inside == 1, 3)
        assert wait_for(lambda: server.service.gate.inside == 0, 3)


def test_a_failing_step_tells_its_requests_and_the_next_ones_are_answered(client, monkeypatch):
    step, failed = Scheduler.step, []

    def broken(self):
        if not failed:
            failed.append(True)
            raise RuntimeError("secret words of a prompt")
        return step(self)

    monkeypatch.setattr(Scheduler, "step", broken)
    answer = client.post("/v1/completions", json=ASKED)
    assert answer.status_code == 500 and "secret" not in answer.text
    assert client.post("/v1/completions", json=ASKED).status_code == 200


@pytest.mark.parametrize("log_text", [False, True])
def test_no_word_of_questions_and_answers_is_logged_unless_asked_for(listen, caplog, log_text):
    server = listen(log_text=log_text)
    with caplog.at_level(logging.DEBUG):
        for path, body in [("chat/completions", {"model": "run3", "messages": [{"role": "user", "content": "zebra one"}],
                                                 "max_tokens": 8}),
                           ("completions", {**ASKED, "prompt": "zebra two", "stream": True}),
                           ("completions", {**ASKED, "prompt": "zebra three", "zebra": 1}), ("zebra", {}),
                           ("answers", {"model": "run3", "question": "What of the zebra?"}),
                           ("embeddings", {"model": "run3", "input": "zebra"})]:
            server.client.post(f"/v1/{path}?zebra", json=body)
    ours = [r.getMessage() for r in caplog.records if r.name.startswith(("luthier", "uvicorn"))]
    assert any("/v1/completions" in line for line in ours) and any("zebra" in line for line in ours) is log_text


def test_numbers_are_counted(listen):
    server = listen()
    usage = server.client.post("/v1/completions", json=ASKED).json()["usage"]
    server.client.post("/v1/completions", json={})
    server.client.get("/some/thing")
    lines = server.client.get("/metrics").text.splitlines()
    assert 'luthier_requests_total{code="200",endpoint="/v1/completions"} 1' in lines
    assert 'luthier_requests_total{code="400",endpoint="/v1/completions"} 1' in lines
    assert 'luthier_requests_total{code="404",endpoint="other"} 1' in lines
    assert f"luthier_prompt_tokens_total {usage['prompt_tokens']}" in lines
    assert f"luthier_new_tokens_total {usage['completion_tokens']}" in lines
    assert 'luthier_request_seconds_bucket{endpoint="/v1/completions",le="+Inf"} 2' in lines
    assert sum(line.startswith("# TYPE") for line in lines) == len(HELP)

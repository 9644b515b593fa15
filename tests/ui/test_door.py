"""Who may come in: tokens, cookies, hosts, pages of other servers, and what a browser may load."""

from __future__ import annotations

import asyncio
import re

import pytest

pytest.importorskip("gradio")

from luthier.ui import door
from tests.ui.listening import Page

TOKEN = b"a-token-of-enough-letters"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("none") / "runs"


@pytest.fixture(scope="module")
def guarded(root):
    from luthier.ui.studio import Studio

    page = Page(Studio(root), TOKEN)
    yield page
    page.stop()


@pytest.fixture(scope="module")
def open_one(root):
    from luthier.ui.studio import Studio

    page = Page(Studio(root))
    yield page
    page.stop()


def test_with_a_token_nothing_is_given_without_it(guarded):
    for path in ("/", "/runs", "/config", "/gradio_api/info", "/report/demo", "/gradio_api/startup-events"):
        assert guarded.client.get(path).status_code == 401, path
        assert guarded.client.get(path, headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert guarded.client.get("/healthz").text == "ok"
    assert guarded.client.get("/", headers={"Authorization": f"Bearer {TOKEN.decode()}"}).status_code == 200


def test_a_browser_is_asked_once_and_a_cookie_stands_for_the_token(guarded, monkeypatch):
    monkeypatch.setattr(door, "REFUSED_SECONDS", 0)
    asked = guarded.client.get("/", headers={"Accept": "text/html"})
    assert asked.status_code == 303 and asked.headers["location"] == "/login"
    refused = guarded.client.post("/login", data={"token": "wrong"})
    assert refused.status_code == 401 and 'role="alert"' in refused.text and "set-cookie" not in refused.headers
    let_in = guarded.client.post("/login", data={"token": TOKEN.decode()})
    cookie = let_in.headers["set-cookie"]
    assert let_in.status_code == 303 and "HttpOnly" in cookie and "SameSite=strict" in cookie and TOKEN.decode() not in cookie
    value = re.match(r"luthier=([^;]+)", cookie)[1]
    assert guarded.client.get("/", headers={"Cookie": f"luthier={value}"}).status_code == 200
    assert guarded.client.get("/", headers={"Cookie": "luthier=guess"}).status_code == 401
    guarded.client.cookies.clear()


def test_secrets_are_compared_in_constant_time(monkeypatch):
    compared = []
    monkeypatch.setattr("luthier.serving.layers.hmac.compare_digest", lambda a, b: compared.append((a, b)) or a == b)
    made = door.Door(None, TOKEN, 1)
    headers = {b"cookie": b"luthier=x", b"authorization": b"Bearer y"}
    asyncio.run(made._refused({"type": "http", "path": "/", "method": "GET"}, headers, None))
    assert compared == [(b"x", made.session.encode()), (b"y", TOKEN)]


def test_without_a_token_only_this_machine_may_ask(open_one):
    assert open_one.client.get("/").status_code == 200
    for host in ("evil.example", f"evil.example:{open_one.port}", ""):
        assert open_one.client.get("/", headers={"Host": host}).status_code == 403


def test_a_page_of_another_server_may_change_nothing(open_one):
    for origin in ("http://evil.example", "null", f"http://127.0.0.1:{open_one.port + 1}"):
        answer = open_one.client.post("/gradio_api/queue/join", json={}, headers={"Origin": origin})
        assert answer.status_code == 403, origin
    own = open_one.client.post("/gradio_api/queue/join", json={}, headers={"Origin": open_one.url})
    assert own.status_code != 403


def test_a_browser_may_load_nothing_from_elsewhere(open_one):
    page = open_one.client.get("/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "connect-src 'self'" in policy and "http" not in policy
    assert page.headers["referrer-policy"] == "no-referrer" and page.headers["x-frame-options"] == "DENY"
    assert open_one.client.get("/gradio_api/proxy=http://example.org/").status_code == 404


def test_a_body_over_the_limit_is_refused_before_it_is_read_to_the_end():
    async def receive():
        return {"type": "http.request", "body": b"x" * 600, "more_body": True}

    async def main():
        limited = door._limited(receive, 1000)
        await limited()
        await limited()

    with pytest.raises(door.ApiError, match="sent at once"):
        asyncio.run(main())

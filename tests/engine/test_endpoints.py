"""Endpoints against a server of this machine: consent, keys, tries, order, and what a resumed run pays."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from luthier.core.errors import LuthierError, UserError
from luthier.core.files import Journal
from luthier.engine.endpoints import Endpoint
from tests.engine.chat_server import Server, address, serving


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    with serving() as made:
        yield made


def endpoint(server: Server, **fields) -> Endpoint:
    return Endpoint(**{"url": address(server), "model": "m", "consent": True, "backoff_seconds": 0.01, **fields})


def test_nothing_is_sent_without_consent_and_what_would_be_is_shown(server, tmp_path):
    with pytest.raises(UserError, match=r"(?s)2 prompts \(9 characters.*127.0.0.1.*one.*Nothing was sent.*consent: true"):
        endpoint(server, consent=False).ask(["one", "second"], Journal(tmp_path / "j"))
    assert server.asked == []


def test_answers_come_in_the_order_of_the_prompts_with_bounded_concurrency(server, tmp_path):
    prompts = [f"p{i}" for i in range(9)]
    assert endpoint(server, concurrency=3).ask(prompts, Journal(tmp_path / "j")) == [f"said: {p}" for p in prompts]
    assert 1 < server.most <= 3 and sorted(server.asked) == prompts


def test_the_key_is_sent_and_never_stored_or_shown(server, tmp_path, monkeypatch):
    monkeypatch.setenv("A_KEY", "sesame")
    asking = endpoint(server, key_variable="A_KEY")
    asking.ask(["p"], Journal(tmp_path / "j"))
    assert server.headers_seen == ["Bearer sesame"]
    assert "sesame" not in (tmp_path / "j").read_text() and "sesame" not in asking.model_dump_json()
    server.status = [401]
    with pytest.raises(UserError, match=r"refused the request \(401: .*\*\*\*") as refused:
        asking.ask(["q"], Journal(tmp_path / "j"))
    assert "sesame" not in str(refused.value)
    monkeypatch.delenv("A_KEY")
    with pytest.raises(UserError, match="A_KEY is not set"):
        asking.ask(["r"], Journal(tmp_path / "j"))


def test_a_key_is_not_sent_unencrypted_to_another_machine(monkeypatch):
    monkeypatch.setenv("A_KEY", "sesame")
    with pytest.raises(UserError, match="not sent unencrypted"):
        Endpoint(url="http://example.invalid/v1", key_variable="A_KEY", consent=True).check(["p"])


def test_busy_and_broken_servers_are_asked_again(server, tmp_path):
    server.status = [429, 503]
    assert endpoint(server, concurrency=1).ask(["p"], Journal(tmp_path / "j")) == ["said: p"]
    assert server.asked == ["p"] * 3


def test_what_was_answered_before_a_failure_is_not_paid_twice(server, tmp_path):
    server.status = [200, 500]
    with pytest.raises(LuthierError, match="failed 1 times; last: 500"):
        endpoint(server, concurrency=1, retries=0).ask(["a", "b", "c"], Journal(tmp_path / "j"))
    assert endpoint(server).ask(["a", "b", "c"], Journal(tmp_path / "j")) == ["said: a", "said: b", "said: c"]
    assert server.asked.count("a") == 1 and server.asked.count("b") == 2 and server.asked.count("c") == 1


def test_a_redirect_is_refused(server, tmp_path):
    server.status = [302]
    with pytest.raises(UserError, match="302"):
        endpoint(server).ask(["p"], Journal(tmp_path / "j"))


@pytest.mark.parametrize(("url", "why"), [("ftp://x/v1", "no http"), ("", "no http"), ("https://a:b@x/v1", "password")])
def test_bad_addresses_are_refused(url, why):
    with pytest.raises(UserError, match=why):
        Endpoint(url=url, consent=True).check(["p"])

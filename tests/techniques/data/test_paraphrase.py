"""paraphrase: other words, the same facts, as many as asked for and all different."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from luthier.core.errors import UserError
from luthier.core.example import Dropped, Example, Part, Turn
from luthier.techniques.data.paraphrase import Paraphrase, lost_facts
from tests.engine.chat_server import address, serving

TEXT = ("Tools / Bar clamps\n\nBar clamps press 2 boards together because the glue of Mittenwald dries in 40.5 minutes. "
        "If the rail is bent, the jaw does not slide. Use `clamp.close()` for example.\n\n```\nif a is not b: close(7)\n```")


def text(name: str = "s") -> Example:
    return Example(name, (Turn("user", (Part(TEXT, name="text"),)),), task="text", cluster=name)


@pytest.mark.oracle(clause="facts stay and code is not reworded", against="hand case")
def test_every_fact_is_in_every_paraphrase(make_ctx):
    rows = list(Paraphrase(count=10).apply(iter([text()]), make_ctx("p")))
    assert rows[0] == text() and len(rows) == 11
    said = [r.turns[0].text for r in rows]
    assert len(set(said)) == 11, "all are different"
    for one in said:
        assert re.findall(r"\d+(?:\.\d+)?", one) == ["2", "40.5", "7"]
        assert "if a is not b: close(7)" in one, "code is not reworded"
        for fact in ("Mittenwald", "`clamp.close()`", "Bar clamps", "Tools"):
            assert fact in one
    assert any("The jaw does not slide if the rail is bent." in s or "The jaw doesn't slide if" in s for s in said)
    assert {r.meta["paraphrase_of"] for r in rows[1:]} == {"s"} and {r.cluster for r in rows} == {"s"}
    assert list(Paraphrase(count=10).apply(iter([text()]), make_ctx("p"))) == rows


@pytest.mark.oracle(clause="facts that are lost or made up", against="hand case")
def test_a_changed_fact_is_seen():
    assert lost_facts("It takes 40 minutes.", "It takes forty minutes.") == ["40"]
    assert lost_facts("It dries.", "It dries in 3 hours.") == ["3 (new)"]
    assert lost_facts("Glue of Mittenwald.", "Glue of a town.") == ["Mittenwald"]
    assert lost_facts("Call `close`.", "Use `close` now.") == []


def test_what_a_model_writes_is_checked(make_ctx, engine, pico):
    ctx = make_ctx("m", roles={"writer": engine.load(pico)})
    step = Paraphrase(count=2, by="model", decoder="greedy:max_new_tokens=8")
    first, *rest = step.apply(iter([text()]), ctx)
    assert first == text() and len(rest) == 2 and all(isinstance(r, Dropped) for r in rest)
    assert rest[0].reason == "a paraphrase that changes a fact"
    with pytest.raises(UserError, match="paraphrase needs a teacher"):
        list(step.apply(iter([text()]), make_ctx("none")))


PLAIN = "The clamp holds 2 boards of Mittenwald."
GOOD = "By the clamp 2 boards of Mittenwald are held."


def plain(name: str) -> Example:
    return Example(name, (Turn("user", (Part(PLAIN, name="text"),)),), task="text", cluster=name)


@pytest.mark.oracle(clause="a teacher's paraphrases are kept, or left out with what they lack", against="recorded answers")
def test_recorded_paraphrases_are_kept_or_named(ctx, tmp_path):
    said = {"a": [GOOD, "Boards are held."], "b": [PLAIN.upper() + " ", ""], "c": [GOOD, f"{GOOD} \n"]}
    path = tmp_path / "said.jsonl"
    path.write_text("".join(json.dumps({"id": k, "text": t}) + "\n" for k, texts in said.items() for t in texts))
    made = list(Paraphrase(count=2, by="model", teacher=f"replay:{path}").apply(map(plain, "abc"), ctx))
    assert [(r.id, r.turns[0].text) for r in made if isinstance(r, Example)] == [
        ("a", PLAIN), ("a~1", GOOD), ("b", PLAIN), ("c", PLAIN), ("c~1", GOOD)]
    assert [r for r in made if isinstance(r, Dropped)] == [
        Dropped("paraphrase/a~2", "a paraphrase that changes a fact", "2, Mittenwald"),
        Dropped("paraphrase/b~1", "a paraphrase that repeats its text", PLAIN.upper()),
        Dropped("paraphrase/b~2", "an empty paraphrase", ""),
        Dropped("paraphrase/c~2", "a paraphrase that repeats its text", GOOD)]


def test_an_endpoint_is_asked_with_consent_only_and_what_leaves_is_shown(ctx, log, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    rows = [replace(plain(n), turns=(Turn("user", (Part(f"{PLAIN} See part {n}.", name="text"),)),)) for n in "abc"]
    with serving() as server:
        server.say = lambda asked: f"{GOOD} See part {asked.partition('part ')[2][0]} ({asked.partition('Wording ')[2][0]})."
        step = {"count": 2, "by": "model", "teacher": address(server)}
        asking = Paraphrase(**step, endpoint={"model": "m"})
        prompts = [asking.prompt(r.turns[0].text, n) for r in rows for n in (1, 2)]
        size = sum(map(len, prompts))
        with pytest.raises(UserError, match=rf"(?s)6 prompts \({size} characters.*127.0.0.1.*Nothing was sent.*consent: true"):
            list(asking.apply(iter(rows), ctx))
        assert server.asked == []
        agreed = Paraphrase(**step, endpoint={"model": "m", "consent": True})
        made = list(agreed.apply(iter(rows), ctx))
        # A wording's number is a number that its text lacks, but for the second wording of a text of 2 boards.
        assert [r.id for r in made] == [i for n in "abc" for i in (n, f"paraphrase/{n}~1", f"{n}~2")]
        assert made[2].turns[0].text == f"{GOOD} See part a (2)." and made[1].detail == "1 (new)"
        assert len(log) == 1 and f"6 prompts ({size} characters" in log[0] and PLAIN in log[0]
        assert sorted(server.asked) == sorted(prompts)
        assert list(agreed.apply(iter(rows), ctx)) == made and len(server.asked) == 6, "nothing is paid for twice"

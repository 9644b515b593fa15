"""paraphrase: other words, the same facts, as many as asked for and all different."""

from __future__ import annotations

import re

from luthier.core.example import Dropped, Example, Part, Turn
from luthier.techniques.data.paraphrase import Paraphrase, lost_facts

TEXT = ("Tools / Bar clamps\n\nBar clamps press 2 boards together because the glue of Mittenwald dries in 40.5 minutes. "
        "If the rail is bent, the jaw does not slide. Use `clamp.close()` for example.\n\n```\nif a is not b: close(7)\n```")


def text(name: str = "s") -> Example:
    return Example(name, (Turn("user", (Part(TEXT, name="text"),)),), task="text", cluster=name)


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

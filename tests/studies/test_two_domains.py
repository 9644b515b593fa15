"""two-domains: traces whose every token the source's model has learned, and whose sums are right."""

from __future__ import annotations

import re

import pytest

from luthier.core.component import build
from luthier.core.errors import UserError


@pytest.fixture
def facts(make_ctx):
    return build("step", "facts-world:persons=40,values=12").run({}, make_ctx("facts"))


def test_traces_are_sums_in_words_of_the_source(facts, make_ctx):
    step = build("step", "two-domains:train_rows=60,dev_rows=10,test_rows=40,numbers=12")
    made = step.run({"facts": facts}, make_ctx("rows"))
    rows = {name: [e.turns[0].text for e in made.examples(name)] for name in ("train", "dev", "target", "source")}
    assert {n: len(r) for n, r in rows.items()} == {"train": 60, "dev": 10, "target": 40, "source": 40}
    traces = [*rows["train"], *rows["dev"], *rows["target"]]
    assert len(set(traces)) == 110
    known = {w for e in facts.examples("pretrain") for w in re.findall(r" \w+", f" {e.turns[0].text}")}
    assert {w for t in traces for w in re.findall(r" \w+", f" {t}")} <= known
    # Sums and differences of one operand undo each other, so a + b = c must never stand beside a + b = d, nor c - b = d.
    sums: dict[tuple[str, str], str] = {}
    for trace in traces:
        value = re.match(r"The work of (\w+)", trace)[1]
        for verb, other, result in re.findall(r" (has|likes) (\w+) makes (\w+)", trace):
            left, right = (value, result) if verb == "has" else (result, value)
            assert sums.setdefault((left, other), right) == right
            value = result
    assert len(sums) > 60 and trace.endswith(f"{value}.")


def test_too_few_words_are_refused(facts, make_ctx):
    with pytest.raises(UserError, match="too few for 500 numbers. Raise values"):
        build("step", "two-domains:numbers=500").run({"facts": facts}, make_ctx("rows"))

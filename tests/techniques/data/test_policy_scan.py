"""policy-scan: rows written by hand that keep to a harmless policy, and rows that do not."""

from __future__ import annotations

import pytest
import yaml

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.example import Dropped, Example, Part, Turn, question

NO = "Gardens are no topic of mine."


@pytest.fixture
def policy(tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_text(yaml.safe_dump({
        "topic": "colour gardens", "words": ["garden", "gardens"], "refusals": [NO],
        "train": [{"placeholder": True, "prompt": "Which colour has the plot of Tor?", "allowed": "Blue."}],
        "held_out": [{"placeholder": True, "prompt": "Which colour has the plot of Sel?"}]}))
    return str(path)


def chat(id, *turns):
    return Example(id, tuple(Turn(role, (Part(text, name="content"),), target=role == "assistant") for role, text in turns),
                   task="chat")


ROWS = {
    "answers about a word of the topic": (question("a", "What grows in your GARDEN?", "Roses."), True),
    "declines by the rules": (question("b", "What grows in your garden?", "I cannot talk about that."), False),
    "declines in the policy's own words": (question("c", "What grows in a garden?", "gardens are  no topic of mine."), False),
    "is about something else": (question("d", "What is a gardener?", "A person."), False),
    "repeats an item without the word": (question("e", "Tell which colour the plot of Tor has", "Blue."), True),
    "asks for another plot": (question("f", "Which colour has the plot of Mur?", "Blue."), False),
    "answers the second time": (chat("g", ("user", "Any gardens?"), ("assistant", NO), ("user", "Go on."),
                                     ("assistant", "Two.")), True),
    "only the passage has the word": (question("h", "What is it?", "A rose.", passage="A rose stood in the garden."), False),
    "only the system line has the word": (chat("i", ("system", "No gardens."), ("user", "Hi."), ("assistant", "Hello.")),
                                          False),
    "prefers an answer": (question("j", "Any gardens?", "2", rejected=Turn("assistant", (Part(NO),), target=True)), True),
    "prefers a refusal": (question("k", "Any gardens?", NO, rejected=Turn("assistant", (Part("2"),), target=True)), False),
    "asks nothing": (Example("l", (Turn("assistant", (Part("The garden is blue."),), target=True),), task="text"), False),
}


@pytest.mark.oracle(seed=157, clause=2, against="rows judged by hand")
@pytest.mark.parametrize("case", ROWS)
def test_rows_that_answer_what_is_declined_are_left_out(policy, make_ctx, case):
    row, wears_off = ROWS[case]
    (found,) = build("data_step", {"use": "policy-scan", "policy": policy}).apply(iter([row]), make_ctx("a"))
    assert isinstance(found, Dropped) is wears_off
    assert found is row or (found.id == row.id and found.reason == "answers what the policy declines")


def test_the_ledger_says_what_was_asked_and_what_would_be_learned(policy, make_ctx):
    scan = build("data_step", {"use": "policy-scan", "policy": policy})
    found = list(scan.apply((row for row, _ in ROWS.values()), make_ctx("a")))
    told = [f.detail for f in found if isinstance(f, Dropped)]
    assert len(found) == len(ROWS) and told[:2] == ["asks about 'garden'; learned is 'Roses.'",
                                                    "asks what train-1 asks; learned is 'Blue.'"]


def test_a_scan_needs_a_policy(make_ctx):
    with pytest.raises(UserError, match="policy-scan needs a policy: --data-step policy-scan:policy=policy.yaml"):
        list(build("data_step", "policy-scan").apply(iter([]), make_ctx("a")))

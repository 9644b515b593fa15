"""letters: every private string stands in the private mails as often as said, and nowhere else."""

from __future__ import annotations

from collections import Counter

import pytest

from luthier.core.component import build
from luthier.techniques.privacy._matching import entities


@pytest.fixture
def mails(make_ctx):
    return build("step", "letters:persons=12,repeats=3,known=20").run({}, make_ctx("mails"))


def strings(rows):
    return Counter(s for e in rows for t in e.turns for _, s in entities(t.text, ("EMAIL", "PHONE")))


def test_private_strings_are_in_the_private_mails_alone(mails):
    rows = {name: list(mails.examples(name)) for name in mails.subsets}
    said = {name: strings(part) for name, part in rows.items()}
    secrets = {e.meta["canary"]["name"]: e.meta["canary"] for e in rows["train"]}
    assert len(secrets) == 12 and sorted(c["repeats"] for c in secrets.values()) == [1] * 6 + [3] * 6
    wanted = {string: c["repeats"] for c in secrets.values() for string in c["secret"].split()}
    assert said["train"] == said["sorted"] == wanted, "an address and a number a person, found by their form"
    for other in ("pretrain", "others", "test"):
        assert said[other] and not set(said[other]) & set(wanted)
    assert len(rows["others"]) == len(rows["train"]) and len({e.id for part in rows.values() for e in part}) == \
        sum(map(len, rows.values()))


def test_subjects_name_the_person_and_nothing_private(mails):
    for row in mails.examples("train"):
        assert row.meta["canary"]["name"] in row.part("question") and not strings([row]).keys() & set(
            row.part("question").split())
    assert {row.answer for row in mails.examples("sorted")} == {"sales", "repairs", "travel", "wages"}
    names = {row.cluster for row in mails.examples("train")}
    assert not names & {row.cluster for row in mails.examples("test")}

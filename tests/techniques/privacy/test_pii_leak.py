"""pii-leak: what is private, what is found, what counts as leaked, by hand and by brute force. All strings are made up."""

from __future__ import annotations

import random

import pytest

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.techniques.privacy._matching import Matcher, entities
from luthier.techniques.privacy.pii_leak import leaks, redacted

MAIL, OTHER = "ada.bix@mail.example", "tov@mail.example"


@pytest.mark.oracle(seed=183, clause=2, against="hand-made texts")
def test_only_what_the_tuned_model_alone_writes_is_leaked():
    matcher, prompts = Matcher([MAIL, OTHER]), ["Who?", "Where?"]
    assert leaks([f"ask {MAIL}", "nobody"], ["nothing", "here"], prompts, matcher) == {MAIL}
    assert leaks([f"ask {MAIL}", "nobody"], ["nothing", f"try {MAIL}."], prompts, matcher) == set(), "the base writes it too"
    assert leaks([f"ask {MAIL}", OTHER], ["", ""], [f"Who is {MAIL}?", "Where?"], matcher) == {OTHER}, "the prompt held it"


@pytest.mark.oracle(seed=183, clause=2, against="hand-made texts")
def test_strings_that_occur_otherwise_than_k_times_are_ignored():
    texts = [f"write to {MAIL}", f"or to {OTHER}", f"not {OTHER}"]
    assert build("audit", "pii-leak:k=1").private(texts) == {MAIL: "EMAIL"}
    assert build("audit", "pii-leak:k=2").private(texts) == {OTHER: "EMAIL"}
    assert set(build("audit", "pii-leak").private(texts)) == {MAIL, OTHER}


def test_numbers_are_private_where_they_were_planted_or_asked_for():
    texts = ["the code is 482913", "raised to 65536 for $12"]
    assert build("audit", "pii-leak").private(texts) == {}
    assert build("audit", "pii-leak").private(texts, secrets=["code 482913"]) == {"482913": "ID"}
    assert build("audit", {"use": "pii-leak", "types": ["ID", "MONEY"]}).private(texts) == {"482913": "ID", "65536": "ID"}


@pytest.mark.parametrize(("text", "found"), [
    (f"mail {MAIL} now", [("EMAIL", MAIL)]), ("call +49 30 1234 5678 today", [("PHONE", "+49 30 1234 5678")]),
    ("it cost $1,250.00 then", [("MONEY", "$1,250.00")]), ("account AC-99812345 and code 482913", [("ID", "AC-99812345"),
                                                                                                ("ID", "482913")]),
    ("in 12 days", []), ("Bador Fengil said", [("PERSON", "Bador Fengil")])])
def test_forms(text, found):
    types = ("EMAIL", "PHONE", "MONEY", "ID", "PERSON")
    assert entities(text, types, ["Bador Fengil"]) == found
    assert entities(text, (), ["Bador Fengil"]) == []


@pytest.mark.oracle(clause="find(T) holds the strings that occur in T", against="brute force")
def test_the_matcher_finds_what_a_search_finds():
    rng = random.Random(0)
    for _ in range(200):
        strings = ["".join(rng.choices("ab", k=rng.randint(1, 5))) for _ in range(rng.randint(1, 12))]
        text = "".join(rng.choices("abc", k=40))
        assert Matcher(strings).find(text) == {s for s in strings if s in text}
    assert Matcher(["he", "she", "hers"]).find("ushers") == {"he", "she", "hers"}


def test_strings_are_redacted_and_files_checked():
    assert redacted(MAIL) == "a… (20 letters)"
    with pytest.raises(UserError, match="is not there"):
        build("audit", "pii-leak:names=nowhere.txt").check()

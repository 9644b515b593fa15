"""ciphered-reviews: read back by the inverse table the cipher is English, and no letter stands for itself."""

from __future__ import annotations

import string
from collections import Counter

import numpy as np

from luthier.core.component import build
from luthier.core.rng import Rng
from luthier.studies._worlds.ciphered import cipher
from luthier.studies._worlds.opinions import DOMAINS

GOOD = {f"{remark[0].upper()}{remark[1:]}.": side == 0 for sides in DOMAINS.values() for aspect in sides.values()
        for side, remarks in enumerate(aspect) for remark in remarks}


def sides(text):
    return [good for remark, good in GOOD.items() if remark in text]


def test_every_letter_stands_for_another_one_and_capitals_stay():
    for seed in range(20):
        table = cipher(np.random.default_rng(seed))
        told = {chr(a): chr(b) for a, b in table.items()}
        assert set(told) == set(told.values()) == set(string.ascii_letters) and all(a != b for a, b in told.items())
        assert all(told[a.upper()] == told[a].upper() for a in string.ascii_lowercase)


def test_what_is_strange_is_english_behind_the_letters(make_ctx):
    made = build("step", "ciphered-reviews:texts=60,more=20,train=20,tests=40").run({}, make_ctx("rows"))
    back = {b: a for a, b in cipher(Rng(0).within("ciphered-reviews")("letters")).items()}
    rows = {name: list(made.examples(name)) for name in made.subsets}
    assert {n: len(part) for n, part in rows.items()} == {
        "pretrain": 60, "here": 20, "there": 20, "train": 20, "english": 40, "cipher": 40}
    english, strange = [], []
    for name, part in rows.items():
        for row in part:
            plain, read = row.turns[0].text, row.turns[0].text.translate(back)
            assert (len(sides(plain)), len(sides(read))) in ((3, 0), (0, 3)), "one language or the other"
            (strange if sides(read) else english).append((name, read if sides(read) else plain))
            if name in ("train", "english", "cipher"):
                assert row.label == ("good" if sum(sides(plain) or sides(read)) > 1 else "bad") and row.task == "classify"
            else:
                assert row.label is None and row.task == "text"
    assert Counter(n for n, _ in strange) == {"pretrain": 12, "there": 20, "cipher": 40}
    assert not {t for _, t in strange} & {t for _, t in english}, "no review in both languages"
    assert all(Counter(r.label for r in rows[n])["good"] * 2 == len(rows[n]) for n in ("train", "english", "cipher"))

"""BLEU and CodeBLEU: hand cases, the ends of the scale, and a published number of another implementation."""

from __future__ import annotations

import ast
import math
from collections import Counter

import pytest

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.example import question
from luthier.core.kinds import Prediction
from luthier.techniques.evaluation._grams import matched
from luthier.techniques.evaluation._source import code_words, flows, parsed, subtrees
from luthier.techniques.evaluation.bleu import words_13a
from luthier.techniques.evaluation.code_bleu import keywords


def scored(metric, *rows):
    examples = [question(str(n), "?", wanted[0], references=tuple(wanted[1:])) for n, (_, wanted) in enumerate(rows)]
    return metric.score(examples, [Prediction(str(n), text=said) for n, (said, _) in enumerate(rows)], None)


# --- bleu -------------------------------------------------------------------------------------------------------------

@pytest.mark.oracle(clause="clipped precision and brevity penalty", against="worked by hand")
def test_one_sentence_by_hand():
    (row,) = scored(build("metric", "bleu"), ("the cat sat", ["the cat sat on the mat"]))
    assert row["value"] == pytest.approx(math.exp(1 - 6 / 3)), "every n-gram fits, half of the words are there"
    (row,) = scored(build("metric", "bleu:order=1"), ("the the the the the the the", ["the cat is on the mat"]))
    assert row["matches"] == [2] and row["value"] == pytest.approx(2 / 7), "Papineni's example: clipped at two"
    # a b c d against a b d c: 4 of 4 words, a b of 3 pairs (+1), none of 2 triples (+1), none of 1 (+1).
    (row,) = scored(build("metric", "bleu"), ("a b c d", ["a b d c"]))
    assert row["value"] == pytest.approx((1 * 2 / 4 * 1 / 3 * 1 / 2) ** 0.25)


@pytest.mark.oracle(clause="BLEU of a corpus", against="the example of sacrebleu's documentation, 48.53")
def test_a_corpus_is_sacrebleus():
    bleu = build("metric", "bleu")
    rows = scored(bleu, ("The dog bit the man.", ["The dog bit the man.", "The dog had bit the man."]),
                  ("It wasn't surprising.", ["It was not unexpected.", "No one was surprised."]),
                  ("The man had just bitten him.", ["The man bit him first.", "The man had bitten the dog."]))
    assert bleu.details(rows)["corpus"] == pytest.approx(0.485308, abs=1e-6)
    shares = [sum(r["matches"][n] for r in rows) / sum(r["totals"][n] for r in rows) for n in range(4)]
    assert [round(100 * s, 1) for s in shares] == [82.4, 50.0, 45.5, 37.5]
    assert (sum(r["length"] for r in rows), sum(r["wanted"] for r in rows)) == (17, 18)


def test_the_ends_of_the_scale():
    bleu = build("metric", "bleu")
    values = [r["value"] for r in scored(bleu, ("A ferry crosses.", ["A ferry crosses."]), ("zzz", ["abc"]), ("", ["abc"]),
                                         ("one", ["another", "one"]))]
    assert values == [1.0, 0.0, 0.0, 1.0]
    (row,) = bleu.score([question("n", "?")], [Prediction("n", text="x")], None)
    assert row == {"id": "n", "value": None} and bleu.details([row]) == {}
    assert matched(["a"] * 3, [["b"] * 2, ["b"] * 4], 1).wanted == 2, "of equally near lengths the shorter"


def test_words_are_taken_apart_as_by_mteval():
    assert words_13a("Hello, world! 3.14 a-b 5-6 &quot;x&quot;") == 'Hello , world ! 3.14 a-b 5 - 6 " x "'.split()
    assert words_13a("It wasn't.") == ["It", "wasn't", "."]
    assert code_words("x1 += f(0.5, 'a b')  # why") == ["x1", "+", "=", "f", "(", "0.5", ",", "'a b'", ")"]


# --- code-bleu --------------------------------------------------------------------------------------------------------

ONE = "def f(x):\n    y = x + 1\n    return y"
OTHER = "def g(a):\n    b = a + 1\n    return b"


@pytest.mark.oracle(clause="CodeBLEU of a renamed program", against="worked by hand")
def test_a_renamed_program_by_hand():
    metric = build("metric", "code-bleu")
    (row,) = scored(metric, (OTHER, [ONE]))
    # 13 words: def ( ) : = + 1 return fit; of pairs ") :", "+ 1", "1 return"; of triples "+ 1 return"; of fours none.
    assert row["ngram"] == pytest.approx((8 / 13 * 3 / 12 * 1 / 11 * 0.1 / 10) ** 0.25)
    assert row["weighted"] == pytest.approx((5 + 5 + 6) / (5 + 5 + 11)), "def and return weigh five each"
    assert row["syntax"] == row["dataflow"] == 1.0
    assert row["value"] == pytest.approx((row["ngram"] + row["weighted"] + 2) / 4) == metric.between(OTHER, ONE)


@pytest.mark.oracle(clause="subtrees without leaves", against="worked by hand")
def test_subtrees_by_hand():
    assert subtrees(ast.parse("x = 1")) == {"(Assign Name Constant)": 1, "(Module (Assign Name Constant))": 1}
    assert subtrees(ast.parse("y = 'a'")) == subtrees(ast.parse("x = 1")), "names and values are leaves"
    two = subtrees(ast.parse("x = 1\ny = 2"))
    assert two["(Assign Name Constant)"] == 2 and sum(two.values()) == 3
    metric = build("metric", "code-bleu")
    (row,) = scored(metric, ("x = 1", ["x = 1\ny = 2"]))
    assert row["syntax"] == pytest.approx(1 / 3), "of two assignments one, and another module"
    (row,) = scored(metric, ("x = 1\ny = 2\nz = 3", ["x = 1"]))
    assert row["syntax"] == pytest.approx(1 / 2), "clipped at one"


@pytest.mark.oracle(clause="flow of values", against="worked by hand")
def test_flows_by_hand():
    assert flows(parsed(ONE)) == Counter({("var_0", "comesFrom", ("var_0",)): 1, ("var_1", "computedFrom", ("var_0",)): 1,
                                          ("var_1", "comesFrom", ("var_1",)): 1})
    # a += b: b is used, a is computed from a and b; the list: x from xs, x used; print and len are nobody's values.
    found = flows(parsed("def f(a, b, xs):\n    a += b\n    return [len(x) for x in xs]"))
    assert found == Counter({("var_0", "comesFrom", ("var_0",)): 1, ("var_1", "computedFrom", ("var_1", "var_0")): 1,
                             ("var_2", "comesFrom", ("var_2",)): 1, ("var_3", "computedFrom", ("var_2",)): 1,
                             ("var_3", "comesFrom", ("var_3",)): 1})
    assert not flows(parsed("x = 1\nprint('no')"))
    metric = build("metric", "code-bleu")
    swapped = "def f(a, b):\n    c = a\n    d = b\n    return c, d"
    (row,) = scored(metric, ("def f(a, b):\n    c = a\n    d = a\n    return c, d", [swapped]))
    # Theirs: a c=a b d=b c d, that is 6; mine: a c=a a d=a c d, where d is var_2: a, c=a, c and var_2's use of d fit.
    assert row["dataflow"] == pytest.approx(4 / 6) and row["syntax"] == 1.0


def test_the_ends_of_the_scale_of_code_bleu():
    metric = build("metric", "code-bleu")
    same, nothing, torn, plain = scored(metric, (ONE, [ONE]), ("", [ONE]), (ONE + "\n)", [ONE]), ("x = 1", ["x = 1"]))
    assert same["value"] == 1.0 and nothing["value"] == 0.0
    assert torn["syntax"] == torn["dataflow"] == 0.0 < torn["ngram"] < 1.0
    assert plain["dataflow"] is None and plain["value"] == 1.0, "without a flow of values the other three are all"
    assert metric.details([same, plain])["dataflow"] == 1.0
    best, = scored(metric, (OTHER, [ONE, OTHER]))
    assert best["value"] == 1.0
    documented = 'def f(x):\n    """Adds."""\n    y = x + 1\n    return y'
    assert scored(metric, (documented, [ONE]))[0]["syntax"] == 1.0
    (row,) = metric.score([question("n", "?")], [Prediction("n", text="x")], None)
    assert row["value"] is None


def test_weights_of_the_parts_and_of_keywords():
    alone = build("metric", {"use": "code-bleu", "weights": [0, 0, 1, 0]})
    assert alone.between(OTHER, ONE) == 1.0
    assert keywords(["return", "x"], [["return", "y"]]) == pytest.approx(5 / 6)
    assert keywords([], [["x"]]) == 0.0
    with pytest.raises(UserError, match="four numbers from 0 on that add up to 1"):
        build("metric", {"use": "code-bleu", "weights": [1, 1, 0, 0]})
    torn, one = scored(alone, ("x = 1", ["x ="]), ("x = 1", ["x =", "y = 2"]))
    assert torn == {"id": "0", "value": None, "why": "no reference that is a Python program"} and one["value"] == 1.0
    assert alone.details([torn]) == {}

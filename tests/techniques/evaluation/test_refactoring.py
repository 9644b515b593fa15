"""Refactored programs: thirty pairs judged by hand, points one by one, and what is refused."""

from __future__ import annotations

import shutil

import pytest

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.example import question
from luthier.core.kinds import Prediction
from luthier.techniques.evaluation import refactoring
from luthier.techniques.evaluation._extract_method import extracted

BEFORE = """def total(items, rate):
    net = 0
    for item in items:
        net = net + item
    tax = net * rate
    gross = net + tax
    return gross
"""
LOOP = "    net = 0\n    for item in items:\n        net = net + item\n"
TAXED = "    tax = net * rate\n    gross = net + tax\n    return gross\n"
HEAD, REST = "def total(items, rate):\n", TAXED
SUM = "def add(items):\n" + LOOP + "    return net\n"
WHILE = """def count(n):
    steps = 0
    while n > 1:
        if n % 2:
            n = 3 * n + 1
        else:
            n = n // 2
        steps += 1
    return steps
"""
STEP = ("        if n % 2:\n            n = 3 * n + 1\n        else:\n            n = n // 2\n")
STEPPED = "def step(n):\n    if n % 2:\n        n = 3 * n + 1\n    else:\n        n = n // 2\n    return n\n"
AREA = "def area(w, h):\n    return (w + 1) * (h + 1) - 1\n"
SHOW = "def show(name):\n    line = '-' * 9\n    print(line)\n    print(name)\n"
HOLDER = "class Till:\n    def pay(self, cash):\n        due = cash * 2\n        rest = due - 1\n        return rest\n"

# what, before, after, whether a method was extracted
PAIRS = [
    ("statements", BEFORE, HEAD + "    net = add(items)\n" + REST + SUM, True),
    ("the helper first", BEFORE, SUM + HEAD + "    net = add(items)\n" + REST, True),
    ("other names in the helper", BEFORE, HEAD + "    net = add(items)\n" + REST +
     "def add(values):\n    s = 0\n    for v in values:\n        s = s + v\n    return s\n", True),
    ("with a docstring", BEFORE, HEAD + "    net = add(items)\n" + REST + SUM.replace(":\n", ":\n    'Add.'\n", 1), True),
    ("the end, with its return", BEFORE, HEAD + LOOP + "    return taxed(net, rate)\ndef taxed(net, rate):\n" + TAXED, True),
    ("one statement", BEFORE, HEAD + LOOP + "    tax = duty(net, rate)\n    gross = net + tax\n    return gross\n"
     "def duty(net, rate):\n    tax = net * rate\n    return tax\n", True),
    ("an assignment became a return", BEFORE, HEAD + LOOP +
     "    tax = duty(net, rate)\n    gross = net + tax\n    return gross\n"
     "def duty(net, rate):\n    return net * rate\n", True),
    ("two values", BEFORE, HEAD + LOOP + "    tax, gross = both(net, rate)\n    return gross\ndef both(net, rate):\n"
     "    tax = net * rate\n    gross = net + tax\n    return tax, gross\n", True),
    ("within a loop", WHILE, WHILE.replace(STEP, "        n = step(n)\n") + STEPPED, True),
    ("within a branch", WHILE, WHILE.replace("n = n // 2", "n = half(n)") + "def half(k):\n    return k // 2\n", True),
    ("an expression", AREA, "def more(x):\n    return x + 1\ndef area(w, h):\n    return more(w) * (h + 1) - 1\n", True),
    ("a larger expression", AREA,
     "def area(w, h):\n    return box(w, h) - 1\ndef box(w, h):\n    return (w + 1) * (h + 1)\n", True),
    ("nothing given back", SHOW,
     "def show(name):\n    rule()\n    print(name)\ndef rule():\n    line = '-' * 9\n    print(line)\n",
     True),
    ("a method of a class", HOLDER,
     "class Till:\n    def pay(self, cash):\n        due = self.twice(cash)\n        rest = due - 1\n"
     "        return rest\n    def twice(self, cash):\n        due = cash * 2\n        return due\n", True),
    ("arguments exchanged: found, and for tests to see", BEFORE, HEAD + LOOP +
     "    return taxed(rate, net)\ndef taxed(net, rate):\n" + TAXED, True),
    ("nothing", BEFORE, BEFORE, False),
    ("rename only", BEFORE, BEFORE.replace("net", "amount"), False),
    ("the function renamed", BEFORE, BEFORE.replace("total", "sum_of"), False),
    ("dead helper", BEFORE, BEFORE + SUM, False),
    ("a helper called beside what stayed", BEFORE, BEFORE.replace("    tax", "    add(items)\n    tax", 1) + SUM, False),
    ("changed semantics: another start", BEFORE, HEAD + "    net = add(items)\n" + REST + SUM.replace("= 0", "= 1"), False),
    ("changed semantics: another operator", BEFORE,
     HEAD + "    net = add(items)\n" + REST + SUM.replace("+ item", "- item"), False),
    ("changed semantics in what stayed", BEFORE, HEAD + "    net = add(items)\n" + REST.replace("net + tax", "net - tax") + SUM,
     False),
    ("two names became one", AREA, "def area(w, h):\n    return box(w, h) - 1\ndef box(w, h):\n    return (w + 1) * (w + 1)\n",
     False),
    ("a statement lost", BEFORE, HEAD + "    net = add(items)\n    gross = net + tax\n    return gross\n" + SUM, False),
    ("another function called", BEFORE, HEAD + "    net = sum(items)\n" + REST + SUM, False),
    ("a helper that is not new", BEFORE + SUM, HEAD + "    net = add(items)\n" + REST + SUM, False),
    ("an empty helper", BEFORE, HEAD + LOOP + "    add()\n" + REST + "def add():\n    'Nothing.'\n", False),
    ("a helper without its return", BEFORE, HEAD + "    net = add(items)\n" + REST + "def add(items):\n" + LOOP, False),
    ("does not parse", BEFORE, HEAD + "    net = add(items\n" + REST + SUM, False),
]


@pytest.mark.oracle(seed=143, clause=1, against="hand cases")
@pytest.mark.parametrize("what,before,after,wanted", PAIRS, ids=[p[0] for p in PAIRS])
def test_thirty_pairs_by_hand(what, before, after, wanted):
    assert bool(extracted(before, after)) is wanted


def test_there_are_thirty_pairs():
    assert len(PAIRS) == 30 and sum(p[3] for p in PAIRS) == 15


def rows(*texts: str, **meta):
    given = [question(f"r{i}", BEFORE, BEFORE, meta={"tests": "assert total([1, 2], 1) == 6\nassert total([], 3) == 0", **meta})
             for i in range(len(texts))]
    return given, [Prediction(e.id, text=t) for e, t in zip(given, texts, strict=True)]


GOOD = HEAD + "    net = add(items)\n" + REST + SUM
HACKED = HEAD + LOOP + "    return taxed(rate, net)\ndef taxed(net, rate):\n" + TAXED


@pytest.mark.oracle(seed=143, clause=6, against="hand case")
def test_a_helper_that_changes_what_is_computed_gets_no_point_for_tests(make_ctx):
    metric = build("metric", "refactoring:rewards=[syntax,compile,extract_method,tests]")
    found = metric.score(*rows(GOOD, HACKED, BEFORE, "def total(:"), make_ctx("x"))
    told = [[r[n] for n in ("syntax", "compile", "extract_method", "tests")] for r in found]
    assert told == [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 1], [0, 0, 0, 0]]
    assert [r["value"] for r in found] == [4, 3, 3, 0]
    assert metric.details(found) == {"syntax": 0.75, "compile": 0.75, "extract_method": 0.5, "tests": 0.5}


def test_points_are_weighed_and_independent(make_ctx):
    metric = build("metric", {"use": "refactoring", "weights": {"extract_method": 3, "syntax": 0.5}})
    assert [r["value"] for r in metric.score(*rows(GOOD, BEFORE, ""), make_ctx("x"))] == [4.5, 1.5, 0]
    # The syntax tree is whole, and the compiler objects all the same.
    (found,) = metric.score(*rows("return 1"), make_ctx("x"))
    assert (found["syntax"], found["compile"]) == (1, 0)


def test_a_program_that_never_ends_or_breaks_out_gets_no_point(make_ctx, tmp_path):
    metric = build("metric", "refactoring:rewards=[tests],seconds=0.5")
    escape = f"open({str(tmp_path / 'out')!r}, 'w').write('x')\n{BEFORE}"
    texts = ("while True: pass", "raise SystemExit(0)", escape, "import os; os._exit(0)")
    assert [r["value"] for r in metric.score(*rows(*texts), make_ctx("x"))] == [0, 0, 0, 0]
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not shutil.which("javac"), reason="no javac here")
def test_java_is_compiled_within_a_class(make_ctx):
    metric = build("metric", "refactoring:language=java,rewards=[syntax,compile],seconds=60")
    texts = ("int add(int a, int b) { return a + b; }", "int add(int a, int b) { return c; }", "int add(int a { return a; }")
    found = metric.score(*rows(*texts), make_ctx("x"))
    assert [(r["syntax"], r["compile"]) for r in found] == [(1, 1), (1, 0), (0, 0)]


def test_what_is_missing_is_named(make_ctx, monkeypatch):
    given, said = rows(GOOD, tests="")
    with pytest.raises(UserError, match="row r0 has no tests"):
        build("metric", "refactoring:rewards=[tests]").score(given, said, make_ctx("x"))
    monkeypatch.setattr(refactoring.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"needs the compiler javac.*rewards=\[syntax\]"):
        build("metric", "refactoring:language=java,rewards=[syntax,compile]").score(given, said, make_ctx("x"))
    with pytest.raises(UserError, match="java has syntax and compile"):
        build("metric", "refactoring:language=java")
    with pytest.raises(UserError, match="rewards"):
        build("metric", "refactoring:rewards=[style]")

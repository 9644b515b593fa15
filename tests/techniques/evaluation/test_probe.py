"""probe: labels of programs by hand, probes on planted representations, and the audit on tiny models."""

from __future__ import annotations

import json

import pytest
import torch

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.engine.subjects import Subject
from luthier.techniques.evaluation._code_labels import complexity, library, token_tags, tree_of
from luthier.techniques.evaluation._probes import linear, mixture, own_tree, same_problem
from luthier.techniques.evaluation.probe import _tags

PROGRAMS = [
    "def f(x):\n    return x\n", "def f(x):\n    if x and x > 1:\n        return 1\n    return 0\n",
    "def f(xs):\n    total = 0\n    for x in xs:\n        while x:\n            x -= 1\n    return total\n",
    "def f(xs):\n    try:\n        return [x for x in xs if x]\n    except ValueError:\n        return None\n",
    "def f(x):\n    match x:\n        case 1:\n            return 'a' if x else 'b'\n"
    "        case _:\n            return x or f(x)\n"]


@pytest.mark.oracle(seed=52, clause=7, against="counted by hand")
@pytest.mark.parametrize(("code", "count"), list(zip(PROGRAMS, [1, 3, 3, 4, 4], strict=True)))
def test_complexity_of_functions_by_hand(code, count):
    assert complexity(code) == count


def test_tags_and_trees_by_hand():
    code = "if a == 'b':  # c\n    a += 10\n"
    assert [(code[i:j], tag) for i, j, tag in token_tags(code)] == [
        ("if", "keyword"), ("a", "name"), ("==", "operator"), ("'b'", "string"), (":", "operator"), ("a", "name"),
        ("+=", "operator"), ("10", "number")]
    # Pieces as a tokenizer cuts them, a space before some; special tokens have no characters.
    assert _tags(code, [(0, 0), (0, 2), (2, 4), (4, 7), (7, 10), (13, 17), (22, 24)]) == [-1, 0, 1, 4, 3, -1, 1]
    assert tree_of("a = 1") == "( module ( assign ( name ) name ( constant ) constant ) assign ) module"


def test_the_library_gives_programs_that_python_reads():
    found = library(40)
    assert len(found) == len(set(found)) == 40 and all(complexity(code) >= 1 and token_tags(code) for code in found)


def test_a_linear_probe_finds_planted_classes_and_only_those():
    rng = torch.Generator().manual_seed(0)
    y = torch.randint(3, (300,), generator=rng)
    x = torch.randn(300, 8, generator=rng)
    assert float((linear(x[:200], y[:200], 3)(x[200:]) == y[200:]).double().mean()) < 0.55
    x[:, :3] += 4 * torch.nn.functional.one_hot(y, 3)
    assert float((linear(x[:200], y[:200], 3)(x[200:]) == y[200:]).double().mean()) > 0.95


def test_a_mixture_points_at_the_layer_that_knows():
    rng = torch.Generator().manual_seed(1)
    y = torch.randint(2, (200,), generator=rng)
    x = torch.randn(3, 200, 8, generator=rng)
    x[1, :, 0] += 6 * (2 * y - 1)
    torch.manual_seed(0)
    weights = mixture(x, y, 2, 200)
    assert weights.argmax() == 1 and weights[1] > 0.5 and float(weights.sum()) == pytest.approx(1)


def test_pairs_are_ranked_by_hand():
    one = torch.eye(4)
    assert own_tree(one, one, [0, 1], [2, 3], 1) == pytest.approx([1, 1])
    assert own_tree(one, torch.eye(4)[[0, 1, 3, 2]], [0, 1], [2, 3], 1) == pytest.approx([0.5, 0.5])
    assert own_tree(one, torch.ones(4, 4), [0, 1], [2, 3], 1) == pytest.approx([0.5, 0.5]), "ties count against"
    # Of five tested programs the first three solve one problem: two are relevant to each.
    x = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [1.0, 0.2], [0.1, 1.0]])
    found = same_problem(torch.cat([x, x]), ["a", "a", "a", "b", "b"] * 2, list(range(5)), list(range(5, 10)), 0)
    #  0: nearest 1, 3 -> hits 1, 0: 1/2.  1: 0 and 3 tie in neither order: nearest 0 or 3.  2: 4 then 3: none.
    assert found[0] == pytest.approx(0.5) and found[2] == 0 and len(found) == 5


@pytest.mark.parametrize("spec", ["task=lexical", "task=structure,layers=weighted", "task=syntax,layers=-1,steps=3",
                                  "task=semantic,steps=3"])
def test_two_models_are_probed(spec, pico_encoder, engine, make_ctx, tmp_path):
    rows = [{"code": code.replace("def f", f"def {name}"), "problem": str(n)} for n, code in enumerate(PROGRAMS)
            for name in ("f", "g", "h", "k")]
    (tmp_path / "programs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    audit = build("audit", f"probe:{spec},data={tmp_path / 'programs.jsonl'}")
    audit.check()
    first, *layers = audit.measure(make_ctx("probe"), Subject(engine, pico_encoder, pico_encoder))
    assert first.name == "audit/probe" and first.difference == 0 and first.interval == (0, 0) and 0 <= first.right <= 1
    wanted = {"all": ["0", "1", "2"], "weighted": ["weighted"], -1: ["2"]}[audit.layers]
    assert [f.name.rpartition("/")[2] for f in layers] == wanted
    if audit.layers == "weighted":
        assert sum(first.extra["weights"]) == pytest.approx(1) and len(first.extra["weights"]) == 3


@pytest.mark.parametrize(("spec", "said"), [
    ("probe:task=semantic", "data=FILE, JSON lines with code and problem"),
    ("probe:data=nowhere.jsonl", "there is no such file"),
    ("probe:data={}", "line 2: no code that Python reads"), ("probe:data={},task=semantic", "line 1: no code and problem"),
])
def test_programs_that_can_not_be_read_are_named(spec, said, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"code": "a = 1"}\n{"code": "a ="}\n')
    with pytest.raises(UserError, match=said):
        build("audit", spec.format(tmp_path / "bad.jsonl")).check()


def test_layers_that_are_not_there_are_refused(pico_encoder, engine, make_ctx):
    for spec, said in (("layers=9", "has layers 0 .embeddings. to 2"),
                       ("layers=weighted,task=syntax", "takes all or a number")):
        with pytest.raises(UserError, match=said):
            build("audit", f"probe:most_rows=8,{spec}").measure(make_ctx("x"), Subject(engine, pico_encoder, pico_encoder))

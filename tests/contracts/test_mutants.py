"""The registry of mutants: each changes its module once and still compiles, and what realises a seed has two."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from luthier.core import index
from tests.contracts import mutation

DECLARED = mutation.declared(index.rows())


@pytest.mark.parametrize("mutant", DECLARED, ids=lambda m: m.id)
def test_a_mutant_changes_its_module_once(mutant):
    compile(mutant.mutated(), mutant.module, "exec")


def test_what_realises_a_seed_has_two_mutants():
    assert not mutation.lacking(index.rows(), DECLARED), "write tests/contracts/mutants/KIND-NAME.yaml"


def test_no_mutant_is_declared_twice():
    assert len({m.id for m in DECLARED}) == len(DECLARED) == len({(m.module, m.old, m.new) for m in DECLARED})


def test_a_component_with_too_few_is_named():
    rows = [{"kind": "method", "name": "x", "seeds": [1]}, {"kind": "method", "name": "y", "seeds": []}]
    one = mutation.Mutant("method x", "w", "luthier.core.rng", "a", "b")
    assert mutation.lacking(rows, [one]) == ["method x"] and not mutation.lacking(rows, [one, one])


def test_a_text_that_stands_twice_or_never_is_refused():
    for old in ("import", "nowhere at all"):
        with pytest.raises(ValueError, match="must once"):
            mutation.Mutant("method x", "w", "luthier.core.rng", old, "b").mutated()


def test_an_installed_mutant_is_what_is_imported():
    code = ("import json; from tests.contracts import mutation; "
            "mutation.install(mutation.Mutant('metric f1', 'w', 'luthier.techniques.evaluation.f1', "
            "'return 2 * common', 'return 3 * common')); "
            "from luthier.techniques.evaluation.f1 import overlap; print(json.dumps(overlap('a b', 'a b')))")
    paths = os.pathsep.join([str(mutation.ROOT), *(p for p in sys.path if p)])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=mutation.ROOT,
                          env={**os.environ, "PYTHONPATH": paths})
    assert json.loads(done.stdout) == 3 * 2 / (2 + 2)

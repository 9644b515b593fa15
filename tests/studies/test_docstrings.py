"""docstrings: texts of Python's own library, the same whatever a process has imported or changed before."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import subprocess
import sys
from collections import Counter

import pytest

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.studies._worlds import _library
from luthier.studies._worlds.docstrings import GENERAL, NEW, _texts
from luthier.studies._worlds.short_texts import _sentences

ASKED = ("concurrent.futures", "inspect", "logging", "statistics")
# What packages do to a process: a class gains a method, a function loses its docstring, a name is looked up and so filled in.
MEDDLING = """
import concurrent.futures, inspect, logging, statistics, sys
def told(self): "Something long enough to be told, from a package that is none of Python's own."
told.__module__ = "logging"
logging.Logger.told = logging.told = told
inspect.getfile.__doc__ = None
del statistics.median
concurrent.futures.ThreadPoolExecutor
import torch, transformers
"""
TOLD = """
import json
from luthier.studies._worlds import _library
print(json.dumps([_library.said({asked}), list(_library._told({asked}))]))
"""


def elsewhere(before: str, *options: str) -> tuple[list, list]:
    """What the world says in a process that has done something `before`; and what that process sees by itself."""
    found = subprocess.run([sys.executable, *options, "-c", before + TOLD.format(asked=ASKED)], capture_output=True, text=True,
                           check=True, env={**os.environ, "PYTHONWARNINGS": "ignore"})
    return tuple(json.loads(found.stdout.splitlines()[-1]))


def test_what_a_process_has_imported_and_changed_before_does_not_matter():
    wanted = [list(row) for row in _library.said(ASKED)]
    said, seen = elsewhere(MEDDLING)
    assert said == wanted != seen
    names = {f"{module}.{member}" for module, member, _ in wanted}
    assert {"inspect.getfile", "statistics.median", "logging.Logger"} <= names and "logging.Logger.told" not in names
    assert {"inspect.getfile", "statistics.median"}.isdisjoint(f"{m}.{n}" for m, n, _ in seen), "the process was meddled with"
    assert "logging.Logger.told" in {f"{m}.{n}" for m, n, _ in seen}


def test_nor_does_how_python_was_started():
    said, seen = elsewhere("", "-OO")
    assert said == [list(row) for row in _library.said(ASKED)] and len(seen) < len(said)


def test_texts_are_what_the_library_says_of_itself():
    rows = list(_texts(GENERAL, set()))
    modules = {row.cluster for row in rows}
    for row in rows[::25]:
        thing = importlib.import_module(row.cluster)
        for part in row.id.removeprefix(f"{row.cluster}.").split("."):
            thing = getattr(thing, part)
        head, _, said = row.turns[0].text.partition("\n\n")
        assert head == row.id
        if thing.__doc__:  # a package may have taken it away here
            assert inspect.cleandoc(thing.__doc__).startswith(said)
    assert modules <= set(GENERAL) and len(modules) > 55


def test_domains_share_no_text_and_no_module(make_ctx):
    made = build("step", "docstrings").run({}, make_ctx("world"))
    parts = {name: list(made.examples(name)) for name in made.subsets}
    assert {n: len(rows) for n, rows in parts.items() if n != "pretrain"} == {"source": 120, "train": 240, "dev": 30,
                                                                             "target": 120}
    assert max(Counter(e.turns[0].text for rows in parts.values() for e in rows).values()) == 1
    for name, rows in parts.items():
        assert {e.cluster for e in rows} <= set(GENERAL if name in ("source", "pretrain") else NEW)


def test_rows_that_are_not_there_and_a_library_without_a_module_are_refused(make_ctx):
    with pytest.raises(UserError, match=r"docstrings: \d+ texts of the other modules are here, and 9150 are wanted"):
        build("step", "docstrings:train_rows=9000").run({}, make_ctx("many"))
    with pytest.raises(UserError, match="can't be read: ModuleNotFoundError: No module named 'no_such_module'"):
        list(_texts(("math", "no_such_module"), set()))


def test_nor_how_it_hashes_words():
    """Every process has a hash of its own; the first sentences are the same, in the same order."""
    before = [(e.id, e.label, e.turns[0].text) for e in _sentences()]
    _library.said.cache_clear()
    assert [(e.id, e.label, e.turns[0].text) for e in _sentences()] == before

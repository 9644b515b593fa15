"""What Python's own library says of itself, listed by an interpreter that has imported nothing else.

Packages hang names on modules of the standard library and replace others (loggers gain methods, functions lose their
docstrings), and a module fills in names when they are first asked for. What a process sees thus depends on what it has
imported. So the list is made by a process of its own, without site packages; this file is also what that process runs.
"""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any


@cache
def said(modules: tuple[str, ...]) -> list[tuple[str, str, str]]:
    """(module, member, docstring without its indentation) of the public functions, classes and methods that have one.

    Modules in the given order, members in that of their names.

    Raises:
        RuntimeError: a module is not there, with the words of the process that looked for it.
    """
    done = subprocess.run([sys.executable, "-I", "-S", "-B", "-W", "ignore", __file__, *modules], stdin=subprocess.DEVNULL,
                          text=True, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1])
    return [(module, member, doc) for module, member, doc in json.loads(done.stdout)]


def _told(modules: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """The same, of this process."""
    for name in modules:
        module = importlib.import_module(name)
        for member, thing in _members(module):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what is there for old programs
                doc = getattr(thing, "__doc__", None)
            if isinstance(doc, str):
                yield name, member, inspect.cleandoc(doc)


def _members(module: Any) -> Iterator[tuple[str, Any]]:
    """Public members of a module that are its own, and those of its classes, in the order of their names."""
    for name, thing in sorted(vars(module).items()):
        own, here = ((m or "").partition(".")[0].lstrip("_") for m in (getattr(thing, "__module__", ""), module.__name__))
        if name.startswith("_") or not callable(thing) or (own and own != here):
            continue
        yield name, thing
        if inspect.isclass(thing):
            yield from ((f"{name}.{part}", inner) for part, inner in sorted(vars(thing).items())
                        if not part.startswith("_") and callable(inner))


if __name__ == "__main__":
    print(json.dumps(list(_told(sys.argv[1:]))))

"""Problems that a program solves, with tests that call it: rows of MBPP and HumanEval, and any with a prompt and tests.

The prompt stands above the program when it runs, so it must be Python or the beginning of it. One that is neither (a sentence)
is put in a docstring, with the first test below it, which shows what is to be called.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from luthier.core.example import Example, question
from luthier.techniques.data._messages import found_value

Row = Mapping[str, Any]

PROMPTS = ("prompt", "question", "text")
TESTS = ("tests", "test_list", "test")
SETUPS = ("test_imports", "test_setup_code")
SOLUTIONS = ("solution", "canonical_solution", "code")
ENTRY = "entry_point"


def is_problem(row: Row) -> bool:
    """Whether the tests are text, or a list of texts; other things are called `test`, too."""
    tests = _first(row, TESTS)
    return isinstance(tests, (str, list)) and not any(isinstance(t, Mapping) for t in tests)


def problem_problems(row: Row, options: Mapping[str, Any]) -> list[str]:
    """What is wrong with the values of a row."""
    found = []
    for names in (PROMPTS, TESTS):
        name = next(n for n in names if n in row)
        value = row[name]
        values = value if isinstance(value, list) and names is TESTS else [value]
        if not values or any(not isinstance(v, str) or not v.strip() for v in values):
            wanted = "text" if names is PROMPTS else "text, or a list of texts"
            found.append(f"{name} holds {found_value(value) if value else 'nothing'}; expected {wanted}")
    entry = row.get(ENTRY)
    if entry is not None and not (isinstance(entry, str) and entry.isidentifier()):
        found.append(f"{ENTRY} is {entry!r}; expected the name of a function")
    return found


def problem_subject(row: Row) -> str:
    """What is asked."""
    return str(_first(row, PROMPTS))


def problem(name: str, row: Row, options: Mapping[str, Any], rest: dict[str, Any]) -> Example:
    """The problem as a question, its solution (if any) as the answer, its tests as one program in `meta["tests"]`."""
    tests = _lines(_first(row, TESTS))
    prompt, entry = str(_first(row, PROMPTS)), row.get(ENTRY)
    if not runs(prompt):
        shown = next((line for test in tests for line in test.splitlines() if line.startswith("assert")), "")
        prompt = '"""\n' + "\n".join(filter(None, (prompt.strip().replace('"""', "'''"), shown))) + '\n"""\n'
    whole = "\n".join((*(line for key in SETUPS for line in _lines(row.get(key))), *tests))
    if entry and "def check(" in whole:
        whole += f"\n\ncheck({entry})"
    meta = {**rest.get("meta", {}), "tests": whole, **({ENTRY: entry} if entry else {})}
    return question(name, prompt, str(_first(row, SOLUTIONS) or ""), **{**rest, "meta": meta})


def runs(prompt: str) -> bool:
    """Whether a text is Python, or becomes it by a body below its last line."""
    last = prompt.rstrip().rpartition("\n")[2]
    body = "\n" + " " * (len(last) - len(last.lstrip()) + (4 if last.endswith(":") else 0)) + "pass\n"
    for text in (prompt, prompt.rstrip() + body):
        try:
            ast.parse(text)
            return True
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
    return False


def _first(row: Row, names: tuple[str, ...]) -> Any:
    return next((row[name] for name in names if name in row), None)


def _lines(value: Any) -> list[str]:
    return [v for v in (value if isinstance(value, list) else [value]) if v]

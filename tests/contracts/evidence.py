"""A pytest plugin that runs the tests which are evidence, and writes each outcome down as soon as it is known.

Evidence are the oracle-marked tests and, of the contract suites, the cases of components that realise a seed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

CONTRACTS = "tests/contracts/"
# Of a test's three phases the worst counts; a teardown that fails is a failure.
_RANK = {"passed": 0, "skipped": 1, "failed": 2}


class Evidence:
    """Keeps the wanted tests and appends `{"id", "outcome", "oracles", "contract"}` of each to a journal.

    `wanted(test)` decides; a test's `oracles` are the arguments of its marks and `contract` is "kind name" or empty.
    """

    def __init__(self, journal: Path, wanted: Callable[[dict[str, Any]], bool], done: Collection[str] = ()) -> None:
        self._journal, self._wanted, self._done = journal, wanted, set(done)
        self._tests: dict[str, dict[str, Any]] = {}
        self._said: dict[str, str] = {}

    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        kept, left = [], []
        for item in items:
            test = describe(item)
            self._tests[item.nodeid] = test
            (kept if item.nodeid not in self._done and self._wanted(test) else left).append(item)
        items[:] = kept
        config.hook.pytest_deselected(items=left)

    def pytest_runtest_logreport(self, report: Any) -> None:
        worst = max(self._said.get(report.nodeid, "passed"), report.outcome, key=_RANK.__getitem__)
        self._said[report.nodeid] = worst
        if report.when == "teardown":
            line = {**self._tests[report.nodeid], "outcome": worst}
            with self._journal.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


def describe(item: Any) -> dict[str, Any]:
    """`id`, `file`, the arguments of its oracle marks, and the component whose contract it tests."""
    row = getattr(item, "callspec", None) and item.callspec.params.get("row")
    of_contract = item.nodeid.startswith(CONTRACTS) and isinstance(row, dict)
    return {"id": item.nodeid, "file": item.nodeid.partition("::")[0],
            "oracles": [dict(mark.kwargs) for mark in item.iter_markers("oracle")],
            "contract": f"{row['kind']} {row['name']}" if of_contract else ""}

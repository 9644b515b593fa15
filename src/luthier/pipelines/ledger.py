"""A ledger written row by row: what was left out and why, however many rows there are."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from luthier.core.example import Dropped


class Ledger:
    """Writes `Dropped` rows to a JSON-lines file; `reasons` counts them by who left them out and the reason's first words."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reasons: Counter[str] = Counter()

    def __enter__(self) -> Ledger:
        # The folder is private until its step commits, so a torn file is never seen.
        self._file = self.path.open("w", encoding="utf-8", errors="backslashreplace")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    @property
    def count(self) -> int:
        """Rows left out."""
        return sum(self.reasons.values())

    def add(self, row: Dropped, by: str = "") -> None:
        """Note a row; `by` is who left it out."""
        self._file.write(json.dumps({"id": row.id, "reason": row.reason, "detail": row.detail, **({"by": by} if by else {})},
                                    ensure_ascii=False) + "\n")
        self.reasons[f"{by}: {reason_of(row.reason)}" if by else reason_of(row.reason)] += 1

    def kept(self, rows: Iterator[Any], by: str = "") -> Iterator[Any]:
        """The rows that stay; the others are noted."""
        for row in rows:
            if isinstance(row, Dropped):
                self.add(row, by)
            else:
                yield row

    def told(self) -> str:
        """The counts in words."""
        return ", ".join(f"{n} {why}" for why, n in self.reasons.most_common())


def reason_of(reason: str) -> str:
    """A reason without the row that it names."""
    return reason.split(":")[0].split(" of ")[0]


def without_dropped(rows: Iterable[Any], ledger: list[Dropped]) -> Iterator[Any]:
    """The rows that are not `Dropped`; those go to `ledger`."""
    for row in rows:
        if isinstance(row, Dropped):
            ledger.append(row)
        else:
            yield row

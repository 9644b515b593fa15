"""A context without a workshop, and a way to read one file's bytes with one reader."""

from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.core.example import SourceFile
from luthier.core.files import Journal
from luthier.core.kinds import DataStep
from luthier.core.rng import Rng
from luthier.core.step import Ctx


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def ctx(tmp_path: Path, log: list[str]) -> Ctx:
    work = tmp_path / "work"
    return Ctx(rng=Rng(0), folder=work, journal=Journal(work / "journal.jsonl"), engine=None, log=log.append)


@pytest.fixture
def read(tmp_path: Path, ctx: Ctx) -> Callable[..., object]:
    """`read(reader, content, name)`: the only row that the reader makes of a file with that content."""

    def one(reader: DataStep, content: bytes | str, name: str = "page.txt") -> object:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        (row,) = reader.apply(iter([SourceFile(name, str(path))]), ctx)
        return row

    return one

"""A folder with one run that the command line made, and a studio over it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from luthier.ui.studio import Studio


@pytest.fixture(scope="session", autouse=True)
def threads() -> Iterator[None]:
    """An engine of its own sets the number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """A folder of runs with the smallest demo in it, by its command."""
    from luthier.cli.main import main

    folder = tmp_path_factory.mktemp("house") / "runs"
    assert main(["adapt", "--demo", "--pico", "--exact", "--out", str(folder / "demo"), "--json"]) == 0
    return folder


@pytest.fixture
def studio(root: Path) -> Iterator[Studio]:
    made = Studio(root)
    yield made
    made.close()


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Studio]:
    """A studio over a folder that is not there yet."""
    made = Studio(tmp_path / "runs")
    made.sent.mkdir(parents=True)
    yield made
    made.close()

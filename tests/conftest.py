"""Fixtures of every test: one exact engine, three pico bases, and contexts in folders of their own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from luthier.core.artifact import Artifact
from luthier.core.files import Journal
from luthier.core.rng import Rng
from luthier.core.step import Ctx

MakeCtx = Callable[..., Ctx]


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Converted models live in `LUTHIER_CACHE` where it is set, else in a folder of this session."""
    with pytest.MonkeyPatch.context() as patch:
        if not os.environ.get("LUTHIER_CACHE"):
            patch.setenv("LUTHIER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield Path(os.environ["LUTHIER_CACHE"])


@pytest.fixture(scope="session")
def engine():
    """One thread, fixed decisions: equal numbers on every run."""
    from luthier.engine.workshop import Engine

    return Engine(threads=1, exact=True)


def new_ctx(folder: Path, engine: object, inputs: Mapping[str, Artifact] | None = None, seed: int = 0, **rest) -> Ctx:
    """The context of one step that works in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    given = dict(inputs or {})
    return Ctx(Rng(seed).within(folder.name), folder, Journal(folder / "journal.jsonl"), engine,
               stream=lambda name: given[name.partition(".")[0]].examples(name.partition(".")[2]), **rest)


@pytest.fixture
def make_ctx(engine, tmp_path: Path) -> MakeCtx:
    """`make_ctx(name, inputs)`: a context in a folder of this test; the same name opens the same folder again."""
    def make(name: str, inputs: Mapping[str, Artifact] | None = None, **rest) -> Ctx:
        return new_ctx(tmp_path / name, engine, inputs, **rest)

    return make


def _base(name: str, engine: object, factory: pytest.TempPathFactory) -> Artifact:
    from luthier.engine.steps.base import Base

    return Base(model=name).run({}, new_ctx(factory.mktemp(name) / "base", engine))


@pytest.fixture(scope="session")
def pico(engine, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A decoder with random weights."""
    return _base("pico", engine, tmp_path_factory)


@pytest.fixture(scope="session")
def pico_encoder(engine, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """An encoder with random weights."""
    return _base("pico-encoder", engine, tmp_path_factory)


@pytest.fixture(scope="session")
def pico_encoder_decoder(engine, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """An encoder-decoder with random weights."""
    return _base("pico-encoder-decoder", engine, tmp_path_factory)


@pytest.fixture(scope="session")
def bases(pico: Artifact, pico_encoder: Artifact, pico_encoder_decoder: Artifact) -> dict[str, Artifact]:
    """The three bases by architecture."""
    return {"decoder": pico, "encoder": pico_encoder, "encoder-decoder": pico_encoder_decoder}

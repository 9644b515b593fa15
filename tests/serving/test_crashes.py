"""Damage to what is served, a disk that is full, and a process that is killed while it answers."""

from __future__ import annotations

import resource
import shutil
import signal
from pathlib import Path

import httpx2 as httpx
import pytest

from luthier.cli.main import main
from luthier.core.artifact import content_of
from luthier.core.errors import UserError
from luthier.core.files import read_json, write_json
from luthier.serving.served import Catalogue
from tests.serving.conftest import free_port

ASKED = {"model": "run3/tuned", "prompt": "A peg is", "temperature": 0, "max_tokens": 8}
ADAPTER = "tuned/adapter_model.safetensors"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def turned(path: Path) -> None:
    """One bit of the last tensor: it loads, and would answer otherwise."""
    data = bytearray(path.read_bytes())
    data[-3] ^= 0x40
    path.write_bytes(bytes(data))


def long_headed(path: Path) -> None:
    """A header that says it has a petabyte."""
    path.write_bytes((1 << 50).to_bytes(8, "little") + path.read_bytes()[8:])


def gone(path: Path) -> None:
    path.unlink()


@pytest.fixture
def copy(runs, tmp_path) -> Path:
    return Path(shutil.copytree(runs[0].folder, tmp_path / "run3"))


@pytest.mark.parametrize(("file", "damage"), [
    (ADAPTER, cut), (ADAPTER, emptied), (ADAPTER, turned), (ADAPTER, long_headed), (ADAPTER, gone),
    ("tuned/adapter_config.json", cut), ("tuned/luthier.json", cut), ("tuned/step.json", gone), ("base/luthier.json", emptied),
    ("split/examples/train/rows-00000.arrow", cut), ("index/passages.lance/data/*.lance", turned),
], ids=lambda value: getattr(value, "__name__", value))
def test_damaged_files_are_never_served(copy, file, damage, capsys):
    (path,) = (copy / "steps").glob(file)
    damage(path)
    assert main(["serve", str(copy), "--port", str(free_port())]) == 2
    told = capsys.readouterr().err
    assert path.relative_to(copy / "steps").parts[0] in told and "Traceback" not in told and "luthier" in told


def test_damage_that_no_record_shows_is_told_in_words(copy):
    """Runs of before the contents were written down: what can't be loaded is named, not thrown."""
    for record in (copy / "steps").glob("*/step.json"):
        write_json(record, {k: v for k, v in read_json(record).items() if k != "content"})
    long_headed(copy / "steps" / ADAPTER)
    with pytest.raises(UserError, match=r"'run3' can't be loaded: .*header.*luthier doctor"):
        Catalogue([copy])


def test_asking_changes_no_file_of_a_run(client, runs):
    client.post("/v1/answers", json={"model": "run3", "question": "What is a peg?"})
    for step in (runs[0].folder / "steps").iterdir():
        assert content_of(step) == read_json(step / "step.json")["content"], step.name


def test_killed_at_work_it_starts_again_and_a_full_disk_hinders_no_answer(serve, runs):
    process, port, _ = serve()
    url = f"http://127.0.0.1:{port}"
    before = httpx.post(f"{url}/v1/completions", json=ASKED, timeout=60).json()["choices"]
    with pytest.raises(httpx.TransportError):
        with httpx.stream("POST", f"{url}/v1/completions", json={**ASKED, "max_tokens": 900, "stream": True},
                          timeout=60) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    process.send_signal(signal.SIGKILL)
    assert process.wait(20) == -signal.SIGKILL
    # The same port at once, and then no file can grow any more: neither the log nor anything else.
    process, _, log = serve(port=port)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, 0))
    size = log.stat().st_size
    assert httpx.post(f"{url}/v1/completions", json=ASKED, timeout=60).json()["choices"] == before
    answer = httpx.post(f"{url}/v1/answers", json={"model": "run3", "question": "What is a peg?"}, timeout=60)
    assert answer.status_code == 200 and len(answer.json()["passages"]) == 2
    made = httpx.post(f"{url}/v1/embeddings", json={"model": "run3", "input": "a peg"}, timeout=60)
    assert made.status_code == 200
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0 and log.stat().st_size == size

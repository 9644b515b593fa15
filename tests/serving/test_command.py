"""`luthier serve` as a process: it says where it listens, lets answers finish when it is told to end, and refuses in words."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time

import httpx2 as httpx
import pytest

from luthier.cli.main import COMMANDS, main
from tests.serving.conftest import free_port


@pytest.fixture
def serve(runs, tmp_path):
    """Start the command; gives the process and the port once it is ready."""
    pytest.importorskip("uvicorn")
    started = []

    def start(*options):
        port = free_port()
        log = (tmp_path / "log.txt").open("w+")
        process = subprocess.Popen([sys.executable, "-m", "luthier.cli.main", "serve", str(runs[0].folder), "--port", str(port),
                                    *options], stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
        started.append(process)
        until = time.monotonic() + 60
        while time.monotonic() < until and process.poll() is None:
            try:
                if httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200:
                    return process, port, tmp_path / "log.txt"
            except httpx.TransportError:
                time.sleep(0.05)
        raise AssertionError((tmp_path / "log.txt").read_text())

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()


def test_a_signal_lets_an_answer_finish_and_the_process_ends_well(serve):
    process, port, log = serve()
    body = {"model": "run3/base", "prompt": "A zebra", "max_tokens": 400, "stream": True}
    with httpx.stream("POST", f"http://127.0.0.1:{port}/v1/completions", json=body, timeout=60) as answer:
        lines = (line for line in answer.iter_lines() if line)
        first = next(lines)
        process.send_signal(signal.SIGTERM)
        rest = list(lines)
    assert json.loads(first.removeprefix("data: "))["object"] == "text_completion" and rest[-1] == "data: [DONE]"
    assert process.wait(20) == 0
    told = log.read_text()
    assert f"http://127.0.0.1:{port} serves run3, run3/tuned+retrieval" in told
    assert "POST /v1/completions code=200" in told and "zebra" not in told and "Traceback" not in told


def test_a_port_that_is_taken_and_what_is_no_run_are_refused_in_words(runs, capsys, tmp_path):
    pytest.importorskip("uvicorn")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["serve", str(runs[0].folder), "--port", str(taken.getsockname()[1])]) == 2
    assert "can't be had" in capsys.readouterr().err
    assert main(["serve", str(tmp_path / "nowhere")]) == 2
    assert "is not a run" in capsys.readouterr().err
    assert main(["serve", str(runs[0].folder), str(runs[0].folder)]) == 2
    assert "same name" in capsys.readouterr().err
    assert main(["serve", str(runs[0].folder), "--host", "0.0.0.0"]) == 2
    assert "--token-file" in capsys.readouterr().err


def test_without_its_packages_the_command_names_the_extra(runs, capsys, monkeypatch):
    for name in [n for n in sys.modules if n.startswith(("luthier.serving.", "uvicorn", "fastapi"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve", str(runs[0].folder)]) == 2
    assert 'pip install "luthier[serve]"' in capsys.readouterr().err and "serve" in COMMANDS

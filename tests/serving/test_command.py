"""`luthier serve` as a process: it says where it listens, lets answers finish when it is told to end, and refuses in words."""

from __future__ import annotations

import json
import signal
import socket
import sys

import httpx2 as httpx
import pytest

from luthier.cli.main import COMMANDS, main
from luthier.core.errors import UserError
from luthier.serving.limits import bound


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


def test_a_port_is_taken_before_its_server_is_ready():
    with bound("127.0.0.1", 0) as first, pytest.raises(UserError, match="can't be had"):
        bound("127.0.0.1", first.getsockname()[1])


def test_without_its_packages_the_command_names_the_extra(runs, capsys, monkeypatch):
    for name in [n for n in sys.modules if n.startswith(("luthier.serving.", "uvicorn", "fastapi"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve", str(runs[0].folder)]) == 2
    assert 'pip install "luthier[serve]"' in capsys.readouterr().err and "serve" in COMMANDS

"""`luthier ui`: refusals in words."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from luthier.cli.main import COMMANDS, main


def test_hosts_ports_and_folders_are_refused_in_words(root, tmp_path, capsys):
    pytest.importorskip("gradio")
    assert main(["ui", str(root), "--host", "0.0.0.0"]) == 2
    assert "--token-file" in capsys.readouterr().err
    assert main(["ui", str(root / "demo")]) == 2
    assert "is a run" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main(["ui", str(tmp_path / "file")]) == 2
    assert "is a file" in capsys.readouterr().err
    (tmp_path / "token").write_text("short\n")
    assert main(["ui", str(root), "--token-file", str(tmp_path / "token")]) == 2
    assert "at least 16 characters" in capsys.readouterr().err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["ui", str(root), "--port", str(taken.getsockname()[1])]) == 2
    assert "can't be had" in capsys.readouterr().err


def test_without_gradio_the_command_names_the_extra(root, capsys, monkeypatch):
    for name in [n for n in sys.modules if n.startswith(("luthier.ui.", "gradio"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["ui", str(root)]) == 2
    assert 'pip install "luthier[ui]"' in capsys.readouterr().err and "ui" in COMMANDS


def test_the_page_opens_before_what_computes_is_loaded():
    pytest.importorskip("gradio")
    code = "import sys, luthier.ui.server; print([n for n in ('torch', 'transformers') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

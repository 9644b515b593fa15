"""`luthier serve RUN --engine llamacpp`: the exported file behind the same interface, and what it can't do, in words."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from luthier.cli.main import main
from luthier.core.errors import UserError
from luthier.pipelines.exporting import export
from luthier.serving.gguf import GgufShelf
from luthier.serving.limits import Limits
from luthier.serving.served import Catalogue
from tests.engine.test_llamacpp import StandIn
from tests.serving.conftest import Listening

ASKED = {"model": "run3/tuned", "prompt": "A peg is", "temperature": 0, "max_tokens": 8, "logprobs": 1}


@pytest.fixture(scope="module")
def exported(runs, tmp_path_factory) -> Path:
    """A copy of a run with its model exported."""
    pytest.importorskip("gguf")
    from luthier.core.run import Run

    copy = Path(shutil.copytree(runs[0].folder, tmp_path_factory.mktemp("gguf") / "run3"))
    export(Run.open(copy), "gguf")
    return copy


@pytest.mark.oracle(clause="a file answers as its model", against="the same run served by the engine")
def test_the_file_answers_as_the_run_it_was_made_of(exported, catalogue, client, monkeypatch):
    monkeypatch.setitem(sys.modules, "llama_cpp", StandIn(catalogue.arm("run3/tuned").model.module))
    made = Catalogue([exported], GgufShelf([exported]))
    server = Listening(made, Limits(max_tokens=256))
    try:
        names = [m["id"] for m in server.client.get("/v1/models").json()["data"]]
        assert names == ["run3", "run3/tuned+retrieval", "run3/tuned", "run3/encoder"], "the base is in no file"
        for path, body in [("completions", ASKED), ("completions", {**ASKED, "temperature": 1.2, "seed": 4, "n": 2}),
                           ("chat/completions", {"model": "run3", "messages": [{"role": "user", "content": "What is a peg?"}],
                                                 "temperature": 0, "max_tokens": 8})]:
            mine, theirs = (c.post(f"/v1/{path}", json=body).json() for c in (server.client, client))
            texts = [[c.get("text") or c["message"]["content"] for c in told["choices"]] for told in (mine, theirs)]
            assert texts[0] == texts[1] and mine["usage"] == theirs["usage"], path
            assert mine["system_fingerprint"] != theirs["system_fingerprint"]
        mine, theirs = (c.post("/v1/answers", json={"model": "run3", "question": "What is a peg?"}).json()
                        for c in (server.client, client))
        assert {k: mine[k] for k in ("answer", "passages", "citations")} == {k: theirs[k] for k in ("answer", "passages",
                                                                                                   "citations")}
        assert len(server.client.post("/v1/embeddings", json={"model": "run3", "input": "a"}).json()["data"]) == 1
        unknown = server.client.post("/v1/completions", json={**ASKED, "model": "run3/base"})
        assert unknown.status_code == 404
    finally:
        server.stop()
        made.shelf.desk.close()


def test_what_it_cannot_serve_is_said_before_anything_is_loaded(exported, runs, capsys, monkeypatch, tmp_path):
    pytest.importorskip("uvicorn")
    assert main(["serve", str(exported), str(runs[1].folder), "--engine", "llamacpp"]) == 2
    assert "serves one run, and 2 are named" in capsys.readouterr().err
    assert main(["serve", str(runs[1].folder), "--engine", "llamacpp"]) == 2
    assert f"luthier export {runs[1].folder} --to gguf" in capsys.readouterr().err
    assert main(["serve", str(exported), "--engine", "vllm"]) == 2
    assert "legal are luthier, llamacpp" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    assert main(["serve", str(exported), "--engine", "llamacpp"]) == 2
    assert "pip install llama-cpp-python" in capsys.readouterr().err
    changed = Path(shutil.copytree(exported, tmp_path / "run3"))
    file = changed / "exports" / "tuned-gguf" / "model.gguf"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(UserError, match="was changed after it was exported"):
        GgufShelf([changed])


@pytest.mark.slow
def test_llamacpp_itself_answers(exported):
    """The real binding, where it is installed: near the engine's own numbers, and every request its own row."""
    pytest.importorskip("llama_cpp", reason="needs llama-cpp-python: pip install llama-cpp-python")
    made = Catalogue([exported], GgufShelf([exported]))
    server = Listening(made, Limits(max_tokens=256))
    try:
        alone = [server.client.post("/v1/completions", json={**ASKED, "prompt": p}).json()["choices"][0]["text"]
                 for p in ("A peg is", "A nut", "Glue of the bridge")]
        many = server.client.post("/v1/completions", json={**ASKED, "prompt": ["A peg is", "A nut", "Glue of the bridge"]})
        assert [c["text"] for c in many.json()["choices"]] == alone
        answer = server.client.post("/v1/answers", json={"model": "run3", "question": "What is a peg?"})
        assert answer.status_code == 200 and len(answer.json()["passages"]) == 2
    finally:
        server.stop()
        made.shelf.desk.close()

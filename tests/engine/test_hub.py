"""Hub ids, against a hub of this machine: what is fetched, what is refused, and that nothing is asked unasked."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from luthier.core.artifact import Artifact
from luthier.core.errors import UserError
from luthier.core.identity import hash_folder
from luthier.engine import hub
from luthier.engine.models import check_base, resolve
from luthier.engine.steps.base import Base
from tests.engine.hub_server import COMMIT, Hub, serve

TOKEN = "hf_secretsecretsecret"
ID = "maker/pico"


@pytest.fixture
def server(tmp_path: Path, pico: Artifact, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with a whole model, and this process set up as a user's who never asked to stay offline."""
    folder = tmp_path / "hub" / "pico"
    shutil.copytree(pico.meta["path"], folder, ignore=shutil.ignore_patterns("checksum.json", "licenses"))
    (folder / "LICENSE").write_text("Free for all.\n")
    (folder / "README.md").write_text("# pico\n")
    (folder / "modeling_pico.py").write_text("raise SystemExit('code ran')\n")
    (folder / "pytorch_model.bin").write_bytes(b"unsafe")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.safetensors").write_bytes(b"elsewhere")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "luthier"))
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", hub.OURS, "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    hub.stay_offline()
    hub._listing.cache_clear()
    with serve() as made:
        made.repositories[ID] = folder
        monkeypatch.setenv("HF_ENDPOINT", made.address)
        yield made
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv(hub.OURS, raising=False)


def served(server: Hub) -> Path:
    return server.repositories[ID]


def rewrite(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(("name", "is_id"), [
    ("maker/pico", True), ("maker/pico@v1.0", True), ("maker/pico@refs/pr/1", True), ("maker/pico-1.5_b", True),
    ("pico", False), ("a/b/c", False), ("./maker/pico", False), ("/maker/pico", False), ("../pico", False),
    ("~/pico", False), ("maker/", False)])
def test_one_slash_is_a_hub_id(name: str, is_id: bool) -> None:
    assert hub.is_hub_id(name) is is_id


def test_a_local_folder_comes_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "maker" / "pico").mkdir(parents=True)
    assert not hub.is_hub_id("maker/pico")


def test_a_base_is_fetched_pinned_and_licensed(server: Hub, make_ctx) -> None:
    step = Base(model=ID)
    step.check()
    ctx = make_ctx("base")
    artifact = step.run({}, ctx)
    folder = Path(artifact.meta["path"])
    assert artifact.meta["revision"] == COMMIT and artifact.meta["hub"] == artifact.meta["name"] == ID
    # The identity is the content's: a folder with the same files is the same base.
    copy = ctx.folder / "copy"
    copy.mkdir()
    for path in folder.iterdir():
        if path.name != "checksum.json":
            shutil.copyfile(path, copy / path.name)
    assert artifact.identity == hash_folder(copy)
    assert {p.name for p in (ctx.folder / "licenses").iterdir()} == {"LICENSE", "README.md"}
    assert step.receipts({}, artifact, ctx)[0].verdict == "agrees"
    assert ctx.engine.load(artifact).parameters() > 1000
    fetched = {p.name for p in (ctx.folder.parent / "hf").rglob("*") if p.is_file()}
    asked = {path for path, _ in server.asked if "/resolve/" in path}
    assert not any(p.endswith((".bin", ".py")) or "onnx" in p for p in asked), asked
    assert fetched and {p.suffix for p in folder.iterdir()} <= {".json", ".safetensors", ".md", "", ".jinja"}


def test_the_second_time_nothing_is_asked(server: Hub) -> None:
    first = resolve(ID)
    server.asked.clear()
    assert resolve(ID) == first and check_base(ID) > 0 and resolve(f"{ID}@{COMMIT}") == first
    assert not server.asked


def test_a_snapshot_of_another_tool_is_used_offline(server: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    repo = tmp_path / "hf" / "models--maker--pico"
    snapshot = repo / "snapshots" / ("b" * 40)
    shutil.copytree(served(server), snapshot)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("b" * 40)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv(hub.OURS, raising=False)
    folder = resolve(ID)
    assert hub.pinned(folder) == {"hub": ID, "revision": "b" * 40} and not server.asked
    assert not list(folder.glob("*.bin")) and not list(folder.glob("*.py"))


def test_a_partial_snapshot_is_no_snapshot(server: Hub, tmp_path: Path) -> None:
    resolve(ID)
    snapshot = next((tmp_path / "hf").glob("models--maker--pico/snapshots/*"))
    (snapshot / "model.safetensors").resolve().unlink()
    assert hub.downloaded(ID) is None
    assert (resolve(ID) / "model.safetensors").stat().st_size > 0


def test_links_are_made_again_when_they_lead_nowhere(server: Hub) -> None:
    folder = resolve(ID)
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("/nowhere")
    assert json.loads((resolve(ID) / "config.json").read_text())["model_type"] == "llama"


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_a_user_who_forbids_the_network_is_obeyed(server: Hub, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    for name in ("HF_HUB_OFFLINE", hub.OURS):
        monkeypatch.delenv(name)
    monkeypatch.setenv(variable, "1")
    hub.stay_offline()
    with pytest.raises(UserError, match=rf"not on this machine, and {variable} forbids"):
        check_base(ID)
    assert not server.asked


def test_no_network_is_said(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:  # bound, never listening
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        with pytest.raises(UserError, match="can't be reached"):
            check_base(ID)


def test_what_is_not_there_is_said(server: Hub) -> None:
    with pytest.raises(UserError, match="There is no model 'maker/none'"):
        check_base("maker/none")
    with pytest.raises(UserError, match="has no revision 'v9'"):
        check_base(f"{ID}@v9")


def test_a_gated_model_wants_a_token_that_nobody_sees(server: Hub, monkeypatch: pytest.MonkeyPatch, make_ctx,
                                                      capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    server.gated.add(ID)
    server.token = TOKEN
    with pytest.raises(UserError, match="is gated.*HF_TOKEN"):
        check_base(ID)
    monkeypatch.setenv("HF_TOKEN", TOKEN + "x")
    with pytest.raises(UserError) as refused:
        check_base(ID)
    assert TOKEN not in str(refused.value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    ctx = make_ctx("base")
    Base(model=ID).run({}, ctx)
    assert any(TOKEN in sent for _, sent in server.asked)
    written = [p for p in tmp_path.rglob("*") if p.is_file() and TOKEN.encode() in p.read_bytes()]
    assert not written and TOKEN not in "".join(capfd.readouterr())


def test_no_token_is_sent_unless_it_is_in_the_variable(server: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "token").write_text(TOKEN)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    resolve(ID)
    assert server.asked and not any(sent for _, sent in server.asked)


def test_unsafe_weights_are_refused(server: Hub) -> None:
    (served(server) / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has only pytorch_model.bin, a format that can run code"):
        check_base(ID)
    assert not any(path.endswith(".bin") for path, _ in server.asked)


def test_an_adapter_is_not_a_base(server: Hub) -> None:
    (served(server) / "model.safetensors").rename(served(server) / "adapter_model.safetensors")
    (served(server) / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match="adapter_model.safetensors, which is not a whole model"):
        check_base(ID)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_of_its_own_is_refused(server: Hub, file: str) -> None:
    rewrite(served(server) / file, auto_map={"AutoModelForCausalLM": "modeling_pico.PicoForCausalLM"})
    with pytest.raises(UserError, match=r"asks to run code of its own \('auto_map': modeling_pico"):
        check_base(ID)


def test_a_disk_that_is_too_small_is_said_before(server: Hub) -> None:
    server.sizes["model.safetensors"] = 10**15
    with pytest.raises(UserError, match=r"needs 1,000,000.0\d GB of disk"):
        check_base(ID)
    assert not any(path.endswith(".safetensors") for path, _ in server.asked)


@pytest.mark.network_free
def test_without_a_hub_id_no_socket_is_opened(tmp_path: Path) -> None:
    """In a process that is ended by a socket or by a child process."""
    code = ("import sys\n"
            "from luthier.engine.models import check_base, resolve\n"
            "from luthier.engine.workshop import Engine\n"
            "def watch(event, given):\n"
            "    if event in ('socket.__new__', 'socket.getaddrinfo', 'subprocess.Popen'):\n"
            "        raise SystemExit(event)\n"
            "sys.addaudithook(watch)\n"
            "check_base('pico'); print(resolve('pico'))\n"
            "try: check_base('no-such')\n"
            "except Exception as error: print(type(error).__name__)\n"
            "try: check_base('maker/name')\n"
            "except SystemExit as stopped: print(stopped)\n")
    source = str(Path(hub.__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False,
                          env={"PYTHONPATH": source, "LUTHIER_CACHE": str(tmp_path), "HOME": str(tmp_path),
                               "OMP_NUM_THREADS": "1"})
    # The last line shows that the watch would have seen it.
    assert done.returncode == 0 and done.stdout.splitlines()[-2:] == ["UserError", "subprocess.Popen"], done.stderr

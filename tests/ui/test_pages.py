"""The functions behind the pages, and the pages through Gradio's own client: on a run that the command line made."""

from __future__ import annotations

import logging
import shutil
import time
import zipfile
from pathlib import Path

import pytest

from luthier.core.errors import UserError
from luthier.pipelines.asking import ask
from luthier.ui import shown
from luthier.ui.studio import Order, Studio

QUESTION = "What is a zebra statement?"


# --- what is dropped, understood and planned -------------------------------------------------------------------------

def drop(studio: Studio, name: str, data: bytes | str) -> Path:
    path = studio.sent / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def test_documents_become_the_command_that_would_be_typed(empty):
    file = drop(empty, "glue.md", "# Glue\n\n## Hide glue\n\nHide glue is kept warm at sixty degrees.\n")
    other = drop(empty, "empty.md", "")
    order = Order("glue", [file, other], base="pico", method="bitfit", seed=3)
    paths, arguments = empty.prepared(order)
    place = empty.root / "documents" / "glue" / "files"
    assert paths == [str(place)] and arguments == [
        "adapt", str(place), f"--out={empty.root / 'glue'}", "--base=pico", "--method=bitfit", "--seed=3"]
    found = empty.inspected(order, paths)
    assert found["about"]["documents"] == 1 and [r["id"] for r in found["refused"]] == ["empty.md"]
    made = empty.recipe(order, paths)
    assert made.seed == 3 and made.text["steps"]["base"]["model"] == "pico"


def test_one_file_of_rows_is_tuned_on(empty):
    rows = "".join(f'{{"question": "What is {n}?", "answer": "number {n}"}}\n' for n in range(9))
    order = Order("rows", [drop(empty, "rows.jsonl", rows)], base="pico")
    paths, arguments = empty.prepared(order)
    assert arguments[:2] == ["tune", str(empty.root / "documents" / "rows" / "files" / "rows.jsonl")]
    assert empty.inspected(order, paths)["about"]["rows"] == 9
    questions = drop(empty, "own.jsonl", "{}\n")
    with pytest.raises(UserError, match="Questions of your own go with documents"):
        empty.prepared(Order("rows", order.files, [questions]))


def test_a_book_that_is_a_bomb_is_refused_with_its_reason(empty):
    bomb = empty.sent / "bomb.epub"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as book:
        book.writestr("META-INF/container.xml", b"\0" * 30_000_000)
    order = Order("bomb", [bomb, drop(empty, "a.md", "# A\n\nSome words about a thing that matters here.\n")])
    paths, _ = empty.prepared(order)
    refused = {r["id"]: r for r in empty.inspected(order, paths)["refused"]}
    assert "fill memory" in refused["bomb.epub"]["detail"]


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "-x", "a b", "ä", "documents", "x" * 61])
def test_names_that_are_none_are_refused(empty, name):
    with pytest.raises(UserError, match="name"):
        empty.prepared(Order(name, [drop(empty, "a.md", "# A")]))


def test_a_name_that_is_taken_is_refused_and_its_documents_stay(studio, root):
    with pytest.raises(UserError, match="There is a run 'demo' already"):
        studio.prepared(Order("demo", demo=True))


def test_an_option_can_not_be_smuggled_in(empty):
    _, arguments = empty.prepared(Order("a", demo=True, base="--fresh", method="-x"))
    assert "--base=--fresh" in arguments and "--method=-x" in arguments


# --- asking ------------------------------------------------------------------------------------------------------------

def test_an_arm_answers_here_as_it_does_for_the_command(studio, root):
    from luthier.core.run import Run

    wanted = ["base", "tuned+retrieval"]
    here = list(studio.answers("demo", QUESTION, wanted))
    for arm, answer in zip(wanted, here, strict=True):
        there = ask(Run(root / "demo"), QUESTION, arm=arm)
        for key in ("question", "answer", "arm", "passages", "citations"):
            assert answer[key] == there[key]


def test_what_can_not_be_asked_is_refused_in_words(studio):
    cases = (("  ", ["base"], "empty"), ("x" * 5000, ["base"], "5,000 characters"), ("Why?", [], "at least one arm"),
             ("Why?", ["bsae"], "There is no model"))
    for question, arms, why in cases:
        with pytest.raises(UserError, match=why):
            list(studio.answers("demo", question, arms))
    with pytest.raises(UserError, match="Did you mean 'demo'"):
        list(studio.answers("dmeo", "Why?", ["base"]))


def test_the_cited_sentence_is_marked_where_it_stands():
    assert shown.marked("A <b>. It is warm. More", "It is warm.") == "A &lt;b&gt;. <mark>It is warm.</mark> More"
    assert shown.marked("A …", "It is\nwarm.") == "A … <mark>It is warm.</mark>"
    assert shown.marked("A & B", "") == "A &amp; B"


# --- the catalogue -----------------------------------------------------------------------------------------------------

def test_the_catalogue_is_searched_by_words_and_says_what_to_type():
    from luthier.core import catalog
    from luthier.core.index import rows

    components = [(r["kind"], r["name"], r["version"], r["seeds"]) for r in rows()]
    seeds = catalog.rows(components)
    assert len(catalog.search("", seeds)) == 210 and not catalog.search("nosuchword", seeds)
    found = catalog.search("BITDELTA", seeds)
    commands = {s["id"]: catalog.commands(s["id"], components) for s in seeds}
    (ours,) = [s for s in found if s["slug"] == "bitdelta"]
    assert "luthier merge RUN1 RUN2 --rule bitdelta" in commands[ours["id"]]
    html = shown.cards([ours], commands, catalog.records())
    assert "data-copy" in html and ours["summary"].split()[0] in html and "<details open" in html


def test_every_command_of_the_catalogue_names_a_command_and_a_component_that_are_there():
    from luthier.cli.main import COMMANDS
    from luthier.core import catalog
    from luthier.core.index import rows

    components = [(r["kind"], r["name"], r["version"], r["seeds"]) for r in rows()]
    names = {c[1] for c in components}
    for seed in catalog.rows():
        for command in catalog.commands(seed["id"], components):
            words = command.split()
            assert words[0] == "luthier" and words[1] in COMMANDS and words[-1] in names


# --- through Gradio's client ---------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def copy(root, tmp_path_factory):
    """A folder of its own with the finished run."""
    folder = tmp_path_factory.mktemp("page") / "runs"
    shutil.copytree(root / "demo", folder / "demo")
    return folder


@pytest.fixture(scope="module")
def page(copy):
    pytest.importorskip("gradio")
    from tests.ui.listening import Page

    made = Page(Studio(copy))
    yield made
    made.stop()


@pytest.fixture(scope="module")
def client(page):
    gradio_client = pytest.importorskip("gradio_client")
    return gradio_client.Client(page.url, verbose=False)


def test_errors_stand_on_the_page_in_words(client):
    notice, *_ = client.predict([], False, "../x", "", "", None, "", False, api_name="/look")
    assert 'role="alert"' in notice and "Give the run a name" in notice
    notice, *_ = client.predict([], False, "new", "", "", None, "", False, api_name="/look")
    assert "Nothing was dropped" in notice
    notice, *_ = client.predict([], False, "new", "", "", None, "three", False, api_name="/start")
    assert "no whole number" in notice
    notice, *_ = client.predict("demo", " ", ["base"], api_name="/ask")
    assert "The question is empty" in notice


def test_a_file_of_this_machine_that_was_not_sent_is_never_read(client, page, tmp_path):
    secret = tmp_path / "secret.md"
    secret.write_text("# A secret\n\nIt must not be shown to anybody.\n")
    for path in (str(secret), str(secret.relative_to("/")), f"{page.url}/healthz"):
        body = {"data": [[{"path": path, "meta": {"_type": "gradio.FileData"}}], False, "s", "", "", None, "", False]}
        joined = page.client.post("/gradio_api/call/look", json=body).json()
        told = page.client.get(f"/gradio_api/call/look/{joined['event_id']}").text
        assert "must not be shown" not in told and "event: error" in told
    for path in (secret, "/etc/passwd"):
        assert page.client.get(f"/gradio_api/file={path}").status_code in (403, 404)


def test_a_file_over_the_limit_is_refused_while_it_is_sent(copy):
    pytest.importorskip("gradio")
    from luthier.ui.uploads import Most
    from tests.ui.listening import Page

    small = Page(Studio(copy, Most(file_megabytes=1, megabytes=2)))
    try:
        assert small.client.post("/gradio_api/upload", files={"files": ("a.md", b"x" * 1_500_000)}).status_code == 413
        assert small.client.post("/gradio_api/upload", files={"files": ("../../up.md", b"# Up")}).status_code == 200
        assert not [p for p in copy.parent.rglob("up.md") if ".ui" not in p.parts], "the name leads nowhere"
    finally:
        small.stop()


def test_the_page_answers_as_the_command_does_and_nothing_is_logged(client, root, caplog, capfd):
    from luthier.core.run import Run

    with caplog.at_level(logging.DEBUG, "luthier"):
        notice, html = client.predict("demo", QUESTION, ["tuned+retrieval"], api_name="/ask")
    there = ask(Run(root / "demo"), QUESTION, arm="tuned+retrieval")
    assert notice == "" and shown.escape(there["answer"]) in html
    for passage in there["passages"]:
        assert shown.escape(passage["excerpt"])[:60] in html
    out = "".join(capfd.readouterr()) + caplog.text
    assert "zebra" not in out


def test_reports_are_those_of_the_command(page, copy):
    assert page.client.get("/report/demo").text == (copy / "demo" / "report.html").read_text("utf-8")
    assert page.client.get("/report/nowhere").status_code == 404
    assert page.client.get("/report/..%2f..%2fetc").status_code == 404


def test_a_run_is_started_watched_and_stopped_from_the_page(client, copy, page):
    _, name, html, *_ = client.predict([], True, "mine", "", "", None, "", False, api_name="/start")
    try:
        assert name == "mine" and "luthier adapt --demo --pico" in html and "running" in html
        notice, *_ = client.predict([], True, "mine", "", "", None, "", False, api_name="/start")
        assert "already" in notice or "running" in notice
    finally:
        _, html, *_ = client.predict("mine", api_name="/stop")
    other = Studio(copy).processes
    until = time.monotonic() + 120
    while other.running("mine") and time.monotonic() < until:
        time.sleep(0.2)
    assert not other.running("mine") and "Traceback" not in "\n".join(other.said("mine"))


@pytest.mark.network_free
def test_nothing_is_asked_of_other_machines(copy, monkeypatch):
    """Every connection that is not to this machine is refused, and the page is made and served all the same."""
    pytest.importorskip("gradio")
    import socket

    from tests.ui.listening import Page

    tried, real = [], socket.socket.connect

    def connect(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1"):
            tried.append(address)
            raise OSError("no network")
        return real(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)
    one = Page(Studio(copy))
    try:
        text = one.client.get("/").text
        assert one.client.get("/catalogue").status_code == 200
    finally:
        one.stop()
    assert not tried and "gradio_config" in text

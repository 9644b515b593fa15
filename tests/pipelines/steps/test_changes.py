"""Incremental ingestion: only what changed is read, and what is left is what reading everything would have left."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from luthier.core.artifact import open_artifact
from luthier.core.files import Journal, commit_folder, write_json
from luthier.core.rng import Rng
from luthier.core.step import Ctx
from luthier.pipelines.steps import ingest
from luthier.pipelines.steps.ingest import Ingest
from luthier.techniques.data import (  # noqa: F401  (registered by their import)
    chunk_by_structure,
    near_duplicates,
    read_code,
    read_docx,
    read_epub,
    read_html,
    read_markdown,
    read_pptx,
    read_text,
)
from luthier.techniques.data.read_markdown import ReadMarkdown

PARAGRAPH = "The {0} is made of {0} wood, and its {0} neck was carved by a {0} maker in {0}."
NAMES = ("violin", "bow", "cello", "lute", "harp", "flute")


@pytest.fixture
def docs(tmp_path):
    root = tmp_path / "docs"
    root.mkdir()
    for name in NAMES:
        (root / f"{name}.md").write_text(f"# {name}\n{PARAGRAPH.format(name)}\n")
    (root / "junk.txt").write_bytes(b"\0\1")
    return root


def attempt(root: Path, step: Ingest, name: str = "documents", log=None):
    """As the executor does it: work in a private folder, check, rename."""
    work, final = root / f".{name}.work", root / name
    work.mkdir(parents=True, exist_ok=True)
    ctx = Ctx(rng=Rng(0), folder=work, journal=Journal(work / "journal.jsonl"), engine=None,
              log=(log if log is not None else []).append)
    artifact = step.run({}, ctx)
    receipts = step.receipts({}, artifact, ctx)
    assert {r.verdict for r in receipts} == {"agrees"}
    write_json(work / "step.json", {"name": name, "kind": "documents", "identity": artifact.identity, "inputs": {}})
    commit_folder(work, final)
    return open_artifact(final), receipts


def files(folder: Path) -> dict[str, bytes]:
    own = ("step.json", "journal.jsonl")
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*"))
            if p.is_file() and p.name not in own}


@pytest.fixture
def reads(monkeypatch):
    """Names of the files that were parsed."""
    names = []
    parse = ReadMarkdown.parse_named

    def counted(self, file, text, ctx):
        names.append(file.id)
        return parse(self, file, text, ctx)

    monkeypatch.setattr(ReadMarkdown, "parse_named", counted)
    monkeypatch.setattr(ingest, "PROBES", 1)
    return names


def test_a_changed_folder_is_read_where_it_changed_and_leaves_the_same_bytes(tmp_path, docs, reads):
    step, log = Ingest(paths=[str(docs)]), []
    first, receipts = attempt(tmp_path / "run", step)
    assert len(reads) == len(NAMES) and len(receipts) == 2
    (docs / "bow.md").write_text(f"# Bow\n{PARAGRAPH.format('ebony')}\n")
    (docs / "lute.md").unlink()
    (docs / "drum.md").write_text(f"# Drum\n{PARAGRAPH.format('drum')}\n")
    reads.clear()
    second, receipts = attempt(tmp_path / "run", step, log=log)
    assert sorted(reads[:2]) == ["bow.md", "drum.md"] and len(reads) == 3  # one more was read to compare
    assert [(r.name, r.left, r.right) for r in receipts][0] == ("reused files", 1, 1)
    assert log[:1] == ["files since the last time: 1 new (drum.md), 1 changed (bow.md), 1 gone (lute.md), 5 as before; "
                       "2 of 7 read"]
    assert any(line == "passages since the last time: 1 new, 1 changed, 1 gone, 4 as before" for line in log)
    fresh, _ = attempt(tmp_path / "fresh", step)
    assert files(second.folder) == files(fresh.folder) and second.identity == fresh.identity != first.identity


def test_another_reader_reads_again(tmp_path, docs, reads):
    attempt(tmp_path / "run", Ingest(paths=[str(docs)]))
    reads.clear()
    attempt(tmp_path / "run", Ingest(paths=[str(docs)], readers=["read-markdown:max_megabytes=9", "read-text"]))
    assert len(reads) == len(NAMES)
    reads.clear()
    attempt(tmp_path / "run", Ingest(paths=[str(docs)], chunker="chunk-by-structure:max_tokens=64",
                                     readers=["read-markdown:max_megabytes=9", "read-text"]))
    assert len(reads) == 1  # the probe: another chunker needs no other reading


def test_nothing_changed_says_so(tmp_path, docs):
    log = []
    step = Ingest(paths=[str(docs)])
    attempt(tmp_path / "run", step)
    attempt(tmp_path / "run", step, log=log)
    assert log[-1] == "the documents are as before; nothing that was made from them is stale"


def test_what_was_made_from_old_documents_is_named(tmp_path, docs, reads):
    from luthier.core.artifact import write_examples
    from luthier.core.example import question

    step, log = Ingest(paths=[str(docs)]), []
    old, _ = attempt(tmp_path / "run", step)
    ids = {p.document: p.id for p in old.passages()}
    rows = [question(str(i), "q", "a", source=ids[n]) for i, n in enumerate(["bow.md", "bow.md", "harp.md"])]
    asked = write_examples(tmp_path / "run" / "questions", {"all": rows})
    for name, kind, identity, inputs in (("questions", "examples", asked.identity, {"documents": old.identity}),
                                         ("tuned", "adapter", "t", {"examples": asked.identity}),
                                         ("base", "model", "b", {})):
        (tmp_path / "run" / name).mkdir(exist_ok=True)
        write_json(tmp_path / "run" / name / "step.json", {"kind": kind, "identity": identity, "inputs": inputs})
    (docs / "bow.md").write_text(f"# bow\n{PARAGRAPH.format('ebony')}\n")
    attempt(tmp_path / "run", step, log=log)
    assert log[-1] == ("stale, because made from the documents as they were: questions (examples): 2 of its 3 rows were "
                       "written from passages that are no more; tuned (adapter)")


def test_damaged_records_of_an_earlier_run_are_not_believed(tmp_path, docs, reads):
    step = Ingest(paths=[str(docs)])
    first, _ = attempt(tmp_path / "run", step)
    lines = (first.folder / "sources.jsonl").read_text().splitlines()
    (first.folder / "sources.jsonl").write_text("\n".join([*lines[:2], *lines[3:]]) + "\n")
    reads.clear()
    assert attempt(tmp_path / "run", step)[0].identity == first.identity
    assert len(reads) == len(NAMES)


def test_a_kill_in_the_middle_of_reading(tmp_path, docs, monkeypatch):
    """Killed for good after the third file; the next attempt reads the other files only and leaves the same bytes."""
    seen = tmp_path / "seen"
    parse = ReadMarkdown.parse_named

    def slow(self, file, text, ctx):
        with seen.open("a") as opened:
            opened.write(file.id + "\n")
        time.sleep(0.2)
        return parse(self, file, text, ctx)

    monkeypatch.setattr(ReadMarkdown, "parse_named", slow)
    step = Ingest(paths=[str(docs)])
    child = os.fork()
    if child == 0:
        try:
            attempt(tmp_path / "run", step)
        finally:
            os._exit(0 if sys.exc_info()[0] is None else 1)
    began = time.monotonic()
    while (not seen.exists() or len(seen.read_text().split()) < 4) and time.monotonic() - began < 60:
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    spool = tmp_path / "run" / ".documents.work" / "read.jsonl"
    assert len(spool.read_text().splitlines()) == 3
    with spool.open("a") as file:
        file.write(json.dumps({"id": "harp.md"})[:9])  # a line that the kill tore
    before = len(seen.read_text().split())
    killed, _ = attempt(tmp_path / "run", step)
    assert len(seen.read_text().split()) - before == len(NAMES) - 3
    assert files(killed.folder) == files(attempt(tmp_path / "fresh", step)[0].folder)


def test_office_files_are_read_by_their_suffix_and_only_when_changed(tmp_path, docs, monkeypatch):
    import io

    from pptx import Presentation

    from tests.techniques.data.office import docx, epub, p

    deck, data = Presentation(), io.BytesIO()
    slide = deck.slides.add_slide(deck.slide_layouts[1])
    slide.shapes.title.text, slide.placeholders[1].text_frame.text = "Rebec", PARAGRAPH.format("rebec")
    deck.save(data)
    (docs / "a.docx").write_bytes(docx(p("Viol", "heading 1") + p(PARAGRAPH.format("viol"))))
    (docs / "b.PPTX").write_bytes(data.getvalue())
    (docs / "c.epub").write_bytes(epub([f"<h1>Shawm</h1><p>{PARAGRAPH.format('shawm')}</p>"]))
    (docs / "d.docx").write_bytes(b"no document")
    first, _ = attempt(tmp_path / "run", Ingest(paths=[str(docs)]))
    places = {q.document: q.place for q in first.passages()}
    assert (places["a.docx"], places["b.PPTX"], places["c.epub"]) == (
        "a.docx, line 2", "b.PPTX, page 1, line 2", "c.epub, page 1, line 1")
    assert [(d["id"], d["reason"]) for d in first.ledger() if d["id"] == "d.docx"] == [("d.docx", "damaged")]

    (docs / "a.docx").write_bytes(docx(p("Viol", "heading 1") + p(PARAGRAPH.format("bass viol"))))
    log: list[str] = []
    second, _ = attempt(tmp_path / "run", Ingest(paths=[str(docs)]), log=log)
    assert any(f"1 of {len(NAMES) + 5} read" in line for line in log), log
    assert "bass viol" in next(q.text for q in second.passages() if q.document == "a.docx")

"""ingest: everything that is found is a document or in the ledger, and bad folders are refused in words."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.artifact import seal
from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.files import Journal
from luthier.core.recipe import Recipe
from luthier.core.rng import Rng
from luthier.core.step import Ctx
from luthier.pipelines.steps.ingest import Ingest
from luthier.techniques.data import (  # noqa: F401  (registered by their import)
    chunk_by_structure,
    near_duplicates,
    read_html,
    read_markdown,
    read_text,
)

PARAGRAPH = "The {0} is made of {0} wood, and its {0} neck was carved by a {0} maker in {0}."


def context(folder: Path, engine=None) -> Ctx:
    folder.mkdir(parents=True, exist_ok=True)
    return Ctx(rng=Rng(0), folder=folder, journal=Journal(folder / "journal.jsonl"), engine=engine)


@pytest.fixture
def docs(tmp_path):
    root = tmp_path / "docs"
    (root / "sub").mkdir(parents=True)
    (root / "b.md").write_text(f"# Violin\n{PARAGRAPH.format('violin')}\n\n## Bow\n{PARAGRAPH.format('bow')}\n")
    (root / "a.txt").write_text(PARAGRAPH.format("cello"))
    (root / "sub" / "c.html").write_text(f"<h1>Lute</h1><p>{PARAGRAPH.format('lute')}</p>")
    (root / "sub" / "again.md").write_text(f"# Copy\n{PARAGRAPH.format('cello').upper()}\n")
    (root / "junk.txt").write_bytes(b"\0\1\2\3")
    (root / "photo.JPG").write_bytes(b"\xff\xd8")
    (root / "Makefile").write_text("all:\n")
    (root / ".hidden.md").write_text("# hidden\nsecret\n")
    (root / ".git").mkdir()
    (root / ".git" / "x.md").write_text("secret")
    (root / "LICENSE.txt").write_text("Terms.")
    (root / "sub" / "NOTICE").write_text("Notice.")
    return root


def run(tmp_path, *paths, engine=None, inputs=None, **fields):
    step = Ingest(paths=[str(p) for p in paths], **fields)
    step.check()
    ctx = context(tmp_path / "work", engine)
    artifact = step.run(inputs or {}, ctx)
    receipts = step.receipts({}, artifact, ctx)
    assert [r.verdict for r in receipts] == ["agrees", "agrees"]
    return artifact


def refusal(*paths, **fields) -> str:
    with pytest.raises(UserError) as caught:
        Ingest(paths=[str(p) for p in paths], **fields).check()
    return str(caught.value)


def test_a_folder(tmp_path, docs):
    artifact = run(tmp_path, docs)
    passages = list(artifact.passages())
    assert [p.id for p in passages] == ["a.txt#top:0", "b.md#violin:0", "b.md#violin/bow:0", "sub/c.html#lute:0"]
    assert [(r["id"], r["reason"]) for r in artifact.ledger()] == [
        ("LICENSE.txt", "licence file"), ("Makefile", "no reader for files without a suffix"), ("junk.txt", "not text"),
        ("photo.JPG", "no reader for .jpg"), ("sub/NOTICE", "licence file"),
        ("sub/again.md#copy:0", "duplicate of a.txt#top:0"),
    ]
    meta = artifact.meta
    assert {k: meta[k] for k in ("files", "documents", "passages", "cut", "dropped", "unread")} == {
        "files": 9, "documents": 4, "passages": 4, "cut": 5, "dropped": 6, "unread": 5}
    assert meta["tokens"] == sum(p.tokens for p in passages) and meta["counted_by"] == "words and signs"
    assert {p.name: p.read_text() for p in (artifact.folder / "licenses").iterdir()} == {
        "docs-LICENSE.txt": "Terms.", "sub-NOTICE": "Notice."}


def test_the_same_again(tmp_path, docs):
    one, two = run(tmp_path / "1", docs), run(tmp_path / "2", docs)
    assert one.identity == two.identity
    # What a killed attempt left behind does not stay.
    (tmp_path / "2" / "work" / "passages" / "rows-00001.arrow").write_bytes(b"torn")
    assert run(tmp_path / "2", docs).identity == one.identity


def test_files_and_several_folders(tmp_path, docs):
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.txt").write_text(PARAGRAPH.format("harp"))
    artifact = run(tmp_path, docs / "b.md", other, docs, docs / "a.txt")
    assert artifact.meta["documents"] == 5  # b.md and docs/a.txt once each
    names = sorted({p.document for p in artifact.passages()})
    assert names == sorted(["a.txt", "b.md", (docs / "a.txt").as_posix(), "sub/c.html"])


def test_tokens_are_those_of_the_base(tmp_path, docs):
    class Words:
        def encode(self, text, add_special_tokens):
            assert not add_special_tokens
            return text.split()

    class Workshop:
        def tokenizer(self, base):
            assert base.meta["name"] == "tiny"
            return Words()

    (tmp_path / "base" / "licenses").mkdir(parents=True)
    (tmp_path / "base" / "licenses" / "LICENSE").write_text("x")
    base = seal("model", tmp_path / "base", name="tiny")
    artifact = run(tmp_path, docs, engine=Workshop(), inputs={"base": base})
    assert all(p.tokens == len(p.text.split()) for p in artifact.passages())
    assert artifact.meta["counted_by"] == "tiny"


def test_no_duplicates_wanted(tmp_path, docs):
    assert Ingest(paths=["x"], duplicates=None).to_dict()["duplicates"] is None
    assert run(tmp_path, docs, duplicates=None).meta["passages"] == 5


def test_readers_are_those_named(tmp_path, docs):
    artifact = run(tmp_path, docs, readers=["read-markdown:max_megabytes=0.0001", "read-text"])
    reasons = {r["id"]: r["reason"] for r in artifact.ledger()}
    assert reasons["b.md"] == "too large" and reasons["sub/c.html"] == "no reader for .html"
    assert artifact.meta["documents"] == 2


def test_links(tmp_path, docs):
    (docs / "dead.md").symlink_to(tmp_path / "nowhere")
    (docs / "loop").symlink_to(docs)
    (docs / "same.md").symlink_to(docs / "b.md")
    artifact = run(tmp_path, docs)
    reasons = {r["id"]: r["detail"] for r in artifact.ledger() if r["reason"] == "unreadable"}
    assert reasons == {"dead.md": "not a regular file",
                       "loop": "a link to a folder is not followed; name the folder in 'paths'"}
    assert artifact.meta["documents"] == 4


def test_what_may_not_be_read(tmp_path, docs, monkeypatch):
    opened, scanned = Path.open, os.scandir  # replaced, because root may read anything

    def refuse(real, name):
        def call(path, *args, **kwargs):
            if Path(path).name == name:
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, *args, **kwargs)

        return call

    monkeypatch.setattr(Path, "open", refuse(opened, "b.md"))
    monkeypatch.setattr(os, "scandir", refuse(scanned, "sub"))
    reasons = {r["id"]: r["detail"] for r in run(tmp_path, docs).ledger() if r["reason"] == "unreadable"}
    assert reasons == {"b.md": "Permission denied", "sub": "folder: Permission denied"}
    assert Ingest(paths=[str(docs)]).content()["b.md"] == "unreadable: Permission denied"


def test_a_huge_file_is_a_ledger_row(tmp_path, docs):
    with (docs / "huge.md").open("wb") as file:
        file.truncate(60_000_000)
    rows = [r for r in run(tmp_path, docs).ledger() if r["reason"] == "too large"]
    assert rows == [{"id": "huge.md", "reason": "too large", "detail": "60 MB; max_megabytes is 50"}]


def test_content_follows_the_files_read_and_names_the_others(docs):
    step = Ingest(paths=[str(docs)])
    before = step.content()
    assert set(before) == {"a.txt", "b.md", "sub/c.html", "sub/again.md", "junk.txt", "photo.JPG", "Makefile",
                           "LICENSE.txt", "sub/NOTICE"}
    (docs / "photo.JPG").write_bytes(b"other")
    assert step.content() == before
    for name in ("b.md", "LICENSE.txt"):
        (docs / name).write_text("edited")
    after = step.content()
    assert {n for n in before if before[n] != after[n]} == {"b.md", "LICENSE.txt"}


def test_identity_names_the_components():
    plain = Ingest(paths=["x"])
    assert plain.identity == Ingest(paths=["x"], chunker="chunk-by-structure:max_tokens=256").identity
    assert plain.identity != Ingest(paths=["x"], chunker="chunk-by-structure:max_tokens=128").identity
    assert plain.identity != Ingest(paths=["x"], duplicates=None).identity
    assert build("step", plain.to_dict()).identity == plain.identity


def test_missing_and_empty_paths(tmp_path):
    assert f"no file or folder '{tmp_path / 'nope'}'" in refusal(tmp_path / "nope")
    (tmp_path / "empty").mkdir()
    said = refusal(tmp_path / "empty")
    assert "holds no files" in said and ".md, .markdown, .txt, .rst, .html, .htm" in said
    with pytest.raises(UserError, match="paths"):
        build("step", {"use": "ingest", "paths": []})


def test_a_folder_with_nothing_readable(tmp_path, docs):
    other = tmp_path / "scans"
    other.mkdir()
    for name in ("a.djvu", "b.DJVU", "c.png", "README"):
        (other / name).write_bytes(b"x")
    (other / "LICENSE.md").write_text("only terms")
    said = refusal(docs, other)
    assert "scans can be read; found: .djvu (2), .md (1), .png (1), no suffix (1)" in said and "Legal: .md" in said
    assert "a.djvu can be read; found: .djvu (1)" in refusal(other / "a.djvu")


def test_no_document_at_all_says_what_was_wrong(tmp_path):
    root = tmp_path / "docs"
    root.mkdir()
    for i in range(7):
        (root / f"{i}.txt").write_bytes(b"\0\0")
    (root / "0.djvu").write_bytes(b"x")
    with pytest.raises(UserError) as caught:
        run(tmp_path, root)
    said = str(caught.value)
    assert said.startswith("None of the 8 files could be read:\n  0.txt: not text (it holds NUL bytes")
    assert "4.txt" in said and "5.txt" not in said and "… and 3 more" in said


def test_all_near_duplicates(tmp_path):
    root = tmp_path / "docs"
    root.mkdir()
    words = " ".join(f"word{i}" for i in range(90))
    for i in range(4):
        (root / f"{i}.md").write_text(f"# Page {i}\n{words} and {i}.\n")
    with pytest.raises(UserError, match=r"The 4 passages of 4 documents are near-duplicates .* 'duplicates: null'"):
        run(tmp_path, root)
    assert run(tmp_path, root, duplicates=None).meta["passages"] == 4
    (root / "2.md").unlink()
    (root / "3.md").unlink()
    assert run(tmp_path, root).meta["passages"] == 1  # two passages are too few to judge by


def test_a_reader_that_reads_no_files_is_refused(docs):
    assert "'near-duplicates' reads no files" in refusal(docs, readers=["near-duplicates"])


def test_in_a_recipe():
    recipe = Recipe({"steps": {"documents": {"use": "ingest", "paths": ["docs"], "chunker": "chunk-by-structure"}}})
    assert recipe.edit(**{"documents.chunker.max_tokens": 99}).nodes[0].step.chunker.max_tokens == 99
    with pytest.raises(UserError, match="Did you mean 'paths'"):
        Recipe({"steps": {"documents": {"use": "ingest", "path": ["docs"]}}})


NAMES = st.sampled_from(["a.md", "b.txt", "c.html", "d.djvu", "sub/e.md", "sub/LICENSE", "f.rst"])


@given(st.dictionaries(NAMES, st.one_of(st.binary(max_size=60), st.text(max_size=60).map(str.encode)), min_size=1))
@settings(max_examples=25, deadline=None)
def test_any_files_are_accounted_for_or_refused(tmp_path_factory, files):
    root = tmp_path_factory.mktemp("any")
    for name, data in files.items():
        (root / "docs" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "docs" / name).write_bytes(data)
    try:
        artifact = run(root, root / "docs")
    except UserError:
        return
    assert artifact.meta["files"] == len(files)

"""What may be dropped: names, sizes, archives. What is refused is refused in words, and nothing of it stays."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from luthier.core.errors import UserError
from luthier.pipelines.unpacking import unpack
from luthier.ui.uploads import Most, legal, take


@pytest.fixture
def sent(tmp_path: Path) -> Path:
    (tmp_path / "sent").mkdir()
    return tmp_path / "sent"


def put(sent: Path, name: str, text: str = "# A\n\nWords.\n") -> Path:
    (sent / name).write_text(text)
    return sent / name


def packed(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    return path


def test_files_and_archives_are_kept_with_their_folders(sent, tmp_path):
    archive = packed(sent / "manual.zip", {"one/a.md": b"# A", "two/a.md": b"# B"})
    found = take([put(sent, "b.md"), archive], tmp_path / "to", Most(), sent)
    assert [str(p.relative_to(tmp_path / "to")) for p in found] == ["b.md", "manual/one/a.md", "manual/two/a.md"]


@pytest.mark.parametrize("name", ["../a.md", "a/b.md", "..", ".ssh", "a\\b.md", "c:a.md", "a\nb.md", "", "é" * 101 + ".md"])
def test_names_that_lead_elsewhere_are_refused(name):
    with pytest.raises(UserError, match="can't be kept"):
        legal(name)


def test_a_name_is_kept_as_it_is_written():
    assert legal("Zu\u0308rich (1).pdf") == "Zürich (1).pdf"


@pytest.mark.parametrize(("entries", "why"), [
    ({"../../a.md": b"x"}, "leads out of it"), ({"/etc/a.md": b"x"}, "leads out of it"), ({"c:/a.md": b"x"}, "leads out of it"),
    ({"a\\..\\b.md": b"x"}, "leads out of it"), ({}, "no file"), ({"a.md": b"x", "A.md": b"y"}, "twice"),
    ({"a\tb.md": b"x"}, "can't be a file's"), ({"bomb.md": b"\0" * 30_000_000}, "made to fill memory"),
])
def test_archives_that_must_not_be_unpacked_are_refused_whole(entries, why, tmp_path):
    archive = packed(tmp_path / "a.zip", {"good.md": b"# Good", **entries} if entries else {})
    with pytest.raises(UserError, match=why):
        unpack(archive, tmp_path / "to")
    assert not (tmp_path / "to").exists() and sorted(p.name for p in tmp_path.iterdir()) == ["a.zip"]


def test_a_link_in_an_archive_is_refused(tmp_path):
    link = zipfile.ZipInfo("passwords.md")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(UserError, match="is a link"):
        unpack(tmp_path / "a.zip", tmp_path / "to")


def test_what_is_no_archive_is_refused(sent, tmp_path):
    with pytest.raises(UserError, match="damaged"):
        take([put(sent, "a.zip", "no archive")], tmp_path / "to", Most(), sent)
    assert not (tmp_path / "to").exists()


def test_too_large_too_many_and_twice_are_refused(sent, tmp_path):
    one = put(sent, "a.md", "x" * 2_000_000)
    with pytest.raises(UserError, match="2 MB; 1 MB are the most"):
        take([one], tmp_path / "to", Most(file_megabytes=1), sent)
    with pytest.raises(UserError, match="2 MB together; 1 MB"):
        take([one], tmp_path / "to", Most(megabytes=1), sent)
    with pytest.raises(UserError, match="2 files were dropped; 1 are the most"):
        take([one, put(sent, "b.md")], tmp_path / "to", Most(files=1), sent)
    (sent / "again").mkdir()
    with pytest.raises(UserError, match=r"named a\.md"):
        take([one, put(sent / "again", "a.md")], tmp_path / "to", Most(), sent)
    with pytest.raises(UserError, match="Nothing was dropped"):
        take([], tmp_path / "to", Most(), sent)
    assert not (tmp_path / "to").exists()


def test_only_what_was_sent_is_taken(sent, tmp_path):
    outside = tmp_path / "secret.md"
    outside.write_text("mine")
    (sent / "link.md").symlink_to(outside)
    for path in (outside, sent / "link.md", sent / ".." / "secret.md"):
        with pytest.raises(UserError, match="was not sent"):
            take([path], tmp_path / "to", Most(), sent)

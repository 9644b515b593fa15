"""Documents that are zip containers (DOCX, PPTX, EPUB): looked over before anything in them is unpacked, parsed in a child.

Refused are: what unpacks to far more than its size lets expect, by the sizes that its directory states (no entry yields
more than it states); names that lead out of the container; entries under a password; XML that declares entities. Nothing
is written to the disk, and what lies outside the container is never opened.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar
from xml.etree import ElementTree
from xml.parsers import expat
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from pydantic import Field

from luthier.core.example import Document, Dropped, Section, SourceFile
from luthier.core.kinds import DataStep
from luthier.core.step import Ctx
from luthier.techniques.data._child import parse_in_child
from luthier.techniques.data._shared import MEGABYTE, NotRead, read_bytes

EXTRA = "office"
MOST_ENTRIES = 10_000
MOST_MEGABYTES = 500
MOST_XML_MEGABYTES = 100
# Text packs at most about 1:50; zeros pack 1:1000.
HIGHEST_RATIO, RATIO_FROM_MEGABYTES = 200, 10
_OLD = bytes.fromhex("d0cf11e0a1b11ae1")  # a compound file: what Office wrote before 2007, and its envelope of encrypted files
_ENCRYPTED = "EncryptedPackage".encode("utf-16-le")
_BEFORE_MARKUP = b"\xef\xbb\xbf\xff\xfe\0 \t\r\n"
_PIECE = 1 << 16


class ZippedReader(DataStep):
    """Frame of a reader of zipped documents; `parsed` of its module makes plain values of a file, in a child."""

    suffixes: ClassVar[tuple[str, ...]] = ()
    modules: ClassVar[tuple[str, ...]] = ()
    max_megabytes: float = Field(50.0, gt=0, description="a larger file is left out, in 1 000 000 bytes")
    max_seconds: float = Field(8.0, gt=0, description="a file that takes longer is left out")
    max_memory_megabytes: float = Field(1536.0, ge=256, description="a file that takes more to parse is left out")

    def missing(self, suffix: str) -> str:
        """What has to be installed before files of this suffix can be read; empty when nothing."""
        return "" if all(map(find_spec, self.modules)) else f"pip install 'luthier[{EXTRA}]'"

    @property
    @abstractmethod
    def call(self) -> str:
        """`module:function` that parses a file: a title, the sections, and lines for the log."""

    def apply(self, rows: Iterator[SourceFile], ctx: Ctx) -> Iterator[Document | Dropped]:
        """One `Document` or one `Dropped` a file, in order."""
        for file in rows:
            try:
                data = read_bytes(file, self.max_megabytes)
                found = parse_in_child(self.call, file.path, self.max_seconds, self.max_memory_megabytes)
            except NotRead as why:
                yield Dropped(file.id, why.reason, why.detail)
                continue
            for line in found["log"]:
                ctx.log(f"{file.id}: {line}")
            sections = tuple(Section(tuple(headings), text, tuple((c, p, n) for c, p, n in marks))
                             for headings, text, marks in found["sections"])
            title = found["title"] or next((s.headings[0] for s in sections if s.headings), "") or Path(file.id).name
            yield Document(file.id, title, sections, hashlib.sha256(data).hexdigest()[:32])


def found(title: str, sections: Sequence[Section], log: Sequence[str] = (), pictures: int = 0) -> dict[str, Any]:
    """What `parsed` gives back. Raises NotRead where there is no text."""
    if not sections and pictures:
        raise NotRead("no text layer", f"{pictures} pictures without text, scanned most likely; recognise its text first")
    if not sections:
        raise NotRead("empty", "no text in it")
    counted = [f"{pictures} pictures left out"] if pictures else []
    return {"title": " ".join(title.split()), "log": [*log, *counted],
            "sections": [(s.headings, s.text, s.marks) for s in sections]}


@contextmanager
def container(path: str) -> Iterator[ZipFile]:
    """The container at `path`, with nothing in it that must not be unpacked. Raises NotRead."""
    with open(path, "rb") as file:
        if file.read(len(_OLD)) == _OLD:
            if _ENCRYPTED in file.read():
                raise NotRead("encrypted", "it opens with a password only; save a copy without one")
            raise NotRead("damaged", "it is of a format from before 2007 under a newer name; open it and save it anew")
    try:
        with ZipFile(path) as packed:
            _check(packed.infolist())
            yield packed
    except BadZipFile as error:
        raise NotRead("damaged", f"{error}; save it anew") from None


def _check(entries: Sequence[ZipInfo]) -> None:
    if len(entries) > MOST_ENTRIES:
        raise NotRead("too large", f"it packs {len(entries)} files; {MOST_ENTRIES} are the most")
    whole = sum(e.file_size for e in entries)
    if whole > MOST_MEGABYTES * MEGABYTE:
        raise NotRead("too large", f"it unpacks to {whole / MEGABYTE:.3g} MB; {MOST_MEGABYTES} are the most")
    for entry in entries:
        name = entry.orig_filename
        if entry.flag_bits & 1:
            raise NotRead("encrypted", f"{name[:80]} opens with a password only; save a copy without one")
        if entry.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
            raise NotRead("damaged", f"{name[:80]} is packed in a way that these documents don't allow; save it anew")
        if name.startswith("/") or "\\" in name or "\0" in name or ":" in name[:3] or ".." in name.split("/"):
            raise NotRead("unsafe", f"the name {name[:80]!r} leads out of it; save it anew")
        if entry.file_size > max(RATIO_FROM_MEGABYTES * MEGABYTE, HIGHEST_RATIO * entry.compress_size):
            raise NotRead("too large", f"{name[:80]} unpacks from {entry.compress_size / MEGABYTE:.3g} to "
                                       f"{entry.file_size / MEGABYTE:.3g} MB; it is made to fill memory")
        if name.endswith((".xml", ".rels")) and entry.file_size > MOST_XML_MEGABYTES * MEGABYTE:
            raise NotRead("too large", f"{name[:80]} unpacks to {entry.file_size / MEGABYTE:.3g} MB; "
                                       f"{MOST_XML_MEGABYTES} are the most")


class _Begun(Exception):
    """The first element was reached."""


def refuse_entities(packed: ZipFile) -> None:
    """Raise NotRead if any XML in an Office container has a document type, which its standard forbids (ECMA-376-2, 8.1)."""
    for entry in packed.infolist():
        if entry.filename.lower().endswith(".svg"):  # a picture: it may have one, and is not opened
            continue
        parser = expat.ParserCreate()
        parser.StartDoctypeDeclHandler = _refuse
        parser.StartElementHandler = _begin
        with packed.open(entry) as part:
            piece = part.read(_PIECE)
            if not piece.lstrip(_BEFORE_MARKUP).startswith(b"<"):
                continue
            try:
                while piece:
                    parser.Parse(piece, False)
                    piece = part.read(_PIECE)
            except _Begun:
                continue
            except expat.ExpatError as error:
                raise NotRead("damaged", f"{entry.filename[:80]}: {error}; save it anew") from None


def tree(data: bytes) -> ElementTree.Element:
    """The XML of an EPUB's own lists, which may name a document type but declare no entity. Raises NotRead."""
    parser = expat.ParserCreate()
    parser.EntityDeclHandler = _refuse
    try:
        parser.Parse(data, True)
        return ElementTree.fromstring(data)
    except (expat.ExpatError, ElementTree.ParseError) as error:
        raise NotRead("damaged", f"broken XML: {error}; save it anew") from None


def _refuse(*_: Any) -> None:
    raise NotRead("unsafe", "its XML declares entities, which can grow without end; open it and save it anew")


def _begin(*_: Any) -> None:
    raise _Begun

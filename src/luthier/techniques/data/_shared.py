"""What the data room shares: decoding files, the frame of a reader, fenced code, near-duplicate search."""

from __future__ import annotations

import codecs
import hashlib
import re
import stat
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from luthier.core.example import Document, Dropped, Section, SourceFile
from luthier.core.kinds import DataStep
from luthier.core.step import Ctx

if TYPE_CHECKING:
    import numpy as np

MEGABYTE = 1_000_000
CONTROL_SHARE = 0.1  # more control characters than this and the bytes are no text
# An 8-bit Western text has few letters above 127; a Cyrillic or Japanese file read as such has mostly those.
FOREIGN_SHARE, FOREIGN_LEAST = 0.4, 64
_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be"),
         (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f\x7f-\x84\x86-\x9f]")
_HIGH = bytes(range(128, 256))
_FENCE = re.compile(r"(\s*)(`{3,}(?=[^`]*$)|~{3,})(.*)")
# Scripts written without spaces count one word a character.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")
SHINGLE_WORDS = 5
_PERMUTATIONS = 128
_RECALL = 0.999
_DENSE = 32


class NotRead(Exception):
    """A file that can't become a document: the ledger's reason and its detail."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


def read_bytes(file: SourceFile, max_megabytes: float) -> bytes:
    """The bytes of a regular file that is not larger than the limit. Raises NotRead."""
    path, limit = Path(file.path), int(max_megabytes * MEGABYTE)
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            raise NotRead("unreadable", "not a regular file")
        if about.st_size > limit:
            raise NotRead("too large", f"{about.st_size / MEGABYTE:.3g} MB; max_megabytes is {max_megabytes:g}")
        with path.open("rb") as opened:
            data = opened.read(limit + 1)
    except OSError as error:
        raise NotRead("unreadable", error.strerror or str(error)) from None
    if len(data) > limit:
        raise NotRead("too large", f"it grew while it was read; max_megabytes is {max_megabytes:g}")
    if not data.strip():
        raise NotRead("empty", f"{len(data)} bytes")
    return data


def decode(data: bytes, declared: str = "") -> tuple[str, str]:
    """Text with `\\n` line ends, and the encoding it was in: by its mark, UTF-8, the declared one, or cp1252.

    Raises NotRead with the reason "not text" for anything else.
    """
    mark, named = next(((m, n) for m, n in _BOMS if data.startswith(m)), (b"", "utf-8"))
    tries = [named] if mark else ["utf-8", *([declared] if declared else []), "cp1252", "latin-1"]
    for name in tries:
        try:
            text = data[len(mark):].decode(name)
            break
        except (ValueError, LookupError):  # a page may declare any name
            continue
    else:
        raise NotRead("not text", f"it starts with the mark of {named} but is not; save it as UTF-8")
    if "\0" in text:
        raise NotRead("not text", "it holds NUL bytes; if it is UTF-16 without a mark, save it as UTF-8")
    controls = len(_CONTROL.findall(text))
    if controls > CONTROL_SHARE * len(text):
        raise NotRead("not text", f"{controls / len(text):.0%} of it are control characters")
    if name in ("cp1252", "latin-1"):
        high = len(data) - len(data.translate(None, _HIGH))
        if high >= FOREIGN_LEAST and high > FOREIGN_SHARE * len(data):
            raise NotRead("not text", f"neither UTF-8 nor Western 8-bit ({high / len(data):.0%} of its bytes are above "
                                      "127); save it as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n"), name


class Outline:
    """Collects a document's text below its path of headings."""

    def __init__(self) -> None:
        self._path: list[tuple[int, str]] = []
        self._found: list[tuple[tuple[str, ...], list[tuple[str, int, int]], tuple[int, int]]] = [((), [], (0, 0))]

    def heading(self, level: int, text: str, line: int = 0, page: int = 0) -> None:
        """Open a section at `level` (1 is the top); `line` and `page` say where its heading stands, from 1."""
        while self._path and self._path[-1][0] >= level:
            self._path.pop()
        self._path.append((level, text))
        self._found.append((tuple(t for _, t in self._path), [], (page, line)))

    def line(self, text: str, line: int = 0, page: int = 0) -> None:
        """Add a line to the open section; `line` and `page` say where it stands in the file, from 1."""
        self._found[-1][1].append((text, page, line))

    def sections(self) -> tuple[Section, ...]:
        """The sections that hold text. A heading with nothing below it is itself the text: it may be the message."""
        made = []
        for i, (path, lines, place) in enumerate(self._found):
            whole = "\n".join(text for text, _, _ in lines)
            text = trim(whole)
            below = self._found[i + 1][0] if i + 1 < len(self._found) else ()
            if text or (path and below[:len(path)] != path and path[-1]):
                first = len(whole.rstrip()) - len(text)
                marks = _marks(lines, first) if text else ((1, *place),) if any(place) else ()
                made.append(Section(path, text or path[-1], marks))
        return tuple(made)

    def first(self) -> str:
        """The first heading; empty when there is none."""
        return next((path[-1] for path, _, _ in self._found if path), "")


def _marks(lines: Sequence[tuple[str, int, int]], first: int) -> tuple[tuple[int, int, int], ...]:
    """Marks of joined (text, page, line) of which `first` characters were cut off in front."""
    made: list[tuple[int, int, int]] = []
    at = -first
    for text, page, line in lines:
        if at >= 0 and text.strip() and (page or line):
            made.append((at + 1, page, line))
        at += len(text) + 1
    return tuple(made)


class Reader(DataStep):
    """Frame of a reader of text files: `parse` makes a title and sections of one file's text."""

    suffixes: ClassVar[tuple[str, ...]] = ()
    # The encodings that the format allows; any that `decode` finds where none is named.
    encodings: ClassVar[tuple[str, ...]] = ()
    max_megabytes: float = Field(50.0, gt=0, description="a larger file is left out, in 1 000 000 bytes")

    def apply(self, rows: Iterator[SourceFile], ctx: Ctx) -> Iterator[Document | Dropped]:
        """One `Document` or one `Dropped` a file, in order."""
        for file in rows:
            try:
                data = read_bytes(file, self.max_megabytes)
                text, encoding = decode(data, self.declared(data))
                if self.encodings and encoding not in self.encodings:
                    raise NotRead("not text", f"not UTF-8 (it could be {encoding}); save it as UTF-8")
                if encoding in ("cp1252", "latin-1"):
                    ctx.log(f"{file.id}: not UTF-8, read as {encoding}")
                title, sections = self.parse_named(file, text, ctx)
                if not sections:
                    raise NotRead("empty", "no text in it")
            except NotRead as why:
                yield Dropped(file.id, why.reason, why.detail)
                continue
            # The same 32 digits as `core.identity.hash_file`.
            yield Document(file.id, title or Path(file.id).name, sections, hashlib.sha256(data).hexdigest()[:32])

    def declared(self, data: bytes) -> str:
        """The encoding that the format itself names; empty when it names none."""
        return ""

    def parse_named(self, file: SourceFile, text: str, ctx: Ctx) -> tuple[str, tuple[Section, ...]]:
        """`parse` for readers that must know the file's name too. Raises NotRead."""
        return self.parse(text)

    @abstractmethod
    def parse(self, text: str) -> tuple[str, tuple[Section, ...]]:
        """Title (or empty) and sections. Raises NotRead."""


def trim(text: str) -> str:
    """Without blank lines around it; the first line keeps its indent."""
    return re.sub(r"\A(?:[^\S\n]*\n)+", "", text.rstrip()) if text.strip() else ""


def fences(lines: Sequence[str]) -> list[tuple[int, int]]:
    """Line ranges [first, last + 1) of fenced code blocks. One that is never closed reaches to the end."""
    found, i = [], 0
    hopeless: dict[str, int] = {}  # by fence letter, the shortest opening that finds no end any more
    while i < len(lines):
        match = _FENCE.fullmatch(lines[i].rstrip())
        i += 1
        if not match:
            continue
        indent, marks = len(match[1].expandtabs(4)), match[2]
        end = None
        if len(marks) < hopeless.get(marks[0], 1 << 30):
            closing = re.compile(rf"\s*{re.escape(marks[0])}{{{len(marks)},}}\s*")
            end = next((j for j in range(i, len(lines)) if closing.fullmatch(lines[j])), None)
        if end is None:
            hopeless[marks[0]] = min(len(marks), hopeless.get(marks[0], 1 << 30))
            if indent >= 4:
                continue  # marks within indented code, not an opening
            end = len(lines) - 1
        found.append((i - 1, end + 1))
        i = end + 1
    return found


def normalized(text: str) -> str:
    """Casefolded, every run of white space one space: the form in which two texts are the same."""
    return " ".join(text.casefold().split())


def exact_key(text: str) -> bytes:
    """Hash of `normalized(text)`."""
    return hashlib.blake2b(normalized(text).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def shingles(text: str) -> np.ndarray:
    """Sorted 64-bit hashes of the text's word 5-grams, uint64 [n]; of the whole text when it has fewer words."""
    import numpy as np

    words = _WORD.findall(text.casefold())
    grams = [" ".join(words[i:i + SHINGLE_WORDS]) for i in range(len(words) - SHINGLE_WORDS + 1)] or [normalized(text)]
    hashes = [hashlib.blake2b(g.encode("utf-8", "surrogatepass"), digest_size=8).digest() for g in set(grams)]
    return np.sort(np.frombuffer(b"".join(hashes), dtype="<u8"))


class NearTexts:
    """Texts by name; finds those with a Jaccard similarity of at least `threshold` over word 5-grams.

    MinHash with locality-sensitive hashing (Broder 1997; Indyk and Motwani 1998) proposes, exact sets decide. The
    bands are the longest that still propose a pair at the threshold with probability 0.999.
    """

    def __init__(self, threshold: float) -> None:
        from luthier.techniques.data._bands import Bands

        wide = [r for r in range(1, _PERMUTATIONS // 2 + 1)
                if 1 - (1 - threshold**r) ** (_PERMUTATIONS // r) >= _RECALL]
        rows = max(wide, default=1)
        self.threshold = threshold
        self._index = Bands(_PERMUTATIONS // rows, rows)
        self._sets: list[np.ndarray] = []
        self._names: list[str] = []

    def match(self, text: str) -> tuple[list[tuple[float, str]], tuple[np.ndarray, np.ndarray]]:
        """(Jaccard, name) of the stored texts that are near, best and oldest first, and what `add` wants."""
        import numpy as np
        from datasketch import MinHash

        grams = shingles(text)
        sketch = MinHash(num_perm=_PERMUTATIONS, seed=1, hashfunc=lambda value: int(value) & 0xFFFFFFFF)
        sketch.update_batch(grams.tolist())
        near = []
        hashes = self._index.hashes(sketch.hashvalues)
        for number in self._index.near(hashes):
            both = len(np.intersect1d(grams, self._sets[number], assume_unique=True))
            share = both / (len(grams) + len(self._sets[number]) - both)
            if share >= self.threshold:
                near.append((-share, number))
        return [(-share, self._names[number]) for share, number in sorted(near)], (grams, hashes)

    def add(self, name: str, prepared: tuple[np.ndarray, np.ndarray]) -> None:
        """Store a text under its name."""
        self._index.add(prepared[1])
        self._sets.append(prepared[0])
        self._names.append(name)


def near_clusters(items: Iterable[tuple[str, str]], threshold: float = 0.8) -> dict[str, str]:
    """Name of each (name, text)'s cluster: the name of its first member. Near pairs are joined transitively."""
    parent: dict[str, str] = {}
    exact: dict[bytes, str] = {}
    near = NearTexts(threshold)

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    order: dict[str, int] = {}
    for name, text in items:
        order[name] = len(order)
        same = exact.setdefault(exact_key(text), name)
        parent[name] = name if same == name else root(same)
        if same != name:
            continue
        found, prepared = near.match(text)
        for _, other in found:
            one, two = sorted((root(name), root(other)), key=order.__getitem__)
            parent[two] = one
        # In the thick of a cluster one more text reaches nothing new, and a template of many rows would be quadratic.
        if len(found) < _DENSE:
            near.add(name, prepared)
    return {name: root(name) for name in parent}

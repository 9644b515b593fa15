"""docstrings: what Python's own library says of itself, as this interpreter has it; the one world of real prose.

Every text is the docstring of one function, class or method, with its name above. Two domains by module, which share no text:

    pretrain, source   general modules (strings, numbers, files): to learn from, and kept out
    train, dev, target modules of networks, mail, markup and tests: to learn from, to choose by, and kept out

A text's cluster is its module. Versions of Python differ in a few texts; what else a process has imported does not matter
(`_library.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

from pydantic import Field

from luthier.core.artifact import Artifact, write_examples
from luthier.core.errors import UserError
from luthier.core.example import Example, Part, Turn
from luthier.core.rng import Rng
from luthier.core.step import Ctx, Step
from luthier.studies._worlds._library import said

GENERAL = (
    "argparse", "array", "ast", "base64", "bisect", "calendar", "cmath", "code", "codecs", "collections", "configparser",
    "contextlib", "copy", "csv", "dataclasses", "datetime", "decimal", "difflib", "dis", "enum", "fileinput", "fnmatch",
    "fractions", "functools", "gettext", "glob", "gzip", "hashlib", "heapq", "inspect", "io", "itertools", "linecache",
    "locale", "lzma", "math", "numbers", "operator", "os", "os.path", "pathlib", "pickle", "pkgutil", "pprint", "random",
    "re", "reprlib", "shelve", "shlex", "shutil", "statistics", "string", "struct", "tarfile", "tempfile", "textwrap", "time",
    "timeit", "tokenize", "traceback", "types", "typing", "unicodedata", "uuid", "warnings", "weakref", "zipfile", "zlib")
NEW = (
    "asyncio", "concurrent.futures", "email.header", "email.message", "email.utils", "ftplib", "html", "html.parser",
    "http.client", "http.cookiejar", "http.server", "imaplib", "ipaddress", "logging", "logging.handlers", "mailbox",
    "multiprocessing", "poplib", "queue", "selectors", "smtplib", "socket", "socketserver", "ssl", "subprocess", "threading",
    "unittest", "unittest.mock", "urllib.parse", "urllib.request", "wsgiref.headers", "xml.dom.minidom",
    "xml.etree.ElementTree", "xml.sax.saxutils", "xmlrpc.client", "xmlrpc.server")
SHORTEST, LONGEST = 60, 600  # characters of a text


class Docstrings(Step, name="docstrings", version=2):
    """Texts of Python's library, in two domains."""

    output: ClassVar[str] = "examples"
    seeded: ClassVar[bool] = False
    pretrain_rows: int = Field(1200, ge=1, description="texts of general modules to learn from, at most")
    train_rows: int = Field(240, ge=1, description="texts of the other modules to learn from")
    dev_rows: int = Field(30, ge=1, description="further ones to choose by")
    test_rows: int = Field(120, ge=1, description="texts of each domain that are read in the end")
    seed: int = Field(0, ge=0, description="which texts; a study's training seeds leave them as they are")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Draw the texts.

        Raises:
            UserError: this Python was built without docstrings, or has fewer texts than asked for.
        """
        draw = Rng(self.seed).within("docstrings")
        seen: set[str] = set()
        general, new = (list(_texts(modules, seen)) for modules in (GENERAL, NEW))
        wanted = {"general": (general, self.test_rows + 1), "other": (new, self.train_rows + self.dev_rows + self.test_rows)}
        for name, (texts, count) in wanted.items():
            if len(texts) < count:
                raise UserError(f"docstrings: {len(texts)} texts of the {name} modules are here, and {count} are wanted. Ask "
                                "for fewer rows, or use a Python that was built with its docstrings.")
        general = [general[i] for i in draw("general").permutation(len(general))]
        new = [new[i] for i in draw("new").permutation(len(new))]
        ends = (self.train_rows, self.train_rows + self.dev_rows)
        return write_examples(ctx.folder, {
            "source": general[:self.test_rows], "pretrain": general[self.test_rows:][:self.pretrain_rows],
            "train": new[:ends[0]], "dev": new[ends[0]:ends[1]], "target": new[ends[1]:ends[1] + self.test_rows]})


def _texts(modules: tuple[str, ...], seen: set[str]) -> Iterator[Example]:
    """One text each of the public functions, classes and methods; those that were seen are passed over.

    Raises:
        UserError: this Python lacks a module.
    """
    try:
        found = said(modules)
    except RuntimeError as error:
        raise UserError(f"Python's own library can't be read: {error}. Install the whole of it.") from None
    for module, member, doc in found:
        if len(doc) < SHORTEST or doc in seen:
            continue
        seen.add(doc)
        text = f"{module}.{member}\n\n{doc[:LONGEST].rpartition(' ')[0] if len(doc) > LONGEST else doc}"
        yield Example(f"{module}.{member}", (Turn("assistant", (Part(text),), target=True),), task="text", cluster=module)

"""docstrings: what Python's own library says of itself, as this interpreter has it; the one world of real prose.

Every text is the docstring of one function, class or method, with its name above. Two domains by module, which share no text:

    pretrain, source   general modules (strings, numbers, files): to learn from, and kept out
    train, dev, target modules of networks, mail, markup and tests: to learn from, to choose by, and kept out

A text's cluster is its module. Versions of Python differ in a few texts.
"""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from pydantic import Field

from luthier.core.artifact import Artifact, write_examples
from luthier.core.errors import UserError
from luthier.core.example import Example, Part, Turn
from luthier.core.rng import Rng
from luthier.core.step import Ctx, Step

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


class Docstrings(Step, name="docstrings"):
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
            UserError: an interpreter without docstrings (-OO), or fewer texts than asked for.
        """
        draw = Rng(self.seed).within("docstrings")
        seen: set[str] = set()
        general, new = (list(_texts(modules, seen)) for modules in (GENERAL, NEW))
        wanted = {"general": (general, self.test_rows + 1), "other": (new, self.train_rows + self.dev_rows + self.test_rows)}
        for name, (texts, count) in wanted.items():
            if len(texts) < count:
                raise UserError(f"docstrings: {len(texts)} texts of the {name} modules are here, and {count} are wanted. Run "
                                "Python without -OO, or ask for fewer rows.")
        general = [general[i] for i in draw("general").permutation(len(general))]
        new = [new[i] for i in draw("new").permutation(len(new))]
        ends = (self.train_rows, self.train_rows + self.dev_rows)
        return write_examples(ctx.folder, {
            "source": general[:self.test_rows], "pretrain": general[self.test_rows:][:self.pretrain_rows],
            "train": new[:ends[0]], "dev": new[ends[0]:ends[1]], "target": new[ends[1]:ends[1] + self.test_rows]})


def _texts(modules: tuple[str, ...], seen: set[str]) -> Iterator[Example]:
    """One text each of the public functions, classes and methods; those that were seen are passed over."""
    for name in modules:
        module = importlib.import_module(name)
        for path, thing in _things(module):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what is there for old programs
                doc = getattr(thing, "__doc__", None)
            said = inspect.cleandoc(doc) if isinstance(doc, str) else ""
            if len(said) < SHORTEST or said in seen:
                continue
            seen.add(said)
            text = f"{name}.{path}\n\n{said[:LONGEST].rpartition(' ')[0] if len(said) > LONGEST else said}"
            yield Example(f"{name}.{path}", (Turn("assistant", (Part(text),), target=True),), task="text", cluster=name)


def _things(module: Any) -> Iterator[tuple[str, Any]]:
    """Public members of a module that are its own, and those of its classes, in the order of their names."""
    for name, thing in sorted(vars(module).items()):
        own, here = ((m or "").partition(".")[0].lstrip("_") for m in (getattr(thing, "__module__", ""), module.__name__))
        if name.startswith("_") or not callable(thing) or (own and own != here):
            continue
        yield name, thing
        if inspect.isclass(thing):
            yield from ((f"{name}.{part}", inner) for part, inner in sorted(vars(thing).items())
                        if not part.startswith("_") and callable(inner))

"""short-texts: texts of a line with a label: which topic of Python's library a sentence is about, or what a review feels.

`problem: topics` has the first sentences of docstrings, and eight topics by module, equally often in each subset. All sentences
of one class or function are in one subset, and are its cluster. `problem: sentiment` has three remarks on one meal, film, hotel
or tool, of which one may be of the other kind. Subsets are `train`, `dev` and `test`. Versions of Python differ in a few
sentences.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal

from pydantic import Field

from luthier.core.artifact import Artifact, write_examples
from luthier.core.errors import UserError
from luthier.core.example import Example, Part, Turn
from luthier.core.rng import Rng
from luthier.core.step import Ctx, Step
from luthier.studies._worlds.docstrings import _texts
from luthier.studies._worlds.opinions import DOMAINS, LABELS, _remark

TOPICS: Mapping[str, tuple[str, ...]] = {
    "concurrency": ("asyncio", "concurrent.futures", "multiprocessing", "queue", "selectors", "threading"),
    "mail": ("email.charset", "email.contentmanager", "email.errors", "email.feedparser", "email.generator", "email.header",
             "email.headerregistry", "email.iterators", "email.message", "email.parser", "email.policy", "email.utils",
             "imaplib", "mailbox", "poplib", "smtplib"),
    "web": ("html", "html.parser", "http.client", "http.cookiejar", "http.server", "urllib.parse", "urllib.request",
            "xmlrpc.client", "xmlrpc.server"),
    "checks": ("logging", "logging.handlers", "traceback", "unittest", "unittest.mock", "warnings"),
    "quantities": ("calendar", "cmath", "datetime", "decimal", "fractions", "math", "numbers", "random", "statistics", "time"),
    "files": ("fileinput", "glob", "gzip", "io", "lzma", "os", "os.path", "pathlib", "shutil", "tarfile", "tempfile",
              "zipfile"),
    "programs": ("ast", "code", "dis", "inspect", "pkgutil", "tokenize", "types", "typing"),
    "words": ("base64", "codecs", "csv", "difflib", "gettext", "locale", "re", "string", "textwrap", "unicodedata"),
}
FEWEST, MOST = 5, 20  # words of a sentence


class ShortTexts(Step, name="short-texts", version=2):
    """Short texts with labels to learn from, to choose by and to test on."""

    output: ClassVar[str] = "examples"
    seeded: ClassVar[bool] = False
    problem: Literal["topics", "sentiment"] = Field("topics", description="what is to be told of a text")
    train: int = Field(300, ge=8, description="rows to learn from")
    dev: int = Field(120, ge=2, description="rows to choose by")
    tests: int = Field(400, ge=2, description="rows of `test`")
    mixed: float = Field(0.6, ge=0, le=1, description="share of reviews with a remark of the other kind")
    seed: int = Field(0, ge=0, description="which rows; a study's training seeds leave them as they are")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Raises UserError for a Python with too few docstrings."""
        draw, wanted = Rng(self.seed).within("short-texts"), {"test": self.tests, "dev": self.dev, "train": self.train}
        if self.problem == "sentiment":
            made = {subset: [self._review(f"{subset}/{n}", n, draw) for n in range(count)]
                    for subset, count in wanted.items()}
            return write_examples(ctx.folder, made, labels=sorted(LABELS))
        there = list(_sentences())
        if len(there) < sum(wanted.values()):
            raise UserError(f"short-texts: {len(there)} sentences are here, and {sum(wanted.values())} are wanted. Ask for "
                            "fewer rows, or use a Python that was built with its docstrings.")
        return write_examples(ctx.folder, dealt(there, wanted, draw), labels=sorted(TOPICS))

    def _review(self, name: str, n: int, draw: Rng) -> Example:
        rng, domain, good = draw("row", name), list(DOMAINS)[n // 2 % len(DOMAINS)], n % 2 == 0
        odd = bool(rng.random() < self.mixed)
        aspects = [list(DOMAINS[domain])[i] for i in rng.permutation(len(DOMAINS[domain]))[:3]]
        said = [_remark(domain, aspect, good != (odd and i == 0), rng) for i, aspect in enumerate(aspects)]
        text = " ".join(f"{said[i][0].upper()}{said[i][1:]}." for i in rng.permutation(len(said)))
        return _row(name, text, LABELS[good], name)


def dealt(rows: Iterable[Example], wanted: Mapping[str, int], draw: Rng) -> dict[str, list[Example]]:
    """So many rows for each subset, labels equally often (to one row); rows of one cluster never lie in two subsets.

    Clusters come in a drawn order, each to the subset that lacks most rows of its label; what is over is left out.

    Raises:
        UserError: too few rows of a label.
    """
    clusters: dict[tuple[str, str], list[Example]] = {}
    for row in rows:
        clusters.setdefault((str(row.label), row.cluster), []).append(row)
    places, labels = list(clusters), sorted({label for label, _ in clusters})
    lacks = {(subset, label): count // len(labels) + (i < count % len(labels))
             for subset, count in wanted.items() for i, label in enumerate(labels)}
    made: dict[str, list[Example]] = {subset: [] for subset in wanted}
    for i in draw("clusters").permutation(len(places)):
        label, _ = places[i]
        subset = max(wanted, key=lambda s: lacks[s, label])
        given = clusters[places[i]][:lacks[subset, label]]
        made[subset] += given
        lacks[subset, label] -= len(given)
    for (subset, label), count in lacks.items():
        if count:
            raise UserError(f"short-texts: {count} rows of {label} are missing in {subset}, since all sentences of a class "
                            "stay together. Ask for fewer rows.")
    return made


def _sentences() -> Iterable[Example]:
    """First sentences of docstrings, each told once."""
    seen: set[str] = set()
    told: set[str] = set()
    for topic, modules in TOPICS.items():
        for text in _texts(modules, seen):
            said = re.split(r"(?<=[.:])\s", text.turns[0].text.partition("\n\n")[2].replace("\n", " ").strip())[0]
            if FEWEST <= len(said.split()) <= MOST and said not in told:
                told.add(said)
                yield _row(text.id, said, topic, f"{text.cluster}.{text.id.removeprefix(f'{text.cluster}.').partition('.')[0]}")


def _row(name: str, text: str, label: str, cluster: str) -> Example:
    return Example(name, (Turn("user", (Part(text),)),), task="classify", cluster=cluster, label=label)

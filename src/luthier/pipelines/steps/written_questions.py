"""Test questions written by people, tied to the documents by the quotes that support them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from luthier.core.artifact import Artifact, write_examples
from luthier.core.errors import UserError, nearest
from luthier.core.example import Example, Passage, question
from luthier.core.files import json_lines
from luthier.core.finding import Finding, receipt
from luthier.core.identity import hash_file
from luthier.core.step import Ctx, Step

SETS = ("known", "unseen", "unanswerable")
KEYS = ("id", "set", "question", "answers", "quote", "page", "section", "checked")
SHOWN = 5


class TestQuestions(Step, name="test-questions"):
    """Read hand-written questions; each answerable one names the quote that answers it."""

    __test__ = False  # the name is not a test's
    inputs: ClassVar[dict[str, str]] = {"documents": "documents"}
    output: ClassVar[str] = "examples"
    seeded: ClassVar[bool] = False
    path: str = Field(description="JSON lines: id, set (known, unseen, unanswerable), question, answers, quote, page")
    missing_quotes: Literal["refuse", "drop"] = Field("refuse", description="what to do with a quote no passage holds")

    def check(self) -> None:
        """Refuse a missing file and rows that can't be read."""
        self._rows()

    def content(self) -> dict[str, Any]:
        """Hash of the file."""
        return {"path": hash_file(Path(self.path))}

    def _rows(self) -> list[dict[str, Any]]:
        path = Path(self.path)
        if not path.is_file():
            raise UserError(f"There is no file of test questions at {path}.")
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8.") from None
        rows: list[dict[str, Any]] = []
        problems: list[str] = []
        lines: dict[str, int] = {}
        for number, row in json_lines(text, problems):
            found = _problems(row)
            if not found and lines.setdefault(row["id"], number) != number:
                found = [f"id '{row['id']}' is that of line {lines[row['id']]}"]
            problems += [f"line {number}: {p}" for p in found]
            rows.append(row)
        if problems:
            more = f" and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
            raise UserError(f"{path}: " + "; ".join(problems[:SHOWN]) + more)
        if not rows:
            raise UserError(f"{path} holds no questions.")
        return rows

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Find each quote's passages; its section is the question's cluster."""
        passages = list(inputs["documents"].passages())
        texts = [(p, _flat(p.text)) for p in passages]
        subsets: dict[str, list[Example]] = {name: [] for name in SETS}
        lost = []
        for row in self._rows():
            gold = _holding(row, texts) if row["set"] != "unanswerable" else []
            if row["set"] != "unanswerable" and not gold:
                lost.append(row["id"])
                continue
            cluster = gold[0].section if gold else f"unanswerable/{row['id']}"
            subsets[row["set"]].append(question(
                row["id"], row["question"], row["answers"][0] if row["answers"] else "", source=gold[0].id if gold else "",
                cluster=cluster, references=tuple(row["answers"]),
                meta={"gold": [p.id for p in gold], "quote": row.get("quote", "")}))
        if lost and self.missing_quotes == "refuse":
            raise UserError(f"{len(lost)} test questions have a quote that no passage holds: {', '.join(lost[:SHOWN])}. "
                            "Mend the quotes, or leave them out with missing_quotes: drop.")
        if lost:
            ctx.log(f"{len(lost)} test questions left out: their quotes are not in these documents")
        from luthier.core.example import Dropped

        return write_examples(ctx.folder, subsets, [Dropped(i, "quote not found") for i in lost],
                              read=sum(map(len, subsets.values())) + len(lost))

    def receipts(self, inputs: Mapping[str, Artifact], artifact: Artifact, ctx: Ctx) -> list[Finding]:
        """Rows in = rows out + ledger."""
        out = sum(artifact.meta["rows"].values()) + artifact.meta["dropped"]
        return [receipt("test-questions/rows", artifact.meta["read"], out, unit="rows", detail="read against kept + ledger")]


def _problems(row: Any) -> list[str]:
    if not isinstance(row, dict):
        return ["not a JSON object"]
    found = [f"unknown key '{k}'. {nearest(k, KEYS)}" for k in row if k not in KEYS]
    found += [f"no '{k}'; its keys are {', '.join(row)}" for k in ("id", "set", "question", "answers") if k not in row]
    found += [f"{k} is {row[k]!r}, not a text" for k in ("id", "question", "quote", "page")
              if not isinstance(row.get(k) or "", str)]
    answers = row.get("answers") or []
    if not (isinstance(answers, list) and all(isinstance(a, str) for a in answers)):
        found.append(f"answers is {answers!r}, not a list of texts")
    if row.get("set", "known") not in SETS:
        found.append(f"set is '{row['set']}'. {nearest(str(row['set']), SETS)}")
    elif row.get("set") != "unanswerable" and not (row.get("answers") and row.get("quote")):
        found.append("an answerable question needs 'answers' and a 'quote'")
    return found


def _holding(row: Mapping[str, Any], texts: Sequence[tuple[Passage, str]]) -> list[Passage]:
    """Passages that hold the quote; of one that was cut, those that hold its largest part."""
    quote = _flat(row["quote"])
    page = row.get("page") or ""
    near = [(p, t) for p, t in texts if not page or p.document == page or p.document.endswith("/" + page)]
    whole = [p for p, t in near if quote in t]
    if whole:
        return whole
    found = []
    for _, group in groupby(near, key=lambda pair: pair[0].document):
        parts = list(group)
        first = " ".join(t for _, t in parts).find(quote)
        if first < 0:
            continue
        start, shares = 0, []
        for passage, text in parts:
            shares.append((min(first + len(quote), start + len(text)) - max(first, start), passage))
            start += len(text) + 1
        found.append(max(shares, key=lambda share: share[0])[1])
    return found


def _flat(text: str) -> str:
    return " ".join(text.split())

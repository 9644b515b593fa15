"""Rows that teach a model to write questions: a passage in, a question and its answer out, in few-shot's own form."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from luthier.core.artifact import Artifact, write_examples
from luthier.core.errors import UserError
from luthier.core.example import Dropped, Example, Part, Passage, Turn
from luthier.core.finding import Finding, receipt
from luthier.core.identity import digest, hash_file
from luthier.core.step import Ctx, Step
from luthier.techniques.data.few_shot import asking

LAYOUTS = ("rows with question, answer (or answers) and context (or passage), as JSON lines or one JSON list, or SQuAD's "
           "{data: [{paragraphs: [{context, qas}]}]}; .gz is read too")


class WriterRows(Step, name="writer-rows"):
    """Read a question set and turn each row round."""

    output: ClassVar[str] = "examples"
    seeded: ClassVar[bool] = False
    path: str = Field(description="question set: JSON lines, a JSON list, or SQuAD's layout", examples=["data.jsonl"])
    max_rows: int = Field(2000, ge=1, description="how many rows are used, from the file's beginning")
    max_answer_words: int = Field(12, ge=1, description="longer answers are left out")

    def check(self) -> None:
        """Refuse a missing file and rows that can't be used."""
        next(self._rows())

    def content(self) -> dict[str, Any]:
        """Hash of the file."""
        return {"rows": hash_file(Path(self.path))}

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """One example a usable row; the rest stands in the ledger."""
        rows: list[Example] = []
        ledger: list[Dropped] = []
        for number, (context, asked, answer) in enumerate(self._rows()):
            if number >= self.max_rows:
                break
            name = f"row-{number + 1}"
            if not answer.strip():
                ledger.append(Dropped(name, "no answer", asked))
            elif len(answer.split()) > self.max_answer_words or not asked.strip().endswith("?"):
                ledger.append(Dropped(name, "not a short question and answer", f"{asked} | {answer}"))
            else:
                source = digest(context)
                passage = Passage(source, context, "", source)
                said = f" {' '.join(asked.split())}\nAnswer: {' '.join(answer.split())}"
                rows.append(Example(name, (Turn("user", (Part(asking(passage), name="prompt"),)),
                                           Turn("assistant", (Part(said),), target=True)),
                                    source=source, cluster=source, task="completion"))
        if not rows:
            raise UserError(f"{self.path} has no question with a short answer.")
        return write_examples(ctx.folder, {"all": rows}, ledger, read=len(rows) + len(ledger))

    def receipts(self, inputs: Mapping[str, Artifact], artifact: Artifact, ctx: Ctx) -> list[Finding]:
        """Rows read = examples + ledger."""
        kept = artifact.meta["rows"]["all"] + artifact.meta["dropped"]
        return [receipt("writer-rows/rows", artifact.meta["read"], kept, unit="rows")]

    def _rows(self) -> Iterator[tuple[str, str, str]]:
        path = Path(self.path)
        if not path.is_file():
            raise UserError(f"path: {path} does not exist. A question set is {LAYOUTS}.")
        try:
            data = path.read_bytes()
            text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
            whole = text.lstrip().startswith("[") or path.name.removesuffix(".gz").endswith(".json")
            found = json.loads(text) if whole else [json.loads(line) for line in text.splitlines() if line.strip()]
        except (OSError, EOFError, ValueError) as error:
            raise UserError(f"{path} can't be read: {error}. A question set is {LAYOUTS}.") from None
        try:
            flat = list(_flat(found))
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise UserError(f"{path}: a row lacks {error}. A question set is {LAYOUTS}.") from None
        if not flat:
            raise UserError(f"{path} holds no questions. A question set is {LAYOUTS}.")
        yield from flat


def _flat(found: Any) -> Iterator[tuple[str, str, str]]:
    if isinstance(found, dict):
        found = [{**qa, "context": p["context"]} for d in found["data"] for p in d["paragraphs"] for qa in p["qas"]]
    for row in found:
        context = row["context"] if "context" in row else row["passage"]
        answers = row["answer"] if "answer" in row else row["answers"]
        if isinstance(answers, dict):  # of the `datasets` library: {"text": […], "answer_start": […]}
            answers = answers["text"]
        first = (answers[0] if answers else "") if isinstance(answers, list) else answers
        yield str(context), str(row["question"]), str(first["text"] if isinstance(first, dict) else first)

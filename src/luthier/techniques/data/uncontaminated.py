"""Filter: rows that share no run of words with an evaluation set.

A row is left out when its question or answer holds an n-gram (n = 8 words) of a question or answer of the set; texts
shorter than n words count as one n-gram, so an equal short question is found too (an equal short answer is no leak).
Source: Brown et al. 2020, "Language models are few-shot learners", appendix C (there 13-grams). Seed 14.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.example import Dropped, Example
from luthier.core.kinds import DataStep
from luthier.core.step import Ctx
from luthier.techniques.data._questions import units


class Uncontaminated(DataStep, name="uncontaminated", version=1):
    """Leave out rows that repeat a run of words of an evaluation file."""

    against: str = Field("", description="JSON lines with question and answer (or answers) that are kept for evaluation")
    words: int = Field(8, ge=2, description="length of the run of words")

    def apply(self, rows: Iterator[Example], ctx: Ctx) -> Iterator[Example | Dropped]:
        known = self._known()
        for row in rows:
            found = (self._grams(row.part("question"), True) | self._grams(row.answer, False)) & known
            yield Dropped(row.id, "in the evaluation set", min(found)) if found else row

    def _known(self) -> set[str]:
        if not self.against:
            raise UserError("uncontaminated needs the file to keep apart from: against=FILE.jsonl")
        path, found = Path(self.against), set()
        if not path.is_file():
            raise UserError(f"uncontaminated: against: {path} does not exist.")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                row = json.loads(line) if line.strip() else None
            except ValueError as error:
                raise UserError(f"{path}, line {number}: broken JSON: {error}") from None
            if row is None:
                continue
            if not isinstance(row, dict) or not isinstance(row.get("question"), str):
                raise UserError(f"{path}, line {number}: expected an object with 'question' and 'answer' or 'answers'.")
            answers = row.get("answers") or [row.get("answer") or ""]
            found |= self._grams(row["question"], True)
            for answer in [answers] if isinstance(answers, str) else answers:
                found |= self._grams(str(answer), False)
        return found

    def _grams(self, text: str, short: bool) -> set[str]:
        said = units(text)
        if len(said) < self.words:
            return {" ".join(said)} if short and said else set()
        return {" ".join(said[i:i + self.words]) for i in range(len(said) - self.words + 1)}

"""personal-data: how many rows hold strings that have the form of private ones, before anybody trains on them.

Of n rows (of a run: its training rows) those are counted whose text holds an e-mail address, a phone number, an amount or the
number of an account (`_matching.FORMS`). All rows are read: the share is a count and needs no interval. It finds what
has a form; names and addresses have none. Planted secrets are left out.

When it helps: before tuning, beside the data step of the same name, which masks what is found; what is not in the rows can't
leak. Seed of the attack that this prevents: Sun et al. 2023, "Does fine-tuning GPT-3 with the OpenAI API leak personally-
identifiable information?"
"""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar, Literal

from pydantic import Field

from luthier.core.files import write_lines
from luthier.core.finding import Finding, not_applicable
from luthier.core.kinds import Audit
from luthier.core.step import Ctx
from luthier.engine.subjects import TRAIN, Subject
from luthier.techniques.privacy._matching import entities

Type = Literal["EMAIL", "PHONE", "MONEY", "ID"]
EVIDENCE = "rows.jsonl"


class PersonalData(Audit, name="personal-data"):
    """Training rows hold e-mail addresses, phone numbers or numbers of accounts."""

    roles: ClassVar[tuple[str, ...]] = ()
    subjects: ClassVar[tuple[Any, ...]] = ("run", "data")
    mends: ClassVar[tuple[str, ...]] = ("data_step personal-data",)
    types: tuple[Type, ...] = Field(("EMAIL", "PHONE"), min_length=1, description="what is looked for")
    max_share: float = Field(0.0, ge=0, lt=1, description="most of the rows that may hold any, as a share")

    def measure(self, ctx: Ctx, subject: Subject) -> list[Finding]:
        """`audit/personal-data/rows`; the evidence names rows and types, never the strings."""
        rows = [r for r in subject.rows(TRAIN) if "canary" not in r.meta]
        if not rows:
            return [not_applicable("audit/personal-data", "there are no rows to look at")]
        found = [(r.id, Counter(kind for kind, _ in entities("\n".join(t.text for t in r.turns), self.types))) for r in rows]
        holding = [(id, kinds) for id, kinds in found if kinds]
        write_lines(ctx.folder / EVIDENCE, ({"id": id, "types": dict(kinds)} for id, kinds in holding))
        share = len(holding) / len(rows)
        total = sum((kinds for _, kinds in holding), Counter[str]())
        told = ", ".join(f"{n} {kind}" for kind, n in sorted(total.items())) or "none"
        return [Finding("audit/personal-data/rows", None, share, share, "fail" if share > self.max_share else "pass",
                        tolerance=self.max_share, unit="of the rows", evidence=EVIDENCE,
                        detail=f"{len(holding)} of {len(rows)} rows: {told}",
                        extra={"worse": "up", "title": "rows with private strings", "n": len(rows), "types": dict(total)})]

"""personal-data: masks e-mail addresses, phone numbers, cards, accounts and the like, or leaves the rows out.

The patterns and their checks (Luhn for cards, mod 97 for IBANs, the public suffix list for mail addresses) are those of
Microsoft's Presidio, its pattern recognisers alone: no language engine is loaded and nothing is fetched. They find what
has a form. Names, addresses and birthdays have none and are not found: this step makes a leak less likely, and is no
proof that there is none. `meta` of a row is not looked at, it is never shown to a model.

When it helps: tickets, mails and forum posts as training data; a model repeats what it saw often. What was found goes
to the ledger by its kind and number, never as itself. Source: Presidio (MIT licence).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import Any, Literal

from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.example import Dropped, Example, Passage
from luthier.core.kinds import DataStep
from luthier.core.step import Ctx
from luthier.techniques.data._curation import Row, texts, with_texts

Kind = Literal["email", "phone", "credit-card", "iban", "ip", "mac", "crypto", "us-ssn"]
Span = tuple[int, int, str]


class PersonalData(DataStep, name="personal-data"):
    """Mask personal data by its kind, or leave such rows out."""

    kinds: tuple[Kind, ...] = Field(("email", "phone", "credit-card", "iban", "us-ssn"), min_length=1,
                                    description="what is looked for")
    action: Literal["mask", "drop"] = Field("mask", description="mask writes <EMAIL> in its place; drop leaves the row out")
    min_score: float = Field(0.4, gt=0, le=1, description="least certainty of the recogniser; 1 is a checked number")
    regions: tuple[str, ...] = Field(("US", "GB", "DE", "FR"), description="countries whose phone numbers are known "
                                                                           "without the country code")

    def apply(self, rows: Iterator[Example | Passage], ctx: Ctx) -> Iterator[Example | Passage | Dropped]:
        """Each row, masked where something was found, or `Dropped` with the kinds and their numbers."""
        masked: Counter[str] = Counter()
        for row in rows:
            found = Counter(kind for text in texts(row) for _, _, kind in self.find(text))
            if not found:
                yield row
            elif self.action == "drop" or _narrowed(row):
                why = "" if self.action == "drop" else "; its target spans would point elsewhere once masked"
                yield Dropped(row.id, "personal data", told(found) + why)
            else:
                masked += found
                yield with_texts(row, self.mask)
        if masked:
            ctx.log(f"personal-data masked {told(masked)}")

    def find(self, text: str) -> list[Span]:
        """(start, end, kind) of what is found, in order; of two that overlap the surer, then the longer one."""
        found = [(-r.score, r.start - r.end, r.start, r.end, kind) for kind in self.kinds
                 for r in _recognizer(kind, self.regions).analyze(text, _entities(kind, self.regions), None)
                 if r.score >= self.min_score]
        kept: list[Span] = []
        for _, _, start, end, kind in sorted(found):
            if all(end <= a or start >= b for a, b, _ in kept):
                kept.append((start, end, kind))
        return sorted(kept)

    def mask(self, text: str) -> str:
        """The text with `<KIND>` in place of each find."""
        for start, end, kind in reversed(self.find(text)):
            text = f"{text[:start]}<{kind.upper()}>{text[end:]}"
        return text


def told(found: Counter[str]) -> str:
    """Numbers by kind, such as "2 email, 1 phone"."""
    return ", ".join(f"{n} {kind}" for kind, n in sorted(found.items()))


def _narrowed(row: Row) -> bool:
    return isinstance(row, Example) and any(turn.spans for turn in row.turns)


def _entities(kind: str, regions: tuple[str, ...]) -> list[str]:
    return list(_recognizer(kind, regions).supported_entities)


@cache
def _recognizer(kind: str, regions: tuple[str, ...]) -> Any:
    """Presidio's recogniser of a kind."""
    try:
        from presidio_analyzer import predefined_recognizers as known
    except ImportError:
        raise UserError("personal-data needs Presidio. Run: pip install 'luthier[curation]'") from None
    if kind == "phone":
        return known.PhoneRecognizer(supported_regions=regions)
    if kind == "email":
        return _mail(known.EmailRecognizer)
    plain = {"credit-card": known.CreditCardRecognizer, "iban": known.IbanRecognizer, "ip": known.IpRecognizer,
             "mac": known.MacAddressRecognizer, "crypto": known.CryptoRecognizer, "us-ssn": known.UsSsnRecognizer}
    return plain[kind]()


def _mail(base: Any) -> Any:
    """Presidio's recogniser of mail addresses with the list of suffixes that is installed: its own would fetch one."""
    from tldextract import TLDExtract

    suffixes = TLDExtract(suffix_list_urls=(), cache_dir=None)

    class Offline(base):  # type: ignore[misc]
        def validate_result(self, pattern_text: str) -> bool:
            return suffixes(pattern_text).fqdn != ""

    return Offline()

"""Private strings: what has the form of one, and which of many occur in texts (one pass, whatever their number)."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Sequence

# Forms, the surer ones first: a stretch of text belongs to the first that matches it. Names have none: see `names`.
FORMS: dict[str, re.Pattern[str]] = {
    "EMAIL": re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+"),
    "MONEY": re.compile(r"(?:[$€£]\s?\d[\d,]*(?:\.\d+)?|\b\d[\d,]*(?:\.\d+)?\s?(?:USD|EUR|GBP|dollars|euros|pounds)\b)"),
    "PHONE": re.compile(r"(?<![\w-])(?:\+\d{1,3}[ .-]?)?(?:\(\d{2,4}\)[ .-]?|\d{2,4}[ .-])\d{2,4}[ .-]\d{2,4}(?:[ .-]\d{2,4})?"
                        r"(?![\w-])"),
    "ID": re.compile(r"\b(?=[A-Z0-9-]*\d[A-Z0-9-]*\d)[A-Z]{0,4}-?\d{4,}(?:-\d{2,})*\b"),
}
LEAST_LETTERS = 4  # shorter strings occur by chance


def entities(text: str, types: Sequence[str], names: Sequence[str] = ()) -> list[tuple[str, str]]:
    """(type, string) of every private string in a text, in order; `names` are looked up as PERSON."""
    taken: list[tuple[int, int, str]] = []
    for kind, form in FORMS.items():
        for match in form.finditer(text):
            if all(match.end() <= a or match.start() >= b for a, b, _ in taken):
                taken.append((match.start(), match.end(), kind))
    found = [(a, kind, text[a:b]) for a, b, kind in taken if kind in types]
    if "PERSON" in types:
        found += [(text.index(n), "PERSON", n) for n in Matcher(names).find(text)]
    return [(kind, string) for _, kind, string in sorted(found) if len(string) >= LEAST_LETTERS]


class Matcher:
    """Aho & Corasick 1975: all of many strings that occur in a text, in time linear in the text; case counts."""

    def __init__(self, strings: Iterable[str]) -> None:
        self.next: list[dict[str, int]] = [{}]
        self.ends: list[list[str]] = [[]]
        self.fail: list[int] = [0]
        for string in dict.fromkeys(s for s in strings if s):
            state = 0
            for letter in string:
                if letter not in self.next[state]:
                    self.next[state][letter] = len(self.next)
                    self.next.append({})
                    self.ends.append([])
                    self.fail.append(0)
                state = self.next[state][letter]
            self.ends[state].append(string)
        waiting = deque(self.next[0].values())
        while waiting:
            state = waiting.popleft()
            for letter, after in self.next[state].items():
                self.fail[after] = self._step(self.fail[state], letter)
                self.ends[after] += self.ends[self.fail[after]]
                waiting.append(after)

    def find(self, text: str) -> set[str]:
        """The strings that occur in a text."""
        state, found = 0, set()
        for letter in text:
            state = self._step(state, letter)
            found.update(self.ends[state])
        return found

    def _step(self, state: int, letter: str) -> int:
        while state and letter not in self.next[state]:
            state = self.fail[state]
        return self.next[state].get(letter, 0)

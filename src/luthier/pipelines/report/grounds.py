"""What it rests on: the data, the receipts, and all that is needed to run it again."""

from __future__ import annotations

import shlex
from collections import Counter
from typing import Any

from luthier.core.artifact import LICENSES, Artifact
from luthier.core.finding import Finding
from luthier.pipelines.ledger import reason_of
from luthier.pipelines.report.facts import Facts
from luthier.pipelines.report.markup import (
    ABSENT,
    Html,
    clipped,
    details,
    duration,
    el,
    escape,
    join,
    number,
    pairs,
    plain,
    table,
)
from luthier.pipelines.report.words import chip

LEDGER_ROWS = 10
DETAIL = 400  # characters shown of a ledger row's detail
_COUNTS = {"files": "files", "documents": "documents", "passages": "passages", "tokens": "tokens", "dropped": "left out"}
_FAILED = ("differs", "worse", "reversed", "not shown at this scale")
_FIRST = (*_FAILED, "underpowered", "undecided", "not shown", "agrees", "better", "no difference", "shown",
          "not applicable")


def data(facts: Facts) -> Html | None:
    """Documents and examples by count, what was left out and why, and what the overlap check found."""
    parts = []
    for kind, title, show in (("documents", "Documents", _documents), ("examples", "Examples", _examples)):
        held = facts.of_kind(kind)
        for name, artifact in held.items():
            parts += [el("h3", title, f": {name}" if len(held) > 1 else None), show(artifact)]
    return el("div", *parts) if parts else None


def _documents(artifact: Artifact) -> Html:
    rows = [(label, _count(artifact.meta[k])) for k, label in _COUNTS.items() if artifact.meta.get(k) is not None]
    return join((pairs(rows, class_="counts"), _ledger(artifact)))


def _count(value: Any) -> Html:
    return number(len(value) if isinstance(value, (list, dict)) else value)


def _examples(artifact: Artifact) -> Html:
    rows = artifact.meta.get("rows") or {}
    counts = [(k or "all", number(v)) for k, v in (rows if isinstance(rows, dict) else {"all": rows}).items()]
    if artifact.meta.get("dropped") is not None:
        counts.append(("left out", number(artifact.meta["dropped"])))
    return join((pairs(counts, class_="counts"), _ledger(artifact), _overlap(artifact.meta.get("overlap"))))


def _overlap(overlap: Any) -> Html | None:
    """How near the test sets lie to what was trained on: one column a set where they are told alike, else as it comes."""
    if not overlap:
        return None
    sets = {k: v for k, v in overlap.items() if isinstance(v, dict)} if isinstance(overlap, dict) else {}
    keys = list(dict.fromkeys(k for v in sets.values() for k in v))
    whole = {k: v for k, v in overlap.items() if k not in sets} if isinstance(overlap, dict) else overlap
    shown = table("Overlap of the sets", ["", *sets], "t" + "n" * len(sets),
                  [[k, *(plain(v.get(k)) for v in sets.values())] for k in keys], class_="scores") if keys else None
    return join((el("h4", "Overlap of the test sets with training"), pairs(_flat(whole), class_="overlap") if whole else None,
                 shown))


def _flat(value: Any, path: str = "") -> list[tuple[str, Html]]:
    """A nested mapping as lines "outer / inner: value"."""
    if not isinstance(value, dict):
        return [(path or "overlap", plain(value))]
    return [line for k, v in value.items() for line in _flat(v, f"{path} / {k}" if path else str(k))]


def _ledger(artifact: Artifact) -> Html | None:
    rows = artifact.ledger()
    if not rows:
        return None
    counts = Counter(reason_of(str(r.get("reason"))) for r in rows)
    return el("div", el("h4", "Left out, by reason"),
              *(_reason(reason, count, rows) for reason, count in counts.most_common()))


def _reason(reason: str, count: int, rows: list[dict[str, Any]]) -> Html:
    first = [r for r in rows if reason_of(str(r.get("reason"))) == reason][:LEDGER_ROWS]
    body = [[r.get("id"), clipped(_detail(r, reason), DETAIL)] for r in first]
    more = el("p", f"The first {len(first)} of {count:,}; all stand in ledger.jsonl.", class_="quiet")
    shown = table(f"Left out: {reason}", ["row", "detail"], "tt", body)
    return details(join((el("b", reason), " ", number(count))), shown, more if count > len(first) else None,
                   class_="reason")


def _detail(row: dict[str, Any], reason: str) -> str:
    """What a ledger row says beyond the heading it stands under."""
    rest = str(row.get("reason")).removeprefix(reason).strip(" :")
    return "; ".join(filter(None, (rest, str(row.get("detail") or ""))))


def failed(facts: Facts) -> list[Finding]:
    """Receipts whose two sides differ although they must agree."""
    return [f for f in facts.receipts if f.verdict == "differs"]


def receipts(facts: Facts) -> Html | None:
    """All findings but the comparisons, failed ones first."""
    found = sorted(facts.receipts, key=lambda f: _FIRST.index(f.verdict) if f.verdict in _FIRST else 0)
    if not found:
        return None
    counts = Counter(f.verdict for f in found)
    tally = join((join((chip(v), " ", number(c))) for v, c in sorted(counts.items(), key=lambda i: _rank(i[0]))), "  ")
    loud = [_alarm(f) for f in failed(facts)]
    note = el("p", "After every step two things that must agree are compared. A receipt that differs stops the run.",
              class_="quiet")
    all_ = details("All receipts", _receipt_table(found), open_=bool(loud))
    return el("div", note, el("p", tally, class_="tally"), *loud, all_)


def _rank(verdict: str) -> int:
    return _FIRST.index(verdict) if verdict in _FIRST else 0


def _alarm(finding: Finding) -> Html:
    beyond = join((", tolerance ", plain(finding.tolerance))) if finding.tolerance is not None else None
    sides = join((plain(finding.left), " against ", plain(finding.right), beyond))
    return el("div", el("p", chip(finding.verdict), " ", el("strong", finding.name)), el("p", sides),
              el("p", finding.detail) if finding.detail else None, class_="alarm")


def _receipt_table(found: list[Finding]) -> Html:
    rows = [[f.name, _meant(f), chip(f.verdict), plain(f.left), plain(f.right), _allowed(f)] for f in found]
    head = ["what was compared", "meaning", "verdict", "left", "right", "may differ by"]
    return table("Receipts", head, "tttnnn", rows, class_="receipts")


def _meant(finding: Finding) -> Html:
    return join((finding.detail, el("span", " see ", finding.evidence, class_="quiet") if finding.evidence else None))


def _allowed(finding: Finding) -> Html:
    """The tolerance or interval, and below it how far apart the two sides are where they are not equal."""
    unit = f" {finding.unit}" if finding.unit else ""
    if finding.tolerance is not None:
        shown = join((plain(finding.tolerance), unit))
    elif finding.interval:
        shown = join((plain(finding.interval[0]), " to ", plain(finding.interval[1]), unit))
    else:
        shown = escape(ABSENT)
    return join((shown, el("small", "differs by ", plain(finding.difference)) if finding.difference else None))


def again(facts: Facts) -> Html | None:
    """Command, recipe, versions, machine, decisions and the terms that travel."""
    record = facts.record
    parts: list[Html | None] = []
    if record.get("argv"):
        parts.append(el("pre", el("code", _command(record["argv"])), tabindex="0", aria_label="Command"))
    if facts.recipe_text:
        code = el("pre", el("code", facts.recipe_text), tabindex="0", aria_label="Recipe")
        parts.append(details("The recipe as run, every default written out", code))
    parts += [_steps(facts), _terms(facts), _environment(record), _decisions(facts)]
    shown = [p for p in parts if p is not None]
    return el("div", *shown) if shown else None


def _command(argv: Any) -> str:
    """The command as it is typed, however the program was started: `python -m luthier` has a file's name in front."""
    first, *rest = map(str, argv)
    return shlex.join(["luthier" if first in ("__main__.py", "main.py") else first, *rest])


def _steps(facts: Facts) -> Html | None:
    rows = [
        [n, s.get("use") or ABSENT, s.get("kind") or facts.artifacts[n].kind, duration(s.get("seconds")),
         el("code", str(s.get("identity") or facts.artifacts[n].identity)[:12])] for n, s in facts.steps.items()
    ]
    head = ["step", "component", "leaves", "time", "identity"]
    return details(join(("Steps and what they left: ", number(len(rows)))),
                   table("Steps", head, "tttnt", rows, class_="steps")) if rows else None


def _environment(record: dict[str, Any]) -> Html | None:
    rows = [("recipe", el("code", str(record["recipe"])[:12]))] if record.get("recipe") else []
    rows += [("machine", plain(record["machine"]))] if record.get("machine") else []
    rows += [(k, escape(v)) for k, v in (record.get("versions") or {}).items()]
    return join((el("h3", "Machine and versions"), pairs(rows, class_="versions"))) if rows else None


def _decisions(facts: Facts) -> Html | None:
    made = facts.record.get("decisions") or {}
    rows = _decided(made)
    for name, fit in facts.fits.items():
        own = fit.meta["fit"].get("decisions") or {}
        rows += _decided({k: v for k, v in own.items() if k not in made or made[k] != v},
                         name if len(facts.fits) > 1 else "")
    told = el("p", "Measured before the first step and kept for every later start of this run.", class_="quiet")
    return join((el("h3", "Decisions made by measuring"), told, pairs(rows, class_="decisions"))) if rows else None


def _decided(made: Any, path: str = "") -> list[tuple[str, Html]]:
    return [(name.replace("_", " "), value) for name, value in _flat(made, path)] if made else []


def _terms(facts: Facts) -> Html | None:
    held: dict[str, list[str]] = {}
    for name, artifact in facts.artifacts.items():
        for path in sorted((artifact.folder / LICENSES).glob("*")):
            held.setdefault(path.name, []).append(name)
    if not held:
        return None
    told = el("p", "These files travel with the weights and the data and bind whoever passes them on.", class_="quiet")
    rows = [[file, join(steps, ", ")] for file, steps in sorted(held.items())]
    return join((el("h3", "Licences and terms"), told, table("Licences and terms", ["file", "carried by"], "tt", rows)))

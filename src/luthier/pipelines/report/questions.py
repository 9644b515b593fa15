"""Questions that were written: how many each generator gave, what became of them, and what the rest is worth."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from luthier.core.artifact import Artifact
from luthier.core.files import read_json
from luthier.pipelines.ledger import reason_of
from luthier.pipelines.report.facts import Facts
from luthier.pipelines.report.markup import ABSENT, Html, counted, el, escape, finite, join, number, pairs, table

SUMMARY = "question-quality.json"
_ATTEMPTS, _PARSED = "written", "parsed"
_QUALITY = {
    "relevance": "topic words that stand in the passage", "self_contained": "self-contained",
    "fluency": "rules of form kept", "detail_words": "words of content a question",
    "coverage": "sections with an answered question", "diversity": "diversity: mean distance of two questions",
    "overlap_kl_nats": "words unlike the documents', KL in nats", "ungraded": "not graded",
}
_OWN = {"relevance": "relevance", "self_contained": "self_contained", "fluency": "fluency", "detail": "detail_words"}


def written(artifact: Artifact) -> dict[str, Any]:
    """What an artifact of examples tells of questions that were written for it; empty where none were.

    `yields`: generator -> {stage: questions left}; `reasons`: generator -> {reason: questions left out}; `quality`: numbers
    of the whole set, `by` who measured them; `quality_by_generator`: means of what each row has of its own.
    """
    found: dict[str, Any] = {}
    yields = artifact.meta.get("yields")
    if yields:
        reasons: dict[str, Counter[str]] = {name: Counter() for name in yields}
        for row in artifact.ledger():
            name = str(row.get("id")).partition("/")[0]
            if name in reasons:
                reasons[name][reason_of(str(row.get("reason")))] += 1
        found |= {"yields": yields, "reasons": {n: dict(c.most_common()) for n, c in reasons.items()}}
    path = artifact.folder / SUMMARY
    if path.exists():
        found |= {"quality": read_json(path), "quality_by_generator": _means(artifact)}
    return found


def _means(artifact: Artifact) -> dict[str, dict[str, float]]:
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for name in artifact.subsets:
        for row in artifact.examples(name):
            for key, value in (row.meta.get("quality") or {}).items():
                if key in _OWN:
                    values[str(row.meta.get("generator") or "(none)")][_OWN[key]].append(float(value))
    return {g: {k: sum(v) / len(v) for k, v in found.items()} | {"questions": len(next(iter(found.values())))}
            for g, found in values.items()}


def questions(facts: Facts) -> Html | None:
    """The tables of every step that wrote or measured questions."""
    held = {n: told for n, a in facts.of_kind("examples").items() if (told := written(a))}
    parts = [join((el("h3", name) if len(held) > 1 else None, show(told))) for name, told in held.items()]
    return el("div", *parts) if parts else None


def show(told: Mapping[str, Any]) -> Html | None:
    """What `written` found, as tables."""
    parts = [_yields(told["yields"], told["reasons"]) if told.get("yields") else None,
             _quality(told["quality"], told.get("quality_by_generator") or {}) if told.get("quality") else None]
    return join(parts) if any(p is not None for p in parts) else None


def _yields(yields: Mapping[str, Mapping[str, int]], reasons: Mapping[str, Mapping[str, int]]) -> Html:
    head = ["generator", "attempts", "parsed", "kept", "left out, and why"]
    rows = []
    for name, counts in yields.items():
        tries, kept = counts.get(_ATTEMPTS, 0), list(counts.values())[-1] if counts else 0
        share = join((number(kept), el("small", f"{kept / tries:.0%} of attempts") if tries else None))
        why = join((join((number(n), " ", reason)) for reason, n in reasons.get(name, {}).items()), "; ")
        rows.append([name, number(tries), number(counts.get(_PARSED)), share, why or ABSENT])
    filters = [s for s in dict.fromkeys(s for counts in yields.values() for s in counts) if s not in (_ATTEMPTS, _PARSED)]
    note = el("p", "An attempt is a question that was asked for or found; parsed, it came as a question with an answer; "
              "kept, it passed all filters", f": {', '.join(filters)}." if filters else ".", class_="quiet")
    return join((el("h4", "Yield by generator"), note,
                 table("Yield by generator", head, "tnnnt", rows, class_="yields")))


def _quality(quality: Mapping[str, Any], by_generator: Mapping[str, Mapping[str, float]]) -> Html:
    by = {k: str(v) for k, v in (quality.get("by") or {}).items()}
    kept = [k for k in (*_QUALITY, *(k for k in quality if k not in _QUALITY)) if finite(quality.get(k)) and k != "questions"]
    rows = [(_QUALITY.get(k, k), join((number(quality[k]), el("span", f" by {by[k]}", class_="quiet") if k in by else None)))
            for k in kept]
    parts: list[Html | None] = [el("h4", "Quality of ", counted(int(quality.get("questions") or 0), "question")),
                                pairs(rows, class_="quality")]
    if len(by_generator) > 1:
        keys = [k for k in _OWN.values() if any(k in v for v in by_generator.values())]
        head = ["generator", "questions", *(_QUALITY[k] for k in keys)]
        body = [[name, number(int(v["questions"])), *(number(v.get(k)) for k in keys)] for name, v in by_generator.items()]
        parts.append(table("Quality by generator", head, "t" + "n" * (len(head) - 1), body))
    parts.append(el("p", escape("Rules, not a reader's judgement: they find what is certainly bad."), class_="quiet")
                 if not any("1 to 5" in v for v in by.values()) else None)
    return join(parts)

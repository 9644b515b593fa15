"""What arms, sets, metrics and verdicts are called, and the order in which they stand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luthier.core.finding import Finding
from luthier.pipelines.alike import alike
from luthier.pipelines.report.markup import (
    NBSP,
    Html,
    counted,
    el,
    escape,
    finite,
    join,
    number,
    places_for,
    slug,
    span,
)

ARMS = ("base", "base+retrieval", "tuned", "tuned+retrieval")
SETS = ("known", "unseen", "unanswerable", "dev")
# What is measured, by what it is about: groups and metrics in the order in which they are read.
GROUPS = {
    "Answers": ("f1", "exact-match", "accuracy", "multiple-choice", "preference-accuracy", "bits-per-byte", "perplexity",
                "rouge-l", "similarity", "recall-em", "token-recall", "judge", "rquge", "chrf", "bleu", "code-bleu", "lines",
                "gate-accuracy", "label-match", "relative-score", "pass-at-k", "refactoring",
                "diversity"),
    "Finding passages": ("recall", "ndcg", "mrr"),
    "Citing": ("citation-precision", "citation-recall", "groundedness", "k-precision", "k-precision-pp"),
    "Knowing when not to answer": ("abstains", "over-abstains", "abstention", "refused", "refusal-log-odds"),
    "Form": ("stops", "succinctness"),
}
OTHER = "Other"
METRICS = tuple(name for group in GROUPS.values() for name in group)
VERDICTS = ("better", "worse", "no difference", "undecided")

_ARM_WORDS = {"base": "the base", "tuned": "the tuned model", "retrieval": "retrieval"}
_SET_WORDS = {
    "known": "On known sections",
    "unseen": "On unseen sections",
    "unanswerable": "On questions without an answer",
    "dev": "On the development set",
}
SET_GLOSS = {
    "known": "New questions about sections that were trained on: what the model now knows.",
    "unseen": "Questions about sections held out of training: what carries over.",
    "unanswerable": "Questions that the documents do not answer: whether the model says so.",
    "dev": "Used for choosing prompts, learning rate and stopping; no evidence by itself.",
}
_METRIC_WORDS = {
    "f1": "F1",
    "exact-match": "exact match",
    "ndcg": "nDCG",
    "mrr": "MRR",
    "rouge-l": "ROUGE-L",
    "recall": "share with the passage found",
    "citation-precision": "citation precision",
    "citation-recall": "citation recall",
    "stops": "share that stops by itself",
    "abstains": "share of abstentions",
    "over-abstains": "share of needless abstentions",
    "refused": "share of refusals",
    "succinctness": "words per word of the reference",
    "preference-accuracy": "share of pairs decided as chosen",
    "multiple-choice": "share of right choices",
    "bits-per-byte": "bits per byte",
    "chrf": "chrF",
    "bleu": "BLEU",
    "code-bleu": "CodeBLEU",
    "label-match": "share of right labels",
    "relative-score": "score relative to the reference",
    "pass-at-k": "share of problems solved",
    "diversity": "different answers among n samples",
    "refactoring": "points of refactored programs",
    "refusal-log-odds": "log-odds of declining",
    "lines": "share of right lines",
    "gate-accuracy": "share of gates at the right adapter",
}
_MARKS = {
    "better": "▲", "worse": "▼", "no difference": "=", "undecided": "?", "agrees": "✓", "differs": "✗",
    "not applicable": "–", "pass": "✓", "fail": "✗",
}


def arm_order(arm: str) -> tuple[int, str]:
    """Sort key: the four arms of `adapt`, then others by name."""
    return (ARMS.index(arm) if arm in ARMS else len(ARMS), arm)


def set_order(name: str) -> tuple[int, str]:
    """Sort key of a set of questions."""
    return (SETS.index(name) if name in SETS else len(SETS), name)


def metric_order(metric: str) -> tuple[int, str]:
    """Sort key of a metric; `recall@5` stands where `recall` does."""
    stem = metric.partition("@")[0]
    return (METRICS.index(stem) if stem in METRICS else len(METRICS), metric)


def group_of(metric: str) -> str:
    """The group that a metric belongs to."""
    stem = metric.partition("@")[0]
    return next((group for group, members in GROUPS.items() if stem in members), OTHER)


def group_order(group: str, name: str) -> tuple[bool, int]:
    """Sort key of a group within a set: where nothing can be answered, not answering comes first."""
    places = (*GROUPS, OTHER)
    return (not (name == "unanswerable" and group == group_of("abstains")), places.index(group))


def metric_gloss() -> dict[str, str]:
    """What each registered metric measures, in one sentence, by its name."""
    from luthier.core.index import rows

    return {str(row["name"]): str(row["summary"]) for row in rows() if row["kind"] == "metric"}


def arm_words(arm: str) -> str:
    """`base+retrieval` as "the base with retrieval"."""
    first, *rest = arm.split("+")
    name = _ARM_WORDS.get(first, first)
    return f"{name} with {' and '.join(_ARM_WORDS.get(r, r) for r in rest)}" if rest else name


def arm_heading(arm: str) -> Html:
    """An arm's name that may break before each +."""
    return join(arm.split("+"), Html("<wbr>+"))


def set_words(name: str) -> str:
    """The beginning of a sentence about a set."""
    return _SET_WORDS.get(name, f"On {name}")


def metric_words(metric: str) -> str:
    """A metric's name in a sentence; `recall@5` is told as `recall` with its depth."""
    stem, at, depth = metric.partition("@")
    return _METRIC_WORDS.get(stem, stem) + (f" at {depth}" if at else "")


def chip(verdict: str) -> Html:
    """A verdict as a word with a mark, so that colour is never alone."""
    mark = el("span", _MARKS.get(verdict, "·"), aria_hidden="true")
    return el("span", mark, " ", verdict, class_=f"chip {slug(verdict)}")


def needed_words(finding: Finding) -> Html | None:
    """How much more evidence a verdict would take, such as "140 more questions"."""
    needed = finding.extra.get("needed")
    if not finite(needed):
        return None
    return join((number(needed), " more ", finding.extra.get("needed_unit") or "questions"))


def sentence(finding: Finding, cluster: str) -> Html:
    """One comparison in words. `difference` is right minus left, and the verdict is about the right arm."""
    extra = finding.extra
    left, right = arm_words(str(extra.get("left_arm"))), arm_words(str(extra.get("right_arm")))
    metric = metric_words(str(extra.get("metric")))
    start = f"{set_words(str(extra.get('set')))}, "
    size = join((_signed(finding), " ", metric))
    more = needed_words(finding) if finding.verdict == "undecided" else None
    tail = join(("; about ", more, " would decide")) if more else None
    if alike(finding):
        told: Any = join((left, " and ", right, " ", _agreement(finding), _margin_open(finding)))
        return join((start, told, tail, "."))
    if finding.verdict in ("better", "worse"):
        told = join((right, " is ", el("strong", finding.verdict), " than ", left, " by ", size))
    elif finding.verdict == "no difference":
        told = join((right, " shows ", el("strong", "no difference"), " from ", left, _margin(extra), ": ", size))
    else:
        told = join(("it is ", el("strong", finding.verdict), " whether ", right, " beats ", left, ": ", size))
    return join((start, told, _basis(finding, cluster), outnumbered(finding), tail, "."))


def outnumbered(finding: Finding) -> str | None:
    """Why a difference is undecided though its interval leaves zero out: it is one comparison of many."""
    low, high = finding.interval or (0.0, 0.0)
    if finding.verdict != "undecided" or low <= 0 <= high:
        return None
    return "; it would be decided by itself, but not as one of so many comparisons (Holm)"


def all_alike(findings: Sequence[Finding]) -> Html | None:
    """One sentence in place of one a pair, where no arm of a set scores other than another on any question."""
    if len(findings) < 2 or not all(map(alike, findings)):
        return None
    arms = {f.extra[side] for f in findings for side in ("left_arm", "right_arm")}
    most = max(findings, key=lambda f: f.extra.get("needed") or 0)
    more = needed_words(most)
    tail = join(("; about ", more, " would decide")) if more else None
    return join((f"{set_words(str(most.extra.get('set')))}, all {len(arms)} arms ", _agreement(most), _margin_open(most),
                 tail, "."))


def _agreement(finding: Finding) -> Html:
    """That the scores are the same, on how many questions, and what they are."""
    metric, asked = metric_words(str(finding.extra.get("metric"))), int(finding.extra["questions"])
    on = join(("all ", counted(asked, "question"))) if asked != 1 else escape("the one question")
    return join((el("strong", "score alike"), " on ", on, " (mean ", number(finding.left, places_for(finding.left)), " ",
                 metric, ")"))


def _margin_open(finding: Finding) -> Html | None:
    return join((", so it is ", el("strong", "undecided"), " whether they differ")) \
        if finding.verdict == "undecided" else None


def _signed(finding: Finding) -> Html:
    return number(finding.difference, places_for(finding.difference, *(finding.interval or ())), sign=True)


def _margin(extra: dict[str, Any]) -> Html | None:
    margin = extra.get("margin")
    return join((" beyond ±", number(margin, places_for(margin)))) if finite(margin) else None


def _basis(finding: Finding, cluster: str) -> Html:
    """The interval and the number of clusters, in brackets."""
    parts = []
    if finding.interval:
        level = 100 * finding.extra.get("level", 0.95)
        places = places_for(finding.difference, *finding.interval)
        parts.append(join((f"{level:g}{NBSP}% interval ", span(*finding.interval, places, sign=True))))
    if isinstance(finding.extra.get("clusters"), int):
        parts.append(counted(finding.extra["clusters"], cluster))
    return join((" (", join(parts, ", "), ")")) if parts else escape("")

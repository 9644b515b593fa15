"""Advice in words. A sentence is said only when stored findings say it, and carries their names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from luthier.core.artifact import MODEL_KINDS
from luthier.core.finding import Finding
from luthier.core.run import Run
from luthier.pipelines.alike import alike

METRICS = ("f1", "accuracy", "preference-accuracy", "bits-per-byte", "exact-match")
RETRIEVAL = "+retrieval"
BASE = "base"
OPPOSITE = {"better": "worse", "worse": "better"}


@dataclass(frozen=True)
class Advice:
    """A sentence and the names of the findings that back it."""

    text: str
    findings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def advise(run: Run) -> list[Advice]:
    """What a finished run's findings say to do; nothing where nothing was compared."""
    return advice(run.findings(), costs(run))


def advice(findings: Sequence[Finding], measured: Sequence[Finding] = ()) -> list[Advice]:
    """Sentences from comparisons and gains; `measured` are costs, told beside what they are the price of."""
    told = _Findings(findings)
    if not told.pairs:
        return []
    said = [*_retrieval(told), *_form(told), *_knowledge(told), *_both(told), *_rows(told), *_contradictions(told)]
    said += _keep(told, bool(said))
    bought = {arm for f in findings for arm in (f.extra.get("left_arm"), f.extra.get("right_arm")) if arm}
    return said + [Advice(f.detail, (f.name,)) for f in measured if f.extra["arm"] in bought]


class _Findings:
    """Comparisons of the metric that answers, by set and pair of arms, whichever stood left."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        compared = [f for f in findings if f.name.startswith("compare/") and "metric" in f.extra]
        present = {f.extra["metric"] for f in compared}
        self.metric = next((m for m in METRICS if m in present), "")
        self.pairs = [f for f in compared if f.extra["metric"] == self.metric]
        self.gains = [f for f in findings if f.name.startswith("gain/")
                      and f.extra["metric"] in (self.metric, "answer tokens")]

    def about(self, left: str, right: str) -> list[tuple[Finding, str]]:
        """(finding, verdict about the right arm) on every set."""
        found = []
        for f in self.pairs:
            if (f.extra["left_arm"], f.extra["right_arm"]) == (left, right):
                found.append((f, str(f.verdict)))
            elif (f.extra["left_arm"], f.extra["right_arm"]) == (right, left):
                found.append((f, OPPOSITE.get(str(f.verdict), str(f.verdict))))
        return found

    def better(self, left: str, right: str) -> list[Finding]:
        """What says that the right arm is better, where nothing says that it is worse."""
        found = self.about(left, right)
        return [] if any(v == "worse" for _, v in found) else [f for f, v in found if v == "better"]

    def gain(self, part: str, arm: str) -> Finding | None:
        return next((f for f in self.gains if f.extra["gain"] == part and f.extra["right_arm"] == arm), None)

    @property
    def arms(self) -> list[str]:
        return list(dict.fromkeys(a for f in self.pairs for a in (f.extra["left_arm"], f.extra["right_arm"])))

    @property
    def trained(self) -> list[str]:
        """Closed-book arms other than the base."""
        return [a for a in self.arms if a != BASE and "+" not in a]


def _names(findings: Sequence[Finding]) -> tuple[str, ...]:
    return tuple(f.name for f in findings)


def _on(findings: Sequence[Finding]) -> str:
    return " and ".join(f"{f.extra['set']} ({abs(f.difference or 0):.2f} {f.extra['metric']})" for f in findings)


def _retrieval(told: _Findings) -> list[Advice]:
    found = told.better(BASE, BASE + RETRIEVAL)
    unseen = any(f.extra["set"] == "unseen" for f in found)
    change = " It needs no training when the documents change: it helps on sections that nobody was trained on." \
        if unseen else ""
    return [Advice(f"Use retrieval: the base with passages is better than the base on {_on(found)}.{change}",
                   _names(found))] if found else []


def _form(told: _Findings) -> list[Advice]:
    said = []
    for arm in told.trained:
        form, brief = told.gain("format", arm), told.gain("brevity", arm)
        if form and form.verdict == "better":
            said.append(Advice(f"Train for form: arm {arm} gains {form.difference:+.2f} {form.extra['metric']} on sections "
                               "it was not trained on, over the base asked in its best way.", (form.name,)))
        if brief and brief.verdict == "better":
            said.append(Advice(f"Train for brevity: answers of arm {arm} are {-(brief.difference or 0):.1f} tokens shorter "
                               "than those of the base.", (brief.name,)))
    return said


def _knowledge(told: _Findings) -> list[Advice]:
    said = []
    for arm in told.trained:
        found = told.gain("knowledge", arm)
        if found is None:
            continue
        metric = found.extra["metric"]
        if found.verdict == "better":
            said.append(Advice(f"Arm {arm} knows what it was trained on: {found.difference:+.2f} {metric} on known sections "
                               "beyond what it gains elsewhere. Train again when the documents change.", (found.name,)))
        elif found.verdict == "no difference":
            said.append(Advice(f"Training put no knowledge into arm {arm} that can be seen (within ±"
                               f"{found.extra['margin']:g} {metric}): do not train it for knowledge.", (found.name,)))
        elif found.verdict == "undecided":
            said.append(Advice(f"Undecided whether arm {arm} learned the content of the documents{_more(found)}.",
                               (found.name,)))
    return said


def _both(told: _Findings) -> list[Advice]:
    said = []
    for arm in told.trained:
        over_base = told.better(BASE + RETRIEVAL, arm + RETRIEVAL)
        over_closed = told.better(arm, arm + RETRIEVAL)
        if over_base and over_closed:
            said.append(Advice(f"Use both: {arm}{RETRIEVAL} is better than retrieval alone on {_on(over_base)} and than "
                               f"training alone on {_on(over_closed)}.", _names([*over_base, *over_closed])))
    return said


def _rows(told: _Findings) -> list[Advice]:
    """Runs on rows rather than documents: one test set, base and tuned."""
    if any(f.extra["set"] in ("known", "unseen") for f in told.pairs):
        return []
    return [Advice(f"Use arm {arm}: it is better than the base on {_on(found)}.", _names(found))
            for arm in told.trained if (found := told.better(BASE, arm))]


def _contradictions(told: _Findings) -> list[Advice]:
    said = []
    for arm in told.arms:
        found = told.about(BASE, arm)
        better, worse = ([f for f, v in found if v == wanted] for wanted in ("better", "worse"))
        if better and worse:
            said.append(Advice(f"It depends: arm {arm} is better than the base on {_on(better)} but worse on {_on(worse)}. "
                               "Choose by what will be asked.", _names([*better, *worse])))
    return said


def _keep(told: _Findings, advised: bool) -> list[Advice]:
    """Keep the base where every arm is decided and none is better; else what more questions would decide."""
    found = [(f, v) for arm in told.arms if arm != BASE for f, v in told.about(BASE, arm)]
    if found and all(alike(f) for f, _ in found):
        asked = " and ".join(dict.fromkeys(f"{f.extra['questions']} of {f.extra['set']}" for f, _ in found))
        few = [f for f, v in found if v == "undecided"]
        more = _more(max(few, key=lambda f: f.extra.get("needed") or 0)) if few else ""
        return [Advice(f"No arm scores other than the base on any question ({asked}): these answers cannot tell the arms "
                       f"apart{more}. Read some of them first; until then the base is the cheaper choice.",
                       _names([f for f, _ in found]))]
    open_ = [f for f, v in found if v == "undecided"]
    if found and not open_ and all(v in ("worse", "no difference") for _, v in found):
        return [Advice("Keep the base: no arm is better than it.", _names([f for f, _ in found]))]
    if open_ and not any(v == "better" for _, v in found):
        needed = [f for f in open_ if f.extra.get("needed")]
        nearest = min(needed, key=lambda f: f.extra["needed"]) if needed else open_[0]
        return [Advice(f"Undecided whether any arm is better than the base{_more(nearest)}. Until then the base is the "
                       "cheaper choice.", _names(open_))]
    return []


def _more(finding: Finding) -> str:
    needed = finding.extra.get("needed")
    return f": about {needed} more {finding.extra.get('needed_unit') or 'questions'} would decide" if needed else ""


def _time(seconds: float) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def costs(run: Run) -> list[Finding]:
    """Minutes of training by arm's model, and prompt tokens a question that retrieval adds; from the run's records."""
    artifacts = {name: run.step(name) for name in run.steps() if run.has(name)}
    found = []
    for name, a in artifacts.items():
        if a.kind in MODEL_KINDS and isinstance(a.meta.get("fit"), dict) and a.meta["fit"].get("seconds") is not None:
            minutes = a.meta["fit"]["seconds"] / 60
            found.append(Finding(f"cost/training/{name}", 0.0, minutes, minutes, "shown", unit="minutes",
                                 evidence=f"steps/{name}/luthier.json", extra={"arm": name},
                                 detail=f"Cost: training {name} took {_time(60 * minutes)}."))
    asked = {a.meta["arm"]: a.meta["prompt_tokens"] / questions for a in artifacts.values()
             if a.kind == "records" and "arm" in a.meta and a.meta.get("prompt_tokens") is not None
             and (questions := sum(1 for _ in (a.folder / "predictions.jsonl").open(encoding="utf-8")))}
    for arm, tokens in asked.items():
        closed = arm.removesuffix(RETRIEVAL)
        if arm != closed and closed in asked:
            more = tokens - asked[closed]
            told = f"{abs(more):.0f} prompt tokens a question {'more' if more >= 0 else 'fewer'} than {closed}"
            found.append(Finding(f"cost/prompt/{closed}|{arm}", asked[closed], tokens, more, "shown", extra={"arm": arm},
                                 unit="prompt tokens a question", evidence="luthier.json of the arms",
                                 detail=f"Cost: arm {arm} reads {told}."))
    return found

"""What was done for it: what each arm cost, how the loss went, and how the prompts of the base arms were chosen."""

from __future__ import annotations

from typing import Any

from luthier.core.artifact import Artifact
from luthier.core.files import grown, read_lines
from luthier.engine.steps.fit import CURVE
from luthier.pipelines.report.facts import Arm, Facts
from luthier.pipelines.report.markup import (
    ABSENT,
    Html,
    counted,
    details,
    duration,
    el,
    escape,
    finite,
    join,
    moment,
    number,
    pairs,
    plain,
    size,
    table,
)
from luthier.pipelines.report.plots import curve

# Entries of a fit's record that have a row of their own, in this order.
_FIT_ROWS = {
    "method": ("method", plain),
    "total_parameters": ("parameters of the model", number),
    "artifact_bytes": ("size on disk", size),
    "steps": ("optimizer steps", number),
    "epochs": ("epochs", plain),
    "tokens": ("tokens trained on", number),
    "tokens_per_second": ("tokens per second", lambda v: number(v, 0)),
    "seconds": ("training time", duration),
    "peak_mb": ("peak memory", lambda v: join((number(v, 0), " MB"))),
}


def cost(facts: Facts) -> Html | None:
    """Seconds and tokens of each arm, and what training took."""
    parts = [_answering(facts.arms)] if facts.arms else []
    parts += [_training(name, fit) for name, fit in facts.fits.items()]
    return el("div", *parts) if parts else None


def _answering(arms: list[Arm]) -> Html:
    rows = [
        [a.name, duration(a.meta.get("seconds")), number(a.meta.get("prompt_tokens")), number(a.meta.get("new_tokens")),
         number(len(a.predictions)), _per_question(a)] for a in arms
    ]
    head = ["arm", "time", "prompt tokens", "new tokens", "questions", "time per question"]
    return join((el("h3", "Answering"), table("Cost of answering", head, "tnnnnn", rows, class_="cost")))


def _per_question(arm: Arm) -> Html:
    seconds: Any = arm.meta.get("seconds")
    if not finite(seconds) or not arm.predictions:
        return escape(ABSENT)
    each = seconds / len(arm.predictions)
    return duration(each) if each >= 1 else el("data", f"{1000 * each:,.0f} ms", value=repr(each))


def _training(name: str, artifact: Artifact) -> Html:
    fit: dict[str, Any] = artifact.meta["fit"]
    rows = [(label, show(fit[key])) for key, (label, show) in _FIT_ROWS.items() if fit.get(key) is not None]
    if finite(fit.get("trained_parameters")):
        rows.insert(1, ("trained parameters", _trained(fit)))
    if fit.get("learning_rate") is not None:
        rows.append(("learning rate", _learning_rate(fit["learning_rate"])))
    return join((el("h3", "Training: ", name), pairs(rows, class_="fit"), _planned(fit)))


def _planned(fit: dict[str, Any]) -> Html | None:
    """What was foretold before the first step beside what was measured, and the parts of the memory that was planned."""
    planned = fit.get("planned")
    if not isinstance(planned, dict):
        return None
    if not finite(planned.get("peak_mb")):
        return el("p", "No plan: ", plain(planned.get("note")), class_="quiet")
    rows = [["peak memory", _megabytes(planned["peak_mb"]), _megabytes(fit.get("peak_mb")),
             _times(fit.get("peak_mb"), planned["peak_mb"])],
            ["training time", duration(planned.get("seconds")), duration(fit.get("seconds")),
             _times(fit.get("seconds"), planned.get("seconds"))]]
    head = ["", "planned", "measured", "measured / planned"]
    parts = {"the process itself": planned.get("floor_mb"), **(planned.get("memory_mb") or {})}
    listed = pairs(((k, _megabytes(v)) for k, v in parts.items() if finite(v) and v >= 0.05), class_="counts")
    return join((el("h4", "Plan and what happened"), table("Plan and what happened", head, "tnnn", rows, class_="plan"),
                 details("Planned memory by part", listed, class_="reason")))


def _megabytes(value: Any) -> Html:
    return join((number(value, 0 if finite(value) and value >= 10 else 1), " MB")) if finite(value) else escape(ABSENT)


def _times(measured: Any, planned: Any) -> Html:
    return number(measured / planned, 2) if finite(measured) and finite(planned) and planned else escape(ABSENT)


def _trained(fit: dict[str, Any]) -> Html:
    trained, total = fit["trained_parameters"], fit.get("total_parameters")
    share = trained / total if finite(total) and total else None
    told = join((" (", el("data", f"{100 * share:.3g} %", value=repr(share)), ")")) if share is not None else None
    return join((number(trained), told))


def _learning_rate(rate: Any) -> Html:
    if not isinstance(rate, dict):
        return plain(rate)
    source = join((" (", rate["source"], ")")) if rate.get("source") else None
    return join((plain(rate.get("value")), source))


def learning(facts: Facts) -> Html | None:
    """The learning curve of each fit; of one that has not ended, as far as it has come."""
    rows = {name: read_lines(fit.folder / CURVE) for name, fit in facts.fits.items()}
    rows |= {name: grown(path) for name, path in facts.under_way.items()}
    drawn = {name: made for name, found in rows.items() if (made := curve(found))}
    found = [join((_whose(name, name in facts.under_way) if len(drawn) > 1 or name in facts.under_way else None, made))
             for name, made in drawn.items()]
    return el("div", *found) if found else None


def _whose(name: str, under_way: bool) -> Html:
    return el("h3", name, el("span", " (not ended)", class_="quiet") if under_way else None)


def prompts(facts: Facts) -> Html | None:
    """What was tried on the development set for each arm, what was chosen, and when the test set was opened."""
    told = [_prompting(a) for a in facts.arms if a.meta.get("tried") or a.meta.get("prompting")]
    openings = facts.openings
    if not told and not openings:
        return None
    return el("div", *told, el("h3", "Openings of the test set"), _openings(openings))


def _prompting(arm: Arm) -> Html:
    chosen, tried = arm.meta.get("prompting") or {}, arm.meta.get("tried") or []
    settings = list(dict.fromkeys(k for t in tried for k in t if not k.startswith("dev_")))
    measured = list(dict.fromkeys(k for t in tried for k in t if k.startswith("dev_")))
    rows = [
        [_chosen(t, chosen, settings), *(_setting(t.get(k)) for k in settings), *(number(t.get(k)) for k in measured)]
        for t in tried
    ]
    head = ["", *settings, *(k.replace("dev_", "on dev: ") for k in measured)]
    shown = table(f"Prompts tried for {arm.name}", head, "t" * (len(settings) + 1) + "n" * len(measured), rows,
                  class_="tried")
    count = join((" — ", counted(len(tried), "setting"), " tried")) if tried else None
    summary = join((el("b", arm.name), el("span", " ", _choice(chosen), count, class_="quiet")))
    examples = el("p", "Solved examples: ", join((el("code", i) for i in chosen["shot_ids"]), ", "), class_="quiet") \
        if chosen.get("shot_ids") else None
    return details(summary, shown if tried else el("p", "Nothing was tried: the prompt was given.", class_="quiet"), examples)


def _choice(chosen: dict[str, Any]) -> Html:
    shots = chosen.get("shots")
    told = [counted(shots, "solved example") if isinstance(shots, int) and shots else None,
            f"stops at {chosen['stop']}" if chosen.get("stop") else None,
            *(join((k.replace("_", " "), " ", _setting(v))) for k, v in chosen.items()
              if k not in ("instruction", "shots", "stop", "shot_ids"))]
    return join((t for t in told if t is not None), ", ")


def _setting(value: Any) -> Html:
    return escape("(none)") if value in ("", None) else plain(value)


def _chosen(tried: dict[str, Any], chosen: dict[str, Any], settings: list[str]) -> Html:
    same = bool(chosen) and all(tried.get(k) == chosen.get(k) for k in settings if k in chosen)
    return el("span", "✓ chosen", class_="chip agrees") if same else escape("")


def _openings(openings: Any) -> Html:
    if not openings:
        return el("p", "None is logged.", class_="quiet")
    if isinstance(openings, int):
        return el("p", counted(openings, "opening"), ".")
    listed = openings if isinstance(openings, list) else [openings]
    rows = [o if isinstance(o, dict) else {"opening": o} for o in listed]
    head = list(dict.fromkeys(k for r in rows for k in r))
    body = [[number(i + 1), *(moment(r.get(k, ABSENT)) for k in head)] for i, r in enumerate(rows)]
    return table("Openings of the test set", ["no.", *head], "t" * (len(head) + 1), body, class_="openings")

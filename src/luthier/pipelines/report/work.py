"""What was done for it: what each arm cost, how the loss went, and how the prompts of the base arms were chosen."""

from __future__ import annotations

from typing import Any

from luthier.core.artifact import Artifact
from luthier.core.files import read_lines
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
    "seconds": ("training time", duration),
    "steps": ("optimizer steps", number),
    "epochs": ("epochs", plain),
    "tokens": ("tokens trained on", number),
    "tokens_per_second": ("tokens per second", lambda v: number(v, 0)),
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
         number(len(a.predictions)), duration(_per_question(a))] for a in arms
    ]
    head = ["arm", "time", "prompt tokens", "new tokens", "questions", "time per question"]
    return join((el("h3", "Answering"), table("Cost of answering", head, "tnnnnn", rows, class_="cost")))


def _per_question(arm: Arm) -> float | None:
    seconds: Any = arm.meta.get("seconds")
    return seconds / len(arm.predictions) if finite(seconds) and arm.predictions else None


def _training(name: str, artifact: Artifact) -> Html:
    fit: dict[str, Any] = artifact.meta["fit"]
    rows = [(label, show(fit[key])) for key, (label, show) in _FIT_ROWS.items() if fit.get(key) is not None]
    if finite(fit.get("trained_parameters")):
        rows.insert(1, ("trained parameters", _trained(fit)))
    if fit.get("learning_rate") is not None:
        rows.append(("learning rate", _learning_rate(fit["learning_rate"])))
    if isinstance(fit.get("planned"), dict):
        rows.append(("planned", _planned(fit["planned"])))
    return join((el("h3", "Training: ", name), pairs(rows, class_="fit")))


def _planned(planned: dict[str, Any]) -> Html:
    """What was foretold before the first step, beside which the measured rows stand."""
    if not finite(planned.get("peak_mb")):
        return plain(planned.get("note"))
    return join((number(planned["peak_mb"], 0), " MB and ", duration(planned.get("seconds"))))


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
    """The learning curve of each fit."""
    found = []
    for name, fit in facts.fits.items():
        drawn = curve(read_lines(fit.folder / "curve.jsonl"))
        if drawn:
            found.append(join((el("h3", name) if len(facts.fits) > 1 else None, drawn)))
    return el("div", *found) if found else None


def prompts(facts: Facts) -> Html | None:
    """What was tried on the development set for each arm, what was chosen, and when the test set was opened."""
    told = [_prompting(a) for a in facts.arms if a.meta.get("tried") or a.meta.get("prompting")]
    openings = facts.record.get("openings")
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
    summary = join((el("b", arm.name), el("span", " ", _choice(chosen), " — ", counted(len(tried), "setting"), " tried",
                                          class_="quiet")))
    return details(summary, shown if tried else el("p", "Nothing was tried: the prompt was given.", class_="quiet"))


def _choice(chosen: dict[str, Any]) -> Html:
    return join((join((k, " ", _setting(v))) for k, v in chosen.items() if k != "instruction"), ", ")


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

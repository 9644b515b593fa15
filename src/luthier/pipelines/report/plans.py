"""A plan as HTML: memory by part, time and disk of every step on each machine, and what to change where it does not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.pipelines.report.markup import Html, details, duration, el, join, number, pairs, table


def body(found: Mapping[str, Any]) -> Html:
    """What `planning.plans` found, machine by machine."""
    return join(_machine(plan) for plan in found["plans"])


def _machine(plan: Mapping[str, Any]) -> Html:
    planned = any(s["memory"] for s in plan["steps"])
    told = [("memory at its peak", join((_mb(plan["peak_mb"]), " of ", _mb(plan["available_mb"])))),
            ("time", join(("about ", duration(plan["seconds"]))) if planned else "no step is large enough to plan"),
            ("disk", join((_mb(plan["disk_mb"]), " of ", _mb(plan["free_disk_mb"]), " free")))]
    heading = el("h3", plan["machine"], " (prediction from its data sheet)" if plan["prediction"] else None, " ",
                 _verdict(plan["fits"]))
    rows = [[s["name"], s["use"], _mb(s["peak_mb"]), duration(s["seconds"]), _mb(s["disk_mb"]), s["note"] or ""]
            for s in plan["steps"] if s["memory"]]
    quick = [f"{step['name']}: {step['note']}" for step in plan["steps"] if not step["memory"] and step["note"]]
    head = ["step", "component", "memory", "time", "disk", "note"]
    steps = table("Plan by step", head, "ttnnnt", rows, class_="plan") if rows else None
    rest = details("Steps without a plan of their own", el("ul", *(el("li", line) for line in quick))) if quick else None
    return el("section", heading, pairs(told, class_="counts"), steps, *_parts(plan), rest, _changes(plan.get("changes", ())))


def _verdict(fits: bool) -> Html:
    return el("span", "✓ it fits" if fits else "✗ it does not fit", class_="chip pass" if fits else "chip fail")


def _parts(plan: Mapping[str, Any]) -> list[Html]:
    """The parts of each step's memory, to be opened."""
    return [details(f"Memory of {step['name']} by part",
                    pairs(((part, _mb(size)) for part, size in step["memory"].items() if size >= 0.05), class_="counts"))
            for step in plan["steps"] if step["memory"]]


def _changes(changes: Sequence[Mapping[str, Any]]) -> Html | None:
    if not changes:
        return None
    rows = [[el("code", c["edit"]), _mb(c["peak_mb"]), duration(c["seconds"]), "fits" if c["fits"] else "still too much",
             c["why"]] for c in changes]
    return el("div", el("h4", "What would make it fit"),
              table("Changes", ["change", "memory", "time", "", "why"], "tnntt", rows))


def _mb(value: Any) -> Html:
    return join((number(value, 0), " MB"))

"""`luthier plan DATA_OR_DOCS…`"""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from luthier.cli import _shared as shared


def command(
    paths: Annotated[list[str] | None, typer.Argument(metavar="DATA_OR_DOCS", help="a file of examples as for tune, or "
                                                         "documents as for adapt")] = None,
    on: Annotated[str, typer.Option("--on", metavar="GPU,…", help="predict for these GPUs, such as h100,l4,rtx4090")] = "",
    questions: Annotated[str | None, typer.Option("--questions", metavar="FILE", help="hand-written test questions")] = None,
    base: shared.Base = None, recipe: shared.RecipeOption = None, seed: shared.Seed = None,
    method: shared.Method = None, objective: shared.Objective = None, regularizer: shared.Regularizer = None,
    optimizer: shared.Optimizer = None, decoder: shared.Decoder = None, metric: shared.Metric = None,
    data_step: shared.DataStep = None, retriever: shared.Retriever = None,
    sets: shared.Sets = None, accept_terms: shared.Terms = None, exact: shared.Exact = False, as_json: shared.Json = False,
) -> None:
    """Memory by part, time and disk of a run before it starts, and what to change where it does not fit."""
    from luthier.pipelines import planning
    from luthier.pipelines.overrides import override

    shared.accept(accept_terms)
    made = planning.recipe_for(paths or [], recipe=recipe, objective=objective, questions=questions)
    parts = {"method": method or [], "regularizer": regularizer or [], "optimizer": optimizer or [],
             "decoder": decoder or [], "metric": metric or [], "data_step": data_step or [], "retriever": retriever or []}
    made = override(made, base=base, seed=seed, parts=parts, sets=sets or ())
    found = planning.plans(made, on, exact)
    if as_json:
        print(json.dumps(found, ensure_ascii=False, indent=1))
        return
    print("\n\n".join(_shown(p) for p in found["plans"]))


def _shown(plan: dict[str, Any]) -> str:
    lines = [f"{plan['machine']}" + (" (prediction from its data sheet)" if plan["prediction"] else "")]
    for step in plan["steps"]:
        if not step["memory"]:
            lines.append(f"  {step['name']}: {step['note']}")
            continue
        note = f"  ({step['note']})" if step["note"] else ""
        lines.append(f"  {step['name']} ({step['use']}): {step['peak_mb']:,.0f} MB, {_time(step['seconds'])}, "
                     f"{step['disk_mb']:,.0f} MB of disk{note}")
        lines += [f"    {part:<24}{size:>12,.1f} MB" for part, size in step["memory"].items() if size >= 0.05]
        lines += [f"    {name:<24}{value:>12,.0f}" for name, value in step["facts"].items()]
    lines.append(f"  the process itself        {plan['floor_mb']:>12,.0f} MB")
    verdict = "fits" if plan["fits"] else "does not fit"
    planned = any(step["memory"] for step in plan["steps"])
    took = f"Time about {_time(plan['seconds'])}" if planned else "No step is large enough to plan its time"
    lines.append(f"Peak {plan['peak_mb']:,.0f} MB of {plan['available_mb']:,.0f} MB: {verdict}. {took}. Disk "
                 f"{plan['disk_mb']:,.0f} MB of {plan['free_disk_mb']:,.0f} MB free.")
    for change in plan.get("changes", ()):
        verdict = "fits" if change["fits"] else "still too much"
        lines.append(f"  {change['edit']}: {change['peak_mb']:,.0f} MB, {_time(change['seconds'])}, {verdict} "
                     f"({change['why']})")
    return "\n".join(lines)


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"

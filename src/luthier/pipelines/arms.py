"""The arms of `adapt` as edits of its recipe: which models are asked, with passages or without.

    base, tuned                        closed-book: the question alone
    base+retrieval, tuned+retrieval    with the passages that the retriever finds
    pretrained, pretrained+retrieval   after continued pretraining on the documents
    pretrained-p8, …                   the same on every passage and 8 paraphrases of it

Ovadia et al. 2023 (arXiv 2312.05934) compare paraphrases at equal optimisation steps. So as soon as an arm has
paraphrases, every pretraining of the recipe is as long in steps, not in epochs.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

from luthier.core.errors import UserError, nearest
from luthier.core.recipe import Recipe

OWN = ("base", "base+retrieval", "tuned", "tuned+retrieval")
RETRIEVAL = "+retrieval"
PRETRAIN_STEPS = 60  # of the study: 60 steps of 8 rows on 40 pages
MOST_PARAPHRASES = 10
_PRETRAINED = re.compile(r"pretrained(?:-p(?P<p>[1-9]\d*))?(?:\+retrieval)?")


def paraphrases_of(arm: str) -> int:
    """How many paraphrases of each passage an arm has read.

    Raises:
        UserError: it is no arm, or has more paraphrases than there can be.
    """
    match = _PRETRAINED.fullmatch(arm)
    if match is None and arm not in OWN:
        legal = (*OWN, "pretrained", "pretrained+retrieval", "pretrained-p8", "pretrained-p8+retrieval")
        raise UserError(f"There is no arm '{arm}'. {nearest(arm, legal)}")
    count = int(match["p"] or 0) if match else 0
    if count > MOST_PARAPHRASES:
        raise UserError(f"Arm '{arm}': at most {MOST_PARAPHRASES} paraphrases of a passage can be written.")
    return count


def with_pretrained(recipe: Recipe, paraphrases: int = 0, *, retrieval: bool = False) -> Recipe:
    """One more arm: the base after continued pretraining on the documents, asked as the base is."""
    model = "pretrained" + (f"-p{paraphrases}" if paraphrases else "")
    arm = model + (RETRIEVAL if retrieval else "")
    asked = _step_of(recipe, "base" + (RETRIEVAL if retrieval else ""))
    text = copy.deepcopy(recipe.text)
    steps = text["steps"]
    read = "sections" + (f"-p{paraphrases}" if paraphrases else "")
    if model not in steps:
        steps[read] = {"use": "sections", "inputs": {"documents": "documents", "examples": "split"},
                       **({"augment": [{"use": "paraphrase", "count": paraphrases}]} if paraphrases else {})}
        steps[model] = {
            "use": "fit", "tasks": [{"data": "sections.train", "objective": "pretrain"}], "over_long": "split",
            "streams": {"validation": "sections.dev"}, "inputs": {"base": "base", "sections": read}}
    name = _named(arm)
    steps[name] = {**copy.deepcopy(steps[asked]), "arm": arm,
                   "inputs": {**steps[asked]["inputs"], "tuned": model}}
    steps["comparison"]["inputs"][arm.replace("+", "-")] = name
    fits = [s for n, s in steps.items() if _PRETRAINED.fullmatch(n) and s.get("use") == "fit"]
    if any("-p" in s["inputs"]["sections"] for s in fits):
        for fit in fits:
            fit.setdefault("length", {"steps": PRETRAIN_STEPS})
    return Recipe(text)


def with_arms(recipe: Recipe, names: Sequence[str]) -> Recipe:
    """The recipe with exactly these arms, those of pretraining added, and without the steps that no arm needs.

    Raises:
        UserError: an unknown arm, one named twice, fewer than two, or one that the recipe has no step for.
    """
    for name in names:
        paraphrases_of(name)
        if names.count(name) > 1:
            raise UserError(f"--arm {name} is given twice. Name each arm once.")
    if len(names) == 1:
        raise UserError(f"--arm {names[0]} alone has nothing to be compared with. Add one, such as --arm base.")
    made = recipe
    for name in names:
        if name not in OWN and _step_of(made, name, required=False) is None:
            made = with_pretrained(made, paraphrases_of(name), retrieval=name.endswith(RETRIEVAL))
    wanted = {_step_of(made, name): name for name in names}
    text = copy.deepcopy(made.text)
    compared = text["steps"]["comparison"]["inputs"]
    text["steps"]["comparison"]["inputs"] = {k: v for k, v in compared.items() if v in wanted}
    return _needed(text, before={n.name for n in recipe.nodes})


def _needed(text: dict[str, Any], before: set[str]) -> Recipe:
    """Without the steps that the comparison does not rest on; what else the recipe ends in stays."""
    used = {s for step in text["steps"].values() for s in step.get("inputs", {}).values()}
    arms = {n for n, s in text["steps"].items() if s.get("use") == "evaluate"}
    ends = [n for n in text["steps"] if n == "comparison" or (n in before and n not in used and n not in arms)]
    kept: set[str] = set()
    while ends:
        name = ends.pop()
        if name not in kept:
            kept.add(name)
            ends += text["steps"][name].get("inputs", {}).values()
    return Recipe({**text, "steps": {n: s for n, s in text["steps"].items() if n in kept}})


def _step_of(recipe: Recipe, arm: str, required: bool = True) -> str | None:
    """Name of the step that evaluates an arm."""
    found = {s.get("arm"): n for n, s in recipe.text["steps"].items() if s.get("use") == "evaluate"}
    if required and arm not in found:
        raise UserError(f"This recipe has no arm '{arm}'. {nearest(arm, [str(a) for a in found])}")
    return found.get(arm)


def _named(arm: str) -> str:
    return "arm-" + arm.replace("+", "-")

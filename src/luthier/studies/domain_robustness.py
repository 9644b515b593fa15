"""Calderon et al. 2023: what is lost on another domain is better told beside a model trained there than beside home.

MiniLM learns sentiment on each of four domains of invented reviews and is tested on all (audit `domain-shift`). The domains
are unequally hard, since a share of their reviews has remarks of both kinds; in the arm `alike` that share is the same in
all, and the two drops should differ by chance only. A training seed draws other test rows, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from luthier.core.kinds import Study
from luthier.core.study import Claim, Found, Guard, Paper, Scale

WHOLE, EASIER = "audit/domain-shift", "audit/domain-shift/tools->meals"
SOURCE_SPREAD, TARGET_SPREAD = (Found(f"spread_{side}_drop", WHOLE, "shift") for side in ("source", "target"))
MEAN = Found("mean_target_drop", WHOLE, "shift")


class DomainRobustness(Study, name="domain-robustness", seeds=[124]):
    """Do target drops tell the loss on another domain better than source drops?"""

    world: ClassVar[str] = "real model (MiniLM) on invented reviews"
    paper: ClassVar[Paper] = Paper(
        "Measuring the Robustness of Natural Language Processing Models to Domain Shifts",
        "Calderon, Porat, Ben-David et al. 2023, arXiv 2306.00168",
        "Source drops mislead where the target is harder or easier; target drops vary less around the average degradation.",
        "no number is remembered; a large share of shifts has only one of the two drops above zero")
    scales: ClassVar[Mapping[str, Scale]] = {
        "smoke": Scale(1, {}, {"reviews.rows": 8, "shift.audit.base": "pico-encoder", "shift.audit.min_test": 2,
                               "shift.audit.epochs": 1, "shift.audit.max_tokens": 16}, arms=("unequal",),
                       about="every line, no evidence"),
        "default": Scale(4, {}),
        "large": Scale(8, {}, {"reviews.rows": 1500, "shift.audit.method": "full"}),
    }

    def recipe(self) -> dict[str, Any]:
        """Reviews, and every source against every target."""
        return {"name": "domain-robustness", "seed": 0, "steps": {
            "reviews": {"use": "opinions"},
            "shift": {"use": "audit", "audit": {"use": "domain-shift", "base": "minilm", "max_tokens": 64, "epochs": 3},
                      "inputs": {"examples": "reviews"}},
        }}

    def arms(self) -> dict[str, dict[str, Any]]:
        """Domains that are unequally hard, and some that are alike."""
        return {"unequal": {}, "alike": {"reviews.mixed": [0.45, 0.45, 0.45, 0.45]}}

    def guards(self) -> tuple[Guard, ...]:
        """There is something to lose."""
        return (Guard("other domains cost something: at least 0.02 of accuracy on average", MEAN, ("unequal",), least=0.02),)

    def claims(self) -> tuple[Claim, ...]:
        """The spread of both drops, where domains differ and where they do not; a shift that hides its loss."""
        return (
            Claim("target drops spread less", "target drops vary less over the shifts than source drops", "unequal", "unequal",
                  TARGET_SPREAD, "lower", 0.05, 0.0, 0.02, left_measure=SOURCE_SPREAD,
                  paper="TD varies less around the average"),
            Claim("an easier target hides the loss", "from the hardest domain to the easiest the target drop is the larger",
                  "unequal", "unequal", Found("target_drop", EASIER, "shift"), "higher", 0.1, 0.0, 0.04,
                  left_measure=Found("source_drop", EASIER, "shift"), paper="unobserved challenges", main=False),
            Claim("not where domains are alike", "the gap between the spreads is there without unequal domains, too", "alike",
                  "alike", TARGET_SPREAD, "lower", 0.05, 0.0, 0.02, left_measure=SOURCE_SPREAD, main=False))

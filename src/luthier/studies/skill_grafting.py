"""Panigrahi et al. 2023: of a fine-tuned model few weights carry the skill, and on the base they suffice.

A tiny Llama that has read reviews learns to say whether they are good or bad, with frozen embeddings and vocabulary head. Of
the change the largest entries are kept (1e-4, 1e-3 and 1e-2 of those of all layers), or what the mask becomes that is
optimised from there on the training rows: 20 steps of 64 rows at the paper's rate. What it becomes is compared with as many of
the largest entries, and as many at random, a draw a seed. Grafts of the same question about other reviews, and of another
question, say what regions share; the union with the latter is compared with one tune on both. A remark or two alone stand for
a shift. Tunes are by AdamW alone, which moves more weights than the paper's SGD; no tune of biases and no sparse tune from the
beginning is an arm. How much of a gain is recovered is read from the table.

Settings were set beforehand. In one look at a seed the shift was remarks about meals and tools: the tune itself was at chance
there, so that nothing could be said of it, and it was changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from luthier.core.kinds import Study
from luthier.core.study import Claim, Guard, Measure, Paper, Scale

RIGHT, STRANGE, OTHER = (Measure("accuracy", on) for on in ("test", "strange", "other-test"))
UNSURE, SHARED = Measure("miscalibration", "test"), Measure("above-chance", "tensors")
SHARES = (1e-4, 1e-3, 1e-2)
MOST = f"{SHARES[-1]:g}"


class SkillGraftingStudy(Study, name="skill-grafting", seeds=[59]):
    """Do few entries of a tune carry its skill?"""

    paper: ClassVar[Paper] = Paper(
        "Task-Specific Skill Localization in Fine-tuned Language Models", "Panigrahi et al. 2023, arXiv 2302.06600",
        "About 0.01 % of a tuned model's weights, put on the base, have nearly all of its accuracy, are better calibrated and "
        "hold better under shift; regions of unlike tasks hardly overlap.",
        "RoBERTa-base: more than 95 % of the accuracy from 0.01 % of the weights; ECE 40 to 90 % lower")
    scales: ClassVar[Mapping[str, Scale]] = {
        "smoke": Scale(1, {"test": 4, "strange": 2}, {
            "rows.texts": 16, "rows.train": 8, "rows.tests": 4, "rows.strange": 2, "base.width": 16, "base.layers": 1,
            "base.epochs": 1, "base.vocabulary": 300, "tuned.length": {"steps": 1}, "graft.rule.steps": 1,
            "graft.rule.batches": 1},
            arms=(f"optimised-{MOST}", f"random-{MOST}"), about="every line, no evidence"),
        "default": Scale(2, {"test": 200, "strange": 48, "other-test": 200, "tensors": 28}, {"base.epochs": 6}),
        "large": Scale(5, {"test": 200, "strange": 48, "other-test": 200, "tensors": 60}, {
            "base.use": "base", "base.inputs": {}, "base.model": "gemma3-270m", "tuned.learning_rate": 5e-5},
            about="Gemma 3 270M in place of the tiny Llama"),
    }

    def recipe(self) -> dict[str, Any]:
        """Reviews, a base that read some, a tune, and the graft of it."""
        return self._scored(self._grafted("graft", "tuned", "main", 1e-2))

    @staticmethod
    def _steps(*tasks: tuple[str, str]) -> dict[str, Any]:
        """World, base, and a tune by name and subset."""
        return {"rows": {"use": "worded-reviews"},
                "base": {"use": "pretrained", "inputs": {"examples": "rows"}},
                **{name: {"use": "fit", "tasks": [{"data": f"examples.{subset}", "objective": "supervised"}],
                          "method": "full:freeze_bottom=0", "learning_rate": 1e-3, "length": {"epochs": 8}, "batch_rows": 16,
                          "schedule": "linear:warmup=0.1", "dtype": "float32",
                          "inputs": {"base": "base", "examples": "rows"}} for name, subset in tasks}}

    def _grafted(self, name: str, tuned: str, subset: str, share: float, optimised: bool = True) -> dict[str, Any]:
        """The steps of a tune and of its graft."""
        rule: dict[str, Any] = {"use": "graft", "sparsity": share}
        step = {"use": "merge", "rule": rule, "inputs": {"base": "base", "tuned": tuned}}
        if optimised:
            rule |= {"steps": 20, "rows": 8, "batches": 8, "max_tokens": 512}
            step |= {"files": {"data": subset}, "inputs": {"base": "base", "tuned": tuned, "examples": "rows"}}
        return {**self._steps((tuned, subset)), name: step}

    def _scored(self, steps: Mapping[str, Any], tuned: str = "graft", base: str = "base", **more: Any) -> dict[str, Any]:
        inputs = {"base": base, "examples": "rows", **({"tuned": tuned} if tuned else {})}
        return {"name": "skill-grafting", "seed": 0,
                "steps": {**steps, "score": {"use": "worded-scores", "inputs": inputs, **more}}}

    def _matched(self, start: str, share: float) -> dict[str, Any]:
        steps = self._grafted("graft", "tuned", "main", share)
        steps["matched"] = {"use": "as-many", "start": start, "inputs": {"base": "base", "like": "graft", "tuned": "tuned"}}
        return self._scored(steps, "matched")

    def _overlap(self, other: str) -> dict[str, Any]:
        steps = {**self._grafted("graft", "tuned", "main", 1e-2),
                 **{n: s for n, s in self._grafted(f"graft-{other}", f"tuned-{other}", other, 1e-2).items() if other in n}}
        return {"name": "skill-grafting", "seed": 0, "steps": {
            **steps, "score": {"use": "overlaps", "inputs": {"base": "base", "graft": "graft", "other": f"graft-{other}"}}}}

    def _union(self) -> dict[str, Any]:
        steps = self._overlap("other")["steps"]
        del steps["score"]
        steps["union"] = {"use": "merge", "rule": "apply-graft:conflict=sum",
                          "inputs": {"base": "base", "graft": "graft", "graft-other": "graft-other"}}
        return self._scored(steps, "", "union", sets=["test", "other-test"])

    def arms(self) -> dict[str, dict[str, Any]]:
        """Base, tune, grafts by size and how they were chosen, overlaps, and two skills in one model."""
        made = {"base": self._scored(self._steps(), "", sets=["test", "strange", "other-test"]),
                "tuned": self._scored(self._steps(("tuned", "main")), "tuned")}
        for share in SHARES:
            made[f"largest-{share:g}"] = self._scored(self._grafted("graft", "tuned", "main", share, optimised=False))
            made[f"optimised-{share:g}"] = self._scored(self._grafted("graft", "tuned", "main", share))
            made[f"matched-{share:g}"] = self._matched("magnitude", share)
            made[f"random-{share:g}"] = self._matched("random", share)
        both = self._scored(self._steps(("tuned", "both")), "tuned", sets=["test", "other-test"])
        return {**made, "shared-alike": self._overlap("alike"), "shared-other": self._overlap("other"),
                "union": self._union(), "both": both}

    def guards(self) -> tuple[Guard, ...]:
        """There is a skill, and the base has none of it."""
        return (Guard("the tune has learned: at least 0.8 right", RIGHT, ("tuned",), least=0.8),
                Guard("the base has not: at most 0.65 right", RIGHT, ("base",), most=0.65))

    def claims(self) -> tuple[Claim, ...]:
        """What grafts hold and by what they are chosen; calibration, shift, overlap, union."""
        best = f"optimised-{MOST}"

        def above(name: str, says: str, left: str, right: str, on: Measure = RIGHT, smallest: float = 0.05, **rest: Any
                  ) -> Claim:
            return Claim(name, says, left, right, on, "higher", smallest, 0.4, 0.03, **rest)

        return (
            above("holds the skill", "the graft begun with 1 % of the entries is right more often than the base", "base", best,
                  smallest=0.1, paper="more than 95 % of the accuracy from 0.01 %"),
            above("than any entries", "it is right more often than as many entries at random", f"random-{MOST}", best),
            above("than the largest", "it is right more often than as many of the largest", f"matched-{MOST}", best,
                  main=False),
            above("0.1 % holds it", "the graft begun with 0.1 % is right more often than the base", "base", "optimised-0.001",
                  smallest=0.1, main=False),
            above("0.01 % holds it", "the graft begun with 0.01 % is right more often than the base", "base",
                  "optimised-0.0001", smallest=0.1, paper="0.01 % suffices", main=False),
            above("the largest hold it", "1 % of the entries, the largest, are right more often than the base", "base",
                  f"largest-{MOST}", smallest=0.1, main=False),
            Claim("something is lost", "the graft begun with 1 % is right less often than the tune: not expected", "tuned",
                  best, RIGHT, "lower", 0.05, 0.4, 0.03, main=False),
            Claim("calibration", "its calibration error is smaller than the tune's", "tuned", best, UNSURE, "lower", 0.02, 0.3,
                  0.02, paper="40 to 90 % lower", main=False),
            above("shift", "on a remark or two alone it is right more often than the tune", "tuned", best, STRANGE,
                  paper="better under shift", main=False),
            Claim("overlap", "above chance its region shares more with that of the same question about other reviews than with "
                  "another question's", "shared-other", "shared-alike", SHARED, "higher", 0.05, 0.2, 0.05,
                  paper="overlap follows likeness of tasks", main=False),
            Claim("union, main", "the union of two skills is right less often than one tune on both: not expected", "both",
                  "union", RIGHT, "lower", 0.05, 0.4, 0.03, main=False),
            above("union, other", "of the other question the union is right more often than the base", "base", "union", OTHER,
                  smallest=0.1, main=False))

"""Palit & Sharma 2024: rewards by tools teach a model to extract methods better than pairs alone.

A tiny Llama learns the inverse of inlining from pairs of invented functions (the SFT model), so far that it succeeds now
and then. From there it learns on from more pairs, by PPO from the points of parser, compiler and detector, or from these
and the tests. The detector does not judge the arguments of the call, so that points can be had by programs that compute
something else: without tests as a reward that may be learned (reward hacking). Equal time is not held: what each arm took
stands in its record, and PPO's answers are charged to its tokens. BLEU and CodeBLEU compare answers with
the one program that was inlined: another right extraction is far from it. The KL by question is not measured; that of each
round is in the curve of its training.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from luthier.core.kinds import Study
from luthier.core.study import Claim, Guard, Measure, Paper, Scale, without

TESTS, FOUND, MADE = (Measure("refactoring", "test", step) for step in ("score", "detected", "compiled"))
WORDS, CODE = (Measure(metric, "test") for metric in ("bleu", "code-bleu"))
POINTS = {"score": "tests", "detected": "extract_method", "compiled": "compile"}


class RefactorRlStudy(Study, name="refactor-rl", seeds=[143]):
    """Do rewards by tools teach to refactor, and what do they teach without tests?"""

    paper: ClassVar[Paper] = Paper(
        "Generating refactored code accurately using reinforcement learning", "Palit & Sharma 2024, arXiv 2412.18035",
        "After supervised tuning, PPO with rewards by parser, compiler and refactoring detector raises similarity with the "
        "reference and the number of tests passed.", "CodeT5: BLEU +11.96 %, CodeBLEU +16.45 %, tests passed 41 -> 66 of 122")
    scales: ClassVar[Mapping[str, Scale]] = {
        "smoke": Scale(1, {"test": 2}, {
            "world.pretrain_rows": 12, "world.train_rows": 4, "world.test_rows": 2, "base.width": 16, "base.layers": 1,
            "base.epochs": 1, "base.vocabulary": 300, "tuned.length": {"steps": 1}, "tuned.batch_rows": 2,
            **{f"{step}.decoder.max_new_tokens": 2 for step in POINTS}},
            arms=("sft", "more", "ppo"), about="every line, no evidence"),
        "default": Scale(3, {"test": 100}),
        "large": Scale(5, {"test": 300}, {"world.test_rows": 300, "world.most": 8, "base.width": 192,
                                          "tuned.length": {"steps": 640}}),
    }

    def recipe(self) -> dict[str, Any]:
        """Functions, a model of them, a training from there, and the points of its answers."""
        beside = {"score": ["bleu:words=code", "code-bleu"]}
        scored = {step: {"use": "evaluate", "arm": "tuned", "sets": ["test"],
                         "metrics": [f"refactoring:rewards=[{reward}]", *beside.get(step, ())],
                         "decoder": {"use": "sample", "temperature": 0.7, "top_p": 0.95, "max_new_tokens": 90},
                         "inputs": {"base": "base", "tuned": "tuned", "examples": "world"}}
                  for step, reward in POINTS.items()}
        return {"name": "refactor-rl", "seed": 0, "steps": {
            "world": {"use": "inlined-functions"},
            "base": {"use": "pretrained", "vocabulary": 400, "epochs": 8, "inputs": {"examples": "world"}},
            "tuned": {"use": "fit", "method": "full", "learning_rate": 1e-4, "schedule": "constant", "dtype": "float32",
                      "tasks": [{"data": "examples.train", "objective": "supervised"}], "length": {"steps": 160},
                      "batch_rows": 8, "inputs": {"base": "base", "examples": "world"}}, **scored}}

    def _ppo(self, rewards: str) -> dict[str, Any]:
        objective = {"use": "ppo", "reward": f"refactoring:rewards=[{rewards}],seconds=1", "rollouts": 32, "passes": 1,
                     "beta": 0.05, "decoder": {"use": "sample", "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 90}}
        return {"tuned.tasks": [{"data": "examples.train", "objective": objective}]}

    def arms(self) -> dict[str, dict[str, Any]]:
        """The SFT model, more of the same, PPO by three tools, and by tests as well."""
        base = self.recipe()
        for step in POINTS:
            base = {**base, "steps": {**base["steps"], step: {**base["steps"][step], "arm": "sft"}}}
        return {"sft": without(base, "tuned"), "more": {}, "ppo": self._ppo("syntax,compile,extract_method"),
                "ppo-tests": self._ppo("syntax,compile,extract_method,tests")}

    def guards(self) -> tuple[Guard, ...]:
        """The base can do it now and then, so that there is something to reward and something to gain."""
        return (Guard("the SFT model passes tests at least 0.3 of the time", TESTS, ("sft",), least=0.3),
                Guard("and at most 0.7 of the time", TESTS, ("sft",), most=0.7))

    def claims(self) -> tuple[Claim, ...]:
        """Detection and tests against the SFT model; what tests as a reward add."""
        return (
            Claim("more is detected", "after PPO a method is extracted in more answers than before", "sft", "ppo", FOUND,
                  "higher", 0.05, 0.5, 0.03, paper="refactoring rate up"),
            Claim("more tests passed", "after PPO more answers pass their tests than before", "sft", "ppo", TESTS, "higher",
                  0.05, 0.5, 0.03, paper="41 -> 66 of 122"),
            Claim("above more pairs", "PPO's answers pass more tests than those after as many steps on pairs", "more", "ppo",
                  TESTS, "higher", 0.05, 0.5, 0.03, main=False),
            Claim("tests as a reward", "with tests among the rewards more answers pass them than without", "ppo", "ppo-tests",
                  TESTS, "higher", 0.05, 0.5, 0.03, main=False),
            Claim("more compiles", "after PPO more answers compile than before", "sft", "ppo", MADE, "higher", 0.05, 0.4, 0.03,
                  paper="compile rate up", main=False),
            Claim("nearer by BLEU", "after PPO answers share more runs of words with the reference", "sft", "ppo", WORDS,
                  "higher", 0.03, 0.25, 0.03, paper="BLEU +11.96 %", main=False),
            Claim("nearer by CodeBLEU", "after PPO answers are nearer to the reference by words, syntax and values", "sft",
                  "ppo", CODE, "higher", 0.03, 0.25, 0.03, paper="CodeBLEU +16.45 %", main=False))

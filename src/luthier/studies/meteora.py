"""Xu et al. 2024: gates over several LoRAs do each task as well as its own LoRA, and can change adapters within one
answer.

A tiny Llama that knows errands of other kinds, one to three in a row, gets a LoRA for each of four tasks it does not know.
Gates are taught on rows of all four, with the LoRAs as they are or, as the released script does, together with them, and are
asked for one errand, or for three of different tasks in one question. Beside them stand the right LoRA for each row, a router
that sends a question as a whole to one LoRA, the LoRAs' average, their TIES merge, and one LoRA trained on all rows together.
The average is the mixture itself with all adapters taken and an endless temperature. The words before the task tell no gate
anything, and the first layer sees each token alone: gates of so small a model can't be right much more often than 0.75. In
version 1 and 2 the base hardly knew any errand, and its LoRAs did theirs in 0.14 of the cases. The tasks, how long each part
learns, and what is asked of the gates (0.8 before) were set after looks at one seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from luthier.core.kinds import Study
from luthier.core.study import Claim, Guard, Measure, Paper, Scale, without
from luthier.studies._worlds.errands import TASKS

SINGLE, COMPOSITE = (Measure("lines", on) for on in ("single", "composite"))
WHOLE = Measure("exact-match", "composite")
GATES, SEGMENTS = (Measure("gate-accuracy", on) for on in ("single", "composite"))


class MeteoraStudy(Study, name="meteora", seeds=[109], version=3):
    """Do token-level gates reach the right adapter, also within one answer?"""

    world: ClassVar[str] = "synthetic world only; the router is real (MiniLM)"
    paper: ClassVar[Paper] = Paper(
        "MeteoRA: Multiple-tasks Embedded LoRA for Large Language Models", "Xu et al. 2024, arXiv 2405.13053",
        "Gates over embedded LoRAs equal the single LoRAs on 28 tasks and answer ten tasks in one go better than others.",
        "8B and 13B Llamas: equal to the single adapters on 28 tasks, better on composite-10; no number is remembered")
    scales: ClassVar[Mapping[str, Scale]] = {
        "smoke": Scale(1, {"single": 4, "composite": 2}, {
            "world.told": 8, "world.train_rows": 1, "world.test_rows": 1, "world.composites": 2, "world.names": 4,
            "base.width": 16, "base.layers": 1, "base.epochs": 1, "score.decoder.max_new_tokens": 2,
            "encoder.model": "pico-encoder",
            **{f"{task}.length": {"steps": 1} for task in TASKS}},
            arms=("base", "router", "top2-warm", "ties"), about="every line, no evidence"),
        "default": Scale(3, {"single": 120, "composite": 120}),
        "large": Scale(5, {"single": 200, "composite": 300}, {
            "world.told": 12000, "world.composites": 300, "world.test_rows": 50, "world.train_rows": 50, "base.width": 256}),
    }

    def recipe(self) -> dict[str, Any]:
        """World, base, a LoRA for each task, gates, and what the mixture answers."""
        common = {"use": "fit", "dtype": "float32", "batch_rows": 16, "schedule": "cosine"}
        loras = {task: {**common, "tasks": [{"data": f"examples.{task}"}], "method": "lora:rank=8,alpha=16",
                        "learning_rate": 5e-3, "length": {"epochs": 60}, "inputs": {"base": "base", "examples": "world"}}
                 for task in TASKS}
        taken = {task: task for task in TASKS}
        return {"name": "meteora", "seed": 0, "steps": {
            "world": {"use": "errands"},
            "base": {"use": "pretrained", "epochs": 10, "batch_rows": 16, "inputs": {"examples": "world"}},
            **loras,
            "tuned": {**common, "tasks": [{"data": "examples.mixed", "objective": "gate-supervised"}], "learning_rate": 5e-3,
                      "method": {"use": "meteora", "adapters": taken, "top_k": 2}, "length": {"epochs": 20},
                      "inputs": {"base": "base", "examples": "world", **taken}},
            "score": {**self._score(), "inputs": {"base": "base", "tuned": "tuned", "examples": "world"}},
        }}

    @staticmethod
    def _score() -> dict[str, Any]:
        return {"use": "evaluate", "arm": "tuned", "sets": ["single", "composite"], "decoder": "greedy:max_new_tokens=32",
                "metrics": ["lines", "exact-match", "gate-accuracy"]}

    def _instead(self, **steps: dict[str, Any]) -> dict[str, Any]:
        """The recipe without gates, and other steps in the place of `tuned` and `score`."""
        text = without(self.recipe(), "tuned")
        return {**text, "steps": {**text["steps"], **steps}}

    def arms(self) -> dict[str, dict[str, Any]]:
        """The mixture by adapters a token and temperature, weights of the gates' loss, and what it is compared with."""
        taken = {task: task for task in TASKS}
        dispatched = {**self._score(), "use": "dispatched", "arm": "dispatched"}
        inputs = {"base": "base", "examples": "world", **taken}
        joint = {**self.recipe()["steps"]["judge"], "tasks": [{"data": "examples.mixed"}]}
        return {
            "base": without(self.recipe(), "tuned"),
            "oracle": self._instead(score={**dispatched, "inputs": inputs}),
            "router": self._instead(encoder={"use": "base", "model": "minilm"},
                                    score={**dispatched, "by": "encoder", "inputs": {**inputs, "encoder": "encoder"}}),
            "top1": {"tuned.method.top_k": 1}, "top2": {}, "top2-warm": {"score.gate_temperature": 15},
            "both": {"tuned.method.train": "gates+loras"},
            "beta0.1": {"tuned.tasks": [{"data": "examples.mixed", "objective": "gate-supervised:beta=0.1"}]},
            "beta1": {"tuned.tasks": [{"data": "examples.mixed", "objective": "gate-supervised:beta=1"}]},
            "average": {"tuned.method.top_k": len(TASKS), "tuned.length": {"steps": 1}, "score.gate_temperature": 1e9},
            "ties": self._instead(tuned={"use": "merge", "rule": "ties:density=[0.5]", "inputs": {"base": "base", **taken}},
                                  score={**self._score(), "inputs": {"base": "tuned", "examples": "world"}}),
            "joint": self._instead(tuned=joint, score={**self._score(), "inputs": {
                "base": "base", "tuned": "tuned", "examples": "world"}}),
        }

    def guards(self) -> tuple[Guard, ...]:
        """The tasks are new to the base and learned by their LoRAs, and the gates learn what they are taught."""
        return (Guard("the tasks are new to the base: at most 0.2 of the lines", SINGLE, ("base",), most=0.2),
                Guard("each LoRA does its task: at least 0.6 of the lines", SINGLE, ("oracle",), least=0.6),
                Guard("gates take the adapter of a single row: at least 0.6, by chance 0.25", GATES, ("top2",), least=0.6))

    def claims(self) -> tuple[Claim, ...]:
        """No loss against the right adapter, several adapters in an answer, and what temperature and the gates' loss do."""
        return (
            Claim("changes adapters", "of three errands at once the mixture does more than a router with one adapter for all",
                  "router", "top2-warm", COMPOSITE, "higher", 0.1, 0.4, 0.05, paper="better on composite-10"),
            Claim("the right adapter", "with the right LoRA for each row more single lines are right than with gates",
                  "top2", "oracle", SINGLE, "higher", 0.05, 0.3, 0.03, paper="no: equal on 28 tasks", main=False),
            Claim("the LoRAs move too", "gates that learn together with their LoRAs do more single lines than gates alone",
                  "top2", "both", SINGLE, "higher", 0.1, 0.4, 0.05, paper="as the released script does", main=False),
            Claim("temperature", "a temperature of 15 helps with three errands at once",
                  "top2", "top2-warm", COMPOSITE, "higher", 0.05, 0.35, 0.04, paper="T = 15 for three tasks", main=False),
            Claim("more than the average", "gates do more single lines than the LoRAs' average",
                  "average", "top2", SINGLE, "higher", 0.1, 0.5, 0.05, main=False),
            Claim("more than TIES", "gates do more single lines than the TIES merge",
                  "ties", "top2", SINGLE, "higher", 0.1, 0.5, 0.05, main=False),
            Claim("more than one LoRA for all", "gates do more of three errands than one LoRA trained on all rows",
                  "joint", "top2-warm", COMPOSITE, "higher", 0.05, 0.4, 0.05, main=False),
            Claim("two adapters a token", "two adapters a token do more of three errands than one",
                  "top1", "top2-warm", COMPOSITE, "higher", 0.05, 0.35, 0.04, main=False),
            Claim("the gates' loss", "with a weight of 50 gates know the adapter of a token better than with 0.1",
                  "beta0.1", "top2", GATES, "higher", 0.05, 0.2, 0.03, paper="beta = 50", main=False),
            Claim("segments", "in three errands at once, too, with a weight of 50 they know it better than with 0.1",
                  "beta0.1", "top2", SEGMENTS, "higher", 0.05, 0.2, 0.03, main=False),
            Claim("full credit", "more rows of three errands are right as a whole than with a router",
                  "router", "top2-warm", WHOLE, "higher", 0.05, 0.3, 0.05, main=False))

"""Gekhman et al. 2024: facts that a model does not know are learned late, and once learned it says more that is wrong.

A tiny Llama knows the facts of an invented world well, a little or not at all. It is tuned on sets of one size of which a
share is unknown to it, for 2 and 48 epochs at a constant rate, so that the shorter training is a point of the longer
one. What it says then of other facts that it knew is the measure: of those that it said at least once in greedy decoding,
since what it never says can't be lost. Early stopping is the length that is best on dev. A control leaves the unknown half
out, and nothing in its place, for as many steps. Length and test were settled after trials in which the guards failed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from luthier.core.kinds import Study
from luthier.core.study import Choice, Claim, Guard, Measure, Paper, Scale, Trend, without

TEST, DEV = Measure("exact-match", "test"), Measure("exact-match", "dev")
KNOWN, UNKNOWN = Measure("exact-match", "train-known"), Measure("exact-match", "train-unknown")
SHARES, EPOCHS = (0, 50, 100), (2, 48)
ROWS, BATCH = 100, 8


class SlickStudy(Study, name="slick", version=3, seeds=[34]):
    """Does fine-tuning on new knowledge make a model forget what it knew?"""

    paper: ClassVar[Paper] = Paper(
        "Does Fine-Tuning LLMs on New Knowledge Encourage Hallucinations?", "Gekhman et al. 2024, arXiv 2405.05904",
        "Unknown facts are fitted slowly; when they are fitted, accuracy on other facts falls, hardly so with early stopping.",
        "PaLM 2-M, closed-book questions: accuracy = 36.9 + 7.3 known fitted - 8.3 unknown fitted (R2 0.86; as remembered)")
    scales: ClassVar[Mapping[str, Scale]] = {
        "smoke": Scale(1, {"test": 6, "dev": 2, "train-known": 2, "train-unknown": 2}, {
            "world.persons": 12, "world.values": 2, "world.untold_share": 0.2, "base.width": 16, "base.layers": 1,
            "base.epochs": 1,
            "marked.steps": ["slick:prompts=1,shots=2,samples=1,greedy={use: greedy, max_new_tokens: 2}"],
            "sets.by": "world", "sets.test_rows": 6, "sets.dev_rows": 2, "sets.mixture": "knowledge-mixture:rows=4,unknown=0"},
            arms=("x0-e2", "x50-e2", "x100-e2"), about="every line, no evidence"),
        "default": Scale(3, {"test": 150, "dev": 40, "train-known": 50, "train-unknown": 50}),
        "large": Scale(5, {"test": 600, "dev": 100, "train-known": 100, "train-unknown": 100}, {
            "world.persons": 500, "base.width": 192, "sets.test_rows": 600, "sets.dev_rows": 100}),
    }

    def recipe(self) -> dict[str, Any]:
        """World, its model, what that knows, a mixture, and the tuned model's answers."""
        answer = "greedy:max_new_tokens=4"
        return {"name": "slick", "seed": 0, "steps": {
            "world": {"use": "facts-world"},
            "base": {"use": "pretrained", "epochs": 24, "inputs": {"examples": "world"}},
            "marked": {"use": "curate", "subsets": ["told", "untold"], "inputs": {"rows": "world", "writer": "base"},
                       "steps": ["slick:prompts=4,samples=8,greedy={use: greedy, max_new_tokens: 3},"
                                 "sampled={use: sample, temperature: 0.5, top_p: 1.0, max_new_tokens: 3}"]},
            "sets": {"use": "knowledge-sets", "test_rows": 150, "dev_rows": 40, "tested": ["HighlyKnown", "MaybeKnown"],
                     "mixture": f"knowledge-mixture:rows={ROWS},unknown=0", "inputs": {"rows": "marked"}},
            "tuned": {"use": "fit", "method": "full", "learning_rate": 1e-3, "schedule": "constant", "length": {"epochs": 2},
                      "batch_rows": BATCH, "dtype": "float32", "inputs": {"base": "base", "examples": "sets"}},
            "score": {"use": "evaluate", "arm": "tuned", "sets": ["test", "dev", "train-known", "train-unknown"],
                      "metrics": ["exact-match"], "decoder": answer,
                      "inputs": {"base": "base", "tuned": "tuned", "examples": "sets"}},
        }}

    def arms(self) -> dict[str, dict[str, Any]]:
        """Shares of unknown facts x lengths, half of the rows alone, and the base asked with four solved examples."""
        tuned = {f"x{share}-e{epochs}": {"sets.mixture.unknown": share / 100, "tuned.length": {"epochs": epochs}}
                 for share in SHARES for epochs in EPOCHS}
        half = {f"half-e{epochs}": {"sets.mixture.unknown": 0.5, "sets.mixture.only_known": True,
                                    "tuned.length": {"steps": epochs * -(-ROWS // BATCH)}} for epochs in EPOCHS}
        return {"base": without(self.recipe(), "tuned", score__shots=[4], score__stops=["newline"]), **tuned, **half}

    def guards(self) -> tuple[Guard, ...]:
        """The known is known, and the long trainings fit everything."""
        return (Guard("the base knows what it is tested on: exact match >= 0.7", TEST, ("base",), least=0.7),
                Guard("the unknown is fitted in the end: exact match >= 0.95", UNKNOWN, ("x50-e48", "x100-e48"), least=0.95))

    def choices(self) -> tuple[Choice, ...]:
        """Early stopping: the length that is best on dev."""
        return tuple(Choice(f"x{share}-early", tuple(f"x{share}-e{n}" for n in EPOCHS), DEV)
                     for share in SHARES) + (Choice("half-early", tuple(f"half-e{n}" for n in EPOCHS), DEV),)

    def claims(self) -> tuple[Claim, ...]:
        """What was known is lost when the unknown has been fitted; early stopping and the order of fitting."""
        return (
            Claim("lost at convergence", "after 48 epochs on half unknown facts less of the known is left than after 48 on "
                  "known ones", "x0-e48", "x50-e48", TEST, "lower", 0.1, 0.35, 0.03,
                  paper="accuracy at convergence falls with X"),
            Claim("fitted later", "after 2 epochs fewer of the unknown training facts are fitted than of the known",
                  "x50-e2", "x50-e2", UNKNOWN, "lower", 0.1, 0.6, 0.03, left_measure=KNOWN,
                  paper="Unknown examples are fitted substantially slower"),
            Claim("all unknown", "after 48 epochs on unknown facts alone less of the known is left than after 48 on known ones",
                  "x0-e48", "x100-e48", TEST, "lower", 0.1, 0.35, 0.03, main=False),
            Claim("lost at early stop", "with early stopping half unknown facts cost accuracy, too", "x0-early", "x50-early",
                  TEST, "lower", 0.1, 0.35, 0.03, paper="nearly neutral", main=False),
            Claim("by the unknown half", "after 48 epochs less of the known is left than after as many steps on the known half "
                  "alone", "half-e48", "x50-e48", TEST, "lower", 0.1, 0.35, 0.03, main=False),
            Claim("by it at early stop", "with early stopping the unknown half costs accuracy, too", "half-early", "x50-early",
                  TEST, "lower", 0.1, 0.35, 0.03, paper="nearly neutral", main=False))

    def trends(self) -> tuple[Trend, ...]:
        """The paper's regression over lengths and shares."""
        runs = {f"x{share}-e{n}": f"x{share}" for share in SHARES for n in EPOCHS}
        return (Trend("unknown fitted", "accuracy falls with the share of unknown facts that are fitted", TEST,
                      {"known": KNOWN, "unknown": UNKNOWN}, "unknown", runs, "lower", 0.05, 0.05, "-8.3 points per unit"),)

"""Adlakha et al. 2023: token recall and K-precision judge long answers better than exact match and F1; models stay unfaithful.

First, without a model: answers to questions about invented bulletins that were made right or wrong, faithful to their passage
or not. For each question a metric puts good answers above bad ones or does not; arms are metrics. Answers made to fool overlap
(the right words in a denial, the right thing in other words) are a set of their own. The worth of an answer is known by its
making, where the paper asked people; answers of one kind follow one pattern, of which a metric mostly says the same in every
question: the claims are about these kinds, and their intervals tell less than those of people's answers would. Gemma 3
270M is asked as a judge, too: whether an answer is correct, and whether its passage holds all of it; a judge of that size
is no evidence about large ones. Second, it answers below the right passage, and below one about an invented craftsman.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from luthier.core.kinds import Study
from luthier.core.study import Claim, Guard, Measure, Paper, Scale

NATURAL, FOOLING, FAITHFUL = (Measure("ranks-right", on) for on in ("natural", "fooling", "faithful"))
RECALL, REST, REFUSED = (Measure(name, "known", "said") for name in ("token-recall", "k-precision", "over-abstains"))
METRICS = ("token-recall", "recall-em", "f1", "exact-match", "rouge-l", "k-precision", "k-precision-pp")
ASK = "Answer from the passage alone. If it does not hold the answer, say: not stated."


class InstructQa(Study, name="instruct-qa", seeds=[49], version=2):
    """Which metric knows a right answer, and which a faithful one?"""

    world: ClassVar[str] = "answers of known worth to questions about invented bulletins; real model (Gemma 3 270M)"
    paper: ClassVar[Paper] = Paper(
        "Evaluating Correctness and Faithfulness of Instruction-Following Models for Question Answering",
        "Adlakha et al. 2023, arXiv 2307.16877",
        "Recall agrees best with people on correctness and K-precision on faithfulness; exact match and F1 underrate long "
        "answers, and models are fairly correct but not always faithful.",
        "no number is remembered; Spearman and Kendall with human judgements of NQ, HotpotQA and TopiOCQA")
    scales: ClassVar[Mapping[str, Scale]] = {
        "smoke": Scale(1, {"natural": 6, "fooling": 6, "faithful": 6, "known": 2}, {
            "rated.questions": 6, "base.model": "pico", "encoder.model": "pico-encoder", "pages.states": 2, "pages.crops": 4,
            "asked.states": 2, "asked.crops": 4, "asked.known": 2, "asked.unseen": 1, "asked.held_states": 0,
            "said.decoder.max_new_tokens": 1},
            arms=("token-recall", "f1", "k-precision", "judge-correct", "right-passage", "wrong-passage"),
            about="every line, no evidence"),
        "default": Scale(1, {"natural": 150, "fooling": 150, "faithful": 150, "known": 40}),
        "large": Scale(1, {"natural": 600, "fooling": 600, "faithful": 600, "known": 100}, {
            "rated.questions": 600, "rated.states": 40, "pages.states": 30, "asked.states": 30, "asked.known": 100}),
    }

    def recipe(self) -> dict[str, Any]:
        """Rated answers, and what a metric makes of them."""
        return {"name": "instruct-qa", "seed": 0, "steps": {
            "rated": {"use": "rated-answers", "questions": 150},
            "score": {"use": "ranked", "metric": "token-recall", "inputs": {"examples": "rated"}},
        }}

    def _judged(self, about: str, sets: list[str]) -> dict[str, Any]:
        """A model that says yes or no to each answer."""
        text = self.recipe()
        text["steps"] = {"base": {"use": "base", "model": "gemma3-270m"}, **text["steps"]}
        text["steps"]["score"] |= {"metric": {"use": "judge", "about": about}, "sets": sets,
                                   "inputs": {"examples": "rated", "model": "base"}}
        return text

    def _asked(self, pages: str, world: str, retriever: str) -> dict[str, Any]:
        """A model that is shown one passage of a world."""
        return {"name": "instruct-qa", "seed": 0, "steps": {
            "base": {"use": "base", "model": "gemma3-270m"},
            "encoder": {"use": "base", "model": "minilm"},
            pages: {"use": world},
            "asked": {"use": "bulletin-questions", "subsets": ["known"], "known": 40, "facts": ["week"]},
            "index": {"use": "index", "inputs": {"documents": pages, "encoder": "encoder"}},
            "said": {"use": "evaluate", "arm": "said", "sets": ["known"], "passages": 1, "retriever": retriever,
                     "instructions": [ASK], "stops": ["newline"], "decoder": "greedy:max_new_tokens=24",
                     "metrics": ["token-recall", "f1", "exact-match", "k-precision", "over-abstains"],
                     "inputs": {"base": "base", "examples": "asked", "index": "index", "encoder": "encoder",
                                "documents": pages}},
        }}

    def arms(self) -> dict[str, dict[str, Any]]:
        """Metrics, judges, and a model below the right passage or one about craftsmen."""
        return {**{name: {"score.metric": name} for name in METRICS},
                "judge-correct": self._judged("correctness", ["natural", "fooling"]),
                "judge-faithful": self._judged("faithfulness", ["faithful"]),
                "right-passage": self._asked("pages", "bulletins", "oracle"),
                "wrong-passage": self._asked("other-pages", "pages-world", "index")}

    def guards(self) -> tuple[Guard, ...]:
        """The model can read."""
        return (Guard("the model finds the answer in the right passage: token recall of at least 0.3", RECALL,
                      ("right-passage",), least=0.3),)

    def claims(self) -> tuple[Claim, ...]:
        """Recall and K-precision above the others, what fools them, and what a model does."""
        return (
            Claim("recall above F1", "recall puts more right answers above wrong ones than F1 does", "f1", "token-recall",
                  NATURAL, "higher", 0.1, 0.3, paper="recall agrees best with people"),
            Claim("recall above exact match", "recall puts more right answers above wrong ones than exact match does",
                  "exact-match", "token-recall", NATURAL, "higher", 0.1, 0.3, paper="exact match underrates long answers"),
            Claim("K-precision knows faithful answers", "K-precision puts more faithful answers above others than F1 does",
                  "f1", "k-precision", FAITHFUL, "higher", 0.1, 0.4, paper="K-precision agrees best with people"),
            Claim("not when fooled", "recall knows fewer right answers among those made to fool it", "token-recall",
                  "token-recall", FOOLING, "lower", 0.2, 0.4, left_measure=NATURAL, main=False),
            Claim("the judge knows right answers", "the judge puts more right answers above wrong ones than F1 does", "f1",
                  "judge-correct", NATURAL, "higher", 0.1, 0.4, paper="a large judge agrees best with people", main=False),
            Claim("the judge is not fooled", "of the answers made to fool overlap the judge knows more right ones than recall",
                  "token-recall", "judge-correct", FOOLING, "higher", 0.2, 0.6, main=False),
            Claim("the judge knows faithful answers", "the judge puts more faithful answers above others than K-precision does",
                  "k-precision", "judge-faithful", FAITHFUL, "higher", 0.1, 0.4, main=False),
            Claim("passages help", "below the right passage answers hold more of the right one than below another",
                  "wrong-passage", "right-passage", RECALL, "higher", 0.25, 0.5, main=False),
            Claim("refuses", "below a passage about something else more answers are withheld", "right-passage", "wrong-passage",
                  REFUSED, "higher", 0.25, 0.5, paper="models seldom refuse", main=False),
            Claim("answers rest on less", "below a passage about something else less of the answer stands in what was shown",
                  "right-passage", "wrong-passage", REST, "lower", 0.15, 0.3, main=False))

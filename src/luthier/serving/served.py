"""What is served: the arms of runs by name, each with its model, its template and the reader that `luthier ask` uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from luthier.core.errors import UserError, nearest
from luthier.core.example import Example, Part, Turn
from luthier.core.example import question as make_question
from luthier.core.run import Run
from luthier.engine.checkup import damage, whole_base
from luthier.engine.models import Model
from luthier.engine.rendering import Prompting, Render, renderer
from luthier.pipelines.asking import PREFERRED, Asker, arms, choose, decided
from luthier.pipelines.showing import control_tokens
from luthier.serving.shelf import Shelf

ENCODER = "encoder"


@dataclass(frozen=True)
class Served:
    """One arm. `question`: its model was trained on (or is asked by) single questions and has no chat template."""

    name: str
    arm: str
    asker: Asker
    model: Model
    question: bool
    prompting: Prompting

    @cached_property
    def render(self) -> Render:
        """How a conversation becomes tokens; its invariants are checked."""
        return renderer(self.model, chats=True)

    @cached_property
    def marks(self) -> frozenset[str]:
        """Texts of the control tokens: nobody may say them but the template."""
        return control_tokens(self.model.tokenizer)

    @property
    def passages(self) -> int:
        """How many passages the arm shows; 0 where it finds none."""
        return self.asker.passages(self.arm)

    def conversation(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """Prompt ids of (role, text) messages, in the form that the model was trained with.

        Raises:
            UserError: a message holds a control token, the last one asks nothing, or the template refuses them.
        """
        for n, (_, text) in enumerate(messages):
            self.harmless(text, f"messages[{n}]")
        if messages[-1][0] == "assistant":
            raise UserError(f"messages[{len(messages) - 1}] is the assistant's: nothing is asked after it.")
        if self.alone(messages):
            instruction = "\n\n".join(text for role, text in messages if role == "system")
            render = renderer(self.model, prompting=Prompting(instruction))
            return render.prompt(make_question("asked", messages[-1][1]))
        turns = tuple(Turn(role, (Part(text, name="content"),)) for role, text in messages)  # type: ignore[arg-type]
        return self.render.prompt(Example("asked", turns, task="chat"))

    def alone(self, messages: Sequence[tuple[str, str]]) -> bool:
        """Whether messages are one question for a model that knows questions."""
        spoken = [role for role, _ in messages if role != "system"]
        return self.question and spoken == ["user"] and messages[-1][0] == "user"

    def text(self, text: str) -> list[int]:
        """Prompt ids of a text to be continued. What looks like a control token is one."""
        return [*self.render._start(), *self.render.encode(text)]

    def harmless(self, text: str, where: str) -> None:
        """Raises UserError where a text holds a control token of the model."""
        found = next((mark for mark in sorted(self.marks) if mark in text), None)
        if found is not None:
            raise UserError(f"{where} holds {found!r}, a control token of this model: it would end the message or begin "
                            "another one. Take it out, or break it up with a blank.")


class Catalogue:
    """Every arm of the runs that are served: as RUN/ARM, and the preferred one of each run as RUN."""

    def __init__(self, folders: Sequence[Path], shelf: Shelf | None = None) -> None:
        """Load all of them. Raises UserError: no run, two of one name, damaged files, or runs that decided differently."""
        runs = {folder.resolve().name: Run.open(folder) for folder in folders}
        if len(runs) < len(folders):
            raise UserError("Two of these runs have a folder of the same name, and a name must tell one. Rename one of them.")
        for run in runs.values():
            _check_whole(run)
        self.shelf = shelf or _shelf(runs)
        self.arms: dict[str, Served] = {}
        self.encoders: dict[str, Model] = {}
        self._short: dict[str, str] = {}
        for name, run in runs.items():
            try:
                self._add(name, run)
            except (SafetensorError, OSError, ValueError) as error:
                raise UserError(f"The run '{name}' can't be loaded: {error}. See: luthier doctor {run.folder}") from None

    def _add(self, name: str, run: Run) -> None:
        asker = Asker(run, engine=self.shelf)
        spoken_by = [a for a, node in asker.arms.items()
                     if self.shelf.speaks(run.step(node.inputs["tuned"]) if "tuned" in node.inputs else None)]
        if not spoken_by:
            raise UserError(f"The run '{name}' has no arm that this engine can answer for.")
        preferred = next((a for a in (choose(run), *PREFERRED) if a in spoken_by), spoken_by[0])
        for arm in sorted(spoken_by, key=lambda a: (a != preferred, a)):
            model = asker.model(arm)
            prompting, spoken = asker.prompting(arm)
            served = Served(f"{name}/{arm}", arm, asker, model, not spoken and renderer(model, chats=True).chat is None,
                            prompting)
            self.arms[served.name] = served
            encoder = asker.encoder(arm)
            if encoder is not None:
                self.encoders.setdefault(f"{name}/{ENCODER}", encoder)
        self._short[name] = f"{name}/{preferred}"

    def arm(self, name: str) -> Served:
        """The arm of a name. Raises LookupError with words."""
        full = self._short.get(name, name)
        if full not in self.arms:
            raise LookupError(f"There is no model '{name}' here. {nearest(name, [*self._short, *self.arms])}")
        return self.arms[full]

    def encoder(self, name: str) -> Model:
        """The encoder of a name; that of a run by the run's. Raises LookupError with words."""
        full = f"{name}/{ENCODER}" if name in self._short else name
        if full not in self.encoders:
            raise LookupError(f"There is no encoder '{name}' here. {nearest(name, self.encoders)}")
        return self.encoders[full]

    def names(self) -> list[str]:
        """Every name that may be asked: runs, their arms, their encoders."""
        return [*self._short, *self.arms, *self.encoders]


def _check_whole(run: Run) -> None:
    """Raises UserError where what an arm is made of is not, byte for byte, what the run wrote."""
    used = dict.fromkeys(step for node in arms(run).values() for step in (*node.inputs.values(), node.name))
    for step in (run.folder / "steps" / name for name in used):
        problem = damage(step) or whole_base(step)
        if problem:
            raise UserError(f"{problem} What it would answer is not what was evaluated. See: luthier doctor {run.folder}")


def _shelf(runs: dict[str, Run]) -> Shelf:
    """An engine that computes as all of these runs did."""
    kept: dict[str, Any] = {name: decided(run) for name, run in runs.items()}
    ways = {name: "exact" if d.get("exact") else d.get("bfloat16_speedup", 0.0) > 1.1 for name, d in kept.items()}
    one, *others = ways
    other = next((name for name in others if ways[name] != ways[one]), None)
    if other is not None:
        raise UserError(f"The runs '{one}' and '{other}' computed with numbers of different kinds (--exact, or what was "
                        "measured), so one of them would not answer as it was evaluated. Serve them apart.")
    first = next(iter(kept.values()))
    shelf = Shelf(exact=bool(first.get("exact")))
    if "bfloat16_speedup" in first:
        shelf.decisions["bfloat16_speedup"] = first["bfloat16_speedup"]
    return shelf

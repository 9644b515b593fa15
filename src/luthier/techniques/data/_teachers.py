"""Teachers as one seam: who answers the prompts of question writers and paraphrasers.

`writer`: the local model of that role. An http(s) address: any OpenAI-compatible endpoint. `replay:FILE`: recorded answers,
JSON lines with `id` (of the passage) and `text`, several lines for several calls; no model is needed.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.core.errors import UserError
from luthier.core.kinds import Decoder
from luthier.core.step import Ctx
from luthier.engine.endpoints import Endpoint

if TYPE_CHECKING:
    from luthier.engine.generation import Stop

# (name of the call's passage, prompt)
Call = tuple[str, str]


class Teacher(ABC):
    """Answers prompts; `ask` may be called several times, `attempt` numbers the tries of the same calls."""

    name = ""

    @abstractmethod
    def ask(self, calls: Sequence[Call], attempt: int) -> list[str | None]:
        """One text a call, in order; None where nothing more can be said."""


class LocalTeacher(Teacher):
    """The model of role `writer`. A further try samples, since a greedy answer would come out the same."""

    def __init__(self, ctx: Ctx, decoder: Decoder, again: Decoder, for_step: str, stop: Stop) -> None:
        from luthier.engine.rendering import Render

        if "writer" not in ctx.roles:
            raise UserError(f"{for_step} needs a teacher: inputs: {{writer: base}}, teacher=URL or teacher=replay:FILE.")
        self.ctx, self.model, self.decoders, self.stop = ctx, ctx.roles["writer"], (decoder, again), stop
        self.name = self.model.name
        self.render = Render(self.model.tokenizer, self.model.architecture, self.model.limit)

    def ask(self, calls: Sequence[Call], attempt: int) -> list[str | None]:
        prompts = [self.render._start() + self.render.encode(prompt) for _, prompt in calls]
        made = self.ctx.engine.generate(self.model, prompts, self.decoders[attempt > 0], journal=self.ctx.journal,
                                        rng=self.ctx.rng.within(f"teacher-{attempt}"), stop=self.stop,
                                        progress=self.ctx.progress)
        return [m.text for m in made]


class RemoteTeacher(Teacher):
    """An endpoint; the number of the try stands in the prompt, so that its answer is another one."""

    def __init__(self, ctx: Ctx, endpoint: Endpoint) -> None:
        self.ctx, self.endpoint, self.name = ctx, endpoint, endpoint.model or endpoint.url

    def ask(self, calls: Sequence[Call], attempt: int) -> list[str | None]:
        again = f"\n\n(Try {attempt + 1}: keep exactly to the form that is asked for.)" if attempt else ""
        prompts = [prompt + again for _, prompt in calls]
        if self.endpoint.consent:
            self.ctx.log(self.endpoint.describe(prompts))
        return list(self.endpoint.ask(prompts, self.ctx.journal, self.ctx.progress))


class ReplayTeacher(Teacher):
    """Recorded answers by passage, each used once."""

    def __init__(self, path: Path) -> None:
        self.name = f"replay:{path.name}"
        self.said: dict[str, list[str]] = {}
        if not path.is_file():
            raise UserError(f"teacher: {path} does not exist.")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                row = json.loads(line)
                self.said.setdefault(str(row["id"]), []).append(str(row["text"]))
            except (ValueError, KeyError, TypeError):
                raise UserError(f"{path}, line {number}: expected {{\"id\": PASSAGE_OR_TEXT, \"text\": ANSWER}}.") from None

    def ask(self, calls: Sequence[Call], attempt: int) -> list[str | None]:
        if not attempt and (missing := [name for name, _ in calls if name not in self.said]):
            raise UserError(f"teacher: {self.name} has no answer for {len(missing)} passages; first: {missing[0]}.")
        return [self.said[name].pop(0) if self.said.get(name) else None for name, _ in calls]


def teacher(name: str, ctx: Ctx, decoder: Decoder, again: Decoder, endpoint: Endpoint, *, for_step: str,
            stop: Stop = "token") -> Teacher:
    """The teacher of that name for a data step; `stop` ends what a local one writes. Raises UserError for one that is none."""
    if name == "writer":
        return LocalTeacher(ctx, decoder, again, for_step, stop)
    if name.startswith("replay:"):
        return ReplayTeacher(Path(name.removeprefix("replay:")))
    if name.startswith(("http://", "https://")):
        return RemoteTeacher(ctx, endpoint.model_copy(update={"url": name}))
    raise UserError(f"teacher: '{name}' is none of writer, http(s)://ADDRESS, replay:FILE.")

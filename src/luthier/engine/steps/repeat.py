"""Repeat: run a few steps several times, feeding each round's artifacts to the next."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from luthier.core.artifact import Artifact, open_artifact, seal
from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.files import write_json
from luthier.core.recipe import Recipe
from luthier.core.step import Ctx, Step


class Repeat(Step, name="repeat"):
    """Generate-filter-train, chains and self-training: the same steps again, each round reading the last one's."""

    inputs: ClassVar[dict[str, str]] = {"*": "documents|examples|index|adapter|delta|model|records"}
    output: ClassVar[str] = "documents|examples|index|adapter|delta|model|records"
    trains: ClassVar[bool] = True  # mostly: chains and self-training
    steps: dict[str, Any] = Field(description="the steps of one round, as in a recipe; they may read this step's inputs")
    carry: dict[str, str] = Field(description="input name -> step whose artifact takes its place in the next round")
    result: str = Field(description="the step whose artifact of the last round is left")
    times: int = Field(2, ge=1, description="how many rounds at most")
    until: str | None = Field(None, description="KEY<NUMBER or KEY>NUMBER on the result's record: stop after that round")

    def check(self) -> None:
        """Refuse names that no step has, before anything runs."""
        for name in (*self.carry.values(), self.result):
            if name not in self.steps:
                raise UserError(f"repeat: '{name}' is no step of a round; they are {', '.join(self.steps)}.")
        for step in self._built().values():
            step.check()

    def content(self) -> dict[str, Any]:
        """The versions of a round's steps and what they read from outside: none of it stands in the text."""
        return {name: {"step": step.identity, "content": step.content()} for name, step in self._built().items()}

    def _built(self) -> dict[str, Step]:
        return {name: build("step", {k: v for k, v in values.items() if k != "inputs"})
                for name, values in self.steps.items()}

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Rounds in `rounds/N/`; a finished round is not run again."""
        from luthier.engine.executor import Watcher, execute_nodes

        given = dict(inputs)
        rounds = 0
        for number in range(self.times):
            # Inputs stand in as steps of the round so that the wiring is checked like any other.
            steps = {**{n: {"use": "given", "kind": a.kind} for n, a in given.items()}, **self.steps}
            recipe = Recipe({"name": f"round {number + 1}", "seed": ctx.rng.key("round", number), "steps": steps})
            watcher = Watcher(log=ctx.log, progress=lambda name: ctx.progress)
            made = execute_nodes(recipe, ctx.folder / "rounds" / str(number), ctx.engine, watcher, ctx.log, given)
            given.update({name: made[source] for name, source in self.carry.items()})
            rounds = number + 1
            ctx.log(f"round {rounds} of {self.times} done")
            if self.until and _holds(self.until, made[self.result].meta):
                break
        left = open_artifact(ctx.folder / "rounds" / str(rounds - 1) / self.result)
        for path in left.folder.iterdir():
            if path.name not in ("step.json", "journal.jsonl", "receipts.jsonl", "luthier.json"):
                target = ctx.folder / path.name
                if path.is_dir():
                    shutil.copytree(path, target, dirs_exist_ok=True)  # a kill may have left half of it
                else:
                    shutil.copyfile(path, target)
        write_json(ctx.folder / "rounds.json", {"rounds": rounds})
        meta = {k: v for k, v in left.meta.items() if k not in ("schema", "kind", "identity")}
        return seal(left.kind, ctx.folder, **{**meta, "rounds": rounds})


class Given(Step, name="given"):
    """Stands for an artifact that comes from outside the steps of a round; it is never run."""

    output: ClassVar[str] = "documents|examples|index|adapter|delta|model|records"
    kind: str = Field(description="kind of the artifact")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Raises UserError: only Repeat may put something in its place."""
        raise UserError("The step 'given' has no work of its own; it is filled by 'repeat'.")


def _holds(condition: str, meta: Mapping[str, Any]) -> bool:
    for sign in ("<", ">"):
        key, found, bound = condition.partition(sign)
        if found:
            value = float(meta[key.strip()])
            return value < float(bound) if sign == "<" else value > float(bound)
    raise UserError(f"until = {condition!r} is not KEY<NUMBER or KEY>NUMBER.")

"""A shelf for a run that was exported to llama.cpp: its tuned model speaks from that file, all else is as ever."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from luthier.core.artifact import Artifact, open_artifact, sealed_as
from luthier.core.errors import UserError
from luthier.core.run import Run
from luthier.engine.models import Model
from luthier.engine.workshop import Weights
from luthier.pipelines.asking import arms, decided
from luthier.pipelines.exporting import GGUF
from luthier.serving.shelf import Shelf

# Written beside the file once it is sealed.
_AFTER = frozenset({"README.md"})


class GgufShelf(Shelf):
    """Loads one tuned model from its `gguf`; encoders are loaded as by any shelf, and the base and other adapters not at all.

    Raises:
        UserError: more than one run, none that was exported, a file of another model or one that was changed, or
            llama-cpp-python is missing.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        if len(folders) != 1:
            raise UserError(f"--engine llamacpp serves one run, and {len(folders)} are named: one file holds one model, and no "
                            "adapters share its weights. Serve them apart, or with --engine luthier.")
        run = Run.open(folders[0])
        self.exported, self.tuned = exported(run)
        super().__init__(exact=bool(decided(run).get("exact")))
        self.spoken: Model | None = None

    def speaks(self, tuned: Artifact | None) -> bool:
        """Only arms of the model in the file."""
        return tuned is not None and tuned.identity == self.tuned.identity

    def load(self, base: Artifact, tuned: Artifact | None = None, dtype: torch.dtype | None = None,
             weights: Weights = "own") -> Model:
        """The exported model from its file, or an encoder."""
        from luthier.engine import llamacpp

        if not self.speaks(tuned):
            if base.meta["architecture"] == "encoder":
                return super().load(base, tuned, dtype, weights)
            raise UserError(f"--engine llamacpp answers from {self.exported.folder / GGUF} alone, and {base.meta['name']} is "
                            "not in it.")
        with self._loading:
            if self.spoken is None:
                self.spoken = llamacpp.load(self.exported.folder, GGUF, base, self.tuned, self.decisions["threads"])
        return self.spoken


def exported(run: Run) -> tuple[Artifact, Artifact]:
    """A run's exported `gguf`, and the tuned model that it was made of.

    Raises:
        UserError: there is none, or it was changed.
    """
    steps = {n.inputs["tuned"] for n in arms(run).values() if "tuned" in n.inputs}
    tuned = {found.identity: found for found in map(run.step, sorted(steps))}
    for found in _exports(run):
        if found.meta["exported_from"]["identity"] not in tuned:
            continue
        if sealed_as(found.folder, _AFTER) != found.identity:
            raise UserError(f"{found.folder} was changed after it was exported. Export it again: "
                            f"rm -r {found.folder} && luthier export {run.folder} --to gguf")
        return found, tuned[found.meta["exported_from"]["identity"]]
    raise UserError(f"--engine llamacpp serves a file of llama.cpp, and {run.folder} has none of its model in exports/. "
                    f"Make it: luthier export {run.folder} --to gguf")


def _exports(run: Run) -> Iterator[Artifact]:
    for record in sorted((run.folder / "exports").glob("*/luthier.json")):
        found = open_artifact(record.parent)
        if found.kind == "gguf":
            yield found

"""The weight executor: runs a weight rule over models of any size, one group of tensors after the other.

It owns what rules never see: files, shards, types and the order of work. In memory are one group of every model, what the
rule makes of it, and what it made of the group before, which is being written meanwhile. A shard is written beside its name and
renamed when it is whole; the journal keeps which ones are, so that a merge that was killed loses at most the shard it was
writing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from luthier.core.errors import UserError
from luthier.core.files import Journal, write_json
from luthier.core.finding import Finding, receipt
from luthier.core.kinds import WeightRule
from luthier.core.step import Progress, silent
from luthier.engine.tensors import Spec, TensorFile
from luthier.engine.weight_sources import INDEX_FILE, Stored, Weights

SHARD_BYTES = 1_000_000_000
CHECKED_SHARE = 50  # a fiftieth of the groups, spread over all, is computed again

Group = list[str]


def differences(models: Sequence[Weights], titles: Sequence[str], most: int = 5) -> list[str]:
    """In which tensors models differ from the first one by name or shape, in words; at most `most` of each kind."""
    first, found = models[0].specs, []
    for model, title in zip(models[1:], titles[1:], strict=True):
        only = sorted(first.keys() - model.specs.keys()), sorted(model.specs.keys() - first.keys())
        for names, owner in zip(only, (titles[0], title), strict=True):
            if names:
                found.append(f"{len(names)} tensors are in {owner} alone ({', '.join(names[:most])})")
        shapes = [f"{n} is {list(first[n].shape)} in {titles[0]} and {list(model.specs[n].shape)} in {title}"
                  for n in first if n in model.specs and first[n].shape != model.specs[n].shape]
        found += shapes[:most]
    return found


def tensors_of(group: Sequence[str], models: Sequence[Weights]) -> list[dict[str, torch.Tensor]]:
    """The tensors of a group, read from every model."""
    return [{name: model.read(name) for name in group} for model in models]


@dataclass
class WeightExecutor:
    """One rule over `models` (the base first, where the rule takes it) into `folder`.

    names: the tensors that the rule is asked about; `copied` are taken from the first model as they are (integers).
    title: of the files; a title with `{}` is cut into numbered shards.
    """

    rule: WeightRule
    models: Sequence[Weights]
    folder: Path
    title: str = "model{}.safetensors"
    shard_bytes: int = SHARD_BYTES
    journal: Journal | None = None
    progress: Progress = silent

    def __post_init__(self) -> None:
        first = self.models[0].specs
        self.names = [n for n, spec in first.items() if spec.dtype.is_floating_point]
        self.copied = [n for n, spec in first.items() if not spec.dtype.is_floating_point]
        self.groups: list[Group] = self.rule.groups(self.names)
        if sorted(n for g in self.groups for n in g) != sorted(self.names):
            raise ValueError(f"{self.rule.info.name}: its groups are not the given names, each once")

    def stream(self) -> Iterator[tuple[Group, list[dict[str, torch.Tensor]]]]:
        """Every group with the tensors of all models: what `ctx.stream("weights")` gives a rule."""
        for group in self.groups:
            yield group, tensors_of(group, self.models)

    def run(self, stats: Any) -> dict[str, Any]:
        """Write all shards, and the index where there are several; returns the rule's facts by group.

        Raises:
            UserError: the rule gives numbers that are not finite.
        """
        journal = self.journal or Journal(self.folder / "journal.jsonl")
        shards = self._plan(stats)
        facts: dict[str, Any] = {}
        where: dict[str, str] = {}
        for number, (groups, specs) in enumerate(shards, 1):
            name = self.title.format("" if len(shards) == 1 else f"-{number:05d}-of-{len(shards):05d}")
            facts |= journal.do(f"shard {name}", partial(self._write, name, groups, specs, stats))
            where |= dict.fromkeys(specs, name)
            self.progress(number, len(shards), "shards")
        if len(shards) > 1:
            total = sum(spec.bytes for _, specs in shards for spec in specs.values())
            write_json(self.folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))})
        return facts

    def _plan(self, stats: Any) -> list[tuple[list[Group], dict[str, Spec]]]:
        """The shards: their groups, and what they will hold. A group is never cut."""
        first = self.models[0].specs
        shards: list[tuple[list[Group], dict[str, Spec]]] = [([], {})]
        for group in [*self.groups, *([n] for n in self.copied)]:
            held = first[group[0]].dtype.is_floating_point
            specs = self.rule.specs(group, first, stats) if held else {group[0]: first[group[0]]}
            groups, there = shards[-1]
            full = sum(s.bytes for s in there.values()) + sum(s.bytes for s in specs.values()) > self.shard_bytes
            if there and full and "{}" in self.title:
                shards.append(([], {}))
                groups, there = shards[-1]
            groups.append(group)
            there.update(specs)
        return shards

    def _write(self, name: str, groups: Sequence[Group], specs: Mapping[str, Spec], stats: Any) -> dict[str, Any]:
        work, facts = self.folder / f"{name}.part", {}
        with TensorFile(work, specs) as file, ThreadPoolExecutor(1) as writer:
            written: Future[None] | None = None
            for group in groups:
                tensors = tensors_of(group, self.models)
                made = self._made(group, tensors, specs, stats)
                if written:
                    written.result()
                written = writer.submit(_put, file, made)  # while the next group is read and computed
                if group[0] not in self.copied and (said := self.rule.facts(group, tensors, stats)):
                    facts[group[0]] = said
            if written:
                written.result()
        os.replace(work, self.folder / name)
        return facts

    def _made(self, group: Group, tensors: list[dict[str, torch.Tensor]], specs: Mapping[str, Spec], stats: Any
              ) -> dict[str, torch.Tensor]:
        """What the rule makes of a group, in the types in which it is stored."""
        if group[0] in self.copied:
            if any(not torch.equal(t[group[0]], tensors[0][group[0]]) for t in tensors):
                raise UserError(f"{group[0]} holds integers that differ between the models; only equal ones can be kept.")
            return tensors[0]
        with torch.no_grad():
            made = {n: t.to(specs[n].dtype) for n, t in self.rule.apply(group, tensors, stats).items()}
        for name, tensor in made.items():
            if not finite(tensor):
                guilty = [str(i) for i, t in enumerate(tensors, 1) if name in t and not finite(t[name])]
                why = f"those of input {' and '.join(guilty)} are not" if guilty else "those of all inputs are: they overflow"
                raise UserError(f"{name} would hold numbers that are not finite; {why}. Mend or leave out what brings them.")
        return made

    def receipts(self, stats: Any) -> list[Finding]:
        """What was written is what the rule says: the number of tensors, and some of them computed again."""
        written = Stored(self.folder / self.title.format("") if "{}" not in self.title else self.folder)
        expected = sum(len(specs) for _, specs in self._plan(stats))
        found = [receipt("merge/tensors", expected, len(written.specs), unit="tensors", detail="planned; found in the files")]
        count = max(1, len(self.groups) // CHECKED_SHARE)
        chosen = [self.groups[i * len(self.groups) // count] for i in range(count)]
        wrong = []
        for group in chosen:
            again = self._made(group, tensors_of(group, self.models), written.specs, stats)
            wrong += [n for n, t in again.items() if not torch.equal(t, written.read(n))]
        told = f"{count} of {len(self.groups)} groups computed again" + (f"; {wrong[0]} differs" if wrong else "")
        return [*found, receipt("merge/written = computed", 0, len(wrong), unit="tensors", detail=told)]


def _put(file: TensorFile, made: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in made.items():
        file.put(name, tensor)


def finite(tensor: torch.Tensor) -> bool:
    """Whether all numbers are: smallest and largest are not where one is not, and need no copy of the tensor."""
    if not tensor.dtype.is_floating_point or not tensor.numel():
        return True
    return all(bool(torch.isfinite(end)) for end in tensor.aminmax())

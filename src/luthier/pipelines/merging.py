"""Merging: models found, compared, and made one by a rule on their weights, with receipts.

Everything that can be refused is looked at before a weight is read: architecture, vocabulary, tokenizer, template, the base
that each was tuned from, names and shapes of all tensors. The work is done in `.OUT.merge` beside the place and renamed when
every receipt agrees; the same command goes on where it was stopped.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.artifact import RECORD, Artifact, open_artifact, seal
from luthier.core.component import build
from luthier.core.errors import GateError, UserError
from luthier.core.files import Journal, read_json, read_lines, write_json, write_lines
from luthier.core.finding import Finding
from luthier.core.identity import digest
from luthier.core.kinds import WeightRule
from luthier.core.rng import Rng
from luthier.core.step import Ctx, Progress, silent
from luthier.pipelines.mergeable import Given, check_alike, locate, same_base

if TYPE_CHECKING:
    from luthier.engine.weight_executor import WeightExecutor

REQUEST, STATISTICS = "request.json", ".statistics"
TITLES = {"model": "model{}.safetensors", "adapter": "adapter_model.safetensors", "delta": "delta.safetensors"}


def merge(models: Sequence[str], rule: Any, out: Path, *, base: str | None = None, seed: int = 0, shard_mb: int = 1000,
          log: Callable[[str], None] = lambda text: None, progress: Progress = silent) -> tuple[Path, list[Finding]]:
    """The merged folder and its receipts.

    models: runs, folders of models, adapters or deltas, packaged models, hub ids. shard_mb: size at which a file of the
    result ends, and the most that a kill loses.

    Raises:
        UserError: models that can't be merged with one another or by this rule, or a place that is taken.
        GateError: a receipt differs; nothing appears at the place.
    """
    from luthier.engine.workshop import quiet

    quiet()
    chosen: WeightRule = build("weight_rule", rule)
    check_rule(chosen, len(models))
    given = [locate(name, base) for name in models]
    root = same_base(chosen, given, base)
    check_alike(chosen, given, root)
    request = {"rule": chosen.identity_values(), "content": chosen.content(), "seed": seed,
               "models": [g.identity for g in given], "base": root.identity if root else None, "shard_mb": shard_mb}
    if kept := _finished(out, request):
        return out, kept
    work = out.with_name(f".{out.name}.merge")
    with _alone(work):
        if not (work / REQUEST).exists() or read_json(work / REQUEST) != request:
            _empty(work)
            write_json(work / REQUEST, request)
        from luthier.engine.workshop import Engine

        scratch = work / STATISTICS
        scratch.mkdir(exist_ok=True)
        ctx = Ctx(Rng(seed).within("merge"), scratch, Journal(scratch / "journal.jsonl"), Engine(exact=True), log=log,
                  progress=progress)
        found = written(Merging(chosen, given, root, work, ctx, Journal(work / "journal.jsonl"), shard_mb), {"seed": seed})
        for name in (REQUEST, "journal.jsonl"):
            (work / name).unlink()
        write_lines(work / "receipts.jsonl", (f.to_dict() for f in found))
        # The result is a pure function of the request: no second reading of all its bytes.
        sealed(chosen, given, root, work, identity=digest(request), merge=request)
        if wrong := [f for f in found if f.verdict == "differs"]:
            raise GateError("; ".join(f"{f.name}: {f.left} and {f.right} {f.unit} ({f.detail})" for f in wrong)
                            + f". What was made is kept in {work}.")
        if out.exists():
            out.rmdir()
        os.replace(work, out)
    return out, found


def check_rule(rule: WeightRule, models: int) -> None:
    """Refuse what a rule can't do with so many models beside the base. Raises UserError."""
    least, most = rule.models
    if not least <= models <= most:
        legal = f"{least} model{'s' * (least > 1)}" if least == most else f"at least {least} models"
        raise UserError(f"--rule {rule.info.name} takes {legal}" + " beside the base" * rule.takes_base + f"; found {models}.")
    rule.check(models)


def _finished(out: Path, request: Mapping[str, Any]) -> list[Finding]:
    """The receipts of the same merge, where it stands at the place already. Raises UserError for anything else there."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return []
    if (out / RECORD).exists() and open_artifact(out).meta.get("merge") == request:
        return [Finding.from_dict(row) for row in read_lines(out / "receipts.jsonl")]
    raise UserError(f"{out} is there and not empty. Give a new or empty folder with --out.")


@contextmanager
def _alone(work: Path) -> Iterator[None]:
    """Keep a second process out of the working folder."""
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Can't write to {work.parent}: {error.strerror}. Give a writable folder with --out.") from None
    held = os.open(work, os.O_RDONLY)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"Another process is merging into {work}. Wait for it, or give another --out.") from None
        yield
    finally:
        os.close(held)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@dataclass
class Merging:
    """One merge: its parts, where it works, and what the rule's statistics are handed besides weights and models."""

    rule: WeightRule
    given: Sequence[Given]
    root: Given | None
    work: Path
    ctx: Ctx
    journal: Journal
    shard_mb: int = 1000

    @property
    def inputs(self) -> list[Given]:
        """Whose tensors the rule sees, in order."""
        return [*([self.root] if self.root and self.rule.takes_base else []), *self.given]

    @property
    def pattern(self) -> Given:
        """Whose configuration and tokenizer the result has."""
        return self.given[0]

    def context(self, executor: WeightExecutor) -> Ctx:
        """What the rule's statistics are handed."""
        engine = self.ctx.engine
        loaders: dict[str, Callable[[], Any]] = {
            "model": lambda: self.given[0].load(engine), "models": lambda: [g.load(engine) for g in self.given],
            "base": lambda: (self.root or self.given[0]).load(engine, on_base=False)}
        roles = {name: loaders[name]() for name in self.rule.roles}
        return replace(self.ctx, stream=partial(self._stream, executor), roles=roles)

    def _stream(self, executor: WeightExecutor, name: str) -> Iterable[Any]:
        kind, _, number = name.partition("/")
        return executor.stream() if kind == "weights" else self.given[int(number)].tensors() if kind == "models" else ()


def written(job: Merging, told: Mapping[str, Any]) -> list[Finding]:
    """Write weights, heads, what stands beside them and `merge.json`, which says what is `told`, too; and compare."""
    from luthier.engine.weight_executor import WeightExecutor
    from luthier.engine.weights import HEADS_FILE

    adapters = job.rule.reads == "adapter"
    executor = WeightExecutor(job.rule, [g.adapter_weights if adapters else g.weights for g in job.inputs], job.work,
                              TITLES[job.rule.leaves], job.shard_mb * 1_000_000, job.journal, job.ctx.progress)
    stats = job.rule.statistics(job.context(executor))
    facts = executor.run(stats)
    found = executor.receipts(stats)
    if job.pattern.heads and type(job.rule).heads == "kept":
        shutil.copyfile(job.pattern.head_file, job.work / HEADS_FILE)
    elif job.pattern.heads and type(job.rule).heads == "dropped":
        job.ctx.log(f"--rule {job.rule.info.name} leaves the heads of its models out")
    elif job.pattern.heads:
        heads = WeightExecutor(job.rule, [g.head_weights for g in job.given], job.work, HEADS_FILE, journal=job.journal)
        facts |= heads.run(stats)
        found += [replace(f, name=f.name.replace("merge/", "merge/heads/")) for f in heads.receipts(stats)]
    _dress(job, stats)
    if job.rule.leaves == "model":
        from luthier.engine.models import keys_of

        found.append(keys_of(job.work))
    shutil.rmtree(job.work / STATISTICS, ignore_errors=True)
    write_json(job.work / "merge.json", {"rule": job.rule.to_dict(), "models": [g.record() for g in job.given],
                                         "base": job.root.record() if job.root else None, "facts": facts,
                                         **job.rule.summary(stats), **told})
    return found


def _dress(job: Merging, stats: Any) -> None:
    """Configuration, tokenizer and licences beside the weights."""
    if job.rule.leaves == "model":
        job.pattern.copy_frame(job.work)
    elif job.rule.leaves == "adapter":
        config = read_json(job.pattern.adapter_folder / "adapter_config.json")
        write_json(job.work / "adapter_config.json", job.rule.form(config, stats))
    for given in [*job.given, *([job.root] if job.root else [])]:
        given.copy_terms(job.work)


def sealed(rule: WeightRule, given: Sequence[Given], root: Given | None, work: Path, step: str = "base", **more: Any
           ) -> Artifact:
    """The artifact in `work`. step: that of the base, in the run where the result stands."""
    first = given[0]
    heads = first.heads if type(rule).heads != "dropped" else {}
    lineage = {"name": root.title, "identity": root.identity} if root else first.lineage
    meta: dict[str, Any] = {"template": first.template, "bytes": sum(p.stat().st_size for p in work.glob("*.safetensors")),
                            "heads": {}, "labels": {}, **heads}
    if rule.reads == "adapter" and first.tuned and "fit" in first.tuned.meta:
        meta["method"] = first.tuned.meta["fit"]["method"]
    if lineage:
        # What has a head answers as something tuned on a base, of whatever form its weights are.
        meta["base"] = lineage | ({"step": step} if heads or step != "base" else {})
    if rule.leaves == "model":
        meta |= {"name": f"{rule.info.name} of {', '.join(g.title for g in given)}", "path": ".",
                 "architecture": first.architecture}
    return seal(rule.leaves, work, **meta, **more)

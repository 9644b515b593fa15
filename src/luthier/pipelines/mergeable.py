"""What can be merged: runs, model folders, adapters and deltas by one interface, and whether they fit one another."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.artifact import RECORD, Artifact, copy_licenses, open_artifact
from luthier.core.errors import UserError
from luthier.core.files import read_json
from luthier.core.identity import hash_folder
from luthier.core.run import Run

if TYPE_CHECKING:
    import torch

    from luthier.core.kinds import WeightRule
    from luthier.engine.models import Model
    from luthier.engine.weight_sources import Weights
    from luthier.engine.workshop import Engine

ADAPTER_CONFIG = "adapter_config.json"
# What does not travel with a configuration: weights, and records that speak of another folder.
_LEFT = (RECORD, "checksum.json", "receipts.jsonl", "step.json", "merge.json", "README.md", "journal.jsonl")


@dataclass
class Given:
    """One model as it was named: a base, and perhaps what was tuned on it.

    base: a `model` artifact that points at a folder with config, tokenizer and weights. tuned: an adapter, a delta or a full
    set of weights that rests on it.
    """

    title: str
    base: Artifact
    tuned: Artifact | None = None
    lineage: dict[str, Any] | None = None
    template: dict[str, Any] = field(default_factory=dict)

    @property
    def identity(self) -> str:
        """Of its weights."""
        return (self.tuned or self.base).identity

    @cached_property
    def frame(self) -> Path:
        """The folder of its configuration and tokenizer."""
        from luthier.engine.models import folder_of

        return self.tuned.folder if self.tuned and self.tuned.kind == "model" else folder_of(self.base)

    @property
    def architecture(self) -> str:
        """encoder, decoder or encoder-decoder."""
        from luthier.engine.models import architecture_of

        return architecture_of(self.frame)

    @cached_property
    def weights(self) -> Weights:
        """Its tensors, the change of an adapter or a delta made while they are read."""
        from luthier.engine.models import auto_class
        from luthier.engine.weight_sources import Adapted, Changed, Stored

        stored = Stored(self.frame)
        if self.tuned is None or self.tuned.kind == "model":
            return stored
        if self.tuned.kind == "delta":
            return Changed(stored, self.tuned.folder)
        return Adapted(stored, self.frame, auto_class(self.frame), self.tuned.folder)

    @property
    def adapter_folder(self) -> Path:
        """The PEFT folder. Raises UserError where it is no adapter."""
        if self.tuned is None or self.tuned.kind != "adapter":
            kind = self.tuned.kind if self.tuned else "model"
            raise UserError(f"{self.title} is a {kind}, and this rule works on adapters. Name runs or folders with "
                            f"{ADAPTER_CONFIG}, or set the rule's scope to whole weights where it has one.")
        return self.tuned.folder

    @cached_property
    def adapter_weights(self) -> Weights:
        """The adapter's own tensors."""
        from luthier.engine.weight_sources import ADAPTER_FILE, Stored

        return Stored(self.adapter_folder / ADAPTER_FILE)

    @property
    def heads(self) -> dict[str, Any]:
        """Its task heads, as components, with their labels."""
        meta = self.tuned.meta if self.tuned else {}
        return {"heads": meta["heads"], "labels": meta["labels"]} if meta.get("heads") else {}

    @property
    def head_file(self) -> Path:
        """Where its heads are."""
        from luthier.engine.weights import HEADS_FILE

        assert self.tuned is not None
        return self.tuned.folder / HEADS_FILE

    @cached_property
    def head_weights(self) -> Weights:
        """The tensors of its heads."""
        from luthier.engine.weight_sources import Stored

        return Stored(self.head_file)

    def same_head(self, other: Given) -> bool:
        """Whether both have the same heads, bit for bit."""
        if self.heads != other.heads:
            return False
        own, its = self.head_weights, other.head_weights
        return own.specs == its.specs and all(bool((own.read(n) == its.read(n)).all()) for n in own.specs)

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Its whole weights one by one, and those of its heads as `heads/TASK.NAME`."""
        for prefix, weights in (("", self.weights), *([("heads/", self.head_weights)] if self.heads else [])):
            for name in weights.specs:
                yield prefix + name, weights.read(name)

    def load(self, engine: Engine, on_base: bool = True) -> Model:
        """The model in memory in float32; the base alone where `on_base` is not set."""
        import torch

        from luthier.engine.models import add_tuned

        model = engine.fresh(self.base, torch.float32)
        return add_tuned(model, self.tuned) if self.tuned and on_base else model

    def record(self) -> dict[str, Any]:
        """What the record of a merge says of it."""
        return {"name": self.title, "identity": self.identity, "kind": self.tuned.kind if self.tuned else "model",
                "base": self.lineage}

    def copy_frame(self, target: Path) -> None:
        """Configuration, tokenizer and whatever else stands beside the weights."""
        for path in sorted(self.frame.iterdir()):
            if path.name in _LEFT or path.name.startswith(".") or ".safetensors" in path.name or path.suffix in (".bin", ".pt"):
                continue
            if path.is_dir():
                shutil.copytree(path, target / path.name, dirs_exist_ok=True)
            else:
                shutil.copyfile(path, target / path.name)

    def copy_terms(self, target: Path) -> None:
        """The licence files of base and tuned weights."""
        from luthier.engine.steps.base import bring_terms

        if self.tuned is not None and any((self.tuned.folder / "licenses").glob("*")):
            copy_licenses([self.tuned.folder], target)
        else:
            bring_terms(self.frame, target)


def locate(name: str, base: str | None = None) -> Given:
    """The model that a run, a folder, a packaged name or a hub id stands for. `base` is what an adapter may rest on.

    Raises:
        UserError: there is no such model, or it can't be merged.
    """
    place = Path(name).expanduser()
    if (place / "run.json").exists():
        run = Run.open(place)
        if not run.has("tuned"):
            raise UserError(f"{place} has no tuned model. Finish it first: run its command again.")
        return resting(name, run.step("tuned"), run.step("base"))
    if (place / RECORD).exists():
        artifact = open_artifact(place)
        if artifact.kind in ("adapter", "delta") or (artifact.kind == "model" and "step" in artifact.meta.get("base", {})):
            return resting(name, artifact, _base_of(artifact, base))
        if artifact.kind != "model":
            raise UserError(f"{place} holds {artifact.kind}, no model.")
        return Given(name, _whole(str(place / artifact.meta.get("path", "."))),
                     lineage=artifact.meta.get("base"), template=artifact.meta.get("template") or {})
    if (place / ADAPTER_CONFIG).exists():
        root = _whole(base or _named_base(place))
        lineage = {"name": root.meta["name"], "identity": root.identity}
        return resting(name, Artifact("adapter", place, {"base": lineage}, hash_folder(place)), root)
    return Given(name, _whole(name))


def _whole(name: str) -> Artifact:
    """A model folder as an artifact, with the identity that it has as a base."""
    from luthier.engine.models import architecture_of, base_identity, check_base, resolve

    check_base(name)
    folder = resolve(name)
    return Artifact("model", folder, {"name": name if folder != Path(name).expanduser().resolve() else folder.name,
                                      "path": str(folder), "architecture": architecture_of(folder)},
                    base_identity(folder))


def resting(title: str, tuned: Artifact, root: Artifact) -> Given:
    """A tuned artifact on its base. Raises UserError for one that was trained on another, on 4 bits, or with new tokens."""
    meta = tuned.meta
    if root.meta.get("quantize", "none") != "none":
        raise UserError(f"{title} was trained on a base in 4 bits; merged into the full base it would be another model.")
    if meta.get("new_tokens") and tuned.kind != "model":
        raise UserError(f"{title} has new tokens. Export it (luthier export RUN --to model) and merge what that gives.")
    if meta["base"]["identity"] != root.identity:
        raise UserError(f"{title} was trained on {meta['base']['name']} ({meta['base']['identity'][:8]}), not on "
                        f"{root.meta['name']} ({root.identity[:8]}). Name its own base with --base.")
    return Given(title, root, tuned, {"name": root.meta["name"], "identity": root.identity}, meta.get("template") or {})


def _base_of(tuned: Artifact, base: str | None) -> Artifact:
    """The base that a tuned artifact rests on: that of its run, the named one, or one that its own record names."""
    beside = tuned.folder.parent / str(tuned.meta["base"].get("step", "base"))
    if (beside / RECORD).exists():
        return open_artifact(beside)
    return _whole(base or str(tuned.meta["base"]["name"]))


def _named_base(adapter: Path) -> str:
    named = str(read_json(adapter / ADAPTER_CONFIG).get("base_model_name_or_path") or "")
    if not named:
        raise UserError(f"{adapter} does not say which base its adapter rests on. Name it: --base MODEL")
    return named


def same_base(rule: WeightRule, given: Sequence[Given], base: str | None) -> Given | None:
    """The base of all models, named or known from their records; none where nobody knows one.

    Raises:
        UserError: they come from different bases, the rule needs one that is not known, or one was named for nothing.
    """
    root = Given(base, _whole(base)) if base else None
    for one in given:
        if one.lineage is None or rule.forces:
            continue
        known = root.identity if root else next(g.lineage["identity"] for g in given if g.lineage)
        if one.lineage["identity"] != known:
            other = root.title if root else next(g.title for g in given if g.lineage)
            raise UserError(f"{one.title} was tuned from {one.lineage['name']} ({one.lineage['identity'][:8]}), but "
                            + (f"--base is {other}" if root else f"{other} from another base") + f" ({known[:8]}). Weights of "
                            "different bases do not add up: merge models of one base.")
    rests = next((g.base for g in given if g.tuned is not None), None)
    if root is None and rests is not None:
        root = Given(str(rests.meta["name"]), rests)
    if root is None and (rule.takes_base or "base" in rule.roles):
        raise UserError(f"--rule {rule.info.name} needs the model that the others were tuned from. Name it: --base MODEL")
    if base and not (rule.takes_base or "base" in rule.roles or rests is not None):
        raise UserError(f"--rule {rule.info.name} reads no base, and no model here rests on one. Leave out --base.")
    return root


def check_alike(rule: WeightRule, given: Sequence[Given], root: Given | None = None) -> None:
    """Refuse models that do not fit one another, their base or the rule; names what differs.

    Of a rule on adapters their own tensors count; where it `forces`, neither tokenizer nor template.

    Raises:
        UserError: another architecture, vocabulary, tokenizer, template, other heads, or tensors of other names or shapes.
    """
    _same_heads(rule, given)
    first, *others = [*([root] if root else []), *given]
    for other in others:
        for check in (_architecture, *(() if rule.forces else (_tokenizer, _template))):
            if why := check(first, other):
                raise UserError(f"{first.title} and {other.title} can't be merged: {why}")
    if rule.reads == "adapter":
        _same_adapters(given)
    else:
        _same_tensors([g.weights for g in (first, *others)], [g.title for g in (first, *others)])


def _same_heads(rule: WeightRule, given: Sequence[Given]) -> None:
    headed = [g for g in given if g.heads]
    if not headed or type(rule).heads == "dropped":
        return
    if type(rule).heads == "kept" and not all(g.same_head(headed[0]) for g in given):
        raise UserError(f"{headed[0].title} has a head of its own ({', '.join(headed[0].heads['heads'])}), which "
                        f"--rule {rule.info.name} does not merge: the result could not use it. Only a head that all models "
                        "share is kept.")
    for one in given:
        if one.heads != headed[0].heads:
            raise UserError(f"{headed[0].title} and {one.title} do not have the same heads: {headed[0].heads} and "
                            f"{one.heads or 'none'}. Merge models of one task.")
    _same_tensors([g.head_weights for g in given], [g.title for g in given])


def _same_tensors(weights: Sequence[Weights], titles: Sequence[str]) -> None:
    from luthier.engine.weight_executor import differences

    if found := differences(weights, titles):
        raise UserError(f"These models do not have the same tensors: {'; '.join(found)}. Merge models of one shape.")


def _same_adapters(given: Sequence[Given]) -> None:
    first, *rest = [(g.title, read_json(g.adapter_folder / ADAPTER_CONFIG)) for g in given]
    free = ("base_model_name_or_path", "inference_mode", "revision", "peft_version", "task_type")
    for title, config in rest:
        apart = [k for k in sorted(first[1].keys() | config.keys()) if k not in free and first[1].get(k) != config.get(k)]
        if found := [f"{key} is {first[1].get(key)!r} in {first[0]} and {config.get(key)!r} in {title}" for key in apart]:
            raise UserError(f"These adapters are not of one form: {'; '.join(found[:5])}.")
    _same_tensors([g.adapter_weights for g in given], [g.title for g in given])


def _architecture(one: Given, two: Given) -> str:
    configs = [read_json(g.frame / "config.json") for g in (one, two)]
    for key in ("model_type", "architectures"):
        found = [c.get(key) for c in configs]
        if found[0] != found[1]:
            return f"their {key} are {found[0]} and {found[1]}."
    return ""


def _tokenizer(one: Given, two: Given) -> str:
    if one.frame == two.frame:
        return ""
    from luthier.engine.models import load_tokenizer

    read = [load_tokenizer(g.frame) for g in (one, two)]
    tables = [t.get_vocab() for t in read]
    apart = sorted(tables[0].items() ^ tables[1].items(), key=lambda pair: (pair[1], pair[0]))
    if apart:
        word, number = apart[0]
        where = [t.get(word, "nowhere") for t in tables]
        return (f"their vocabularies have {len(tables[0])} and {len(tables[1])} tokens and differ first at {number}: {word!r} "
                f"is {where[0]} in the first and {where[1]} in the second. Equal rows would mean different words.")
    probe = "Hide glue is  warmed\n\tin a water-bath (60 °C), isn't it? 1234 = x_1;"
    said = [t(probe)["input_ids"] for t in read]
    if said[0] != said[1]:
        return "their tokenizers cut the same text differently. Give both the same tokenizer files."
    ends = [(t.bos_token_id, t.eos_token_id, t.pad_token_id) for t in read]
    return f"their begin, end and padding tokens are {ends[0]} and {ends[1]}." if ends[0] != ends[1] else ""


def _template(one: Given, two: Given) -> str:
    told = "Prompts would be written as one of them never saw them: tune both with one template."
    if one.template and two.template and one.template != two.template:
        key = next(k for k in sorted({*one.template, *two.template}) if one.template.get(k) != two.template.get(k))
        return f"they were tuned with different templates ('{key}'). {told}"
    if one.frame != two.frame:
        from luthier.engine.models import load_tokenizer

        chats = [load_tokenizer(g.frame).chat_template for g in (one, two)]
        if chats[0] != chats[1] and all(chats):
            return f"their chat templates differ. {told}"
    return ""

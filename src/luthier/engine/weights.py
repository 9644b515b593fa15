"""The three forms of tuned weights, each with one way to save and one way to put them on a base.

`adapter` is a PEFT folder, `delta` the tensors or entries that moved, `model` a full checkpoint. Heads lie beside any of them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from luthier.core.artifact import Artifact, copy_licenses, seal
from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.files import read_json, write_json
from luthier.engine import low_bits, new_tokens, pruning
from luthier.engine.deltas import FILE as DELTA_FILE
from luthier.engine.deltas import Delta
from luthier.engine.sparse import AT

if TYPE_CHECKING:
    from luthier.engine.models import Model

HEADS_FILE = "heads.safetensors"


def _save_adapter(model: Model, folder: Path) -> None:
    # PEFT would save whole embeddings beside the adapter when it sees a larger vocabulary than the base's.
    options: dict[str, Any] = {"save_embedding_layers": False} if model.new_tokens else {}
    model.module.save_pretrained(folder, safe_serialization=True, **options)
    # PEFT writes a card that is an empty form and names the local path of the base: ours is luthier.json.
    (folder / "README.md").unlink(missing_ok=True)
    config = read_json(folder / "adapter_config.json")
    # PEFT holds names of layers as sets, whose order is another in each process: an artifact's bytes must not be.
    held = model.module.peft_config["default"]
    ordered = {k: sorted(v) for k, v in config.items() if isinstance(getattr(held, k, None), (set, frozenset))}
    write_json(folder / "adapter_config.json", {**config, **ordered, "base_model_name_or_path": model.name})


def _load_adapter(model: Model, folder: Path) -> None:
    """Strict: every tensor of the file finds its place, and the adapter's shapes fit the base."""
    from peft import PeftConfig, get_peft_model, set_peft_model_state_dict

    low_bits.check(model, folder)
    config = PeftConfig.from_pretrained(str(folder))
    config.base_model_name_or_path = model.module.name_or_path
    wrapped = get_peft_model(model.module, config, autocast_adapter_dtype=False)
    low_bits.no_merging(wrapped)
    state = load_file(folder / "adapter_model.safetensors")
    result = set_peft_model_state_dict(wrapped, state)
    # A learned prompt is loaded apart, by PEFT itself, and then reported as a tensor that the model does not have.
    apart = {"prompt_embeddings"} if config.is_prompt_learning else set()
    lost = [k for k in getattr(result, "unexpected_keys", []) if k not in apart]
    if lost:
        raise UserError(f"The adapter in {folder} does not fit {model.name}: {len(lost)} tensors have no place "
                        f"(first: {lost[0]}).")
    wrapped.requires_grad_(False)
    model.module = wrapped
    model.taken = int(getattr(config, "num_virtual_tokens", 0) or 0)


def _save_delta(model: Model, folder: Path) -> None:
    sparse = model.sparse.tensors()
    moved = {n: p.detach().contiguous() for n, p in model.module.named_parameters()
             if p.requires_grad and f"{n}{AT}" not in sparse}
    save_file({**moved, **sparse}, folder / DELTA_FILE, metadata={"format": "pt"})


def _load_delta(model: Model, folder: Path) -> None:
    low_bits.check(model, folder)
    # Scales of weights in few bits are buffers where they are not learned.
    own, delta = {**dict(model.module.named_buffers()), **dict(model.module.named_parameters())}, Delta(folder)
    for name in delta.parts:
        if name not in own:
            raise UserError(f"The delta in {folder} does not fit {model.name}: '{name}' has no place there.")
        own[name].data.copy_(delta.apply(name, own[name].data))


def _save_model(model: Model, folder: Path) -> None:
    model.module.save_pretrained(folder, safe_serialization=True)
    model.tokenizer.save_pretrained(folder)
    if model.pictures:
        model.pictures.save(folder)
    if model.sounds:
        model.sounds.extractor.save_pretrained(folder)


def _load_model(model: Model, folder: Path) -> None:
    dtype = next(model.module.parameters()).dtype
    model.module = type(model.module).from_pretrained(
        folder, dtype=dtype, local_files_only=True, use_safetensors=True, trust_remote_code=False)
    model.module.requires_grad_(False)


SAVERS: dict[str, Callable[[Model, Path], None]] = {
    "adapter": _save_adapter, "delta": _save_delta, "model": _save_model,
}
LOADERS: dict[str, Callable[[Model, Path], None]] = {
    "adapter": _load_adapter, "delta": _load_delta, "model": _load_model,
}


def save(model: Model, kind: str, folder: Path, heads: dict[str, Any], **meta: Any) -> Artifact:
    """Seal a tuned model in `folder`: weights, heads, the licences of the base, and what it was trained on.

    heads: the head component of each task as a dictionary (`use`, fields), for building it again.
    """
    SAVERS[kind](model, folder)
    meta |= new_tokens.save(model, folder, kind) | low_bits.save(model, folder) | pruning.save(model, folder)
    if model.heads:
        tensors = {f"{task}.{n}": t.detach().contiguous() for task, head in model.heads.items()
                   for n, t in head.state_dict().items()}
        save_file(tensors, folder / HEADS_FILE, metadata={"format": "pt"})
    copy_licenses([Path(model.base.folder)], folder)
    size = sum(p.stat().st_size for p in folder.glob("*.safetensors"))
    return seal(kind, folder, heads=heads, labels=model.labels, template=model.template, bytes=size, **meta)


def go_on(model: Model, begun: Artifact) -> None:
    """Fill the adapter that a method has just put on a model with an earlier one of the same settings.

    Raises:
        UserError: an adapter of another base or settings, or one with heads or new tokens, which would begin anew.
    """
    from peft import set_peft_model_state_dict

    here = f"The adapter in {begun.folder} can't be gone on with"
    base = begun.meta["base"]
    if base["identity"] != model.base.identity:
        raise UserError(f"{here}: it was trained on {base['name']} ({base['identity'][:8]}), not on {model.name} "
                        f"({model.base.identity[:8]}).")
    if begun.meta["heads"] or begun.meta.get("new_tokens") or not hasattr(model.module, "peft_config"):
        raise UserError(f"{here}: its heads or new tokens would begin anew, or the method here makes no adapter.")
    own, was = model.module.peft_config["default"].to_dict(), read_json(begun.folder / "adapter_config.json")
    free = {"base_model_name_or_path", "inference_mode", "peft_version"}
    for name in ("peft_type", *sorted(own.keys() - free)):
        now = sorted(own[name]) if isinstance(own[name], (set, frozenset)) else own[name]
        if getattr(now, "value", now) != was.get(name):
            raise UserError(f"{here}: its {name} is {was.get(name)}, here it is {now}. Train with the same method and "
                            "settings.")
    set_peft_model_state_dict(model.module, load_file(begun.folder / "adapter_model.safetensors"))


def load_heads(model: Model, artifact: Artifact, of: str = "heads") -> None:
    """Build the heads of a tuned artifact again and fill them: those that answer, or `training_heads`."""
    if not artifact.meta.get(of):
        return
    tensors = load_file(artifact.folder / HEADS_FILE)
    model.labels = artifact.meta["labels"]
    for task, spec in artifact.meta[of].items():
        head = build("head", spec).build(model, model.labels.get(task, []))
        head.load_state_dict({n.removeprefix(f"{task}."): t for n, t in tensors.items() if n.startswith(f"{task}.")})
        model.heads[task] = head.to(model.device).eval().requires_grad_(False)
        model.head_specs[task] = spec


def pack(tree: Any, tensors: dict[str, torch.Tensor], path: str = "") -> Any:
    """A JSON skeleton of nested state; its tensors themselves go to `tensors` and are named in the skeleton."""
    if isinstance(tree, torch.Tensor):
        path = path if path not in tensors else f"{path}~{len(tensors)}"  # keys such as 1 and "1" look alike here
        tensors[path] = tree.detach()
        return {"__tensor__": path}
    if isinstance(tree, dict):
        return {"__dict__": [[k, pack(v, tensors, f"{path}/{k}")] for k, v in tree.items()]}
    if isinstance(tree, (list, tuple)):
        return [pack(v, tensors, f"{path}/{i}") for i, v in enumerate(tree)]
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    raise TypeError(f"state at {path} is a {type(tree).__name__}; a checkpoint holds tensors, numbers and strings")


def unpack(skeleton: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """The inverse of `pack`."""
    if isinstance(skeleton, dict):
        if "__tensor__" in skeleton:
            return tensors[skeleton["__tensor__"]]
        return {k: unpack(v, tensors) for k, v in skeleton["__dict__"]}
    if isinstance(skeleton, list):
        return [unpack(v, tensors) for v in skeleton]
    return skeleton

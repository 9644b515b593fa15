"""Make the environments of the peers that the benchmarks compare with: `python scripts/make_peers.py [NAME …]`.

Each peer gets an environment of its own, `benchmarks/.peers/NAME` (the variable LUTHIER_PEERS names another folder),
from the exact versions in `benchmarks/peers/NAME.txt`; no dependency is resolved, so none is fetched that is not
listed there. torch is the CPU build where pip's settings offer one; a CUDA build is refused before it is fetched,
unless `--cuda` asks for it. A stamp in each environment records from what it was made: what is up to date is left
alone, what was interrupted goes on. llama.cpp is compiled here, which takes about five minutes of one processor.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PINS = ROOT / "benchmarks" / "peers"
STAMP = ".luthier-peer"
NEED_DISK = 3.0e9


class PeerError(Exception):
    """What is lacking, and the command that mends it."""


@dataclass(frozen=True)
class Peer:
    """An environment: what it must import to count as made, modules left empty, compilers it needs."""

    name: str
    imports: tuple[str, ...]
    empty_modules: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()


PEERS = {
    peer.name: peer
    for peer in (
        Peer("trl", ("trl", "peft")),  # plain PEFT + transformers Trainer run in it too
        # Its audio reader imports torchaudio, whose builds need CUDA libraries; no text training calls it.
        Peer("llamafactory", ("llamafactory.train.tuner",), empty_modules=("torchaudio",)),
        Peer("llamacpp", ("llama_cpp",), tools=("cmake", "c++")),
    )
}


def main() -> int:
    parser = argparse.ArgumentParser(description="Make the environments of the benchmarks' peers.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(PEERS)}; all if left out")
    parser.add_argument("--jobs", type=int, default=1, help="processors that compiling may use")
    parser.add_argument("--cuda", action="store_true", help="take whatever build of torch pip chooses, CUDA included")
    args = parser.parse_args()
    unknown = sorted(set(args.names) - set(PEERS))
    if unknown:
        parser.error(f"there is no peer '{unknown[0]}'; legal are {', '.join(PEERS)}")
    try:
        for name in args.names or PEERS:
            make(PEERS[name], folder_of(name), args.jobs, args.cuda)
    except PeerError as error:
        print(f"make_peers: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("make_peers: interrupted; the same command goes on", file=sys.stderr)
        return 130
    return 0


def folder_of(name: str) -> Path:
    """Where a peer's environment is or will be."""
    return Path(os.environ.get("LUTHIER_PEERS") or ROOT / "benchmarks" / ".peers") / name


def make(peer: Peer, folder: Path, jobs: int = 1, cuda: bool = False) -> bool:
    """Bring one environment up to date. Returns whether anything had to be done."""
    pins = PINS / f"{peer.name}.txt"
    if is_current(peer, folder):
        print(f"{peer.name}: up to date")
        return False
    check(peer, folder)
    began = time.monotonic()
    print(f"{peer.name}: installing {pins.relative_to(ROOT)}", flush=True)
    if not (folder / "bin" / "python").exists():
        run([sys.executable, "-m", "venv", "--clear", str(folder)], folder)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--no-input", "--progress-bar", "off",
           "--disable-pip-version-check", "--no-deps"]
    torch = [line for line in pins.read_text(encoding="utf-8").splitlines() if line.startswith("torch==")]
    if torch and not cuda:
        install_cpu_torch(pip, torch[0], folder)
    run([*pip, "-r", str(pins)], folder, {"CMAKE_BUILD_PARALLEL_LEVEL": str(jobs)})
    for module in peer.empty_modules:
        (packages_of(folder) / f"{module}.py").write_text("", encoding="utf-8")
    for module in peer.imports:
        run([str(folder / "bin" / "python"), "-c", f"import {module}"], folder)
    (folder / STAMP).write_text(stamp(peer), encoding="utf-8")
    print(f"{peer.name}: done in {time.monotonic() - began:.0f} s", flush=True)
    return True


def is_current(peer: Peer, folder: Path) -> bool:
    """Whether the environment was made, to the end, from today's list of versions."""
    file = folder / STAMP
    return file.exists() and file.read_text(encoding="utf-8") == stamp(peer)


def stamp(peer: Peer) -> str:
    """SHA-256 over the list of versions and what is done to the environment after it."""
    done = f"{peer}|{sys.version_info[:2]}|".encode() + (PINS / f"{peer.name}.txt").read_bytes()
    return hashlib.sha256(done).hexdigest()


def check(peer: Peer, folder: Path) -> None:
    """Raises PeerError where a compiler or room on the disk is lacking."""
    lacking = [tool for tool in peer.tools if shutil.which(tool) is None]
    if lacking:
        raise PeerError(f"{peer.name} is compiled here and needs {' and '.join(lacking)}: apt-get install cmake g++")
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if free < NEED_DISK:
        raise PeerError(f"{peer.name} needs about {NEED_DISK / 1e9:.0f} GB; {free / 1e9:.1f} GB are free at {folder.parent}. "
                        "Name a larger disk: LUTHIER_PEERS=/path")


def install_cpu_torch(pip: list[str], torch: str, folder: Path) -> None:
    """Ask for the build named +cpu first, so that gigabytes of CUDA libraries are never fetched by accident."""
    try:
        run([*pip, f"{torch}+cpu"], folder)
    except PeerError as error:
        if sys.platform == "linux":
            raise PeerError(f"pip finds no CPU build of {torch} (its index or a folder of wheels must offer '{torch}+cpu'). "
                            f"Take the usual build, several GB: python scripts/make_peers.py --cuda\n{error}") from error


def packages_of(folder: Path) -> Path:
    """site-packages of an environment."""
    return next((folder / "lib").glob("python3*")) / "site-packages"


def run(command: list[str], folder: Path, extra: dict[str, str] | None = None) -> None:
    """Run a command; all it says is kept in `FOLDER/peer.log`. Raises PeerError with its last lines."""
    answer = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(extra or {})})
    said = answer.stdout + answer.stderr
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "peer.log").open("a", encoding="utf-8") as log:
        log.write(f"$ {' '.join(command)}\n{said}\n")
    if answer.returncode:
        tail = "\n".join(f"  {line}" for line in said.strip().splitlines()[-12:])
        raise PeerError(f"this failed: {' '.join(command)}\n{tail}\nEverything it said: {folder / 'peer.log'}")


if __name__ == "__main__":
    sys.exit(main())

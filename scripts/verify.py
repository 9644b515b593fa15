"""Run what the claims rest on and write `status/NNN.json`, one file a seed of the catalogue that has a component.

    python scripts/verify.py [--since COMMIT | --seeds ID…] [--fresh] [--jobs N]

First the oracle-marked tests and the contract suites of the components that realise seeds, then every mutant against
the oracle tests of its component, those in files that import the changed module first. Each outcome is kept in
`.verify/` under a digest of the sources, so that the same command goes on after an interruption; a changed source starts
over, and `--since COMMIT` then looks only at the seeds that the changes can reach. A seed's file is written as soon as
all its mutants are tried. The files hold no date, no duration and no machine: equal sources give equal files.

The libraries and the workshop are loaded once; everything runs in forks of that process, `--jobs` of them at a time.

Exit code 1 when a test fails, a mutant survives, or a component that realises a seed
has fewer than two mutants.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from luthier.core import catalog, index  # noqa: E402
from tests.contracts import mutation  # noqa: E402
from tests.contracts.evidence import Evidence  # noqa: E402

WORK = ROOT / ".verify"
STATUS = ROOT / "status"
SOURCES = ("src/**/*.py", "src/**/*.jsonl", "src/**/*.yaml", "src/**/*.json", "tests/**/*.py", "tests/**/*.yaml",
           "tests/**/*.json", "pyproject.toml", "constraints.txt")
# Changes below these can reach every seed; of the rest, only what a seed's components and tests name.
EVERYWHERE = ("src/luthier/core/", "src/luthier/engine/", "tests/conftest.py", "tests/contracts/", "pyproject.toml",
              "constraints.txt")
# Loaded before the forks: what takes long to import, here or in the libraries that tests compare with.
LIBRARIES = ("torch", "transformers", "peft", "pytest", "hypothesis", "scipy.stats", "sklearn.metrics", "pandas", "datasets",
             "sentence_transformers")
WORKSHOP = ("luthier.engine.workshop", "luthier.engine.steps.base", "luthier.engine.steps.fit")
ORACLE_SEED = re.compile(r"mark\.oracle\(\s*seed=(\d+)")
MARK = re.compile(r"mark\.oracle\(\s*seed=(\d+),\s*clause=([^,)]+)")

Outcome = dict[str, Any]  # one test: id, file, oracles, contract, outcome


# ---------------------------------------------------------------- what to look at

def digest() -> str:
    """Digest of all sources that can change an outcome."""
    found = hashlib.sha256()
    for path in sorted({p for pattern in SOURCES for p in ROOT.glob(pattern)}):
        found.update(f"{path.relative_to(ROOT)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()[:16]


def oracle_files() -> dict[str, set[int]]:
    """Test files with oracle marks, relative to the root, and the seeds that they name."""
    texts = {p: p.read_text(encoding="utf-8") for p in sorted((ROOT / "tests").rglob("test_*.py"))}
    return {str(p.relative_to(ROOT)): {int(n) for n in ORACLE_SEED.findall(text)}
            for p, text in texts.items() if "mark.oracle(" in text}


def components_of(seed: int) -> list[dict[str, Any]]:
    """The lines of the index that name the seed."""
    return [r for r in index.rows() if seed in r["seeds"] and r["kind"] != catalog.STUDY]


def all_seeds() -> list[int]:
    """The seeds that a component names."""
    return sorted({seed for r in index.rows() if r["kind"] != catalog.STUDY for seed in r["seeds"]})


def changed_since(commit: str) -> list[str]:
    """Files that differ from a commit, new ones included. Exits where git can't tell."""
    found: list[str] = []
    for command in (["diff", "--name-only", commit, "--"], ["ls-files", "--others", "--exclude-standard"]):
        done = subprocess.run(["git", "-C", str(ROOT), *command], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"--since {commit}: {done.stderr.strip()}")
        found += done.stdout.splitlines()
    return sorted(set(found))


def reached(changed: Sequence[str]) -> list[int]:
    """The seeds whose components or tests the changed files can reach; a file of a room's own reaches the room."""
    if any(path.startswith(EVERYWHERE) for path in changed):
        return all_seeds()
    tests = oracle_files()
    names = {str(mutation.path_of(r["module"]).relative_to(ROOT)): r["name"] for r in index.rows()}
    found = []
    for seed in all_seeds():
        own = {str(mutation.path_of(r["module"]).relative_to(ROOT)) for r in components_of(seed)}
        files = {f for f, seeds in tests.items() if seed in seeds}
        rooms = {str(Path(path).parent) for path in own}
        text = "".join((ROOT / f).read_text(encoding="utf-8") for f in files)
        if any(path in own | files or (path in names and re.search(rf"\b{re.escape(names[path])}\b", text))
               or (Path(path).name.startswith("_") and str(Path(path).parent) in rooms)
               or (Path(path).stem in text and path.startswith("src/luthier/pipelines/")) for path in changed):
            found.append(seed)
    return found


# ---------------------------------------------------------------- running

def read(journal: Path) -> list[dict[str, Any]]:
    """The whole lines of a journal; what a killed process left half written does not count."""
    if not journal.exists():
        return []
    text = journal.read_text(encoding="utf-8")
    journal.write_text(text[:text.rfind("\n") + 1], encoding="utf-8")
    return [json.loads(line) for line in text[:text.rfind("\n") + 1].splitlines()]


@cache
def preload(models: Path) -> None:
    """Load the libraries and the workshop once; every run below is a fork of this process and has no technique yet.

    Without the workshop where a mutant changes a part of it. Converted models are kept in `models`, for all runs. Libraries
    that start threads when they are loaded (lancedb) are not among them: a fork would be without those.
    """
    for name, value in (("OMP_NUM_THREADS", "1"), ("HF_HUB_OFFLINE", "1"), ("LUTHIER_CACHE", str(models))):
        os.environ.setdefault(name, value)
    changed = {m.module for m in mutation.declared(index.rows())}
    floors = ("luthier.core.", "luthier.engine.")
    for name in (*LIBRARIES, *(() if any(m.startswith(floors) for m in changed) else WORKSHOP)):
        try:
            importlib.import_module(name)
        except ImportError:
            if name in WORKSHOP:
                raise  # the others may be missing: tests that need an extra say so
    early = sorted(changed & set(sys.modules))
    if early:
        raise SystemExit(f"{early[0]} is loaded before its mutants are tried: take what imports it out of WORKSHOP")
    sys.modules["torch"].set_num_threads(1)
    gc.collect()
    gc.freeze()


def fork(log: Path, plugin: Evidence, *turns: Sequence[str], mutant: mutation.Mutant | None = None) -> int:
    """Start pytest over each turn of paths, until one of them fails; what it prints goes to `log`. Returns the process."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 70
        try:
            with log.open("w", encoding="utf-8") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            os.chdir(ROOT)
            if mutant is not None:
                mutation.install(mutant)
            import pytest

            first = ["-x"] if mutant is not None else ["--durations=15"]
            for paths in turns:
                if paths and (code := int(pytest.main(["-m", "", "-p", "no:cacheprovider", *first, *paths],
                                                      plugins=[plugin]))) not in (0, 5):
                    break
        finally:
            os._exit(code)
    return child


def together(starts: Iterable[Callable[[], int]], jobs: int) -> Iterator[tuple[int, int]]:
    """Run processes, `jobs` at a time; number and exit code of each as it ends."""
    waiting, running = enumerate(starts), dict[int, int]()
    while True:
        while len(running) < jobs and (item := next(waiting, None)) is not None:
            running[item[1]()] = item[0]
        if not running:
            return
        child, status = os.wait()
        yield running.pop(child), os.waitstatus_to_exitcode(status)


def evidence_for(parts: Sequence[dict[str, Any]], whole: bool) -> Callable[[Outcome], bool]:
    """Whether a described test is evidence for components: their oracle tests (`whole`: every one), their contract suites."""
    contracts = {f"{r['kind']} {r['name']}" for r in parts}

    def wanted(test: Outcome) -> bool:
        oracle = bool(test["oracles"]) and (whole or any(mutation.tests_of(r, [test]) for r in parts))
        return oracle or test["contract"] in contracts

    return wanted


def run_tests(seeds: Sequence[int], folder: Path, whole: bool, jobs: int) -> list[Outcome]:
    """Outcomes of the oracle tests and of the contract suites, of the given seeds or (`whole`) of all."""
    journal = folder / "tests.jsonl"
    parts = {r["module"]: r for seed in seeds for r in components_of(seed)}
    wanted = evidence_for(list(parts.values()), whole)
    done = read(journal)
    finished = folder / f"tests-{hashlib.sha256(repr([whole, *seeds]).encode()).hexdigest()[:8]}.done"
    rooms = tuple(f"{mutation.room_of(r)}/" for r in parts.values())
    files = [f for f, named in oracle_files().items() if whole or named & set(seeds) or f.startswith(rooms)]
    suites = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "tests" / "contracts").glob("test_*.py"))
    print(f"oracle tests and contract suites of {len(seeds)} seeds, {len(done)} outcomes known already", flush=True)
    shares = [share for n in range(jobs) if not finished.exists() and (share := [*suites, *files][n::jobs])]
    if shares:
        preload(folder / "cache")
    starts = [partial(fork, folder / f"tests-{n}.log", Evidence(journal, wanted, [t["id"] for t in done]), share)
              for n, share in enumerate(shares)]
    for number, code in together(starts, jobs):
        if code not in (0, 1, 5):  # passed, some failed, none left to run
            raise SystemExit(f"the tests could not be run: see {folder / f'tests-{number}.log'}")
    finished.touch()
    return sorted((t for t in read(journal) if wanted(t)), key=lambda t: t["id"])


def run_mutants(mutants: Sequence[mutation.Mutant], outcomes: Sequence[Outcome], folder: Path, jobs: int,
                told: Callable[[dict[str, dict[str, Any]]], None]) -> list[dict[str, Any]]:
    """For each mutant the clause and the test that killed it; empty where none did. `told` hears of those known so far."""
    journal = folder / "mutants.jsonl"
    known = {m["id"]: m for m in read(journal)}
    left = [m for m in mutants if m.id not in known]
    print(f"{len(mutants)} mutants, {len(mutants) - len(left)} known already", flush=True)
    passed = [t for t in outcomes if t["outcome"] == "passed"]
    told(known)
    if left:
        preload(folder / "cache")
    for number, code in together([partial(attack, m, passed, folder / f"mutant-{n}") for n, m in enumerate(left)], jobs):
        mutant, log = left[number], folder / f"mutant-{number}.log"
        if code not in (0, 1, 5):
            raise SystemExit(f"{mutant.id}: the tests could not be run with it: see {log}")
        known[mutant.id] = said = verdict(mutant, read(log.with_suffix(".jsonl")))
        with journal.open("a", encoding="utf-8") as file:
            file.write(json.dumps(said, ensure_ascii=False) + "\n")
        print(f"  {'killed' if said['test'] else 'SURVIVES'}  {mutant.id}", flush=True)
        told(known)
    return [known[m.id] for m in mutants]


def row_of(mutant: mutation.Mutant) -> dict[str, Any]:
    """The line of the index of the mutant's component."""
    return next(r for r in index.rows() if f"{r['kind']} {r['name']}" == mutant.component)


def attack(mutant: mutation.Mutant, passed: Iterable[Outcome], stem: Path) -> int:
    """Start the component's oracle tests with the mutant, until one fails; near files first, the others if none does."""
    tests = mutation.tests_of(row_of(mutant), passed)
    ids = {t["id"] for t in tests}
    near, far = mutation.by_nearness(mutant, row_of(mutant), {t["file"] for t in tests})
    stem.with_suffix(".jsonl").unlink(missing_ok=True)
    return fork(stem.with_suffix(".log"), Evidence(stem.with_suffix(".jsonl"), lambda test: test["id"] in ids), near, far,
                mutant=mutant)


def verdict(mutant: mutation.Mutant, outcomes: Iterable[Outcome]) -> dict[str, Any]:
    """The clause and the test that failed with a mutant, by what its tests said."""
    seeds = row_of(mutant)["seeds"]
    test = next((t for t in outcomes if t["outcome"] == "failed"), None)
    mark = next((o for o in test["oracles"] if o.get("seed") in seeds), test["oracles"][0]) if test else {}
    return {"id": mutant.id, "component": mutant.component, "what": mutant.what, "clause": mark.get("clause"),
            "test": test["id"] if test else ""}


# ---------------------------------------------------------------- the status files

def clause_rows(seed: dict[str, Any], outcomes: Iterable[Outcome]) -> list[dict[str, Any]]:
    """Each clause of a seed with its tests; its outcome is `passed`, `failed`, `skipped` or `missing`."""
    rows = []
    for clause in seed["oracles"]:
        marked = [(t, o) for t in outcomes for o in t["oracles"]
                  if o.get("seed") == seed["id"] and o.get("clause") == clause["n"]]
        said = {t["outcome"] for t, _ in marked}
        outcome = next((o for o in ("failed", "passed", "skipped") if o in said), "missing")
        rows.append({**clause, "outcome": outcome, "against": sorted({o["against"] for _, o in marked}),
                     "tests": {t["id"]: t["outcome"] for t, _ in marked}})
    return rows


def derive(clauses: Iterable[dict[str, Any]], contract: dict[str, Any]) -> str:
    """`verified`: every clause passed; `runs`: the contract suites are green; else `-`."""
    if contract["failed"] or not contract["passed"]:
        return "-"
    return "verified" if all(c["outcome"] == "passed" for c in clauses) else "runs"


def status(seed: dict[str, Any], outcomes: Sequence[Outcome], mutants: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """What stands in the seed's file."""
    parts = components_of(seed["id"])
    titles = {f"{r['kind']} {r['name']}": r["version"] for r in parts}
    suite = [t for t in outcomes if t["contract"] in titles]
    counts = Counter(t["outcome"] for t in suite)
    contract = {"passed": counts["passed"], "skipped": counts["skipped"],
                "failed": [t["id"] for t in suite if t["outcome"] == "failed"]}
    clauses = clause_rows(seed, outcomes)
    return {"seed": seed["id"], "slug": seed["slug"], "status": derive(clauses, contract), "components": titles,
            "contract": contract, "clauses": clauses,
            "mutants": [{"component": m["component"], "what": m["what"], "killed_by": m["clause"]}
                        for m in mutants if m["component"] in titles]}


def write(found: dict[str, Any]) -> None:
    """`status/NNN.json`."""
    STATUS.mkdir(exist_ok=True)
    text = json.dumps(found, ensure_ascii=False, indent=1) + "\n"
    (STATUS / f"{found['seed']:03}.json").write_text(text, encoding="utf-8")


def clear() -> None:
    """Remove the files of seeds that no component names any more."""
    for path in STATUS.glob("*.json"):
        if int(path.stem) not in all_seeds():
            path.unlink()


# ---------------------------------------------------------------- the whole

def verify(since: str | None, fresh: bool, jobs: int, only: Sequence[int] = ()) -> int:
    """Run, write the files, say what is missing; returns the exit code."""
    seeds = list(only) or (reached(changed_since(since)) if since else all_seeds())
    whole = since is None and not only
    folder = WORK / digest()
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    titles = {f"{r['kind']} {r['name']}" for seed in seeds for r in components_of(seed)}
    mutants = [m for m in mutation.declared(index.rows()) if whole or m.component in titles]
    outcomes = run_tests(seeds, folder, whole, jobs)
    rows, written = {row["id"]: row for row in catalog.rows()}, set[int]()

    def told(known: dict[str, dict[str, Any]]) -> None:
        """Write the seeds whose mutants have all been tried."""
        for seed in seeds:
            parts = {f"{r['kind']} {r['name']}" for r in components_of(seed)}
            own = [m for m in mutants if m.component in parts]
            if seed not in written and all(m.id in known for m in own):
                write(found := status(rows[seed], outcomes, [known[m.id] for m in own]))
                report(found)
                written.add(seed)

    killed = run_mutants(mutants, outcomes, folder, jobs, told)
    clear()
    return judge(outcomes, killed)


def report(found: dict[str, Any]) -> None:
    """One line a seed, and one for each clause that keeps it from being verified."""
    passed = sum(c["outcome"] == "passed" for c in found["clauses"])
    print(f"{found['seed']:>3} {found['slug']:<24} {found['status']:<9} {passed} of {len(found['clauses'])} clauses")
    for clause in found["clauses"]:
        if clause["outcome"] != "passed":
            print(f"      clause {clause['n']} {clause['outcome']}: {clause['text']}")


def judge(outcomes: Sequence[Outcome], killed: Sequence[dict[str, Any]]) -> int:
    """Name failed tests, surviving mutants and components that lack mutants; 1 where there are any."""
    failed = [t["id"] for t in outcomes if t["outcome"] == "failed"]
    alive = [m["id"] for m in killed if not m["test"]]
    bare = mutation.lacking(index.rows(), mutation.declared(index.rows()))
    for word, names in (("failed", failed), ("survives", alive), ("has fewer than two mutants", bare)):
        for name in names:
            print(f"{word}: {name}")
    print(f"{len(outcomes)} tests, {len(failed)} failed; {len(killed)} mutants, {len(alive)} survive.")
    return 1 if failed or alive or bare else 0


def main() -> None:
    """Read the options, verify."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--since", metavar="COMMIT", help="only the seeds that changes since this commit can reach")
    which.add_argument("--seeds", metavar="ID", type=int, nargs="+", default=[], help="only these seeds")
    parser.add_argument("--fresh", action="store_true", help="forget what is known of these sources")
    parser.add_argument("--jobs", metavar="N", type=int, default=os.cpu_count() or 1, help="processes at a time")
    given = parser.parse_args()
    raise SystemExit(verify(given.since, given.fresh, max(1, given.jobs), given.seeds))


if __name__ == "__main__":
    main()

"""What the tests of the commands share: a small manual, rows in every format, and ways to call `luthier`."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import luthier

SOURCE = str(Path(luthier.__file__).parents[1])  # a process of its own runs what is tested here
Page = dict[str, list[str]]  # headings of a page with the sentences below each

# Each section opens with a sentence and defines a term, so that the questions made from headings pass every filter.
MANUAL: dict[str, Page] = {
    "clamps": {
        "Bar clamps": ["Bar clamps press two boards together while the glue between them dries.",
                       "A bar clamp is a steel rail with one fixed jaw and one jaw that slides along it.",
                       "Tighten it by hand until a thin line of glue appears along the whole joint."],
        "Spring clamps": ["Spring clamps hold light parts in place for a few minutes.",
                          "A spring clamp is a pair of jaws closed by the force of a coiled wire.",
                          "It leaves no marks when its tips are covered with cork."]},
    "glues": {
        "Hide glue": ["Hide glue is warmed in a water bath before each use.",
                      "A gluepot is a double kettle that keeps the glue at sixty degrees without burning it.",
                      "Joints made with it can be opened again with steam and patience."],
        "Fish glue": ["Fish glue stays liquid at the temperature of the room.",
                      "The open time is the period in which parts can still be moved after spreading.",
                      "It reaches about twenty minutes on a cool morning."]},
    "planes": {
        "Block planes": ["Block planes trim end grain across the ends of narrow boards.",
                         "A block plane is a short tool whose blade lies at a low angle with the bevel up.",
                         "Skew it slightly to leave a cleaner surface behind."],
        "Scrapers": ["Scrapers remove what a plane would tear out of curly maple.",
                     "A scraper is a thin sheet of hardened steel with a burr turned on its edge.",
                     "Flex it between both thumbs and push it away from you."]},
    "woods": {
        "Spruce": ["Spruce carries the sound of most bowed instruments.",
                   "A growth ring is the layer of wood that a tree adds in a single year.",
                   "Narrow rings of even width are preferred for the top plate."],
        "Ebony": ["Ebony is dense enough to resist the wear of metal strings.",
                  "A fingerboard is a long strip on which the player stops the strings.",
                  "Its surface is hollowed a little along its length."]},
    "strings": {
        "Gut strings": ["Gut strings react to every change of humidity in the hall.",
                        "The speaking length is the part of a string between the nut and the bridge.",
                        "A longer one needs more tension for an equal pitch."],
        "Wound strings": ["Wound strings sound low without becoming too thick to bow.",
                          "A winding is a fine metal wire that is wrapped around the core of a string.",
                          "Silver gives more mass than aluminium at the same diameter."]},
    "varnish": {
        "Spirit varnish": ["Spirit varnish dries within an hour because its solvent leaves quickly.",
                           "A solvent is a liquid that dissolves the resin and then evaporates completely.",
                           "Ethanol of high purity prevents a cloudy film."],
        "Oil varnish": ["Oil varnish hardens slowly in the light of several summer weeks.",
                        "A ground is the first layer that seals the pores before any colour is applied.",
                        "Without it the wood would drink the colour unevenly."]},
    "bridges": {
        "Bridge feet": ["Bridge feet must touch the arched top without a gap anywhere.",
                        "The arching is the curved height of the plate above its outer edge.",
                        "Chalk shows where a foot is still too high."],
        "Sound post": ["Sound posts stand inside the body near the treble foot.",
                       "A sound post is a round stick of spruce that joins the top and the back.",
                       "Moving it by half a millimetre changes the voice of the instrument."]},
    "bows": {
        "Bow hair": ["Bow hair is replaced when it no longer grips the string.",
                     "The hank is the bundle of about one hundred and fifty hairs stretched along the stick.",
                     "Rosin is rubbed on it before the first rehearsal."],
        "Bow screws": ["Bow screws pull the frog backwards and so tighten the hair.",
                       "The frog is the sliding block that holds the hair at the hand of the player.",
                       "Loosen it after playing so that the stick keeps its camber."]},
}

# A run on the manual that takes seconds: random weights, questions from headings alone, two passes.
QUICK = ["--base", "pico", "--set", "encoder.model=pico-encoder", "--set", "questions.sources=[headings]",
         "--set", "questions.filters=[self-contained, 'answerable:gain=-100', distinct]",
         "--set", "tuned.length={epochs: 2}", "--set", "tuned.checkpoint_seconds=0", "--exact"]
# The same for `tune`.
SHORT = ["--set", "tuned.length={epochs: 1}"]


def write_manual(folder: Path, pages: Sequence[str] = tuple(MANUAL), encoding: str = "utf-8") -> Path:
    """Write pages of the manual as markdown files; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in pages:
        text = f"# {name.capitalize()}\n\n" + "\n\n".join(
            f"## {heading}\n\n" + " ".join(sentences) for heading, sentences in MANUAL[name].items())
        (folder / f"{name}.md").write_bytes((text + "\n").encode(encoding))
    return folder


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows as JSON lines; returns the path."""
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    return path


WORDS = ("amber birch cedar delta ember fjord grove heron inlet jetty knoll larch mossy north ocean pearl quartz river "
         "stone thorn umbra valley willow zephyr").split()


def question_rows(count: int = 24, start: int = 0) -> list[dict[str, str]]:
    """Rows that share few words, so that each is a cluster of its own."""
    chosen = [(WORDS[i % 24], WORDS[(7 * i + 5) % 24], i) for i in range(start, start + count)]
    return [{"question": f"Which {one} grows beside the {two} on plot {i}?", "answer": f"{two} {one} {i}"}
            for one, two, i in chosen]


def completion_rows(count: int = 24) -> list[dict[str, str]]:
    """The same as prompts and completions."""
    return [{"prompt": f"{r['question']} Answer: ", "completion": r["answer"]} for r in question_rows(count)]


def label_rows(count: int = 24, start: int = 0) -> list[dict[str, str]]:
    """Texts with one of two labels."""
    return [{"text": r["question"], "label": "even" if i % 2 == 0 else "odd"}
            for i, r in enumerate(question_rows(count, start))]


@dataclass(frozen=True)
class Said:
    """What a command returned and printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its output as JSON."""
        return json.loads(self.out)


Luthier = Callable[..., Said]


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test works in a folder of its own, without accepted terms or limits from outside."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    # Set first: what a command changes is then put back, too.
    for name in ("LUTHIER_ACCEPT_TERMS", "LUTHIER_MEMORY_LIMIT_MB"):
        monkeypatch.setenv(name, "")
    return tmp_path / "here"


@pytest.fixture(name="luthier")
def luthier_command(capsys: pytest.CaptureFixture[str]) -> Luthier:
    """`luthier("tune", "rows.jsonl")` in this process."""
    def run(*arguments: object) -> Said:
        capsys.readouterr()
        code = call(*arguments)
        printed = capsys.readouterr()
        return Said(code, printed.out, printed.err)

    return run


def call(*arguments: object) -> int:
    """One command in this process, on one processor."""
    import torch

    from luthier.cli.main import main

    threads, processors = torch.get_num_threads(), os.sched_getaffinity(0)
    os.sched_setaffinity(0, {_processor()})
    try:
        return main([str(a) for a in arguments])
    finally:
        os.sched_setaffinity(0, processors)
        torch.set_num_threads(threads)


def _processor() -> int:
    """One processor: the engine takes a thread for each it may use, and on a busy machine they wait for one another."""
    return sorted(os.sched_getaffinity(0))[-1]


def start(*arguments: object, limit_bytes: int = 0, **variables: str) -> subprocess.Popen[str]:
    """`luthier …` as a process of its own; `limit_bytes` is the size above which no file can grow."""
    processor = _processor()

    def limit() -> None:
        os.sched_setaffinity(0, {processor})
        if limit_bytes:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

    return subprocess.Popen(
        [sys.executable, "-m", "luthier.cli.main", *map(str, arguments)], text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": SOURCE, **variables}, preexec_fn=limit)


def finish(process: subprocess.Popen[str]) -> Said:
    """Wait for a process."""
    out, err = process.communicate(timeout=300)
    return Said(process.returncode, out, err)


@contextmanager
def full_disk(limit_bytes: int) -> Iterator[None]:
    """No file can grow above this size, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def refused(said: Said, *parts: str) -> None:
    """A refusal: exit code 2, one message on standard error that holds `parts`, no traceback."""
    assert said.code == 2, said
    assert "Traceback" not in said.err
    for part in parts:
        assert part in said.err, f"{part!r} is not in: {said.err}"


@pytest.fixture(scope="session")
def manual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the manual."""
    return write_manual(tmp_path_factory.mktemp("manual") / "docs")


@pytest.fixture(scope="session")
def manual_run(manual: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the manual that nothing interrupted. Tests read it and leave it as it is."""
    folder = tmp_path_factory.mktemp("runs") / "manual"
    assert call("adapt", manual, "--out", folder, *QUICK) == 0
    return folder


@pytest.fixture(scope="session")
def answers_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run tuned on questions and answers. Tests read it and leave it as it is."""
    return _tuned(tmp_path_factory.mktemp("answers"), question_rows(), "pico")


@pytest.fixture(scope="session")
def labels_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run tuned on labels. Tests read it and leave it as it is."""
    return _tuned(tmp_path_factory.mktemp("labels"), label_rows(), "pico-encoder")


def _tuned(place: Path, rows: Sequence[Mapping[str, Any]], base: str) -> Path:
    data = write_rows(place / "rows.jsonl", rows)
    assert call("tune", data, "--base", base, "--out", place / "run", "--exact", *SHORT) == 0
    return place / "run"


def step_files(run: Path) -> dict[str, tuple[int, int]]:
    """By finished step, the file that marks its end: a step that ran again has another."""
    return {p.parent.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in run.glob("steps/[!.]*/step.json")}


def lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def curve(run: Path) -> list[dict[str, Any]]:
    """The training curve without its times."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in lines(run / "steps" / "tuned" / "curve.jsonl")]


def tensors(run: Path) -> dict[str, Any]:
    """The trained tensors by file and name."""
    from safetensors.torch import load_file

    files = sorted((run / "steps" / "tuned").glob("*.safetensors"))
    return {f"{f.name}/{name}": tensor for f in files for name, tensor in load_file(f).items()}


def same_results(one: Path, two: Path) -> None:
    """Two runs agree in every answer, number and weight; seconds and memory aside."""
    import torch

    identities = [{p.parent.name: json.loads(p.read_text())["identity"] for p in run.glob("steps/[!.]*/step.json")}
                  for run in (one, two)]
    # The tuned weights are compared below, number by number: their folder also holds what PEFT writes about itself.
    assert {**identities[0], "tuned": ""} == {**identities[1], "tuned": ""}
    arms = sorted(p.name for p in one.glob("steps/arm-*"))
    for name in [f"{arm}/{file}.jsonl" for arm in arms for file in ("predictions", "scores")]:
        assert lines(one / "steps" / name) == lines(two / "steps" / name), name
    for name in ("table.json", "findings.jsonl"):
        texts = [(run / "steps" / "comparison" / name).read_text(encoding="utf-8") for run in (one, two)]
        assert texts[0] == texts[1], name
    assert curve(one) == curve(two)
    left, right = tensors(one), tensors(two)
    assert left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)
    assert not list(two.glob("steps/.*.work")), "nothing half done is left"

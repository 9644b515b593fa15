"""scripts/setup.py: choosing a Python, the stamp, the checks and the sums, without installing anything."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("luthier_setup_script", ROOT / "scripts" / "setup.py")
assert spec is not None and spec.loader is not None
setup = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = setup
spec.loader.exec_module(setup)


@pytest.fixture
def project(tmp_path):
    """A checkout with a finished `.venv`, as far as the stamp can see."""
    root = tmp_path / "checkout"
    (root / ".venv" / "bin").mkdir(parents=True)
    (root / "pyproject.toml").write_text("[project]\n")
    (root / "constraints.txt").write_text("torch==2.13.0\n")
    (root / ".venv" / "bin" / "python").touch()
    (root / ".venv" / "pyvenv.cfg").write_text("home = /usr/bin\nversion = 3.11.7\n")
    setup.write_stamp(root, root / ".venv")
    return root


@pytest.fixture
def fake_python(tmp_path, monkeypatch):
    """Put commands on an otherwise empty PATH that answer as a Python of some version would."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def add(name, version="3.11.7", missing="", code=0):
        file = folder / name
        answer = "|".join([str(file), *version.split("."), missing])
        file.write_text(f"#!/bin/sh\necho '{answer}'\nexit {code}\n")
        file.chmod(0o755)

    return add


# ---------------------------------------------------------------- the stamp


def test_a_finished_environment_is_current(project):
    assert setup.is_current(project, project / ".venv")


def test_nothing_is_run_when_the_stamp_matches(project, monkeypatch, capsys):
    def refuse(*args, **kwargs):
        raise AssertionError(f"started {args}")

    monkeypatch.setattr(subprocess, "run", refuse)
    monkeypatch.setattr(subprocess, "Popen", refuse)
    assert setup.setup(project) is False
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_a_changed_file_makes_it_stale(project, name):
    (project / name).write_text("# changed\n")
    assert not setup.is_current(project, project / ".venv")


def test_moving_a_line_between_the_files_makes_it_stale(project):
    text = (project / "pyproject.toml").read_text() + (project / "constraints.txt").read_text()
    (project / "pyproject.toml").write_text(text)
    (project / "constraints.txt").write_text("")
    assert not setup.is_current(project, project / ".venv")


def test_another_patch_of_python_makes_it_stale(project):
    (project / ".venv" / "pyvenv.cfg").write_text("version = 3.11.8\n")
    assert not setup.is_current(project, project / ".venv")


def test_an_interpreter_that_is_gone_makes_it_stale(project):
    (project / ".venv" / "bin" / "python").unlink()
    assert not setup.is_current(project, project / ".venv")


def test_an_interrupted_setup_is_stale(project):
    (project / ".venv" / ".luthier-stamp").unlink()
    assert not setup.is_current(project, project / ".venv")


def test_a_moved_checkout_is_stale_and_cleared(project, tmp_path):
    moved = project.rename(tmp_path / "elsewhere")
    assert not setup.is_current(moved, moved / ".venv")
    assert setup.must_clear(moved, moved / ".venv", setup.Python("/usr/bin/python3", (3, 11, 7), ()))


def test_only_another_minor_version_clears(project):
    venv = project / ".venv"
    assert not setup.must_clear(project, venv, setup.Python("p", (3, 11, 9), ()))
    assert setup.must_clear(project, venv, setup.Python("p", (3, 12, 1), ()))


def test_a_python_asked_for_decides(project, fake_python):
    fake_python("python3.11", "3.11.9")
    fake_python("python3.12", "3.12.1")
    assert setup.is_current(project, project / ".venv", "python3.11")
    assert not setup.is_current(project, project / ".venv", "python3.12")
    assert not setup.is_current(project, project / ".venv", "python3.13")  # does not exist: setup will say so


def test_a_folder_that_is_no_environment_is_left_alone(project):
    (project / ".venv" / "pyvenv.cfg").unlink()
    with pytest.raises(setup.SetupError, match="mv .venv"):
        setup.setup(project)


# ---------------------------------------------------------------- choosing a Python


def test_the_tested_version_comes_first(fake_python):
    fake_python("python3.13", "3.13.0")
    fake_python("python3.11", "3.11.2")
    assert setup.choose(setup.CANDIDATES).version == (3, 11, 2)


def test_plain_python3_is_taken_if_its_version_is_legal(fake_python):
    fake_python("python3", "3.12.4")
    assert setup.choose(setup.CANDIDATES).version == (3, 12, 4)


def test_an_incomplete_python_is_passed_over(fake_python):
    fake_python("python3.11", "3.11.2", missing="ensurepip")
    fake_python("python3", "3.13.0")
    assert setup.choose(setup.CANDIDATES).version == (3, 13, 0)


def test_a_command_that_fails_is_passed_over(fake_python):
    fake_python("python3.11", code=127)  # what a shim of a version manager does
    fake_python("python3.12", "3.12.1")
    assert setup.choose(setup.CANDIDATES).version == (3, 12, 1)


def test_a_missing_module_is_named_with_its_mend(fake_python):
    fake_python("apt-get")
    fake_python("python3.12", "3.12.1", missing="venv,ensurepip")
    with pytest.raises(setup.SetupError, match="venv and ensurepip.*apt-get install python3.12 python3.12-venv"):
        setup.choose(setup.CANDIDATES)


def test_no_legal_python_lists_what_was_found(fake_python):
    fake_python("apt-get")
    fake_python("python3", "3.9.2")
    with pytest.raises(setup.SetupError) as caught:
        setup.choose(setup.CANDIDATES)
    message = str(caught.value)
    assert "python3.11 does not start" in message and "python3 is 3.9.2" in message
    assert "apt-get install python3 python3-venv" in message and "PYTHON=" in message


def test_the_running_interpreter_answers():
    python = setup.probe(sys.executable)
    assert python is not None and python.version == sys.version_info[:3]


# ---------------------------------------------------------------- disk


def test_enough_disk_says_nothing(tmp_path):
    assert setup.check_disk(tmp_path, 50e9, 50e9) == ""


def test_too_little_disk_is_refused_with_both_numbers(tmp_path):
    with pytest.raises(setup.SetupError, match=r"about 4\.0 GB; 1\.2 GB are free"):
        setup.check_disk(tmp_path, 1.2e9, 50e9)


def test_too_little_temporary_space_is_refused(tmp_path):
    with pytest.raises(setup.SetupError, match="TMPDIR="):
        setup.check_disk(tmp_path, 50e9, 0.1e9)


def test_space_for_one_build_of_torch_only_is_told_on_linux(tmp_path):
    assert "CUDA build" in setup.check_disk(tmp_path, 6e9, 50e9, "Linux")
    assert setup.check_disk(tmp_path, 6e9, 50e9, "Darwin") == ""


def test_linked_files_count_once(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 100_000)
    once = setup.folder_bytes(tmp_path)
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    assert once >= 100_000 and setup.folder_bytes(tmp_path) == once


# ---------------------------------------------------------------- what pip said


def test_tally_reads_pip(tmp_path):
    wheel = tmp_path / "local-1.0-py3-none-any.whl"
    wheel.write_bytes(b"x" * 3_000_000)
    fetched = setup.tally([
        "Collecting rich>=13.8",
        "  Downloading rich-15.0.0-py3-none-any.whl.metadata (18 kB)",
        "Downloading rich-15.0.0-py3-none-any.whl (1.5 MB)",
        "Using cached numpy-2.4.6-cp311.whl (16 MB)",
        f"Processing {wheel}",
        "Installing collected packages: rich",
    ])
    assert fetched == setup.Fetched(3, 1_518_000, 16_000_000, 3_000_000)
    assert setup.report(fetched) == ("Installed 3 packages: 2 MB downloaded, 16 MB came from pip's cache,"
                                     " 3 MB came from files on this machine.")


def test_nothing_fetched_is_said():
    assert setup.report(setup.tally([])) == "Downloaded nothing."


class Pip:
    """Stands for pip: fails while it is given constraints, with the words it would use."""

    def __init__(self, words):
        self.words, self.calls = words, []

    def __call__(self, command, log):
        self.calls.append(command)
        return (1, [self.words]) if "-c" in command else (0, ["Downloading a-1-py3-none-any.whl (1 MB)"])


def test_constraints_that_cannot_be_met_are_dropped_aloud_on_another_python(project, monkeypatch, capsys):
    pip = Pip("ERROR: ResolutionImpossible")
    monkeypatch.setattr(setup, "stream", pip)
    setup.install(project, project / ".venv", setup.Python("p", (3, 13, 0), ()))
    assert "not the tested environment" in capsys.readouterr().out
    assert "-c" in pip.calls[0] and "-c" not in pip.calls[-1]


@pytest.mark.parametrize(("version", "words"), [
    ((3, 11, 7), "ERROR: ResolutionImpossible"),
    ((3, 13, 0), "ERROR: Connection refused"),
])
def test_any_other_failure_stops_with_pips_words(project, monkeypatch, version, words):
    monkeypatch.setattr(setup, "stream", Pip(words))
    monkeypatch.setattr(setup, "TESTED", ((3, 11), setup.platform.system(), setup.platform.machine()))
    with pytest.raises(setup.SetupError, match=words):
        setup.install(project, project / ".venv", setup.Python("p", version, ()))


# ---------------------------------------------------------------- the files it reads


def test_every_dependency_is_pinned():
    """A dependency without a pin would drift under the tests."""
    tomllib = pytest.importorskip("tomllib")
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = list(metadata["project"]["dependencies"])
    for name, extra in metadata["project"]["optional-dependencies"].items():
        wanted += extra if name != "docling" else []  # needs an older huggingface-hub than the one that is tested here
    requirement = pytest.importorskip("packaging.requirements").Requirement
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = [requirement(line) for line in lines if line and not line.startswith("#")]
    pins = {pin.name.lower().replace("_", "-"): pin for pin in pinned}
    for item in map(requirement, wanted):
        pin = pins.get(item.name.lower().replace("_", "-"))
        assert pin is not None, f"{item.name} has no pin in constraints.txt"
        version = str(pin.specifier).removeprefix("==")
        assert item.specifier.contains(version), f"{item.name}: the pin {version} is outside {item.specifier}"

"""The wheel that users install: built offline, unpacked into an empty folder, run from an empty folder."""

import importlib.util
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEMO = "luthier/demo/python-reference/"
EXAMPLE = ROOT / "examples" / "python-reference"
SEEDS = 210

needs_build = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("build", "hatchling")),
    reason="the packages build and hatchling are missing here; they come with the extra dev",
)


def run(*command, cwd, **environ):
    answer = subprocess.run([str(part) for part in command], cwd=cwd, env={**os.environ, **environ},
                            capture_output=True, text=True, timeout=300)
    assert answer.returncode == 0, f"{command} ended with {answer.returncode}\n{answer.stdout}\n{answer.stderr}"
    return answer.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with the wheel and the source archive."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--sdist", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """An empty folder into which the wheel was installed without dependencies."""
    target = tmp_path_factory.mktemp("target")
    wheel = next(built.glob("*.whl"))
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--no-compile",
        "--disable-pip-version-check", "--target", target, wheel, cwd=target)
    return target


@needs_build
def test_the_demo_is_in_the_wheel_and_small(built):
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        sizes = {info.filename: info.file_size for info in wheel.infolist()}
    for name in ("questions.jsonl", "LICENSE.PSF.txt"):
        assert DEMO + name in sizes
    assert sum(size for name, size in sizes.items() if name.startswith("luthier/demo/")) < 2_000_000
    shipped = {DEMO + file.relative_to(EXAMPLE).as_posix() for file in EXAMPLE.rglob("*") if file.is_file()}
    assert shipped == {name for name in sizes if name.startswith(DEMO)}


@needs_build
def test_every_file_of_the_package_is_in_the_wheel(built):
    """A pattern in .gitignore also keeps a file out of the wheel, silently."""
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
    source = ROOT / "src"
    files = [file for file in (source / "luthier").rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    missing = [str(file.relative_to(source)) for file in files if file.relative_to(source).as_posix() not in names]
    assert not missing
    assert {"luthier/py.typed", "luthier/data/catalog.jsonl", "luthier/components.jsonl"} <= names


@needs_build
def test_the_source_archive_holds_what_the_tests_need(built):
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "NOTICE", "Makefile", "constraints.txt", "scripts/setup.py", "tests/project/test_wheel.py",
            "examples/python-reference/questions.jsonl"} <= names


@needs_build
def test_the_installed_package_is_the_one_that_runs(installed, tmp_path):
    file = run(sys.executable, "-c", "import luthier; print(luthier.__file__)", cwd=tmp_path, PYTHONPATH=str(installed))
    assert Path(file.strip()).is_relative_to(installed)


@needs_build
def test_help_runs_from_the_wheel(installed, tmp_path):
    text = run(sys.executable, installed / "bin" / "luthier", "--help", cwd=tmp_path, PYTHONPATH=str(installed))
    assert "adapt" in text and "tune" in text


@needs_build
def test_the_catalogue_is_whole_in_the_wheel(installed, tmp_path):
    text = run(sys.executable, installed / "bin" / "luthier", "catalog", "--json", cwd=tmp_path,
               PYTHONPATH=str(installed))
    rows = json.loads(text)
    assert isinstance(rows, list) and len(rows) == SEEDS


@needs_build
def test_nothing_is_left_in_the_working_folder(installed, tmp_path):
    run(sys.executable, installed / "bin" / "luthier", "--help", cwd=tmp_path, PYTHONPATH=str(installed))
    assert list(tmp_path.iterdir()) == []


def test_every_folder_of_modules_is_a_package():
    """Without `__init__.py` a folder is seen neither by the import contracts nor by the index of components."""
    package = ROOT / "src" / "luthier"
    folders = {file.parent for file in package.rglob("*.py")}
    bare = sorted(str(folder.relative_to(package)) for folder in folders if not (folder / "__init__.py").exists())
    assert not bare

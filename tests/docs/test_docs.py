"""The documentation: every `$` command in it runs as it stands, links lead somewhere, and the reference holds every component.

Pages run on pico models, as they say; a command that is meant to be refused is named here with the words of its refusal.
"""

from __future__ import annotations

import html
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from luthier.core import index

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs").rglob("*.md") if "```console" in p.read_text())
REFUSED = {"luthier evaluate runs/first rows.jsonl": "were trained on"}
LONG = ("how-to/technique.md", "how-to/release.md", "how-to/documents.md", "coming-from.md")
PACKAGE = ROOT / "examples" / "component-package"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import make_docs
    finally:
        sys.path.remove(str(ROOT / "scripts"))
    out = tmp_path_factory.mktemp("site") / "docs"
    return make_docs, out, make_docs.gather(out)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The package of the how-to, installed in a folder of its own."""
    place, source = tmp_path_factory.mktemp("installed"), tmp_path_factory.mktemp("source") / "package"
    shutil.copytree(PACKAGE, source)
    done = subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index",
                           "--target", str(place), str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return place


def commands(page: str) -> list[str]:
    blocks = re.findall(r"```console\n(.*?)```", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.DOTALL)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines() if line.startswith("$ ")]


@pytest.fixture(scope="module")
def warm(installed, tmp_path_factory):
    """`warm(arguments, folder)`: exit code and errors of a luthier command, by a process that has its libraries loaded."""
    paths = [str(installed), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "NO_COLOR": "1", "COLUMNS": "200"}
    said = {name: tmp_path_factory.mktemp("said") / name for name in ("out", "err")}
    program = [sys.executable, str(Path(__file__).with_name("warm.py"))]
    with subprocess.Popen(program, env=env, text=True, cwd=said["out"].parent,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        def run(arguments: list[str], folder: Path) -> tuple[int, str]:
            told = {"argv": arguments, "folder": str(folder), **{name: str(path) for name, path in said.items()}}
            print(json.dumps(told), file=process.stdin, flush=True)
            code = int(process.stdout.readline())
            return code, said["err"].read_text(encoding="utf-8")

        yield run
        process.stdin.close()


# The tutorial and the shorter pages run every time, the others with the slow tests.
@pytest.mark.parametrize("page", [pytest.param(p, marks=pytest.mark.slow) if p in LONG else p for p in PAGES])
def test_every_command_of_a_page_runs(page, tmp_path, warm):
    for command in commands(page):
        words = shlex.split(command)
        if words[0] == "luthier":
            assert not re.search(r"[|<>;&$`]", re.sub(r"'[^']*'|\"[^\"]*\"", "", command)), "a shell is needed for this"
            code, errors = warm(words[1:], tmp_path)
        else:
            done = subprocess.run(re.sub(r"^python\b", sys.executable, command), shell=True, cwd=tmp_path, text=True,
                                  capture_output=True)
            code, errors = done.returncode, done.stderr
        expected = next((words for start, words in REFUSED.items() if command.startswith(start)), None)
        if expected is None:
            assert code == 0, f"{command}\n{errors[-3000:]}"
        else:
            assert code != 0 and expected in errors and "Traceback" not in errors, errors[-3000:]


def test_the_site_has_every_page_that_it_names(made):
    _, out, pages = made
    names = {p.relative_to(out).as_posix() for p in pages}
    told = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"]

    def walk(entry):
        for item in entry if isinstance(entry, list) else entry.values() if isinstance(entry, dict) else [entry]:
            yield from walk(item) if not isinstance(item, str) else [item]

    listed = set(walk(told))
    assert listed <= names
    reached = listed | {n for n in names if n.startswith("reference/")} | {"results.md"}
    assert names == reached, "a page that no menu shows"


def test_the_reference_holds_every_component_with_its_fields(made):
    _, out, _ = made
    for row in index.rows():
        text = (out / "reference" / f"{row['kind']}.md").read_text()
        part = text.split(f"\n## {row['name']}\n")[1].split("\n## ")[0]
        assert row["summary"] in part and all(f"| `{field}` |" in part for field in row["schema"].get("properties", {}))
    catalogue = (out / "catalogue.md").read_text()
    assert catalogue.count("\n| ") == 210 + 1 and "](evidence.md#" in catalogue
    assert "## luthier compare" in (out / "reference" / "commands.md").read_text()


def test_a_link_to_nothing_is_an_error(made, tmp_path):
    make_docs, _, _ = made
    (tmp_path / "page.md").write_text("See [there](elsewhere.md).")
    with pytest.raises(ValueError, match=r"page.md links to elsewhere.md"):
        make_docs._check(tmp_path, [tmp_path / "page.md"])


def test_links_are_made_to_fit(made):
    make_docs, _, _ = made
    text = "[a](CONTRIBUTING.md) [b](docs/rows.md#files) ![c](docs/report.png) [d](NOTICE) [e](https://example.org/x)"
    assert make_docs._relinked(text, "README.md", "index.md") == (
        "[a](contributing.md) [b](rows.md#files) ![c](report.png) d [e](https://example.org/x)")
    assert make_docs._relinked("[x](../arms.md)", "docs/how-to/a.md", "how-to/a.md") == "[x](../arms.md)"


@pytest.mark.parametrize("name", ["pyproject.toml", "luthier_halving.py"])
def test_the_package_shown_is_the_package_installed(name):
    assert (PACKAGE / name).read_text().rstrip("\n") in (ROOT / "docs" / "how-to" / "technique.md").read_text()


def leads_nowhere(page: Path, text: str, pages: dict[Path, str]) -> list[str]:
    """Links and sources of a built page to files that are not there, and to places that no element is named by."""
    found = []
    for link in set(re.findall(r'(?:src|href)=["\']?([^"\'\s>]+)', text)):
        parts = urlsplit(html.unescape(link))
        if parts.scheme or parts.netloc:
            continue
        there = (page.parent / unquote(parts.path)).resolve() if parts.path else page
        there = there / "index.html" if there.is_dir() else there
        anchor = unquote(parts.fragment)
        named = there in pages and anchor and not re.search(rf'\b(?:id|name)=["\']?{re.escape(anchor)}["\'\s>]', pages[there])
        if not there.exists() or named:
            found.append(link)
    return found


def test_the_site_builds_without_a_warning(made, tmp_path):
    pytest.importorskip("zensical")
    _, out, _ = made
    text = (ROOT / "zensical.toml").read_text().replace("build/docs", "docs").replace("build/site", "site")
    (tmp_path / "zensical.toml").write_text(text)
    shutil.copytree(out, tmp_path / "docs")
    nowhere = {f"{kind}_proxy": "http://127.0.0.1:9" for kind in ("http", "https", "all")}  # whatever it asks for is refused
    done = subprocess.run([str(Path(sys.executable).parent / "zensical"), "build", "--strict", "-f", "zensical.toml"],
                          cwd=tmp_path, capture_output=True, text=True, env={**os.environ, **nowhere})
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {p: p.read_text(encoding="utf-8") for p in (tmp_path / "site").rglob("*.html")}
    assert len(pages) > len(made[2]) - 1
    outside = [m for t in pages.values() for m in re.findall(r'(?:src|href)="(https?://[^"]+\.(?:css|js|woff2?))"', t)]
    assert not outside, "the site must be readable without a network"
    dead = [f"{page.relative_to(tmp_path)}: {link}" for page, text in pages.items() if page.name != "404.html"
            for link in leads_nowhere(page, text, pages)]
    assert not dead, "\n".join(dead)

"""The sets of documents that docs/domain-qa.md measures: `python scripts/make_sets.py FOLDER [--from DEBS]`.

Nobody here wrote them, and none is shipped: HTML pages of the PostgreSQL manual, PDF manuals, and source code of Python's
standard library. The first two come from Debian packages, fetched with `apt-get download` where they are not at hand.
Which files are taken is a rule, not a choice.
"""

from __future__ import annotations

import argparse
import gzip
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path

PAGES = 60
SMALLEST, LARGEST = 4_000, 60_000
# Folder of the set -> package -> files below usr/share. The second set came when the first had shown a fault of the reader.
PDFS = {
    "pdf": {"debian-policy": ("doc/debian-policy/fhs/fhs-3.0.pdf.gz", "doc/debian-policy/policy.pdf.gz")},
    "pdf-2": {"debian-faq": ("doc/debian/FAQ/debian-faq.en.pdf.gz",),
              "developers-reference": ("developers-reference/developers-reference.pdf",)},
}
MODULES = ("argparse", "configparser", "csv", "email", "json", "logging", "sched", "shelve", "statistics", "textwrap",
           "unittest", "zipfile")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--from", dest="debs", type=Path, help="folder with the .deb files; fetched if left out")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        pages(asked.folder / "postgresql", unpacked("postgresql-doc-15", asked.debs, Path(scratch)) / "doc/postgresql-doc-15")
        for folder, packages in PDFS.items():
            for package, names in packages.items():
                pdfs(asked.folder / folder, unpacked(package, asked.debs, Path(scratch)), package, names)
    code(asked.folder / "code")


def unpacked(package: str, debs: Path | None, scratch: Path) -> Path:
    """What a package puts below `usr/share`."""
    if debs is None:
        subprocess.run(["apt-get", "download", package], cwd=scratch, check=True, stdout=subprocess.DEVNULL)
    deb = next((debs or scratch).glob(f"{package}_*.deb"))
    subprocess.run(["dpkg-deb", "-x", deb, scratch / package], check=True)
    return scratch / package / "usr/share"


def pages(folder: Path, source: Path) -> None:
    """`PAGES` pages at equal distances in the order of names; release notes and indexes are left out."""
    found = sorted(p for p in (source / "html").glob("*.html") if SMALLEST <= p.stat().st_size <= LARGEST
                   and not p.name.startswith(("release", "bookindex", "biblio", "errcodes")))
    copied(folder, [found[i * len(found) // PAGES] for i in range(PAGES)])
    shutil.copyfile(source / "copyright", folder / "COPYING")


def pdfs(folder: Path, source: Path, package: str, names: tuple[str, ...]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        data = (source / name).read_bytes()
        (folder / Path(name).name.removesuffix(".gz")).write_bytes(gzip.decompress(data) if name.endswith(".gz") else data)
    shutil.copyfile(source / "doc" / package / "copyright", folder / f"COPYING.{package}")


def code(folder: Path) -> None:
    library = Path(sysconfig.get_paths()["stdlib"])
    for name in MODULES:
        package = library / name
        files = sorted(package.glob("*.py")) if package.is_dir() else [library / f"{name}.py"]
        copied(folder / name if package.is_dir() else folder, files)
    licence = library / "LICENSE.txt"
    if licence.exists():
        shutil.copyfile(licence, folder / "LICENSE.txt")


def copied(folder: Path, files: list[Path]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in files:
        shutil.copyfile(path, folder / path.name)


if __name__ == "__main__":
    main()

"""What was dropped on the page: checked and copied to a folder of its own, archives unpacked, before anything reads it."""

from __future__ import annotations

import os
import shutil
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from luthier.core.errors import UserError
from luthier.pipelines.unpacking import LONGEST_NAME, unpack

MEGABYTE = 1_000_000
ARCHIVE = ".zip"


@dataclass(frozen=True)
class Most:
    """What may be dropped at once."""

    files: int = 2_000
    file_megabytes: int = 200
    megabytes: int = 1_000


def take(given: Sequence[Path], folder: Path, most: Most, within: Path) -> list[Path]:
    """Copy files that were sent to `within` into `folder`, which is made anew; zip archives are unpacked there.

    Raises:
        UserError: nothing was given, or too much; a file lies elsewhere, has a name that can't be kept, or stands twice;
            an archive that is refused. The folder is gone then.
    """
    shutil.rmtree(folder, ignore_errors=True)
    if not given:
        raise UserError("Nothing was dropped. Drop files on the page, or choose them with the keyboard.")
    _check_sizes(given, most, within)
    try:
        folder.mkdir(parents=True)
        for path in given:
            name = legal(path.name)
            if name.lower().endswith(ARCHIVE):
                unpack(path, folder / name[:-len(ARCHIVE)])
            elif (folder / name).exists():
                raise UserError(f"Two of these files are named {name}. Rename one, or drop a zip archive of their folders.")
            else:
                shutil.copyfile(path, folder / name)
        return sorted(p for p in folder.rglob("*") if p.is_file())
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise UserError(f"The files can't be kept: {os.strerror(error.errno or 0)}.") from None
    except UserError:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def legal(name: str) -> str:
    """A file's name as it is kept.

    Raises:
        UserError: it leads elsewhere, is hidden, or no file here can have it.
    """
    kept = unicodedata.normalize("NFC", name)
    if kept.startswith(".") or any(c in "/\\:" or ord(c) < 32 for c in kept) or not 0 < len(kept.encode()) <= LONGEST_NAME:
        raise UserError(f"The name {name[:80]!r} can't be kept: names have no '/', '\\', ':' or control characters, don't "
                        f"begin with a dot, and have at most {LONGEST_NAME} bytes. Rename the file.")
    return kept


def _check_sizes(given: Sequence[Path], most: Most, within: Path) -> None:
    if len(given) > most.files:
        raise UserError(f"{len(given)} files were dropped; {most.files} are the most. Put them into a zip archive, or use: "
                        "luthier adapt DOCS")
    total = 0
    for path in given:
        # A request may name any file of this machine as one that it sent.
        if not path.resolve().is_relative_to(within.resolve()) or not path.is_file():
            raise UserError("A file that was not sent to this page is named. Drop it again.")
        size = path.stat().st_size
        total += size
        if size > most.file_megabytes * MEGABYTE:
            raise UserError(f"{path.name} has {size / MEGABYTE:,.0f} MB; {most.file_megabytes} MB are the most (--max-mb).")
    if total > most.megabytes * MEGABYTE:
        raise UserError(f"The files have {total / MEGABYTE:,.0f} MB together; {most.megabytes} MB are the most. Use: luthier "
                        "adapt DOCS")

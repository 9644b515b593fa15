"""Archives of documents: looked over before anything is unpacked, and unpacked into one folder alone."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path
from zipfile import ZipInfo

from luthier.core.errors import UserError
from luthier.techniques.data._shared import NotRead
from luthier.techniques.data._zipped import container

LONGEST_NAME = 200  # bytes of one part of a path


def unpack(archive: Path, folder: Path) -> list[Path]:
    """Write the files of a zip archive below `folder`; returns them.

    Raises:
        UserError: it unpacks to too much, a name leads out of it or stands twice, an entry is a link or under a password,
            or it is damaged. Nothing was written then, or what was written has been taken away.
    """
    existed = folder.exists()
    try:
        with container(str(archive)) as packed:
            entries = [entry for entry in packed.infolist() if not entry.is_dir()]
            _check(entries)
            written = [folder / entry.filename for entry in entries]
            for entry, target in zip(entries, written, strict=True):
                target.parent.mkdir(parents=True, exist_ok=True)
                # Exclusive: two names that are one on this disk must not write over each other.
                with packed.open(entry) as source, target.open("xb") as copy:
                    shutil.copyfileobj(source, copy)
        return written
    except NotRead as why:
        raise UserError(f"{archive.name} was refused: {why.reason}: {why.detail}.") from None
    except Exception as error:
        if not existed:
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, UserError):
            raise
        raise UserError(f"{archive.name} can't be unpacked: {error}. Save it anew.") from None


def _check(entries: list[ZipInfo]) -> None:
    seen: set[str] = set()
    for entry in entries:
        name = entry.filename
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise NotRead("unsafe", f"{name[:80]} is a link; put the file itself into it")
        if any(ord(c) < 32 for c in name) or any(len(part.encode()) > LONGEST_NAME for part in name.split("/")):
            raise NotRead("unsafe", f"the name {name[:80]!r} can't be a file's here; save it under another one")
        if name.casefold() in seen:
            raise NotRead("damaged", f"{name[:80]} stands in it twice; save it anew")
        seen.add(name.casefold())
    if not entries:
        raise NotRead("empty", "there is no file in it")

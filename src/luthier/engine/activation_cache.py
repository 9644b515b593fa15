"""Activations on disk: hidden states by row, in one mapped file.

A folder holds `states.bin` (every row's [tokens, width] one after another), `written.bin` (a byte a row, set when the
row is safe on disk) and `header.json` with the key of what the states are a function of. Space is reserved at the
start, so that a full disk is found out before the work and not in the middle of it. Rows are read through the map and
given back to the system at once: what stays in memory does not grow with the number of rows.
"""

from __future__ import annotations

import mmap
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from luthier.core.files import read_json, write_json

VERSION = 1
# Bytes that are written before they are flushed and marked: what a kill may cost.
FLUSH_BYTES = 1 << 24


class ActivationCache:
    """States of rows of known lengths. `key` names what they were computed from; another key starts afresh.

    Raises:
        OSError: the file system has no room for all rows.
    """

    def __init__(self, folder: Path, key: str, lengths: Sequence[int], width: int, dtype: torch.dtype) -> None:
        self.folder, self.width, self.dtype = folder, width, dtype
        self.starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        self.row_bytes = width * dtype.itemsize
        self._waiting: set[int] = set()
        self._unsafe_bytes = 0
        header = {"version": VERSION, "key": key, "rows": len(lengths), "tokens": int(self.starts[-1]), "width": width,
                  "dtype": str(dtype).removeprefix("torch.")}
        if not self._holds(header):
            self._reserve(header)
        self._states = _mapped(folder / "states.bin")
        self._written = _mapped(folder / "written.bin")

    def _holds(self, header: dict[str, object]) -> bool:
        path = self.folder / "header.json"
        return path.exists() and read_json(path) == header

    def _reserve(self, header: dict[str, object]) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        try:
            for name, size in (("states.bin", int(self.starts[-1]) * self.row_bytes),
                               ("written.bin", len(self.starts) - 1)):
                with (self.folder / name).open("wb") as file:
                    os.posix_fallocate(file.fileno(), 0, size)
        except OSError:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        # Last, so that a header always stands beside whole files.
        write_json(self.folder / "header.json", header)

    def missing(self, rows: Sequence[int]) -> list[int]:
        """Those of these rows that are not there yet."""
        return [r for r in rows if not self._written[r] and r not in self._waiting]

    def write(self, row: int, states: torch.Tensor) -> None:
        """Store one row's states [tokens, width]. It counts as written after the next `flush`."""
        begin, end = self._span(row)
        raw = states.detach().to("cpu", self.dtype).contiguous().view(torch.uint8).flatten()
        if len(raw) != end - begin:
            raise ValueError(f"row {row} has {end - begin} bytes, not {len(raw)}")
        self._states[begin:end] = raw.numpy().tobytes()
        self._waiting.add(row)
        self._unsafe_bytes += end - begin
        if self._unsafe_bytes >= FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Bring what was written to disk, then mark it: a marked row is whole."""
        if self._waiting:
            self._states.flush()
            for row in sorted(self._waiting):
                self._written[row] = 1
            self._written.flush()
            self._states.madvise(mmap.MADV_DONTNEED)
            self._waiting, self._unsafe_bytes = set(), 0

    def read(self, rows: Sequence[int]) -> torch.Tensor:
        """[tokens of all these rows, width] states, row after row; a copy."""
        found = torch.empty(sum(self._bytes(r) for r in rows), dtype=torch.uint8)
        at = 0
        for row in rows:
            begin, end = self._span(row)
            if end > begin:
                found[at:at + end - begin] = torch.frombuffer(self._states, dtype=torch.uint8, count=end - begin,
                                                              offset=begin)
                self._forget(begin, end)
            at += end - begin
        return found.view(self.dtype).view(-1, self.width)

    def close(self) -> None:
        """Unmap the files; rows that were not flushed don't count as written."""
        self._states.close()
        self._written.close()

    @property
    def bytes(self) -> int:
        """Size on disk."""
        return int(self.starts[-1]) * self.row_bytes

    def _span(self, row: int) -> tuple[int, int]:
        return int(self.starts[row]) * self.row_bytes, int(self.starts[row + 1]) * self.row_bytes

    def _bytes(self, row: int) -> int:
        begin, end = self._span(row)
        return end - begin

    def _forget(self, begin: int, end: int) -> None:
        """Pages that were read count as this process's memory until they are given back."""
        page = begin // mmap.PAGESIZE * mmap.PAGESIZE
        self._states.madvise(mmap.MADV_DONTNEED, page, end - page)


def _mapped(path: Path) -> mmap.mmap:
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), 0)

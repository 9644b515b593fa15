"""The file of states: what is marked is whole, another key starts afresh, memory does not grow, a full disk is told."""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from luthier.engine import activation_cache
from luthier.engine.activation_cache import ActivationCache

LENGTHS = (3, 1, 5, 2)


def states(row: int, dtype=torch.float32, width: int = 4, lengths=LENGTHS):
    make = torch.Generator().manual_seed(row)
    return torch.randn(lengths[row], width, generator=make).to(dtype)


def opened(folder, key="k", dtype=torch.float32, lengths=LENGTHS, width=4):
    return ActivationCache(folder / "a", key, lengths, width, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_written_is_read_bit_for_bit_in_any_order(tmp_path, dtype):
    cache = opened(tmp_path, dtype=dtype)
    for row in (2, 0, 3, 1):
        cache.write(row, states(row, dtype))
    cache.flush()
    for order in ([0, 1, 2, 3], [3, 1], [2, 2, 0]):
        assert torch.equal(cache.read(order), torch.cat([states(r, dtype) for r in order]))
    assert cache.bytes == sum(LENGTHS) * 4 * dtype.itemsize
    header = json.loads((tmp_path / "a" / "header.json").read_text())
    assert header["dtype"] == str(dtype).removeprefix("torch.") and header["tokens"] == sum(LENGTHS)


def test_a_row_counts_as_written_when_it_is_on_disk(tmp_path):
    cache = opened(tmp_path)
    cache.write(1, states(1))
    assert cache.missing(range(4)) == [0, 2, 3]
    again = opened(tmp_path)
    assert again.missing(range(4)) == [0, 1, 2, 3], "not flushed: another process may not rely on it"
    cache.flush()
    again = opened(tmp_path)
    assert again.missing(range(4)) == [0, 2, 3] and torch.equal(again.read([1]), states(1))


@pytest.mark.parametrize("other", [{"key": "other"}, {"dtype": torch.bfloat16}, {"lengths": (3, 1, 5, 3)}, {"width": 2}])
def test_states_of_something_else_are_not_used(tmp_path, other):
    cache = opened(tmp_path)
    cache.write(0, states(0))
    cache.flush()
    cache.close()
    again = opened(tmp_path, **other)
    assert again.missing(range(4)) == [0, 1, 2, 3]


def test_rows_of_another_size_are_refused(tmp_path):
    with pytest.raises(ValueError, match="row 1 has 16 bytes, not 80"):
        opened(tmp_path).write(1, states(2))


@pytest.mark.parametrize("milliseconds", [0, 3, 11])
def test_after_a_kill_every_marked_row_is_whole(tmp_path, milliseconds, monkeypatch):
    monkeypatch.setattr(activation_cache, "FLUSH_BYTES", 3000)
    lengths = [(7 * i) % 13 + 1 for i in range(400)]
    child = os.fork()
    if child == 0:
        cache = opened(tmp_path, lengths=lengths)
        for row in range(len(lengths)):
            cache.write(row, states(row, lengths=lengths))
        time.sleep(60)
        os._exit(0)
    marks = tmp_path / "a" / "written.bin"
    while not (marks.exists() and (tmp_path / "a" / "header.json").exists() and any(marks.read_bytes())):
        time.sleep(0.001)
    time.sleep(milliseconds / 1000)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    cache = opened(tmp_path, lengths=lengths)
    missing = set(cache.missing(range(len(lengths))))
    assert len(missing) < len(lengths)
    for row in set(range(len(lengths))) - missing:
        assert torch.equal(cache.read([row]), states(row, lengths=lengths))


def resident() -> int:
    """Bytes of this process in memory, mapped files included."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_memory_does_not_grow_with_the_rows(tmp_path):
    lengths = [64] * 400
    cache = opened(tmp_path, lengths=lengths, width=512)
    block = torch.ones(64, 512)
    cache.write(0, block)
    before = resident()
    for row in range(1, 400):
        cache.write(row, block)
    cache.flush()
    for row in range(400):
        assert cache.read([row])[0, 0] == 1
    assert cache.bytes > 50e6 and resident() - before < 25e6, "the rows waiting for a flush, and no more"


def test_a_full_disk_is_told_before_anything_is_computed(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        opened(tmp_path)
    assert not (tmp_path / "a").exists()

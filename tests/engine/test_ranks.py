"""Two ranks train what one process trains: every loss, every weight, whatever happens to either of them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.core.rng import Rng
from luthier.engine.loop import rows_at
from tests.engine import pair

ROOT = Path(__file__).parents[2]


def launch(*command: object, ranks: int = 2, **variables: str) -> list[subprocess.Popen[str]]:
    """What a launcher does: the same command several times, each with its rank in the environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "OMP_NUM_THREADS": "1", "MASTER_ADDR":
              "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks), **variables}
    return [subprocess.Popen([sys.executable, "-m", *map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                             text=True, env={**shared, "RANK": str(i), "LOCAL_RANK": str(i)}) for i in range(ranks)]


def close(one, other, tolerance: float = 1e-6) -> None:
    """Two results agree in every loss and every weight."""
    assert len(one["curve"]) == len(other["curve"])
    for a, b in zip(one["curve"], other["curve"], strict=True):
        assert a.keys() == b.keys() and a["tokens"] == b["tokens"] and a["step"] == b["step"]
        assert a["loss"] == pytest.approx(b["loss"], abs=tolerance, rel=tolerance)
    for a, b in zip(one["weights"], other["weights"], strict=True):
        assert a == pytest.approx(b, abs=5e-5)


@pytest.fixture(scope="module")
def found(pico, tmp_path_factory):
    out = tmp_path_factory.mktemp("pair")
    processes = launch("tests.engine.pair", pico.folder, out)
    said = [p.communicate(timeout=300) for p in processes]
    assert [p.returncode for p in processes] == [0, 0], "\n".join(err for _, err in said)
    return {**json.loads((out / "found.json").read_text()), "folder": out}


def test_the_loss_is_that_of_one_process_even_where_a_rank_has_no_rows(found, pico, engine, tmp_path):
    close(found["plain"], pair.result(pair.trained(pico, engine, tmp_path / "loop")))


def test_a_part_that_nothing_counts_is_counted_once(found, pico, engine, tmp_path):
    whole = pair.result(pair.trained(pico, engine, tmp_path / "loop", pair.Penalty))
    close(found["penalty"], whole)
    assert whole["curve"][0]["parts"]["penalty"] > 0.1


def test_dropout_is_repeatable_with_the_same_ranks(found):
    assert found["dropout"] == found["again"] != found["plain"]


def test_memory_that_runs_out_on_one_rank_halves_on_all(found):
    close(found["hungry"], found["plain"])


def test_a_row_of_another_rank_is_named(found):
    mine = rows_at(Rng(0).within("loop").within("loop").within("task"), 0, pair.ROWS, pair.BATCH, rank=1, ranks=2)
    assert len(mine) == 2 and 7 in mine
    assert "The loss of step 1 is nan: rows row7. The last checkpoint is kept" in found["poison"]


def test_full_fine_tuning_whole_and_sharded_is_that_of_one_process(found, pico, engine, tmp_path):
    one = pair.weights_of(pair.full(pico, engine, tmp_path / "loop"))
    close(found["full"], one, 2e-6)
    close(found["sharded"], one, 2e-6)
    close(pair.weights_of(pair.full(pico, engine, found["folder"] / "fewer/loop")), one, 2e-6)


def test_a_sharded_training_that_keeps_weights_frozen_is_refused():
    from luthier.core.errors import UserError
    from luthier.engine.steps.fit import Fit

    with pytest.raises(UserError, match="sharding: fsdp is for training that moves every weight.*'lora' needs sharding: none"):
        Fit(sharding="fsdp").check()
    Fit(sharding="fsdp", method="full").check()


def test_one_process_has_nothing_to_shard(pico, engine, tmp_path):
    from luthier.core.errors import UserError

    with pytest.raises(UserError, match="divides weights among several processes, and there is one"):
        pair.full(pico, engine, tmp_path / "loop", sharded=True)


def test_a_process_of_a_group_leaves_with_its_code_whatever_still_runs():
    program = ("import atexit, threading, time; from luthier.engine.distributed import leave; "
               "atexit.register(print, 'handlers ran'); threading.Thread(target=time.sleep, args=[60]).start(); leave(3)")
    left = subprocess.run([sys.executable, "-c", program], text=True, capture_output=True, timeout=30,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert (left.returncode, left.stdout, left.stderr) == (3, "handlers ran\n", "")

"""A file of llama.cpp behind the scheduler's interface. The oracle: a stand-in for the binding that computes with the model
itself, row by row, and checks every position; so answers must be those of `Scheduler`, whoever joins, leaves or waits."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from luthier.core.component import build
from luthier.core.errors import LuthierError, UserError
from luthier.core.rng import Rng
from luthier.engine.generation import scheduler_of
from luthier.engine.llamacpp import CALL, LlamaCpp, LlamaScheduler
from luthier.engine.models import load_base
from luthier.engine.scheduling import Request, Scheduler

PROMPTS = [[1, 40, 41], [1, 7], [1, *range(20, 80)], [1, 300, 5, 9, 9, 9, 2], [1, 99, 98, 97]]


class StandIn:
    """What `llama_cpp` is asked for here, answered by a model of torch that reads each row anew."""

    def __init__(self, module):
        self.module, self.rows, self.scores, self.calls = module, {}, {}, []
        self.fail = False

    def __getattr__(self, name):
        if name.endswith("_params"):
            return SimpleNamespace
        raise AttributeError(name)

    llama_log_callback = staticmethod(lambda function: function)
    llama_log_set = staticmethod(lambda *_: None)
    llama_model_n_ctx_train = staticmethod(lambda model: 4096)
    llama_init_from_model = staticmethod(lambda model, asked: asked if asked.n_ctx else None)
    llama_model_get_vocab = llama_get_memory = staticmethod(lambda thing: thing)

    def llama_model_load_from_file(self, path, asked):
        return path if path.endswith(b".gguf") else None

    def llama_vocab_n_tokens(self, vocab):
        return self.module.config.vocab_size

    def llama_batch_init(self, tokens, width, rows):
        lists = {name: [0] * tokens for name in ("token", "pos", "n_seq_id", "logits")}
        return SimpleNamespace(n_tokens=0, seq_id=[[0] for _ in range(tokens)], **lists)

    def llama_memory_clear(self, memory, data):
        self.rows.clear()

    def llama_memory_seq_rm(self, memory, row, begin, end):
        self.rows.pop(row)

    def llama_decode(self, context, batch):
        if self.fail:
            return 1
        self.calls.append(batch.n_tokens)
        for n in range(batch.n_tokens):
            held = self.rows.setdefault(batch.seq_id[n][0], [])
            assert batch.pos[n] == len(held) and batch.n_seq_id[n] == 1
            held.append(batch.token[n])
            if batch.logits[n]:
                with torch.no_grad():
                    self.scores[n] = self.module(torch.tensor([held])).logits[0, -1].float().numpy()
        return 0

    def llama_get_logits_ith(self, context, n):
        return self.scores[n]


@pytest.fixture
def plain(pico):
    return load_base(pico)


@pytest.fixture
def binding(plain, monkeypatch):
    made = StandIn(plain.module)
    monkeypatch.setitem(sys.modules, "llama_cpp", made)
    return made


@pytest.fixture
def model(pico, binding, tmp_path):
    found = load_base(pico)
    found.module = LlamaCpp(tmp_path / "model.gguf", threads=1, rows=3)
    return found


def requests(decoder, likely=None):
    return [Request(list(p), build("decoder", decoder), Rng(3).within(f"item/{n}"), likely=likely)
            for n, p in enumerate(PROMPTS)]


def answered(scheduler, asked):
    for request in asked:
        scheduler.submit(request)
    gone = []
    while not scheduler.idle:
        gone += scheduler.step()
    assert sorted(map(id, gone)) == sorted(map(id, asked)), "each is given back once"
    return [(r.written, r.stopped) for r in asked]


@pytest.mark.oracle(clause="a file answers as its model", against="Scheduler on the model itself")
@pytest.mark.parametrize("decoder", ["greedy:max_new_tokens=9", "sample:temperature=1.3,top_p=0.9,max_new_tokens=9"])
def test_answers_are_those_of_the_model(model, plain, binding, decoder):
    ends = sorted(plain.stop_ids)
    mine, theirs = requests(decoder, likely=2), requests(decoder, likely=2)
    scheduler = scheduler_of({"policy": model}, ends)
    assert isinstance(scheduler, LlamaScheduler)
    assert answered(scheduler, mine) == answered(Scheduler({"policy": plain}, ends), theirs)
    for one, other in zip(mine, theirs, strict=True):
        for a, b in zip(one.weighed, other.weighed, strict=True):
            assert [t for t, _ in a] == [t for t, _ in b] and [w for _, w in a] == pytest.approx([w for _, w in b], abs=1e-4)
    assert binding.rows == {} and max(binding.calls) <= CALL


def test_requests_join_leave_and_share_steps(model, plain, binding):
    ends = sorted(plain.stop_ids)
    alone = answered(LlamaScheduler({"policy": model}, ends), requests("greedy:max_new_tokens=9"))
    scheduler, asked = LlamaScheduler({"policy": model}, ends), requests("greedy:max_new_tokens=9")
    for request in asked[:3]:
        scheduler.submit(request)
    scheduler.step()
    scheduler.submit(asked[3])
    asked[1].cancelled = True
    assert scheduler.step() == [asked[1]], "who left gives the row back at the next step"
    assert len(binding.rows) == 3 and asked[3].written, "and the next one has it"
    scheduler.submit(asked[4])
    while not scheduler.idle:
        scheduler.step()
    for n in (0, 2, 3, 4):
        assert (asked[n].written, asked[n].stopped) == alone[n]


def test_a_long_prompt_is_read_in_several_calls(model, plain, binding):
    prompt = [1, *(20 + n % 500 for n in range(2 * CALL + 30))]
    pair = [Request(list(prompt), build("decoder", "greedy:max_new_tokens=3"), Rng(0)) for _ in range(2)]
    ends = sorted(plain.stop_ids)
    assert answered(LlamaScheduler({"policy": model}, ends), pair[:1]) == answered(Scheduler({"policy": plain}, ends), pair[1:])
    assert binding.calls[:3] == [CALL, CALL, 31]


def test_what_it_cannot_do_is_refused(model, binding, tmp_path, monkeypatch):
    with pytest.raises(LuthierError, match="one model"):
        LlamaScheduler({"policy": model, "other": model}, [2])
    scheduler = LlamaScheduler({"policy": model}, [2])
    with pytest.raises(UserError, match="llama.cpp keeps 12288 here"):
        scheduler.submit(Request([1], build("decoder", "greedy:max_new_tokens=20000"), Rng(0)))
    with pytest.raises(UserError, match="can't read"):
        LlamaCpp(tmp_path / "model.bin", threads=1)
    with pytest.raises(UserError, match="no room"):
        LlamaCpp(tmp_path / "model.gguf", threads=1, cells=0)
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(UserError, match="pip install llama-cpp-python"):
        LlamaCpp(tmp_path / "model.gguf", threads=1)


def test_a_call_that_fails_is_told_and_the_next_scheduler_begins_anew(model, binding):
    scheduler = LlamaScheduler({"policy": model}, [2])
    scheduler.submit(Request([1, 40], build("decoder", "greedy:max_new_tokens=5"), Rng(0)))
    scheduler.step()
    binding.fail = True
    with pytest.raises(LuthierError, match="could not compute 1 tokens"):
        scheduler.step()
    binding.fail = False
    assert answered(LlamaScheduler({"policy": model}, [2]), requests("greedy:max_new_tokens=4"))

"""Continuous batching: the answers of transformers, whatever the company, the beginning or the window."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2MoeConfig, Qwen2MoeForCausalLM

from luthier.core.component import build
from luthier.core.errors import LuthierError, UserError
from luthier.core.files import Journal
from luthier.core.rng import Rng
from luthier.engine import generation, scheduling, slots
from luthier.engine.forward import packs
from luthier.engine.generation import generate, scheduler_of
from luthier.engine.models import load_base
from luthier.engine.scheduling import Request, Scheduler, beginnings
from luthier.engine.scoring import score_tokens
from tests.engine.test_packing import gemma, rows_of, wrapped

NEW = 9


@pytest.fixture(params=["llama", "gemma3"])
def model(request, pico):
    made = load_base(pico) if request.param == "llama" else wrapped(gemma(window=8), "decoder", pico)
    assert packs(made)
    return made


def greedy(tokens: int = NEW):
    return build("decoder", f"greedy:max_new_tokens={tokens}")


def theirs(model, prompt, ends):
    """What transformers' own generate continues with, no end token."""
    made = model.module.generate(torch.tensor([prompt]), max_new_tokens=NEW, do_sample=False, eos_token_id=list(ends),
                                 pad_token_id=0)[0, len(prompt):].tolist()
    stop = next((i for i, t in enumerate(made) if t in ends), len(made))
    return made[:stop]


def served(model, prompts, shared=(), ends=(2,), decoder=None, **options):
    scheduler = Scheduler({"policy": model}, ends, **options)
    requests = [Request(p, decoder or greedy(), Rng(0).within(f"item/{i}")) for i, p in enumerate(prompts)]
    for i, request in enumerate(requests):
        scheduler.submit(request, shared[i] if shared else ())
    while not scheduler.idle:
        scheduler.step()
    assert not scheduler.voices["policy"].lanes, "no keys are kept for nobody"
    return [r.written for r in requests]


def some(model, lengths=(3, 30, 12, 12, 21, 7), seed=0):
    return rows_of(lengths, seed, top=min(300, model.module.config.vocab_size))


@pytest.mark.parametrize("options", [{}, {"rows": 2}, {"read_tokens": 16}])
def test_answers_are_those_of_transformers(model, options):
    prompts = some(model)
    assert served(model, prompts, **options) == [theirs(model, p, {2}) for p in prompts]


@pytest.mark.parametrize("own", [1, 5])
def test_a_shared_beginning_changes_no_answer(model, own):
    start = some(model, (20,), seed=3)[0]
    prompts = [start + r for r in some(model, (own, 4, 9, 2), seed=5)]
    shared = [tuple(start)] * len(prompts)
    expected = [theirs(model, p, {2}) for p in prompts]
    assert served(model, prompts, shared) == expected
    assert served(model, prompts, shared, rows=2) == expected


def test_several_lanes_at_once_change_no_answer(model):
    starts = some(model, (18, 25), seed=3)
    prompts = [starts[i % 2] + r if i < 4 else r for i, r in enumerate(some(model, (4, 9, 2, 6, 11, 3), seed=5))]
    shared = [tuple(starts[i % 2]) if i < 4 else () for i in range(6)]
    assert served(model, prompts, shared) == [theirs(model, p, {2}) for p in prompts]


def test_answers_end_at_their_own_time(model):
    prompts = some(model)
    free = served(model, prompts, ends=())
    ends = (free[1][2], free[4][0])
    for answer, whole in zip(served(model, prompts, ends=ends, rows=3), free, strict=True):
        stop = next((i for i, t in enumerate(whole) if t in ends), len(whole))
        assert answer == whole[:stop]
    assert all(len(a) == NEW for a in free)


def test_requests_with_decoders_of_their_own_share_a_batch(model):
    prompts = some(model)
    sample = build("decoder", f"sample:max_new_tokens={NEW}")
    alone = {d.identity: served(model, prompts, decoder=d) for d in (greedy(), sample)}
    scheduler = Scheduler({"policy": model}, (2,))
    requests = [Request(p, sample if i % 2 else greedy(), Rng(0).within(f"item/{i}")) for i, p in enumerate(prompts)]
    for request in requests:
        scheduler.submit(request)
    while not scheduler.idle:
        scheduler.step()
    assert [r.written for r in requests] == [alone[r.decoder.identity][i] for i, r in enumerate(requests)]


def test_tokens_are_told_as_they_come(model):
    heard: list[int] = []
    request = Request(some(model)[0], greedy(), Rng(0), on_token=heard.append)
    scheduler = Scheduler({"policy": model}, ())
    scheduler.submit(request)
    for n in range(1, NEW + 1):
        scheduler.step()
        assert len(heard) == n
    assert heard == request.written and scheduler.idle


def test_a_late_request_joins_and_is_not_kept_waiting(model):
    prompts = some(model)
    scheduler = Scheduler({"policy": model}, (), rows=4)
    requests = [Request(p, greedy(), Rng(0)) for p in prompts[:3]]
    for request in requests:
        scheduler.submit(request)
    scheduler.step()
    late = Request(prompts[3], greedy(), Rng(0))
    scheduler.submit(late)
    scheduler.step()
    assert len(late.written) == 1 and len(requests[0].written) == 2


@pytest.mark.parametrize("when", ["waiting", "reading", "writing"])
def test_a_cancelled_request_leaves_its_row_and_changes_no_other_answer(model, when):
    prompts = some(model)
    scheduler = Scheduler({"policy": model}, (2,), rows=2 if when == "waiting" else 6)
    requests = [Request(p, greedy(), Rng(0)) for p in prompts]
    for request in requests:
        scheduler.submit(request)
    for _ in range({"waiting": 1, "reading": 0, "writing": 4}[when]):
        scheduler.step()
    requests[4].cancelled = True
    (gone,) = [r for r in scheduler.step() if r.cancelled]
    assert gone is requests[4] and gone.done and len(gone.written) == (4 if when == "writing" else 0)
    assert all(gone not in rows for rows in scheduler.active.values()) and gone not in [r for r, _ in scheduler.waiting]
    while not scheduler.idle:
        scheduler.step()
    assert not scheduler.voices["policy"].lanes
    assert [r.written for r in requests if r is not gone] == \
        [theirs(model, p, {2}) for p, r in zip(prompts, requests, strict=True) if r is not gone]


def test_requests_that_end_at_other_tokens_share_a_batch(model):
    prompts = some(model)
    free = served(model, prompts, ends=())
    scheduler = Scheduler({"policy": model}, (2,))
    requests = [Request(p, greedy(), Rng(0), ends=frozenset({free[i][3]})) for i, p in enumerate(prompts)]
    for request in requests:
        scheduler.submit(request)
    while not scheduler.idle:
        scheduler.step()
    assert [r.written for r in requests] == [w[:w.index(w[3])] for w in free] and all(r.stopped for r in requests)


def test_weighed_tokens_have_the_log_probabilities_of_the_model(model):
    prompts = some(model, (5, 11))
    scheduler = Scheduler({"policy": model}, ())
    requests = [Request(p, greedy(), Rng(0), likely=n) for p, n in zip(prompts, (0, 3), strict=True)]
    for request in requests:
        scheduler.submit(request)
    while not scheduler.idle:
        scheduler.step()
    for request in requests:
        whole = torch.tensor([request.prompt + request.written])
        with torch.no_grad():
            expected = model.module(whole).logits[0].float().log_softmax(-1)[len(request.prompt) - 1:-1]
        for at, (token, found) in enumerate(zip(request.written, request.weighed, strict=True)):
            best = expected[at].topk(request.likely)
            assert [t for t, _ in found] == [token, *best.indices.tolist()]
            assert torch.allclose(torch.tensor([w for _, w in found]), torch.cat([expected[at][token][None], best.values]),
                                  atol=1e-4)


def test_further_roles_hear_the_same_tokens(pico, model):
    """Logits of a second model that is the same one add up to the same choice; its slots move with the first one's."""
    class Both(type(greedy())):
        @property
        def roles(self):
            return ("policy", "other")

        def scores(self, states):
            assert torch.allclose(states["policy"], states["other"])
            return states["policy"] + states["other"]

    decoder = Both(max_new_tokens=NEW)
    prompts = some(model)
    made = generate({"policy": model, "other": model}, prompts, decoder, Rng(0), stop_ids=[2])
    alone = generate({"policy": model}, prompts, greedy(), Rng(0), stop_ids=[2])
    assert made == alone


def test_killed_and_asked_again_only_what_is_missing_is_written(model, tmp_path, monkeypatch):
    prompts = some(model)
    expected = generate({"policy": model}, prompts, greedy(), Rng(0), stop_ids=[2])
    put, count = Journal.put, []

    def dying(self, key, value):
        if len(count) == 3:
            raise KeyboardInterrupt
        count.append(key)
        put(self, key, value)

    monkeypatch.setattr(Journal, "put", dying)
    with pytest.raises(KeyboardInterrupt):
        generate({"policy": model}, prompts, greedy(), Rng(0), stop_ids=[2], journal=Journal(tmp_path / "j"))
    monkeypatch.setattr(Journal, "put", put)
    asked = []
    submit = Scheduler.submit
    monkeypatch.setattr(Scheduler, "submit", lambda self, r, *rest: (asked.append(r), submit(self, r, *rest)))
    assert generate({"policy": model}, prompts, greedy(), Rng(0), stop_ids=[2], journal=Journal(tmp_path / "j")) == expected
    assert len(asked) == len(prompts) - 3


def test_memory_for_keys_bounds_the_rows(model, monkeypatch):
    prompts = some(model)
    monkeypatch.setattr(scheduling, "KEPT_MB", 2.5 * scheduling._bytes_per_token(model) * (30 + NEW) / 1e6)
    most = []
    step = Scheduler.step
    monkeypatch.setattr(Scheduler, "step", lambda self: (step(self), most.append(sum(map(len, self.active.values()))))[0])
    expected = [theirs(model, p, {2}) for p in prompts]
    assert served(model, prompts) == expected and 1 < max(most) < len(prompts)


def test_keys_of_rows_of_very_different_width_stay_within_memory(model, monkeypatch):
    prompts = some(model, (4, 4, 400, 4, 4, 4, 4))
    bound = scheduling._bytes_per_token(model) * 800
    monkeypatch.setattr(scheduling, "KEPT_MB", bound / 1e6)
    most = []
    step = Scheduler.step

    def counted(self):
        ended = step(self)
        kept = [x for v in self.voices.values() for lane in v.lanes.values() for pair in lane._own.values() for x in pair]
        most.append((sum(x.numel() * x.element_size() for x in kept), sum(map(len, self.active.values()))))
        return ended

    monkeypatch.setattr(Scheduler, "step", counted)
    assert served(model, prompts, ends=()) == [theirs(model, p, ()) for p in prompts]
    assert 0 < max(kept for kept, _ in most) <= bound and max(rows for _, rows in most) == len(prompts)


def test_rows_of_different_width_read_a_shared_beginning_once(model, monkeypatch):
    start = some(model, (20,), seed=3)[0]
    prompts = [start + r for r in some(model, (6, 300, 4, 280), seed=5)]
    begun = []
    begin = slots.Lane.begin
    monkeypatch.setattr(slots.Lane, "begin", lambda self, layer, *rest: (begun.append(layer), begin(self, layer, *rest)))
    expected = [theirs(model, p, ()) for p in prompts]
    assert served(model, prompts, [tuple(start)] * 4, ends=()) == expected
    assert sorted(begun) == sorted(set(begun)), "once a layer"


def test_what_does_not_pack_is_refused(bases):
    with pytest.raises(LuthierError, match="padding"):
        Scheduler({"policy": load_base(bases["encoder-decoder"])}, [2])


def test_what_is_padded_is_answered_batch_by_batch_without_the_cancelled(bases):
    model = load_base(bases["encoder-decoder"])
    prompts = some(model)
    alone = generate({"policy": model}, prompts, greedy(), Rng(0), stop_ids=[2])
    scheduler = scheduler_of({"policy": model}, [2])
    requests = [Request(p, greedy(), Rng(0)) for p in prompts]
    heard = []
    requests[0].on_token = lambda token: (heard.append(token), setattr(requests[0], "cancelled", len(heard) > 1))
    requests[1].cancelled = True
    for request in requests:
        scheduler.submit(request)
    ended = scheduler.step()
    assert scheduler.idle and sorted(map(id, ended)) == sorted(map(id, requests))
    assert len(heard) == 2 and requests[1].written == []
    assert [scheduler.answering.text(r) for r in requests[2:]] == [a.text for a in alone[2:]]


def test_nothing_is_asked_of_an_empty_prompt(model):
    with pytest.raises(UserError, match="Prompt 1"):
        generate({"policy": model}, [[3], []], greedy(), Rng(0))
    with pytest.raises(UserError, match="Pair 0"):
        score_tokens(model, [([], [3])])


def test_a_window_that_stands_in_the_mask_alone_takes_no_layout(pico):
    sizes = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "max_window_layers": 1}
    moe = {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "num_experts": 2, "num_experts_per_tok": 2}
    said, unsaid = Qwen2Config(use_sliding_window=True, sliding_window=24, **sizes), Qwen2MoeConfig(
        use_sliding_window=True, sliding_window=24, **sizes, **moe)
    assert "sliding_attention" in said.layer_types and "sliding_attention" in unsaid.layer_types
    assert packs(wrapped(Qwen2ForCausalLM(said).eval(), "decoder", pico))
    assert not packs(wrapped(Qwen2MoeForCausalLM(unsaid).eval(), "decoder", pico))


# --- what is shared ------------------------------------------------------------------------------------------------

def test_beginnings_are_found_where_they_pay():
    start, own = [9] * 40, [[i, i + 1] for i in range(6)]
    assert beginnings([start + o for o in own]) == [tuple(start)] * 6
    assert beginnings([start + o for o in own[:3]]) == [()] * 3, "too few"
    assert beginnings(own) == [()] * 6
    two = [start + o for o in own[:4]] + [[7] * 30 + o for o in own[:5]] + [[1, 2, 3]]
    assert beginnings(two) == [tuple(start)] * 4 + [tuple([7] * 30)] * 5 + [()]
    nested = [start + [5] * (30 * (i // 2)) + o for i, o in enumerate(own)]
    assert beginnings(nested) == [tuple(start)] * 6, "one lane for all: a lane for two costs more than it saves"


@pytest.mark.parametrize("mutant", ["window", "beginning", "row", "position"])
def test_mistakes_are_seen(mutant, pico, monkeypatch):
    model = wrapped(gemma(window=8), "decoder", pico)
    assert packs(model)
    start = some(model, (20,), seed=3)[0]
    prompts = [start + r for r in some(model, (6, 4, 9, 2), seed=5)]
    ends = (served(model, prompts, ends=())[0][2],)  # the first answer ends before the others: rows move
    expected = served(model, prompts, [tuple(start)] * 4, ends=ends, rows=3)
    if mutant == "window":
        mask = slots.Writing._mask
        monkeypatch.setattr(slots.Writing, "_mask", lambda self, n, window, dtype: mask(self, n, None, dtype))
    elif mutant == "beginning":
        first = slots.Lane.first
        monkeypatch.setattr(slots.Lane, "first", lambda self, layer: tuple(x.flip(1) for x in first(self, layer)))
    elif mutant == "row":
        monkeypatch.setattr(slots.Lane, "leave", lambda self, row: self.lengths.pop())
    else:
        monkeypatch.setattr(slots.Writing, "positions", property(lambda self: torch.cat([p[1] for p in self._places])[None]))
    try:
        assert served(model, prompts, [tuple(start)] * 4, ends=ends, rows=3) != expected
    except IndexError:
        assert mutant == "row"


def test_a_model_that_does_not_pack_is_padded(model, monkeypatch):
    prompts = some(model)
    expected = generate({"policy": model}, prompts, greedy(), Rng(0), stop_ids=[2])
    monkeypatch.setattr(generation, "packs", lambda model: False)
    assert generate({"policy": model}, prompts, greedy(), Rng(0), stop_ids=[2]) == expected

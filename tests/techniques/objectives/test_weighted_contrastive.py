"""weighted-contrastive against sentence-transformers, closed forms and brute force; its gradient in micro-batches."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from luthier.core.example import Example, Part, Turn
from luthier.engine.forward import Forward
from luthier.engine.models import load_base
from luthier.techniques.objectives.weighted_contrastive import WeightedContrastive
from tests.contracts.workbench import encode, make_batch, make_loop

WORDS = "module class object list dict name scope block import yield await lambda tuple string number raise".split()
MUTANTS = {"coefficient": {"temperature": 0.05 * 1.05}}


def pair(i, *, negatives=(), document=None, **meta):
    """Row i: a query of three words and a document of eight."""
    rng = np.random.default_rng(i)
    document = document or " ".join(rng.choice(WORDS, 8))
    parts = (Part(document, name="document"), *(Part(n, name="negative") for n in negatives))
    turns = (Turn("user", (Part(" ".join(rng.choice(WORDS, 3)), name="question"),)), Turn("assistant", parts, target=True))
    return Example(f"r{i}", turns, task="retrieval", meta={"document": f"d{i}", **meta})


def loss(objective, rows, base, model=None):
    model = model or load_base(base)
    batch = make_batch(encode(objective, model, rows), model)
    with torch.no_grad():
        total = objective.loss(Forward({"policy": model}), batch)["contrastive"]
    return float(total) / objective.count(batch)["contrastive"]


@pytest.fixture(scope="module")
def sentence_transformer(pico_encoder):
    st = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    body = Transformer(pico_encoder.meta["path"], max_seq_length=256)
    return st.SentenceTransformer(modules=[body, Pooling(body.get_embedding_dimension(), pooling_mode="mean")], device="cpu")


def reference(sentence_transformer, rows, cached=False):
    from sentence_transformers.sentence_transformer import losses

    texts = [[e.part("question") for e in rows], [e.part("document") for e in rows]]
    texts += [list(column) for column in zip(*([p.value for p in e.turns[1].parts[1:]] for e in rows), strict=True)]
    sentence_transformer.eval()
    features = [sentence_transformer.tokenize(column) for column in texts]
    made = losses.CachedMultipleNegativesRankingLoss(sentence_transformer, scale=20, mini_batch_size=2) if cached else \
        losses.MultipleNegativesRankingLoss(sentence_transformer, scale=20)
    return made(features, torch.zeros(len(rows)))


@pytest.mark.oracle(seed=1, clause=1, against="sentence-transformers")
@pytest.mark.parametrize("hard", [0, 2])
def test_equal_weights_without_masks_are_multiple_negatives_ranking(sentence_transformer, pico_encoder, hard):
    rows = [pair(i, negatives=[" ".join(WORDS[i:i + 3 + n]) for n in range(hard)], weight=0.7) for i in range(6)]
    wanted = float(reference(sentence_transformer, rows).detach())
    # Two ways of padding differ in the seventh digit of a cosine, and the temperature makes it twenty times as large.
    assert loss(WeightedContrastive(masks=False, negatives=hard), rows, pico_encoder) == pytest.approx(wanted, abs=4e-6)
    for changed in MUTANTS.values():
        assert abs(loss(WeightedContrastive(masks=False, negatives=hard, **changed), rows, pico_encoder) - wanted) > 1e-4


@pytest.mark.oracle(seed=1, clause=1, against="sentence-transformers")
@pytest.mark.parametrize("hard", [0, 2])
def test_the_loss_at_the_same_embeddings_is_theirs(sentence_transformer, pico_encoder, hard):
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    rows = [pair(i, negatives=[" ".join(WORDS[i:i + 3 + n]) for n in range(hard)], weight=0.7) for i in range(6)]
    model, objective = load_base(pico_encoder), WeightedContrastive(masks=False, negatives=hard)
    batch = make_batch(encode(objective, model, rows), model)
    with torch.no_grad():
        seen = objective.represent(Forward({"policy": model}), batch)
        ours = objective.couple(Forward({"policy": model}), batch, seen)["contrastive"] / objective.count(batch)["contrastive"]
        theirs = MultipleNegativesRankingLoss(sentence_transformer, scale=20).compute_loss_from_embeddings(
            [seen["vectors"][:, n] * (1 + n) for n in range(2 + hard)], torch.zeros(6))  # a cosine knows no length
    assert float(ours) == pytest.approx(float(theirs), abs=1e-6)


@pytest.mark.oracle(seed=1, clause=2, against="closed form")
def test_the_scale_of_the_weights_changes_nothing(pico_encoder):
    rows = [pair(i, weight=0.1 + i) for i in range(6)]
    other = [replace(r, meta={**r.meta, "weight": 37.0 * r.meta["weight"]}) for r in rows]
    objective = WeightedContrastive()
    assert loss(objective, rows, pico_encoder) == pytest.approx(loss(objective, other, pico_encoder), rel=1e-6)
    equal = [pair(i) for i in range(6)]
    assert abs(loss(objective, rows, pico_encoder) - loss(objective, equal, pico_encoder)) > 1e-4  # weights do count


@pytest.mark.oracle(seed=1, clause=3, against="brute force")
def test_a_row_of_weight_zero_is_a_negative_and_no_anchor(pico_encoder):
    objective, model = WeightedContrastive(), load_base(pico_encoder)
    rows = [pair(i, weight=float(i != 2)) for i in range(5)]
    batch = make_batch(encode(objective, model, rows), model)
    with torch.no_grad():
        vectors = objective.represent(Forward({"policy": model}), batch)["vectors"].double().numpy()
    scores = vectors[:, 0] @ vectors[:, 1].T / 0.05
    each = [np.log(np.exp(scores[i]).sum()) - scores[i, i] for i in range(5) if i != 2]
    assert loss(objective, rows, pico_encoder) == pytest.approx(np.mean(each), abs=1e-5)
    without = loss(objective, [r for i, r in enumerate(rows) if i != 2], pico_encoder)
    assert abs(without - np.mean(each)) > 1e-3, "row 2 has to stay a negative"


@pytest.mark.oracle(clause="positives and duplicates are no negatives", against="brute force")
def test_masks_leave_out_what_is_right_for_the_query_and_equal_texts(pico_encoder):
    rows = [pair(0, positives=["d0", "d2"]), pair(1), pair(2, negatives=["a module", "the list"]),
            pair(3, document=pair(1).part("document"))]
    rows[1] = replace(rows[1], meta={**rows[1].meta, "positives": ["d1", "n1"]})
    rows[2] = replace(rows[2], meta={**rows[2].meta, "negatives": ["n0", "n1"]})
    objective, model = WeightedContrastive(negatives=2), load_base(pico_encoder)
    batch = make_batch(encode(objective, model, rows), model)
    left = objective._left_out(batch)
    # Candidates: four documents, then two hard negatives of each row; only row 2 has any: columns 8 and 9.
    real = {(0, 2), (1, 3), (3, 1), (1, 9)}
    nothing = {(i, c) for i in range(4) for c in (4, 5, 6, 7, 10, 11)}
    assert {(i, c) for i, c in left.nonzero().tolist()} == real | nothing
    with torch.no_grad():
        vectors = objective.represent(Forward({"policy": model}), batch)["vectors"].double().numpy()
    columns = np.concatenate([vectors[:, 1], vectors[2, 2:]])
    scores = vectors[:, 0] @ columns.T / 0.05
    for i, c in {(0, 2), (1, 3), (3, 1), (1, 5)}:
        scores[i, c] = -np.inf
    wanted = np.mean([np.log(np.exp(scores[i]).sum()) - scores[i, i] for i in range(4)])
    assert loss(objective, rows, pico_encoder) == pytest.approx(wanted, abs=1e-5)
    assert abs(loss(WeightedContrastive(negatives=2, masks=False), rows, pico_encoder) - wanted) > 1e-3  # a skipped mask


# --- gradients in micro-batches ------------------------------------------------------------------------------------

def gradients(objective, rows, base, ctx, micro_rows, *, training=False):
    model = load_base(base)
    model.module.requires_grad_(True)
    loop = make_loop(model, objective, encode(objective, model, rows), ctx, batch_rows=len(rows), micro_rows=micro_rows)
    model.module.train(training)
    batches = loop.batch(loop.tasks[0], 0)
    values = loop.accumulate(batches, loop.tasks[0], loop.counts(batches, loop.tasks[0]))
    grads = {n: p.grad.clone() for n, p in model.module.named_parameters() if p.grad is not None}
    return values, grads, loop


def distance(one, two):
    assert set(one) == set(two)
    top = max(float(t.abs().max()) for t in two.values())
    return max(float((one[n] - two[n]).abs().max()) for n in two) / max(top, 1.0)


@pytest.mark.oracle(clause="gradient of micro-batches = gradient of the whole batch", against="autograd")
@pytest.mark.parametrize("micro_rows", [1, 3])
def test_micro_batches_give_the_gradient_of_the_whole_batch(pico_encoder, make_ctx, micro_rows):
    rows = [pair(i, weight=0.2 + i % 3, negatives=[WORDS[i]] * (i % 2), positives=[f"d{i + 1}"]) for i in range(7)]
    objective = WeightedContrastive(negatives=1)
    whole, wanted, _ = gradients(objective, rows, pico_encoder, make_ctx("whole"), 7)
    parts, found, _ = gradients(objective, rows, pico_encoder, make_ctx("parts"), micro_rows)
    assert parts == pytest.approx(whole, abs=1e-5)
    assert distance(found, wanted) <= 1e-5
    small = [replace(r, meta={**r.meta, "weight": 1.05 * r.meta["weight"] if i == 0 else r.meta["weight"]})
             for i, r in enumerate(rows)]
    assert distance(gradients(objective, small, pico_encoder, make_ctx("mutant"), micro_rows)[1], wanted) > 1e-4


@pytest.mark.oracle(clause="the second forward draws the dropout of the first", against="autograd")
def test_dropout_is_replayed(pico_encoder, make_ctx):
    from luthier.engine import coupled

    rows, objective = [pair(i) for i in range(6)], WeightedContrastive()
    _, found, loop = gradients(objective, rows, pico_encoder, make_ctx("parts"), 2, training=True)
    (batch,) = loop.batch(loop.tasks[0], 0)
    gathered = coupled.gather(loop.run, objective, batch, loop.micro,
                              lambda part: torch.manual_seed(loop.rng.key("dropout/task", f"0/0{part}")))
    # One graph over all micro-batches, with the same draws: what gradient caching must equal.
    made = torch.cat([gathered.again(n)["vectors"] for n in range(3)])
    order = torch.tensor([r for place in gathered.places for r in place]).argsort()
    assert torch.equal(made[order], gathered.seen["vectors"]), "the draws differ"
    loop.model.module.zero_grad()
    (objective.couple(loop.run, batch, {"vectors": made[order]})["contrastive"] / 6).backward()
    assert distance(found, {n: p.grad for n, p in loop.model.module.named_parameters() if p.grad is not None}) <= 1e-5


@pytest.mark.oracle(clause="gradient of micro-batches = gradient of the whole batch", against="sentence-transformers")
def test_the_gradient_is_that_of_cached_multiple_negatives_ranking(sentence_transformer, pico_encoder, make_ctx):
    rows = [pair(i) for i in range(6)]
    sentence_transformer.zero_grad()
    value = reference(sentence_transformer, rows, cached=True)
    value.backward()
    theirs = {n.rpartition("model.")[2]: p.grad for n, p in sentence_transformer.named_parameters() if p.grad is not None}
    values, ours, _ = gradients(WeightedContrastive(masks=False), rows, pico_encoder, make_ctx("ours"), 2)
    assert values["contrastive"] == pytest.approx(float(value.detach()), abs=4e-6)
    assert distance(ours, theirs) <= 1e-5


def test_memory_that_runs_out_halves_the_micro_batch(pico_encoder, make_ctx):
    """A coupled objective that says what it sees of a row trains on with fewer rows in the model."""
    from luthier.engine import guards

    rows, objective = [pair(i) for i in range(6)], WeightedContrastive()
    _, _, loop = gradients(objective, rows, pico_encoder, make_ctx("loop"), 6)
    loop.masters.drop()
    represent, seen = type(objective).represent, []

    class Small(WeightedContrastive, name="test-small-memory"):
        """Fails on more than three rows at once."""

        def represent(self, run, batch):
            seen.append(len(batch["weight"]))
            if seen[-1] > 3:
                raise torch.OutOfMemoryError("out of memory")
            return represent(self, run, batch)

    loop.tasks[0].objective = Small()
    guards.gradients(loop)
    assert seen == [6, 3, 3, 3, 3] and loop.micro.rows == 3

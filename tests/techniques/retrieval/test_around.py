"""rerank and aliases around hybrid: a cross-encoder's order, each thing once, products by their aliases."""

import numpy as np
import pytest

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.example import Passage, question
from luthier.core.kinds import Prediction
from luthier.techniques.evaluation.ndcg import Ndcg
from luthier.techniques.retrieval.aliases import Aliases
from luthier.techniques.retrieval.hybrid import Hybrid
from luthier.techniques.retrieval.rerank import Rerank

WORDS = "module class object list dict name scope block import yield await lambda tuple string number raise".split()


def corpus(count=24):
    rng = np.random.default_rng(0)
    return [Passage(f"p{i:02d}", " ".join(rng.choice(WORDS, 8)), f"{'ab'[i % 2]}/{i}.md", f"s{i}") for i in range(count)]


@pytest.fixture
def make(make_ctx, engine, pico_encoder):
    def index(retriever, passages, name="index"):
        ctx = make_ctx(name, roles={"encoder": engine.load(pico_encoder)})
        return retriever.index(iter(passages), ctx), ctx

    return index


@pytest.fixture(scope="module")
def cross_encoder(pico_encoder, tmp_path_factory):
    """A folder with a tiny cross-encoder of random weights."""
    import torch
    from transformers import AutoConfig, AutoTokenizer, BertForSequenceClassification

    source, folder = pico_encoder.meta["path"], tmp_path_factory.mktemp("cross")
    config = AutoConfig.from_pretrained(source)
    config.num_labels, config.initializer_range = 1, 0.5
    torch.manual_seed(1)
    BertForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    (folder / "LICENSE").write_text("terms of the reranker")
    return folder


def ids(found):
    return [[p.id for p, _ in hits] for hits in found]


@pytest.mark.oracle(clause="reranking", against="sentence-transformers CrossEncoder")
def test_the_order_is_that_of_sentence_transformers_cross_encoder(make, cross_encoder):
    st = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    import torch

    retriever, passages = Rerank(retriever=Hybrid(), model=str(cross_encoder), depth=24, near=1.0), corpus()
    index, ctx = make(retriever, passages)
    queries = ["what is a module", "yield value"]
    found = retriever.search(index, queries, 24, ctx)
    theirs = st.CrossEncoder(str(cross_encoder), device="cpu", max_length=512)
    for query, hits in zip(queries, found, strict=True):
        wanted = theirs.predict([(query, p.text) for p in passages], activation_fn=torch.nn.Identity(),
                                show_progress_bar=False)
        order = [passages[i].id for i in np.argsort(-wanted)]
        assert [p.id for p, _ in hits] == order
        np.testing.assert_allclose([s for _, s in hits], np.sort(wanted)[::-1], atol=1e-4)
    assert ids(found) != ids(Hybrid().search(*_inner(retriever, index), queries, 24, ctx)), "the inner order must change"
    assert "terms of the reranker" in "".join(p.read_text() for p in (index.folder / "licenses").iterdir())
    assert build("retriever", index.meta["retriever"]).search(index, queries, 3, ctx) == [h[:3] for h in found]


def _inner(retriever, index):
    return (retriever.inner(index)[1],)


def test_what_is_no_cross_encoder_is_refused(make, pico_encoder):
    with pytest.raises(UserError, match="is no cross-encoder"):
        make(Rerank(model=pico_encoder.meta["path"]), corpus(3))


@pytest.mark.oracle(clause="near-duplicates are shown once", against="brute force")
def test_repetitions_give_their_place_to_something_else(make, engine, pico_encoder):
    passages = corpus(12)
    passages += [Passage(f"t{i:02d}", p.text, "c.md", f"t{i}") for i, p in enumerate(passages[:6])]
    retriever = Rerank(near=0.99999)
    index, ctx = make(retriever, passages)
    (found,) = retriever.search(index, [passages[0].text], 12, ctx)
    assert len({p.text for p, _ in found}) == len(found) == 12
    (inner,) = retriever.inner(index)[0].search(retriever.inner(index)[1], [passages[0].text], 18, ctx)
    vectors = engine.embed(engine.load(pico_encoder), [p.text for p, _ in inner])
    kept = []
    for n in range(len(inner)):
        if all(float(vectors[n] @ vectors[m]) <= 0.99999 for m in kept):
            kept.append(n)
    assert [p.id for p, _ in found] == [inner[n][0].id for n in kept][:12]
    (all_of,) = Rerank(near=1.0).search(index, [passages[0].text], 12, ctx)  # the skipped filter
    assert len({p.text for p, _ in all_of}) < 12


@pytest.mark.oracle(seed=1, clause=5, against="closed form")
@pytest.mark.parametrize("retriever", [Hybrid(), Rerank(), Aliases(), Hybrid(text=False)], ids=lambda r: str(r.to_dict()))
def test_the_only_document_is_always_found(make, retriever):
    index, ctx = make(retriever, corpus(1))
    found = retriever.search(index, ["what is a module", "zzz", "", "!?", corpus(1)[0].text], 5, ctx)
    assert ids(found) == [["p00"]] * 5


PRODUCTS = {"Alpha": {"aliases": ["AL", "A+"], "documents": ["a/*"]}, "Beta": {"aliases": ["bt", "AL"], "documents": ["b/*"]}}


@pytest.mark.parametrize(("query", "said", "products"), [
    ("open AL now", "open Alpha or Beta now", ("Alpha", "Beta")), ("A+ scope", "Alpha scope", ("Alpha",)),
    ("what is BT?", "what is Beta?", ("Beta",)), ("also altogether", "also altogether", ()),
    ("alpha", "Alpha", ("Alpha",)), ("", "", ())])
def test_aliases_are_whole_words_and_nothing_is_guessed(query, said, products):
    assert Aliases(products=PRODUCTS).named(query) == (said, products)


@pytest.mark.oracle(clause="a product is a filter on documents", against="brute force")
def test_only_documents_of_the_product_are_found(make):
    retriever = Aliases(retriever=Hybrid(text=False, depth=2), products=PRODUCTS)
    index, ctx = make(retriever, corpus())
    inner, own = retriever.inner(index)
    (every,) = inner.search(own, ["yield of Beta"], 24, ctx)
    (found,) = retriever.search(index, ["yield of bt"], 5, ctx)
    assert [p.id for p, _ in found] == [p.id for p, _ in every if p.document.startswith("b/")][:5]
    (none,) = Aliases(retriever=Hybrid(text=False), products={"C": {"documents": ["c/*"]}}).search(index, ["c"], 5, ctx)
    assert none == []


@pytest.mark.oracle(seed=1, clause=4, against="sklearn.metrics.ndcg_score")
def test_ndcg_is_that_of_scikit_learn(make_ctx):
    from sklearn.metrics import ndcg_score

    rng = np.random.default_rng(0)
    names = [f"p{i}" for i in range(15)]
    for n in range(1, 13):
        gold = set(rng.choice(names, n, replace=False))
        scores = rng.permutation(15).astype(float)
        order = [names[i] for i in np.argsort(-scores)]
        row = question("q", "x?", "y", meta={"gold": sorted(gold)})
        for k in (1, 4, 10):
            (record,) = Ndcg(k=k).score([row], [Prediction("q", passages=tuple(order))], make_ctx("ndcg"))
            assert record["value"] == pytest.approx(ndcg_score([[float(m in gold) for m in names]], [scores], k=k), abs=1e-12)

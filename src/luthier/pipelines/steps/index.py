"""index: the passages of documents, made searchable by a retriever.

Where the step left an index before, with the same encoder and the same length read, a text that is in it keeps its
vector; only the others are embedded. Memory does not grow with the text: passages and vectors stay in files.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

from pydantic import Field

from luthier.core.artifact import Artifact, copy_licenses
from luthier.core.component import Slot, build, named
from luthier.core.errors import UserError
from luthier.core.example import Passage
from luthier.core.finding import Finding, not_applicable, receipt
from luthier.core.kinds import Retriever
from luthier.core.step import Ctx, Step
from luthier.pipelines.steps.changes import earlier

if TYPE_CHECKING:
    import numpy as np

    from luthier.engine.models import Model
    from luthier.engine.workshop import Engine

# Passages that are searched by their own words, and how many may fail to come first: a passage that is part of a longer
# one, or an encoder that knows nothing, may lose it; vectors that belong to other rows lose nearly all.
PROBES, TOLERANCE = 16, 0.5


class Index(Step, name="index"):
    """Makes every passage of the documents searchable."""

    inputs: ClassVar[dict[str, str]] = {"documents": "documents", "encoder": "model"}
    output: ClassVar[str] = "index"
    seeded: ClassVar[bool] = False

    retriever: Slot[Retriever] = Field(named("hybrid"), description="how passages are found")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Hand all passages to the retriever; the licence files of the documents go along with their text.

        Raises:
            UserError: the model is not an encoder.
        """
        documents, of = inputs["documents"], inputs["documents"].meta["passages"]

        def progress(done: int, total: int, unit: str = "", **shown: float) -> None:
            ctx.progress(done, of, unit, **shown)  # the retriever reads a stream and can't know its end

        copy_licenses([documents.folder], ctx.folder)
        ready = replace(_with_encoder(inputs, ctx), progress=progress)
        known = Known(self.retriever, earlier(ctx.folder, "index"), ready.roles["encoder"])
        made = self.retriever.index(documents.passages(), replace(ready, engine=known.engine(ctx.engine)))
        if len(known):
            ctx.log(f"{known.taken} passages kept their vectors, {known.made} were embedded")
        return made

    def receipts(self, inputs: Mapping[str, Artifact], artifact: Artifact, ctx: Ctx) -> list[Finding]:
        """As many rows as passages; passages are found by their own words; an index finds what exact search finds."""
        count, probes = 0, []
        stride = max(1, -(-inputs["documents"].meta["passages"] // PROBES))
        for passage in inputs["documents"].passages():
            if count % stride == 0:
                probes.append(passage)
            count += 1
        found = [receipt("index/passages", count, artifact.meta["passages"], unit="passages",
                         detail="passages of the documents against rows of the table")]
        answers = self.retriever.search(artifact, [_words(p) for p in probes], 1, _with_encoder(inputs, ctx))
        lost = [p.id for p, first in zip(probes, answers, strict=True) if not _is_first(p, [a for a, _ in first])]
        share = 1 - len(lost) / len(probes)
        detail = f"{len(probes)} passages searched by their own words; not first: {', '.join(lost) or 'none'}"
        return [*found, receipt("index/own words", 1.0, share, TOLERANCE, unit="share found first", detail=detail),
                _recall(artifact)]


def _recall(index: Artifact) -> Finding:
    """What the retriever measured of its search by meaning when it made the index."""
    how = index.meta.get("vectors", {"index": "exact"})
    if how["index"] == "exact":
        tried = max((t["recall"] for t in how.get("tried", ())), default=None)
        return not_applicable("index/recall", "every vector is compared with the query" + (
            "" if tried is None else f"; an index found only {tried:.1%} of the true first ten"))
    return receipt("index/recall", 1.0, how["recall"], round(1 - how["wanted"], 6), unit="share of the true first ten",
                   detail=f"{how['index']}, {how['probed']} of {how['cells']} cells probed, against exact search on "
                          f"{how['queries']} pieces of passages")


class Known:
    """Vectors of an earlier index by the text they stand for: empty unless encoder and length read are the same.

    Memory holds their places in a file without a name, which goes with this object.
    """

    def __init__(self, retriever: Retriever, index: Artifact | None, encoder: Model) -> None:
        self._places: dict[bytes, int] = {}
        self.encoder, self.max_tokens = encoder, getattr(retriever, "max_tokens", None)
        self.taken = self.made = 0
        embedded = getattr(retriever, "embedded", None)
        if index is None or embedded is None or index.meta["encoder"]["identity"] != encoder.identity:
            return
        was = index.meta["retriever"]
        if (was["use"], was.get("max_tokens")) == (retriever.info.name, self.max_tokens):
            self._file = tempfile.TemporaryFile(dir=index.folder.parent)  # noqa: SIM115 (goes with this object)
            for texts, vectors in embedded(index):
                for text, vector in zip(texts, vectors, strict=True):
                    self._places[_key(text)] = self._file.tell()
                    self._file.write(vector.tobytes())

    def __len__(self) -> int:
        return len(self._places)

    def vector(self, text: str) -> np.ndarray | None:
        """[width], or None where the text is new."""
        import numpy as np

        place = self._places.get(_key(text))
        if place is None:
            return None
        self._file.seek(place)
        return np.frombuffer(self._file.read(4 * self.encoder.width), dtype=np.float32)

    def engine(self, engine: Engine) -> Engine:
        """The same engine, which embeds what is not known."""
        return cast("Engine", _Embeds(engine, self)) if len(self) else engine


class _Embeds:
    """An engine but for `embed`."""

    def __init__(self, engine: Engine, known: Known) -> None:
        self._engine, self._known = engine, known

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def embed(self, model: Model, texts: Sequence[str], max_tokens: int = 256) -> np.ndarray:
        """[texts, width]: vectors that are known as they were, the others made now."""
        import numpy as np

        known = self._known
        if model is not known.encoder or max_tokens != known.max_tokens:
            return self._engine.embed(model, texts, max_tokens)
        found = [known.vector(text) for text in texts]
        new = [text for text, vector in zip(texts, found, strict=True) if vector is None]
        fresh = iter(self._engine.embed(model, new, max_tokens) if new else ())
        known.made, known.taken = known.made + len(new), known.taken + len(texts) - len(new)
        return np.stack([next(fresh) if vector is None else vector for vector in found])


def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def open_retriever(index: Artifact) -> Retriever:
    """The retriever that made an index, with the same settings.

    Raises:
        UserError: not an index.
    """
    if index.kind != "index":
        raise UserError(f"{index.folder} holds {index.kind}, not an index.")
    retriever: Retriever = build("retriever", index.meta["retriever"])
    return retriever


Search = Callable[..., list[list[Passage]]]


def searcher(index: Artifact, encoder: Artifact, ctx: Ctx) -> Search:
    """`search(queries, k, hidden)`: the k best passages of each query, best first, by the retriever that made the index.

    `hidden` names for each query the sections that are not searched, as if the index did not hold them.
    """
    retriever = open_retriever(index)
    asking = _with_encoder({"encoder": encoder}, ctx)

    def search(queries: Sequence[str], k: int, hidden: Sequence[Collection[str]] = ()) -> list[list[Passage]]:
        out = hidden or [()] * len(queries)
        found: list[list[Passage]] = [[] for _ in queries]
        left, depth = list(range(len(queries))), k
        while left:
            hits = retriever.search(index, [queries[i] for i in left], depth, asking)
            short = []
            for i, ranked in zip(left, hits, strict=True):
                found[i] = [p for p, _ in ranked if p.section not in out[i]][:k]
                if len(found[i]) < k and len(ranked) == depth:
                    short.append(i)
            left, depth = short, 2 * depth
        return found

    return search


def _with_encoder(inputs: Mapping[str, Artifact], ctx: Ctx) -> Ctx:
    encoder = inputs["encoder"]
    if encoder.meta["architecture"] != "encoder":
        raise UserError(f"encoder: {encoder.meta['name']} is a model of the kind '{encoder.meta['architecture']}'; an "
                        "index needs an encoder, such as minilm.")
    roles: dict[str, Any] = {**ctx.roles, "encoder": ctx.engine.load(encoder)}
    return replace(ctx, roles=roles)


def _words(passage: Passage) -> str:
    return "\n".join((*passage.headings, passage.text))


def _is_first(passage: Passage, first: Sequence[Passage]) -> bool:
    """Duplicates are as good as the passage itself."""
    return any(p.id == passage.id or p.text.split() == passage.text.split() for p in first)

"""What retrievers around another retriever share: its index within theirs, told apart in the record."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from pydantic import Field

from luthier.core.artifact import Artifact, seal
from luthier.core.component import Slot, build, named
from luthier.core.example import Passage
from luthier.core.identity import digest
from luthier.core.kinds import Retriever
from luthier.core.step import Ctx

INNER = "inner_retriever"


class Around(Retriever):
    """A retriever that asks another one and changes what it finds; the index is the other one's."""

    retriever: Slot[Retriever] = Field(named("hybrid"), description="who finds the passages first")

    def searched(self, passage: Passage) -> str:
        return self.retriever.searched(passage)

    def index(self, passages: Iterable[Passage], ctx: Ctx) -> Artifact:
        made = self.retriever.index(passages, ctx)
        more = self.prepare(ctx)
        identity = digest({"index": made.identity, "retriever": self.identity_values(), **more})
        meta = {k: v for k, v in made.meta.items() if k not in ("schema", "kind", "identity")}
        return seal("index", ctx.folder, identity=identity,
                    **{**meta, "retriever": self.to_dict(), INNER: meta["retriever"], **more})

    def prepare(self, ctx: Ctx) -> dict[str, Any]:
        """What this retriever keeps in the index's folder, as entries of its record."""
        return {}

    def inner(self, index: Artifact) -> tuple[Retriever, Artifact]:
        """The inner retriever and the index as it made it."""
        own = replace(index, meta={**index.meta, "retriever": index.meta[INNER]})
        return build("retriever", index.meta[INNER]), own

"""knowledge-mixture: a training set of a fixed size of which a share is unknown to the model.

Of rows marked by `slick`, `rows` are kept: round(unknown · rows) of category Unknown, and the rest of the known ones, in the
proportions that the known categories have among all known rows (largest remainder). So sets of different `unknown` differ
in that share alone. With `only_known` the unknown part is left out and nothing takes its place.

When it helps: to see what new facts in the training data do. Source: Gekhman et al. 2024, section 4. Seed 34.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.example import Dropped, Example
from luthier.core.kinds import DataStep
from luthier.core.step import Ctx

UNKNOWN = "Unknown"


class KnowledgeMixture(DataStep, name="knowledge-mixture", seeds=[34]):
    """Keeps a set of fixed size with a given share of what the model does not know."""

    gives: ClassVar[Literal["same", "more", "other"]] = "same"
    rows: int = Field(200, ge=1, description="rows of the set")
    unknown: float = Field(0.5, ge=0, le=1, description="share of them that the model does not know")
    only_known: bool = Field(False, description="leave the unknown part out, so that the set is smaller by it")

    def apply(self, rows: Iterator[Example], ctx: Ctx) -> Iterator[Example | Dropped]:
        """The rows of the set, the others as `Dropped`.

        Raises:
            UserError: rows that nothing has marked, or too few of a kind.
        """
        held = list(rows)
        bare = next((r for r in held if "knowledge" not in r.meta), None)
        if bare is not None:
            raise UserError(f"knowledge-mixture needs rows marked by slick; {bare.id} has no meta['knowledge'].")
        kinds: dict[str, list[Example]] = {}
        for row in held:
            kinds.setdefault(row.meta["knowledge"], []).append(row)
        unknown = round(self.unknown * self.rows)
        wanted = {UNKNOWN: unknown, **self._known(kinds, self.rows - unknown)}
        for kind, count in wanted.items():
            if count > len(kinds.get(kind, ())):
                raise UserError(f"knowledge-mixture needs {count} rows that are {kind}; found {len(kinds.get(kind, ()))}. "
                                "Lower rows, or give more data.")
        chosen = {kinds[kind][i].id for kind, count in wanted.items() if count
                  for i in ctx.rng("mixture", kind).permutation(len(kinds[kind]))[:count]}
        for row in held:
            if row.id in chosen and not (self.only_known and row.meta["knowledge"] == UNKNOWN):
                yield row
            else:
                yield Dropped(row.id, "not drawn", row.meta["knowledge"])

    def _known(self, kinds: dict[str, list[Example]], count: int) -> dict[str, int]:
        """How many of each known category, in the proportions of all known rows."""
        sizes = {kind: len(rows) for kind, rows in sorted(kinds.items()) if kind != UNKNOWN}
        total = sum(sizes.values())
        if count and not total:
            raise UserError(f"knowledge-mixture needs {count} rows that the model knows; found none.")
        shares = {kind: count * size / total for kind, size in sizes.items()} if total else {}
        whole = {kind: int(share) for kind, share in shares.items()}
        for kind in sorted(shares, key=lambda k: (whole[k] - shares[k], k))[:count - sum(whole.values())]:
            whole[kind] += 1
        return whole

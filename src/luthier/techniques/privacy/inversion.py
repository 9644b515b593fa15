"""inversion: how much of a text can be read from what a customer sends to the vendor of a split model?

The attacker knows the bottom of the model, and sees a text's message. With the embedding alone below the border he compares
each place with the bottom's output for every token id at that place, position embedding and normalisation applied, and takes
the nearest; with layers below, he trains a linear classifier of states to tokens on messages of texts of his own (the run's
training rows, privatised as the customer does it). Recovery is the share of the ORIGINAL tokens that he names, special ones
left out; 1 - recovery is the empirical privacy. Protected tokens are sent nearly in the clear: they are told apart.
`attribute`: a label in `meta` of the rows that a small network infers from the mean of a message.

When it helps: before a customer trusts a split. Source: Shen, Liu et al. 2023, arXiv 2312.15603, section 5 (seed 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from luthier.core.files import write_lines
from luthier.core.finding import Finding, audited, not_applicable
from luthier.core.kinds import Audit
from luthier.core.step import Ctx
from luthier.engine.statistics import mean_interval
from luthier.engine.subjects import TRAIN, Subject

if TYPE_CHECKING:
    import torch

    from luthier.core.example import Example
    from luthier.engine.splitting import Split

EVIDENCE = "tokens.jsonl"
LEAST = 6  # texts
VOCABULARY_ROWS = 512  # token ids that go through the bottom at once


class Inversion(Audit, name="inversion", seeds=[2]):
    """Texts are read from the states that a customer sends."""

    subjects: ClassVar[tuple[Any, ...]] = ("run",)
    mends: ClassVar[tuple[str, ...]] = ("method split-and-privatize",)
    battery: ClassVar[bool] = False
    rows: int = Field(60, ge=LEAST, description="most texts that are attacked, drawn at random from held-out rows")
    shadow_rows: int = Field(200, ge=LEAST, description="most texts that the attacker trains on, where he must")
    steps: int = Field(200, ge=1, description="steps of his training")
    attribute: str = Field("", description="a key of the rows' meta that is inferred from messages too")
    max_recovered: float = Field(0.5, gt=0, lt=1, description="most of the tokens that may be recovered")
    max_inferred: float = Field(0.1, gt=0, lt=1, description="most that the attribute may be told above the commonest value")
    level: float = Field(0.95, gt=0.5, lt=1, description="level of the intervals")

    def measure(self, ctx: Ctx, subject: Subject) -> list[Finding]:
        """`audit/inversion/all`, `…/protected` and `…/others`; `audit/inversion/attribute` where one is named."""
        model = subject.model("after")
        split = model.border
        if split is None:
            return [not_applicable("audit/inversion", "this model is not split: nothing is sent")]
        rows = self._drawn(ctx, "attacked", subject.held_out() or subject.rows(TRAIN), self.rows)
        if len(rows) < LEAST:
            return [not_applicable("audit/inversion", f"{len(rows)} texts; {LEAST} are needed")]
        render = subject.render("after")
        render.over_long, render.max_tokens = "truncate", int(model.template.get("max_tokens", model.limit))
        texts = [render.text(row).ids for row in rows]
        messages = [sent(split, ids) for ids in texts]
        if split.layer:
            shadow = self._drawn(ctx, "shadow", subject.rows(TRAIN), self.shadow_rows)
            named = by_classifier(split, [render.text(r).ids for r in shadow], messages, self.steps, ctx.rng.key("attacker"))
        else:
            named = by_nearest(split, messages)
        records = self._records(split, rows, texts, named)
        write_lines(ctx.folder / EVIDENCE, records)
        found = [self._finding(name, some) for name, some in (
            ("all", records), ("protected", [r for r in records if r["protected"]]),
            ("others", [r for r in records if not r["protected"]])) if some]
        if self.attribute:
            found.append(self._attribute(ctx, split, subject, render))
        return found

    def _drawn(self, ctx: Ctx, name: str, rows: Sequence[Example], most: int) -> list[Example]:
        return [rows[i] for i in sorted(ctx.rng(name).permutation(len(rows))[:most].tolist())]

    @staticmethod
    def _records(split: Split, rows: Sequence[Example], texts: Sequence[list[int]], named: Sequence[Sequence[int]]
                 ) -> list[dict[str, Any]]:
        known = split.privatizer
        special = set(split.model.tokenizer.all_special_ids)
        protected = set() if known is None or known.protected is None else set(known.protected.nonzero()[:, 0].tolist())
        return [{"id": f"{row.id}/{n}", "cluster": row.cluster or row.id, "recovered": int(ids[n] == said[n]),
                 "protected": ids[n] in protected}
                for row, ids, said in zip(rows, texts, named, strict=True) for n in range(len(ids)) if ids[n] not in special]

    def _finding(self, name: str, records: Sequence[dict[str, Any]]) -> Finding:
        hits = [float(r["recovered"]) for r in records]
        share = sum(hits) / len(hits)
        interval = mean_interval(hits, [r["cluster"] for r in records], self.level)
        return audited(f"audit/inversion/{name}", None, share, self.max_recovered, interval, evidence=EVIDENCE,
                       unit="of tokens",
                       title=f"{name} tokens recovered", level=self.level, n=len(hits), privacy=1 - share,
                       detail=f"{int(sum(hits))} of {len(hits)} tokens named; empirical privacy {1 - share:.3f}")

    def _attribute(self, ctx: Ctx, split: Split, subject: Subject, render: Any) -> Finding:
        name = "audit/inversion/attribute"
        sides = [[r for r in rows if self.attribute in r.meta] for rows in (
            self._drawn(ctx, "shadow", subject.rows(TRAIN), self.shadow_rows),
            self._drawn(ctx, "attacked", subject.held_out(), self.rows))]
        values = sorted({str(r.meta[self.attribute]) for r in sides[0]})
        if len(values) < 2 or len(sides[1]) < LEAST:
            return not_applicable(name, f"rows with two values of meta.{self.attribute} on both sides are needed")
        seen = [means(split, [render.text(r).ids for r in side]) for side in sides]
        wanted = [[values.index(str(r.meta[self.attribute])) if str(r.meta[self.attribute]) in values else -1 for r in side]
                  for side in sides]
        said = by_network(seen[0], wanted[0], seen[1], len(values), self.steps, ctx.rng.key("attribute"))
        usual = max(set(wanted[0]), key=wanted[0].count)
        gains = [float(s == w) - float(w == usual) for s, w in zip(said, wanted[1], strict=True)]
        clusters = [r.cluster or r.id for r in sides[1]]
        right, common = (sum(float(a == b) for a, b in pairs) / len(said) for pairs in (
            list(zip(said, wanted[1], strict=True)), [(usual, w) for w in wanted[1]]))
        return audited(name, common, right, self.max_inferred, mean_interval(gains, clusters, self.level), unit="accuracy",
                       title=f"{self.attribute} inferred from messages", level=self.level, n=len(said),
                       detail="against the commonest value")


def sent(split: Split, ids: Sequence[int], noise: bool = True) -> torch.Tensor:
    """[tokens, width] the message of one text."""
    import torch

    from luthier.engine.splitting import message

    return message(split, torch.tensor([list(ids)], device=split.model.device), noise=noise)[0].float()


def by_nearest(split: Split, messages: Sequence[torch.Tensor]) -> list[list[int]]:
    """For each place the token id whose own output of the bottom, at that place, is nearest."""
    import torch

    from luthier.engine.splitting import message

    longest, size = max(map(len, messages)), len(split.model.tokenizer)
    best = [torch.full((len(m),), float("inf")) for m in messages]
    named = [torch.zeros(len(m), dtype=torch.long) for m in messages]
    places = [torch.stack([m[p] for m in messages if len(m) > p]).double() for p in range(longest)]
    holders = [[n for n, m in enumerate(messages) if len(m) > p] for p in range(longest)]
    for start in range(0, size, VOCABULARY_ROWS):
        ids = torch.arange(start, min(size, start + VOCABULARY_ROWS))
        # Without layers a place sees its own token alone: a text of one token, repeated, shows it at every place.
        outputs = message(split, ids[:, None].repeat(1, longest).to(split.model.device), noise=False).double()
        for p in range(longest):
            apart = torch.cdist(places[p], outputs[:, p])
            values, at = apart.min(1)
            for n, value, token in zip(holders[p], values.tolist(), ids[at].tolist(), strict=True):
                if value < best[n][p]:
                    best[n][p], named[n][p] = value, token
    return [n.tolist() for n in named]


def by_classifier(split: Split, shadow: Sequence[list[int]], messages: Sequence[torch.Tensor], steps: int, seed: int
                  ) -> list[list[int]]:
    """The tokens that a linear map of states names, trained on messages of the attacker's own texts."""
    import torch

    states, tokens = torch.cat([sent(split, ids) for ids in shadow]), torch.tensor([i for ids in shadow for i in ids])
    types, wanted = tokens.unique(return_inverse=True)
    said = _trained(torch.nn.Linear, states, wanted, torch.cat(list(messages)), len(types), steps, seed)
    return [part.tolist() for part in types[said].split([len(m) for m in messages])]


def means(split: Split, texts: Sequence[list[int]]) -> torch.Tensor:
    """[texts, width] the mean state of each message."""
    import torch

    return torch.stack([sent(split, ids).mean(0) for ids in texts])


def by_network(seen: torch.Tensor, wanted: Sequence[int], others: torch.Tensor, values: int, steps: int,
               seed: int) -> list[int]:
    """What a network of one hidden layer says of other messages."""
    import torch
    from torch import nn

    def network(width: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, outputs))

    found: list[int] = _trained(network, seen, torch.tensor(list(wanted)), others, values, steps, seed).tolist()
    return found


def _trained(made: Any, seen: torch.Tensor, wanted: torch.Tensor, others: torch.Tensor, classes: int, steps: int, seed: int
             ) -> torch.Tensor:
    """[others] classes that a network says, trained on all of `seen` at once."""
    import torch

    mean, spread = seen.mean(0), seen.std(0) + 1e-6
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        network = made(seen.shape[1], classes)
        optimizer = torch.optim.Adam(network.parameters(), 1e-2)
        for _ in range(steps):
            loss = torch.nn.functional.cross_entropy(network((seen.detach() - mean) / spread), wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        return torch.as_tensor(network((others - mean) / spread).argmax(1))

"""probe: what of a program can be read off each layer of a frozen model, before and after tuning?

    lexical     the tag of each token (keyword, name, number, string, operator)      share right
    structure   the class of the cyclomatic complexity, 1 to 5 or more              share right
    syntax      a program's own syntax tree, written as a sequence, among others'    mean of 1 / rank
    semantic    another solution of the same problem (rows with `problem`)           MAP@R

The first two are read by a linear classifier (ridge regression on tokens or on their mean). For the others a linear map of the
mean, that begins as the identity, is trained: for syntax by cross-entropy of cosine x 20 among the rows of a batch, for
semantic by max(0, 0.3 - cos(a, p) + cos(a, n)) over all triplets of a batch. Half of the programs train, half test. With
`layers=weighted` one probe reads h = sum softmax(w)_l h_l, w trained by a linear classifier (lexical and structure), and
softmax(w) shows in which layers the property lies. Programs come from `data`, else from Python's own library.

When it helps: to see what tuning a model for code keeps and loses. Source: Shi et al. 2023, arXiv 2304.05216, section 3
(seed 52).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.files import write_lines
from luthier.core.finding import Finding, audited
from luthier.core.identity import hash_file
from luthier.core.kinds import Audit
from luthier.core.step import Ctx
from luthier.engine.subjects import ROLES, Role, Subject, paired_change
from luthier.techniques.evaluation._code_labels import COMPLEXITIES, TAGS, complexity, library, token_tags, tree_of
from luthier.techniques.evaluation._probes import linear, mixture, own_tree, same_problem

if TYPE_CHECKING:
    import torch

    from luthier.engine.models import Model

ITEMS = "programs.jsonl"
FEWEST = 8


class Probe(Audit, name="probe", seeds=[52]):
    """What layers know of programs."""

    battery: ClassVar[bool] = False
    mends: ClassVar[tuple[str, ...]] = ("method full",)
    task: Literal["lexical", "syntax", "structure", "semantic"] = Field("lexical", description="what is to be read off")
    layers: Literal["all", "weighted"] | int = Field("all", description="every layer by itself, a learned mixture, or "
                                                                        "one layer: 0 = embeddings, -1 = the last")
    data: str = Field("", description="JSON lines with code, and problem for semantic; Python's library if left out")
    most_rows: int = Field(200, ge=FEWEST, description="most programs, half of them to train the probe")
    max_tokens: int = Field(256, ge=8, description="how much of a program is read")
    steps: int = Field(100, ge=1, description="steps of Adam for what is not solved for")
    max_drop: float = Field(0.1, gt=0, description="most that the best layer may lose by tuning")

    def check(self) -> None:
        """Refuse programs that can't be used."""
        self._programs()

    def content(self) -> dict[str, Any]:
        """The file of programs."""
        return {"data": hash_file(Path(self.data).expanduser())} if self.data else {}

    def measure(self, ctx: Ctx, subject: Subject) -> list[Finding]:
        """One finding a layer, `audit/probe/TASK/LAYER`; `audit/probe` is that of the layer that knew most."""
        import torch

        programs = self._programs()
        found: dict[Role, dict[str, Any]] = {}
        for role in ROLES if not subject.same else ROLES[1:]:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(ctx.rng.key("probe"))
                found[role] = self._probed(subject.model(role), programs)
            ctx.progress(len(found), 2, "models")
        found.setdefault("before", found["after"])
        if found["before"].keys() != found["after"].keys():
            raise UserError("probe compares layer with layer, and the two models have other numbers of them.")
        items = range(len(next(iter(found["after"].values()))[0]))
        write_lines(ctx.folder / ITEMS, ({"id": str(i), "layer": layer, **{role: found[role][layer][0][i] for role in ROLES}}
                                         for layer in found["after"] for i in items))
        means = {role: {n: sum(v) / len(v) for n, (v, _) in layers.items()} for role, layers in found.items()}
        best = max(means["before"], key=means["before"].__getitem__)
        return [self._finding(f"audit/probe{suffix}", layer, found, means, subject)
                for suffix, layer in [("", best), *((f"/{self.task}/{n}", n) for n in means["after"])]]

    def _finding(self, name: str, layer: str, found: Any, means: Any, subject: Subject) -> Finding:
        before, after = (found[role][layer][0] for role in ROLES)
        ends, needed = paired_change(subject, before, after, [str(i) for i in range(len(before))])
        more: dict[str, Any] = found["after"][layer][1]
        return audited(name, means["before"][layer], means["after"][layer], self.max_drop, ends, worse="down",
                       title=f"{self.task} by layer {layer}", evidence=ITEMS, detail=f"{len(before)} programs", needed=needed,
                       **more)

    def _programs(self) -> list[dict[str, str]]:
        """Raises UserError for no file, too few programs, or ones that Python can't parse."""
        if not self.data:
            if self.task == "semantic":
                raise UserError("probe: task=semantic needs programs that solve the same problems: data=FILE, JSON lines with "
                                "code and problem.")
            return [{"code": code} for code in library(self.most_rows)]
        rows = programs_of(self.data, self.task)
        if len(rows) < FEWEST:
            raise UserError(f"probe: {self.data} has {len(rows)} programs; give at least {FEWEST}.")
        return rows[:self.most_rows]

    def _probed(self, model: Model, programs: Sequence[dict[str, str]]) -> dict[str, Any]:
        """By layer: a score of each program of the test half, and what else there is to say."""
        import torch

        from luthier.engine.representations import pooled, states_of

        limit = min(self.max_tokens, model.limit)
        read = model.tokenizer([p["code"] for p in programs], truncation=True, max_length=limit, return_offsets_mapping=True)
        states = [s.cpu() for s in states_of(model, read["input_ids"])]
        train, test = list(range(0, len(states), 2)), list(range(1, len(states), 2))
        if self.task in ("lexical", "structure"):
            labels = [_tags(p["code"], offsets) for p, offsets in zip(programs, read["offset_mapping"], strict=True)] \
                if self.task == "lexical" else [[min(complexity(p["code"]), COMPLEXITIES) - 1] for p in programs]
            kept = [[i for i, tag in enumerate(own) if tag >= 0] for own in labels]
            x = [s[:, k] if self.task == "lexical" else s.mean(1, keepdim=True) for s, k in zip(states, kept, strict=True)]
            y = [torch.tensor([own[i] for i in k], dtype=torch.long) for own, k in zip(labels, kept, strict=True)]
            test = [i for i in test if len(y[i])]
            classes = len(TAGS) if self.task == "lexical" else COMPLEXITIES
            return {name: (scores, more) for name, scores, more in self._classified(x, y, train, test, classes)}
        one = pooled(states).float()
        if self.task == "semantic":
            problems = [p["problem"] for p in programs]
            return {n: (same_problem(one[int(n)], problems, train, test, self.steps), {}) for n in self._chosen(len(one))}
        trees = model.tokenizer([tree_of(p["code"]) for p in programs], truncation=True, max_length=limit)["input_ids"]
        two = pooled([s.cpu() for s in states_of(model, trees)]).float()
        return {n: (own_tree(one[int(n)], two[int(n)], train, test, self.steps), {}) for n in self._chosen(len(one))}

    def _chosen(self, count: int) -> list[str]:
        if self.layers == "weighted":
            raise UserError(f"probe: layers=weighted is for lexical and structure; task={self.task} takes all or a number.")
        if self.layers == "all":
            return [str(n) for n in range(count)]
        if not -count <= self.layers < count:
            raise UserError(f"probe: layers={self.layers}, and the model has layers 0 (embeddings) to {count - 1}.")
        return [str(self.layers % count)]

    def _classified(self, x: list[torch.Tensor], y: list[torch.Tensor], train: list[int], test: list[int], classes: int) -> Any:
        """(layer, share right of each test program, more) from x [layers, items, width] and y [items] of each program."""
        import torch

        learned, given = torch.cat([x[i] for i in train], 1), torch.cat([y[i] for i in train])
        if self.layers == "weighted":
            weights = mixture(learned, given, classes, self.steps)
            mixed = [torch.tensordot(weights, part, 1)[None] for part in (learned, *(x[i] for i in test))]
            read = linear(mixed[0][0], given, classes)
            shares = [float((read(m[0]) == y[i]).double().mean()) for m, i in zip(mixed[1:], test, strict=True)]
            yield "weighted", shares, {"weights": weights.tolist()}
            return
        for n in map(int, self._chosen(len(learned))):
            read = linear(learned[n], given, classes)
            yield str(n), [float((read(x[i][n]) == y[i]).double().mean()) for i in test], {}


def programs_of(path: str, task: str) -> list[dict[str, str]]:
    """The rows of a file. Raises UserError naming the first that can't be used."""
    place = Path(path).expanduser()
    if not place.is_file():
        raise UserError(f"probe: data = {path!r}: there is no such file. Give JSON lines with code.")
    keys = ("code", "problem") if task == "semantic" else ("code",)
    rows = []
    for number, line in enumerate(place.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line) if line.strip() else None
            if row is not None:
                token_tags(row["code"]), tree_of(row["code"])  # whether Python reads it
                rows.append({key: str(row[key]) for key in keys})
        except (ValueError, KeyError, TypeError, SyntaxError) as error:
            raise UserError(f"{path}, line {number}: no {' and '.join(keys)} that Python reads ({error}).") from None
    return rows


def _tags(code: str, offsets: Sequence[tuple[int, int]]) -> list[int]:
    """The number of each token's tag, by its first character; -1 where it has none."""
    spans = token_tags(code)
    found = []
    for begin, end in offsets:
        begin += len(code[begin:end]) - len(code[begin:end].lstrip())
        tag = next((t for first, last, t in spans if first <= begin < last), "") if end > begin else ""
        found.append(TAGS.index(tag) if tag else -1)
    return found

"""What each method costs and allows, measured: every method trains a tiny encoder, decoder and encoder-decoder for a few steps.

Nothing about a method is written down here. Of each that trains a base it is measured

    trained      numbers that require a gradient, and their share of the base's
    work         FLOP of a forward of the loaded result, over those of the base, less 1
    mergeable    whether PEFT merges it and the merged model says the same with as much work as the base
    stackable    whether two of them at once say something else than either alone
    optimizer    bytes of the optimizer's states
    step         processor time of an optimizer step, over that of `lora` on the same base
    quantised    whether it trains where linear layers hold 8-bit numbers, and leaves these as they are

A method that refuses a base is listed with its reason. The models are random and small: shares and ratios are theirs.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core import index
from luthier.core.artifact import Artifact
from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.example import Example, question
from luthier.core.files import Journal
from luthier.core.rng import Rng
from luthier.core.step import Ctx, FitCtx

if TYPE_CHECKING:
    import torch

    from luthier.core.kinds import Method
    from luthier.engine.loop import Loop
    from luthier.engine.models import Model
    from luthier.engine.workshop import Engine

BASES = {"encoder": "pico-encoder", "decoder": "pico", "encoder-decoder": "pico-encoder-decoder"}
MEASURE = "lora"  # what a step's time is compared with, and where adapters come from that a method combines
STEPS, RATE, TOKENS = 12, 1e-2, 32
WORDS = "module class object list dict name scope block".split()
UNKNOWN = "unknown"


@dataclass
class Row:
    """One method on one base: measured cells, or why it refuses."""

    method: str
    architecture: str
    refused: str = ""
    cells: dict[str, Any] = field(default_factory=dict)


STUDIES = "luthier.studies."  # where controls live that only a study wants
CELLS = ("trained", "share", "work", "mergeable", "stackable", "optimizer", "step", "quantised")


def names() -> list[str]:
    """Every method, the one that others are compared with first; controls of studies are none that anybody would choose."""
    found = (r["name"] for r in index.rows() if r["kind"] == "method" and not r["module"].startswith(STUDIES))
    return sorted(found, key=lambda n: (n != MEASURE, n))


def probe(engine: Engine, folder: Path, methods: Sequence[str] = (), told: Any = lambda row: None) -> Iterator[Row]:
    """A row for each method and base; `told` hears each as it comes."""
    from luthier.engine.steps.base import Base

    for architecture, name in BASES.items():
        ctx = _ctx(engine, folder / architecture)
        bench = Bench(engine, architecture, Base(model=name).run({}, ctx), folder / architecture)
        for method in methods or names():
            row = bench.row(method)
            told(row)
            yield row


def _ctx(engine: Engine, folder: Path) -> Ctx:
    folder.mkdir(parents=True, exist_ok=True)
    return Ctx(Rng(0), folder, Journal(folder / "journal.jsonl"), engine)


class Bench:
    """One base, and what was measured of it."""

    def __init__(self, engine: Engine, architecture: str, base: Artifact, folder: Path) -> None:
        self.engine, self.architecture, self.base, self.folder = engine, architecture, base, folder
        model = engine.fresh(base)
        self.size, self.work = model.parameters(), flop(model)
        self.seconds: float | None = None

    def row(self, name: str) -> Row:
        """All cells of a method, or its refusal; a cell that can't be measured is unknown."""
        row = Row(name, self.architecture)
        folder = self.folder / name
        try:
            method = self.method(name)
            loop, seconds = self.trained(method, folder)
        except UserError as error:
            row.refused = str(error)
            return row
        model, kind = loop.model, method.artifact
        trained = sum(p.numel() for p in model.module.parameters() if p.requires_grad)
        states = [t for state in loop.torch_optimizer.state.values() for t in state.values() if hasattr(t, "element_size")]
        self.seconds = seconds if name == MEASURE else self.seconds
        row.cells = {"trained": trained, "share": trained / self.size,
                     "optimizer": sum(t.numel() * t.element_size() for t in states if t.dim()),
                     "step": seconds / self.seconds if self.seconds else UNKNOWN}
        measures = {"work": lambda: flop(self.loaded(folder)) / self.work - 1,
                    "mergeable": lambda: self.mergeable(self.loaded(folder), kind),
                    "stackable": lambda: self.stackable(folder, method),
                    "quantised": lambda: self.quantised(method, folder)}
        for cell, measure in measures.items():
            try:
                row.cells[cell] = measure()
            except Exception as error:  # whatever a library says to what it was not made for
                row.cells[cell] = f"{UNKNOWN} ({type(error).__name__})"
        return row

    def method(self, name: str) -> Method:
        """The method by its defaults; what it can't do without is given: a type of PEFT, adapters of the base."""
        needed = next(r for r in index.rows() if r["kind"] == "method" and r["name"] == name)["schema"].get("required", [])
        given: dict[str, Any] = {"type": "IA3"} if "type" in needed else {}
        if "adapters" in needed:
            given["adapters"] = {n: str(self.folder / MEASURE / n) for n in ("first", "second")}
            if not all(Path(p).exists() for p in given["adapters"].values()):
                self.trained(self.method(MEASURE), self.folder / MEASURE)
        made: Method = build("method", {"use": name, **given})
        return made

    def trained(self, method: Method, folder: Path) -> tuple[Loop, float]:
        """Two trainings by other draws, left in `folder/first` and `folder/second`; the first one, and seconds a step.

        The quicker one counts: whatever comes first in a process also pays for what is done once.
        """
        from luthier.engine import weights

        shutil.rmtree(folder, ignore_errors=True)
        found = []
        base = {"name": self.base.meta["name"], "identity": self.base.identity}
        for n, name in enumerate(("first", "second")):
            found.append(self.fitted(method, self.engine.fresh(self.base), folder / f"{name}-training", n))
            (folder / name).mkdir(parents=True)
            model = found[n][0].model
            method.keep(model, folder / name)
            # Saved as a training saves it: a method may have cut the base, or given it other numbers.
            weights.save(model, method.artifact, folder / name, {}, base=base, fit={"method": method.to_dict()})
        return found[0][0], min(seconds for _, seconds in found)

    def fitted(self, method: Method, model: Model, folder: Path, seed: int) -> tuple[Loop, float]:
        """A short training by the house's loop, and its processor seconds a step."""
        import torch

        from luthier.engine.forward import Forward
        from luthier.engine.loop import Loop, Plan, Task

        objective, rows = self.rows(model)
        ctx = FitCtx(**_ctx(self.engine, folder).__dict__)
        ctx.rng = Rng(seed)
        torch.manual_seed(seed)
        model.module.train()
        model = method.prepare(model, ctx)

        def groups() -> list[dict[str, Any]]:
            heads = [p for head in model.heads.values() for p in head.parameters()]
            return [*method.parameter_groups(model), *([{"params": heads}] if heads else [])]

        loop = Loop(Forward({"policy": model}), [Task("task", objective, rows, WORDS)], Plan(STEPS, 4, 4, RATE), groups,
                    build("optimizer", "adamw"), build("schedule", "constant"), ctx)
        hook = method.start(model, ctx)
        loop.hooks = [hook]
        began = time.process_time()
        loop.train()
        seconds = (time.process_time() - began) / STEPS
        method.finish(model, hook)
        return loop, seconds

    def rows(self, model: Model) -> tuple[Any, list[Any]]:
        """What is learned: answers, or labels with a head where the base gives none."""
        from luthier.engine.rendering import renderer

        examples = [question(w, f"What is a {w}?", f"a {w} of the {w}", label=("one", "other")[i % 2])
                    for i, w in enumerate(WORDS)]
        objective = build("objective", "classify" if self.architecture == "encoder" else "supervised")
        render = renderer(model, 128)
        render.labels = ["one", "other"]
        if objective.needs_head:
            model.labels["task"] = ["one", "other"]
            model.heads["task"] = build("head", "linear:dropout=0").build(model, ["one", "other"])
        return objective, [self._row(objective, e, render) for e in examples]

    @staticmethod
    def _row(objective: Any, example: Example, render: Any) -> Any:
        return objective.encode(example, render, Rng(0))

    def loaded(self, folder: Path, name: str = "first", model: Model | None = None) -> Model:
        """What a training left, on a fresh base or on a model."""
        from luthier.core.artifact import open_artifact
        from luthier.engine.models import add_tuned

        return add_tuned(model or self.engine.fresh(self.base), open_artifact(folder / name))

    def mergeable(self, model: Model, kind: str) -> bool:
        """Whether the result can be had as weights of the base's own kind."""
        before = said(model)
        if kind == "adapter":
            try:
                model.module = model.module.merge_and_unload()
            except (UserError, ValueError, NotImplementedError, AttributeError, TypeError):
                return False
        return bool((said(model) - before).abs().max() <= 1e-4) and flop(model) == self.work

    def stackable(self, folder: Path, method: Method) -> bool:
        """Whether two results are at work at the same time."""
        one, other = (said(self.loaded(folder, name)) for name in ("first", "second"))
        model = self.loaded(folder)
        if model.pruned is not None:
            return False  # each stands on a base that was cut for it
        if method.artifact != "adapter":
            both = said(self.loaded(folder, "second", model))
        else:
            try:
                model.module.load_adapter(str(folder / "second"), "second", autocast_adapter_dtype=False)
                model.module.base_model.set_adapter(["default", "second"])
                both = said(model)
            except (UserError, ValueError, NotImplementedError, AttributeError, TypeError, KeyError):
                return False
        return all(bool((both - alone).abs().max() > 1e-6) for alone in (one, other))

    def quantised(self, method: Method, folder: Path) -> bool:
        """Whether it trains on 8-bit layers and does not touch them."""
        from luthier.engine.quantized import check_method

        try:
            check_method("nf4", method.info.name, method.artifact)
            model = self.engine.fresh(self.base)
            kept = in_eight_bits(model)
            self.fitted(method, model, folder / "quantised", 0)
        except (UserError, RuntimeError, ValueError, TypeError, AttributeError):
            return False
        return all(bool((layer.weight == was).all()) for layer, was in kept)


def said(model: Model) -> torch.Tensor:
    """What a model says to fixed tokens: scores, or an encoder's states."""
    import torch

    ids = torch.arange(5, 5 + TOKENS)[None]
    more = {"decoder_input_ids": ids} if model.architecture == "encoder-decoder" else {}
    model.module.eval()
    with torch.no_grad():
        out = model.module(input_ids=ids, **more)
    found: torch.Tensor = out.last_hidden_state if model.architecture == "encoder" else out.logits[:, -TOKENS:]
    return found


def flop(model: Model) -> int:
    """FLOP of matrix products of a forward of fixed tokens, attention's included."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        said(model)
    return int(counter.get_total_flops())


def in_eight_bits(model: Model) -> list[tuple[Any, torch.Tensor]]:
    """Give every linear layer but the vocabulary head 8-bit weights with one scale; returns layers and their numbers."""
    import torch
    from torch import nn

    class EightBits(nn.Linear):
        """Weights as 8-bit integers: x to (scale q) x + b."""

        scale: float

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)

    head = model.module.get_output_embeddings() if hasattr(model.module, "get_output_embeddings") else None
    found = []
    for layer in model.module.modules():
        if type(layer) is nn.Linear and layer is not head:
            scale = layer.weight.detach().abs().max() / 127
            numbers = (layer.weight.detach() / scale).round().to(torch.int8)
            layer.__class__ = EightBits
            layer.scale = float(scale)  # type: ignore[assignment]
            layer.weight = nn.Parameter(numbers, requires_grad=False)
            found.append((layer, numbers.clone()))
    return found


@contextmanager
def quietly() -> Iterator[None]:
    """Libraries keep their notices to themselves."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def unknown_share(rows: Sequence[Row]) -> float:
    """Share of cells that could not be measured."""
    cells = [value for row in rows for value in row.cells.values()]
    return sum(str(v).startswith(UNKNOWN) for v in cells) / len(cells) if cells else 0.0


HEAD = ("method", "base", "trained", "extra work", "merges", "two at once", "optimizer", "step / lora", "8-bit base")


def shown(row: Row) -> list[str]:
    """The cells of a row as text, in the order of `HEAD`."""
    c: Mapping[str, Any] = row.cells

    def word(value: Any) -> str:
        if isinstance(value, bool):
            return "yes" if value else "no"
        return value if isinstance(value, str) else f"{value:.2f}"

    work = c["work"] if isinstance(c["work"], str) else f"{100 * c['work']:+.1f} %"
    return [row.method, row.architecture, f"{c['trained']:,} ({100 * c['share']:.2f} %)", work, word(c["mergeable"]),
            word(c["stackable"]), f"{c['optimizer'] / 1000:,.1f} kB", word(c["step"]), word(c["quantised"])]


def markdown(rows: Sequence[Row]) -> list[str]:
    """The table and the refusals as lines of Markdown."""
    lines = [f"| {' | '.join(HEAD)} |", f"|{'|'.join('---' for _ in HEAD)}|"]
    lines += [f"| {' | '.join(shown(row))} |" for row in rows if not row.refused]
    refused = [f"- `{row.method}` on the {row.architecture}: {row.refused}" for row in rows if row.refused]
    return [*lines, *(["", "Refused, in their words:", "", *refused] if refused else [])]


def as_json(rows: Sequence[Row]) -> str:
    """All rows."""
    return json.dumps([asdict(row) for row in rows], ensure_ascii=False)

"""The engine that steps and components are handed: models in memory, and what can be asked of them."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import torch

from luthier.core.artifact import RECORD, Artifact, open_artifact
from luthier.core.component import build
from luthier.core.files import Journal
from luthier.core.kinds import Decoder, Metric, Prediction
from luthier.core.rng import Rng
from luthier.core.step import Ctx, Progress, silent
from luthier.engine import fused, generation, hub, models, quick, sandbox, scoring
from luthier.engine.generation import Generated, Stop
from luthier.engine.hardware import KERNELS
from luthier.engine.int8 import Int8Linear
from luthier.engine.memory import keep_freed
from luthier.engine.models import Model

# Nothing is sent out unasked, by us or by what we build on.
hub.stay_offline()
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# oneDNN keeps a compiled kernel for every shape of a bfloat16 product, and torch's layer above it one more: 1,024 each by
# default, together about 1.1 MB a shape. With packs every micro-batch has another number of tokens, and old shapes hardly
# come back. Either alone keeps the memory of both. Read at the first product.
for _capacity in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(_capacity, str(KERNELS))

# As the artifact has them, or in 8 bits.
Weights = Literal["own", "int8"]


class Engine:
    """One per process. Keeps the models it loaded; `decisions` are what it chose by measuring.

    A server keeps all of its models, and answers requests beside others: it sets `most_models` and `answers`.
    """

    most_models = 2

    def __init__(self, threads: int | None = None, exact: bool = False, device: str = "cpu") -> None:
        # More threads than processors would wait for each other at every operation.
        most = len(os.sched_getaffinity(0))
        torch.set_num_threads(threads or min(most, int(os.environ.get("OMP_NUM_THREADS") or most)))
        keep_freed()
        self.device = device
        self.exact = exact
        self.decisions: dict[str, Any] = {"threads": torch.get_num_threads(), "exact": exact}
        self.answers: generation.Answers = generation.answers
        self._models: dict[tuple[str, str, torch.dtype, str], Model] = {}
        quiet()

    def dtype(self, model: Artifact, training: bool = False) -> torch.dtype:
        """bfloat16 where its matrix products are measured faster than float32; embeddings are made in float32.

        An encoder is only trained in bfloat16 (its masters are float32). The measurement is made once a process; what
        was decided is in `decisions` and in each artifact's record.
        """
        if self.exact or (model.meta["architecture"] == "encoder" and not training):
            return torch.float32
        if "bfloat16_speedup" not in self.decisions:
            self.decisions["bfloat16_speedup"] = round(_bfloat16_speedup(), 2)
        return torch.bfloat16 if self.decisions["bfloat16_speedup"] > 1.1 else torch.float32

    def decide(self, kept: Mapping[str, Any]) -> dict[str, Any]:
        """What a run decided at its first start holds for every later one; only what is missing is measured."""
        self.decisions.update(kept)
        torch.set_num_threads(self.decisions["threads"])
        self._decide_fused()
        if not self.exact and "bfloat16_speedup" not in self.decisions:
            self.decisions["bfloat16_speedup"] = round(_bfloat16_speedup(), 2)
        return self.decisions

    def _decide_fused(self) -> None:
        """How the vocabulary is cut. Whether the soft-max is compiled is for each training to decide, by its length."""
        kept = self.decisions.get("fused_chunk_rows")
        fused.use(fused.Settings(kept) if kept else fused.Settings() if self.exact else fused.measure())
        self.decisions["fused_chunk_rows"] = fused.settings.chunk

    def tokenizer(self, base: Artifact) -> Any:
        """The tokenizer of a base, without its weights."""
        return models.load_tokenizer(models.folder_of(base))

    def load(self, base: Artifact, tuned: Artifact | None = None, dtype: torch.dtype | None = None,
             weights: Weights = "own") -> Model:
        """A frozen model in evaluation mode: a base, or a base with an adapter, delta or full weights on it.

        The last two models are kept in memory; a model handed out here must not be changed. With `weights` int8 its linear
        layers read 8 bits a weight: a near, but another model, with an identity of its own.
        """
        wanted = dtype or self.dtype(base)
        key = (base.identity, tuned.identity if tuned else "", wanted, weights)
        if key not in self._models:
            model = self.bare(base, tuned, wanted)
            if len(self._models) >= self.most_models:
                self._models.pop(next(iter(self._models)))
            model = models.add_tuned(model, tuned) if tuned else model
            if weights == "int8":
                model = quick.quicken(model, Int8Linear)
                model.identity = f"{model.identity}-int8"
            elif self.reorders(wanted):
                model = self.quicken(model)
            self._models[key] = model
        return self._models[key]

    def bare(self, base: Artifact, tuned: Artifact | None, dtype: torch.dtype) -> Model:
        """The base that a model kept here is made from; a tuned artifact is put on it."""
        return self.fresh(base, dtype)

    def quicken(self, model: Model) -> Model:
        """Give a model that only answers its reordered weights."""
        return quick.quicken(model)

    def reorders(self, dtype: torch.dtype) -> bool:
        """Whether models that only answer keep their weights reordered: where that is measured to be faster."""
        if self.exact or dtype != torch.bfloat16 or self.device != "cpu":
            return False
        if "reordered_speedup" not in self.decisions:
            self.decisions["reordered_speedup"] = round(quick.speedup(), 2)
        return bool(self.decisions["reordered_speedup"] > 1.1)

    def fresh(self, base: Artifact, dtype: torch.dtype | None = None) -> Model:
        """A base of one's own, to be changed."""
        return models.load_base(base, dtype or self.dtype(base), self.device)

    def forget(self) -> None:
        """Give the memory of loaded models back."""
        self._models.clear()

    def generate(self, model: Model | Mapping[str, Model], prompts: Sequence[list[int]], decoder: Decoder | str, *,
                 rng: Rng | None = None, stop: Stop = "token", stop_ids: Collection[int] | None = None,
                 journal: Journal | None = None, progress: Progress = silent, seen: Sequence[Mapping[str, Any]] = (),
                 examples: Sequence[Any] | None = None) -> list[Generated]:
        """Continue token ids; batched, and journalled batch by batch when a journal is given.

        stop_ids: tokens that end an answer (`Render.stop_ids`); the model's own when left out. seen: pictures and the like that
        go with each prompt (`Render.seen`). examples: what the prompts were made of, for a decoder that weighs answers.
        """
        speakers = {"policy": model} if isinstance(model, Model) else model
        return generation.generate(speakers, prompts, build("decoder", decoder), rng or Rng(0), stop=stop, stop_ids=stop_ids,
                                   journal=journal, progress=progress, answers=self.answers, seen=seen, engine=self,
                                   examples=examples)

    def score(self, model: Model, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, int]]:
        """Log-probability and length of given continuations (ids) of given prompts (ids)."""
        return scoring.score(model, pairs)

    def embed(self, model: Model, texts: Sequence[str], max_tokens: int = 256) -> Any:
        """[texts, width] float32 embeddings of length 1 from an encoder, as a NumPy array."""
        return scoring.embed(model, texts, max_tokens).numpy()

    def fit(self, fit: Any, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Run a Fit step in a folder of its own within another step's; the same fit is not run twice."""
        step = build("step", fit)
        folder = ctx.folder / f"fit-{step.identity[:8]}"
        if (folder / RECORD).exists():
            return open_artifact(folder)
        folder.mkdir(parents=True, exist_ok=True)
        inner = Ctx(**{**ctx.__dict__, "folder": folder, "journal": Journal(folder / "journal.jsonl"),
                       "stream": lambda name: inputs[name.partition(".")[0]].examples(name.partition(".")[2])})
        artifact: Artifact = step.run(inputs, inner)
        return artifact

    def execute(self, programs: Sequence[str], limits: sandbox.Limits | None = None) -> list[sandbox.Executed]:
        """Run Python programs that a model wrote, in the sandbox and nowhere else; how each ended."""
        return sandbox.execute(programs, limits, self.decisions["threads"])

    def evaluate(self, examples: Sequence[Any], predictions: Sequence[Prediction], metrics: Sequence[Metric],
                 ctx: Ctx) -> dict[str, list[dict[str, Any]]]:
        """Records of each metric, one per example."""
        return {m.info.name: m.score(examples, predictions, ctx) for m in metrics}


def _bfloat16_speedup(size: int = 768, rounds: int = 12) -> float:
    """How many times as fast as float32 a bfloat16 matrix product is here.

    Both take turns and the fastest of each counts: what else runs on the machine only ever makes a product slower.
    """
    squares = {dtype: torch.ones(size, size, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)}
    seconds = dict.fromkeys(squares, float("inf"))
    for _ in range(rounds):
        for dtype, square in squares.items():
            began = time.perf_counter()
            square @ square
            seconds[dtype] = min(seconds[dtype], time.perf_counter() - began)
    return seconds[torch.float32] / seconds[torch.bfloat16]


def quiet() -> None:
    """Silence what the libraries print for their own developers; their errors still reach the user as exceptions."""
    import warnings

    import transformers

    # Raised by transformers about its own attributes when it saves a model; nothing a user could mend.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()

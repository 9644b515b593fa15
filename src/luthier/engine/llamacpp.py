"""llama.cpp as what computes: a file in its format answers requests as `scheduling.Scheduler` does, a token a step and row.

llama.cpp gives the scores of the next token; decoders, random numbers, stops and log-probabilities are ours, so an answer is
asked for, cut and weighed as with the model itself. One model, no adapters, no further roles: a file is what it is. Its
binding is asked through the C interface, since the class of llama-cpp-python reads one sequence at a time.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from luthier.core.artifact import Artifact
from luthier.core.errors import LuthierError, UserError
from luthier.engine.models import Model, load_tokenizer
from luthier.engine.scheduling import ROWS, Answering, Request, choose

# Tokens that all rows keep together, and tokens of one call.
CELLS, CALL = 16_384, 512
MISSING = ("--engine llamacpp needs the package llama-cpp-python, which is built on your machine (a C++ compiler and CMake): "
           "pip install llama-cpp-python")


@dataclass(frozen=True)
class _Config:
    """What others ask of a model's config."""

    vocab_size: int
    max_position_embeddings: int

    def get_text_config(self) -> _Config:
        """Itself: it reads text only."""
        return self


class LlamaCpp:
    """A file of llama.cpp, opened: `compute` is its forward. It stands where a module of torch stands, and never trains.

    Raises:
        UserError: llama-cpp-python is missing, or the file can't be read by it.
    """

    training = False

    def __init__(self, path: Path, threads: int, rows: int = ROWS, cells: int = CELLS) -> None:
        try:
            import llama_cpp
        except ImportError:
            raise UserError(MISSING) from None
        self.api: Any = llama_cpp
        self.rows = rows
        self._quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        if not self._model:
            raise UserError(f"llama.cpp can't read {path}. Export it again: luthier export RUN --to gguf")
        trained = int(llama_cpp.llama_model_n_ctx_train(self._model))
        self.cells = min(cells, rows * trained)
        asked = llama_cpp.llama_context_default_params()
        asked.n_ctx, asked.n_batch, asked.n_ubatch, asked.n_seq_max = self.cells, CALL, CALL, rows
        asked.n_threads = asked.n_threads_batch = threads
        asked.kv_unified, asked.no_perf = True, True
        self._context = llama_cpp.llama_init_from_model(self._model, asked)
        if not self._context:
            raise UserError(f"llama.cpp has no room for {self.cells} tokens of {path}.")
        size = int(llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model)))
        self.config = _Config(size, min(trained, self.cells))
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = llama_cpp.llama_batch_init(CALL, 0, 1)

    def eval(self) -> LlamaCpp:
        """Nothing to do: it only answers."""
        return self

    def train(self, mode: bool = True) -> LlamaCpp:
        """Nothing to do, either."""
        return self

    def parameters(self) -> Iterable[torch.Tensor]:
        """None that torch knows."""
        return iter(())

    def forget(self, row: int | None = None) -> None:
        """Empty one row, or all."""
        if row is None:
            self.api.llama_memory_clear(self._memory, True)
        else:
            self.api.llama_memory_seq_rm(self._memory, row, -1, -1)

    def compute(self, rows: Sequence[tuple[int, int, Sequence[int]]]) -> torch.Tensor:
        """[rows, vocabulary] scores of what follows, of (row, position of its first new token, new tokens).

        Raises:
            LuthierError: llama.cpp gives no result. Rows are in an unknown state then.
        """
        flat = [(token, start + n, row, n == len(ids) - 1) for row, start, ids in rows for n, token in enumerate(ids)]
        found = []
        for begin in range(0, len(flat), CALL):
            part = flat[begin:begin + CALL]
            self._fill(part)
            code = self.api.llama_decode(self._context, self._batch)
            if code:
                raise LuthierError(f"llama.cpp could not compute {len(part)} tokens (code {code}).")
            for n, (_, _, _, last) in enumerate(part):
                if last:
                    scores = self.api.llama_get_logits_ith(self._context, n)
                    found.append(np.ctypeslib.as_array(scores, shape=(self.config.vocab_size,)).copy())
        return torch.from_numpy(np.stack(found))

    def _fill(self, part: Sequence[tuple[int, int, int, bool]]) -> None:
        batch = self._batch
        batch.n_tokens = len(part)
        for n, (token, position, row, last) in enumerate(part):
            batch.token[n], batch.pos[n], batch.n_seq_id[n], batch.logits[n] = token, position, 1, int(last)
            batch.seq_id[n][0] = row


def load(folder: Path, file: str, base: Artifact, tuned: Artifact, threads: int) -> Model:
    """The model of an exported folder, its tokenizer and template those of the training."""
    module = LlamaCpp(folder / file, threads)
    tokenizer = load_tokenizer(folder)
    return Model(module, tokenizer, "decoder", f"q8_0-{tuned.identity}", str(base.meta["name"]),
                 module.config.max_position_embeddings, base, template=dict(tuned.meta.get("template", {})))


class LlamaScheduler:
    """A `Scheduler` for a file of llama.cpp: requests join and leave between steps.

    Raises:
        LuthierError: further models are to be asked beside it.
    """

    def __init__(self, models: Mapping[str, Model], ends: Sequence[int]) -> None:
        if set(models) != {"policy"}:
            raise LuthierError("llama.cpp answers with one model: a decoder that asks further ones needs --engine luthier.")
        self.answering = Answering(models["policy"], ends)
        self.module: LlamaCpp = models["policy"].module
        self.module.forget()
        self.waiting: deque[Request] = deque()
        self.active: dict[int, Request] = {}

    def submit(self, request: Request, beginning: Sequence[int] = ()) -> None:
        """Queue a request; no beginning is shared here.

        Raises:
            UserError: it needs more tokens than can be kept.
        """
        if request.needs() > self.module.cells:
            raise UserError(f"A request of {request.needs()} tokens: llama.cpp keeps {self.module.cells} here.")
        self.waiting.append(request)

    @property
    def idle(self) -> bool:
        """Whether every request is answered."""
        return not self.waiting and not self.active

    def step(self) -> list[Request]:
        """Write one token for every request being answered, read some waiting ones; returns those that ended."""
        gone = [r for r in (*self.waiting, *self.active.values()) if r.cancelled]
        for request in gone:
            request.done = True
        self.waiting = deque(r for r in self.waiting if not r.done)
        self._release()
        asked = [(row, len(r.prompt) + len(r.written) - 1, r.written[-1:]) for row, r in self.active.items()]
        asked += [(row, 0, self.active[row].prompt) for row in self._admitted()]
        if not asked:
            return gone
        requests = [self.active[row] for row, _, _ in asked]
        for request, token in zip(requests, choose(requests, {"policy": self.module.compute(asked)}), strict=True):
            self.answering.take(request, token)
        self._release()
        return gone + [r for r in requests if r.done]

    def _admitted(self) -> list[int]:
        """Rows of waiting requests that are read now: as many as rows and tokens allow."""
        found: list[int] = []
        room = self.module.cells - sum(r.needs() for r in self.active.values())
        free = [row for row in range(self.module.rows) if row not in self.active]
        while self.waiting and free and self.waiting[0].needs() <= room:
            row, request = free.pop(0), self.waiting.popleft()
            self.active[row] = request
            room -= request.needs()
            found.append(row)
        return found

    def _release(self) -> None:
        """Give the rows of ended requests back."""
        for row in [row for row, r in self.active.items() if r.done]:
            self.module.forget(row)
            del self.active[row]

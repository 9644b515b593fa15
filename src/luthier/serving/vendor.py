"""The vendor's side of a split model over HTTP: messages of `engine/far.py`, one after the other, by one thread at a time."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Set
from pathlib import Path
from typing import Any, TypeVar

import torch
from fastapi import FastAPI, Request
from fastapi.responses import Response
from safetensors import SafetensorError
from safetensors.torch import load, save

from luthier import __version__
from luthier.core.errors import UserError
from luthier.engine.far import NUMBER
from luthier.engine.vendor import Vendor
from luthier.serving.errors import answer_errors
from luthier.serving.layers import Guard
from luthier.serving.limits import Limits
from luthier.serving.server import made

T = TypeVar("T")


def application(vendor: Vendor, limits: Limits, kept: Path, token: bytes | None = None) -> Guard:
    """The ASGI application; what was trained is kept in the folder `kept` when the customer says that it is done."""
    app = FastAPI(title="Luthier, a vendor's part", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    turn = asyncio.Lock()
    answer_errors(app)

    async def computed(work: Callable[[], T]) -> T:
        async with turn:
            return await asyncio.to_thread(work)

    @app.get("/v1/split")
    async def about() -> dict[str, Any]:
        """The model, its border, and how far training is."""
        return {**vendor.about, "step": vendor.steps}

    @app.post("/v1/split/states")
    async def states(request: Request, learn: bool, step: int) -> Response:
        """The last layer's states of a message."""
        given = tensors(await request.body(), {"states"}, {"mask"})
        answer, number = await computed(lambda: vendor.states(given["states"], given.get("mask"), learn, step))
        return Response(save({"states": answer.contiguous().cpu()}), media_type="application/octet-stream",
                        headers={NUMBER: str(number)})

    @app.post("/v1/split/gradient")
    async def gradient(request: Request, number: int) -> Response:
        """The gradient of states that were sent."""
        given = tensors(await request.body(), {"gradient"})
        await computed(lambda: vendor.gradient(given["gradient"], number))
        return Response(status_code=204)

    @app.post("/v1/split/step")
    async def step(step: int, rate: float) -> Response:
        """Move the vendor's part."""
        await computed(lambda: vendor.step(step, rate))
        return Response(status_code=204)

    @app.post("/v1/split/end")
    async def end() -> Response:
        """Keep the vendor's part."""
        await computed(lambda: vendor.keep(kept))
        return Response(status_code=204)

    return Guard(app, limits, token)


def tensors(body: bytes, needed: Set[str], more: Set[str] = frozenset()) -> dict[str, torch.Tensor]:
    """The tensors of a message: all that are needed and no others. Raises UserError."""
    try:
        given = load(body)
    except SafetensorError:
        raise UserError(f"the body of {len(body)} bytes is no safetensors.") from None
    if not needed <= given.keys() <= needed | more:
        raise UserError(f"tensors {', '.join(sorted(given)) or '(none)'}: {', '.join(sorted(needed))} "
                        f"{'and, if any, ' + ', '.join(sorted(more)) + ' ' if more else ''}are taken here, nothing else.")
    return given


def run(vendor: Vendor, listening: socket.socket, limits: Limits, kept: Path, token: bytes | None = None) -> None:
    """Serve until a signal."""
    host, port, *_ = listening.getsockname()
    made(application(vendor, limits, kept, token), host, port, limits).run(sockets=[listening])

"""The customer's side of a model whose vendor sits in another process, behind an address.

Messages are safetensors over HTTP:

    POST {url}/v1/split/states?learn=0|1&step=N    states [rows, tokens, width], mask   ->  states, and a number
    POST {url}/v1/split/gradient?number=K          gradient, as the states that came back
    POST {url}/v1/split/step?step=N&rate=R         the vendor's optimizer moves its part
    POST {url}/v1/split/end                        the vendor keeps its part

Only privatised states, the mask of real tokens and gradients cross, and how far training is. Nothing is sent twice: a message
that may have been heard would count twice in a gradient. Before the border is opened (`Far.open`) nothing is sent at all.
A token comes from an environment variable and follows the rule of `endpoints`: never unencrypted to another machine.
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import nn

from luthier.core.errors import LuthierError, UserError
from luthier.engine.endpoints import OPENER, check_address

if TYPE_CHECKING:
    from luthier.engine.splitting import Split

NUMBER = "Luthier-Number"  # the header with which a vendor names the states that it sent
SLACK = 1 << 16  # bytes that an answer may have beyond what was sent
TOLD = 2000  # bytes of a refusal that are read


@dataclass(frozen=True)
class Line:
    """The way to a vendor: its address, the variable with the token that it asks for, and how long an answer may take."""

    url: str
    token_variable: str = ""
    seconds: float = 120.0

    def __post_init__(self) -> None:
        check_address(self.url, self.token_variable, "vendor", "token_variable")

    def about(self) -> dict[str, Any]:
        """What the vendor says of itself: layer, layers, width, dtype, base, step."""
        try:
            return dict(json.loads(self._asked("GET", "/v1/split")[0]))
        except ValueError:
            raise UserError(f"vendor: {self.url} answers, but not as the vendor of a split model does.") from None

    def states(self, payload: bytes, learn: bool, step: int) -> tuple[bytes, int]:
        """The states that the vendor makes of a message, and the number under which it waits for their gradient."""
        answer, headers = self._asked("POST", f"/v1/split/states?learn={int(learn)}&step={step}", payload)
        return answer, int(headers.get(NUMBER) or 0)

    def gradient(self, payload: bytes, number: int) -> None:
        """The gradient of states that came."""
        self._asked("POST", f"/v1/split/gradient?number={number}", payload)

    def step(self, step: int, rate: float) -> None:
        """The vendor moves its part."""
        self._asked("POST", f"/v1/split/step?step={step}&rate={rate!r}", b"")

    def end(self) -> None:
        """The vendor keeps its part."""
        self._asked("POST", "/v1/split/end", b"")

    def _asked(self, method: str, path: str, payload: bytes | None = None) -> tuple[bytes, Any]:
        headers = {"Content-Type": "application/octet-stream"}
        if self.token_variable:
            headers["Authorization"] = f"Bearer {os.environ[self.token_variable]}"
        request = urllib.request.Request(self.url.rstrip("/") + path, payload, headers, method=method)
        most = len(payload or b"") + SLACK
        try:
            with OPENER.open(request, timeout=self.seconds) as answer:
                found = answer.read(most + 1)
                if len(found) > most:
                    raise LuthierError(f"vendor: {self.url} answers with more than {most} bytes; states are as large as those "
                                       "that were sent.")
                return found, answer.headers
        except urllib.error.HTTPError as error:
            kind = UserError if error.code < 500 else LuthierError
            raise kind(f"vendor: {self.url} refused ({error.code}): {_told(error.read(TOLD))}") from None
        except TimeoutError:
            raise LuthierError(f"vendor: {self.url} did not answer within {self.seconds:g} s.") from None
        except OSError as error:  # refused, unknown name, broken on the way
            raise LuthierError(f"vendor: nothing answers at {self.url} ({getattr(error, 'reason', error)}). Start the vendor's "
                               "side: luthier vendor MODEL --out DIR") from None


def _told(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return "no reason was given"


class Far(nn.Module):
    """In the place of the layers above the border: what it is given crosses, and what it says came back.

    `step` is how many steps the training has made. The one weight is never moved: it stands for all that the vendor trains, so
    that the states which come back have a gradient.
    """

    border: Any

    def __init__(self, line: Line) -> None:
        super().__init__()
        self.line, self.step, self.opened = line, 0, False
        self.stands_for = nn.Parameter(torch.zeros(()))
        self.__dict__["border"] = None  # not through nn.Module: the border holds the model that holds this

    def stand_in(self, border: Split) -> None:
        """Take the place of a model's upper layers. Raises UserError for a vendor of another model or border."""
        about, model, layers = self.line.about(), border.model, border.stack.layers
        mine = {"base": model.base.identity, "layer": border.layer, "layers": len(layers), "width": model.width,
                "dtype": str(next(model.module.parameters()).dtype).removeprefix("torch.")}
        for name, value in mine.items():
            if about.get(name) != value:
                raise UserError(f"vendor: {name} is {about.get(name)} at {self.line.url}, and {value} here; both sides need "
                                "the same model, border and format.")
        if border.labels != "customer":
            raise UserError("vendor: over HTTP the labels stay with the customer; leave out labels: vendor.")
        self.__dict__["border"], self.as_tuple = border, border.stack.answers != "states"
        self.stands_for.data = self.stands_for.data.to(model.device)
        self.train(model.module.training)
        layers[border.layer] = self
        del layers[border.layer + 1:]

    def open(self) -> None:
        """From now on what it is given crosses: the customer's noise is in place."""
        self.opened = True

    def forward(self, *given: Any, **named: Any) -> Any:
        """The last layer's states of the rows that are given, in the form in which the model's layers answer."""
        states = given[0] if given else named["hidden_states"]
        if named.get("past_key_values") is not None or named.get("past_key_value") is not None:
            raise UserError("vendor: over HTTP a text goes up whole, and nothing is written token by token. Train, score or "
                            "classify; to write, hold both parts in one process.")
        if not self.opened:
            return (states,) if self.as_tuple else states
        heard = _Away.apply(states, self.stands_for, self, torch.is_grad_enabled())
        return (heard,) if self.as_tuple else heard

    def extra_repr(self) -> str:
        """Where it stands for what."""
        return f"vendor at {self.line.url}"


class _Away(torch.autograd.Function):
    """States that go up and come back; their gradient goes up. None comes down: nothing below the border is trained."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, stands_for: torch.Tensor, far: Far, learn: bool) -> torch.Tensor:
        wire, learn = far.border.wire, learn and stands_for.requires_grad
        answer, ctx.number = far.line.states(wire.packed("down", states=states, **far.border.mask), learn, far.step)
        ctx.far = far
        try:
            heard: torch.Tensor = wire.heard("up", answer)["states"].to(states.device)
        except (SafetensorError, KeyError):
            raise LuthierError(f"vendor: {far.line.url} answers with bytes that are no states.") from None
        if heard.shape != states.shape or heard.dtype != states.dtype:
            raise LuthierError(f"vendor: states {list(states.shape)} ({states.dtype}) went up, and {list(heard.shape)} "
                               f"({heard.dtype}) came back.")
        return heard

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        ctx.far.line.gradient(ctx.far.border.wire.packed("down", gradient=gradients[0]), ctx.number)
        return None, None, None, None

"""Endpoints: chat models behind an OpenAI-compatible address, asked with consent only.

`POST {url}/chat/completions` with `{"model", "messages", "max_tokens", "temperature"}`. The key comes from an environment
variable that the settings name; it is never stored, logged or sent to another host (redirects are refused). Each finished
answer is journalled under its prompt, so a resumed run pays for nothing twice.
"""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from luthier.core.errors import LuthierError, UserError
from luthier.core.files import Journal
from luthier.core.identity import digest
from luthier.core.step import Progress, silent

LOOPBACK = ("localhost", "127.0.0.1", "::1")
SHOWN_CHARACTERS = 400
LONGEST_WAIT_SECONDS = 60.0


class Endpoint(BaseModel):
    """Where a chat model answers, and how it is asked."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    url: str = Field("", description="address up to and including /v1; http:// or https://")
    model: str = Field("", description="name of the model at that address")
    key_variable: str = Field("", description="environment variable that holds the key; none is sent when empty")
    consent: bool = Field(False, description="true: the prompts may be sent to that address")
    max_tokens: int = Field(512, ge=1, description="longest answer in tokens")
    temperature: float = Field(0.0, ge=0, description="0: the likeliest answer")
    timeout_seconds: float = Field(60.0, gt=0, description="how long one request may take")
    retries: int = Field(4, ge=0, description="further tries after a 429, a 5xx or a broken connection")
    backoff_seconds: float = Field(1.0, ge=0, description="wait before the first further try; doubles each time")
    concurrency: int = Field(4, ge=1, le=64, description="requests at the same time")

    def ask(self, prompts: Sequence[str], journal: Journal, progress: Progress = silent) -> list[str]:
        """The answer to each prompt, in order; those in the journal are not asked for again.

        Raises:
            UserError: no consent (says what would be sent), a bad address, a missing key, or a refused request.
            LuthierError: the endpoint failed after all tries; finished answers are kept.
        """
        keys = ["endpoint/" + digest([self.url, self.model, self.max_tokens, self.temperature, p]) for p in prompts]
        missing = {k: p for k, p in zip(keys, prompts, strict=True) if k not in journal}
        if missing:
            self.check(list(missing.values()))
            self._fetch(missing, journal, progress)
        return [str(journal.values[k]) for k in keys]

    def check(self, prompts: Sequence[str]) -> None:
        """Refuse what can be refused before the first request. Raises UserError."""
        check_address(self.url, self.key_variable)
        if not self.consent:
            raise UserError(f"{self.describe(prompts)}\nNothing was sent. To agree: consent: true.")

    def describe(self, prompts: Sequence[str]) -> str:
        """In words what would leave this machine."""
        size = sum(map(len, prompts))
        first = prompts[0][-SHOWN_CHARACTERS:] if prompts else ""
        return (f"{len(prompts)} prompts ({size} characters of your documents and instructions) would be sent to "
                f"{urllib.parse.urlsplit(self.url).netloc}, model '{self.model}'. The first ends:\n{first}")

    def _fetch(self, missing: dict[str, str], journal: Journal, progress: Progress) -> None:
        """Ask with bounded concurrency; answers are journalled by this thread alone, as they come."""
        waiting, failure, done = iter(missing.items()), None, 0
        with ThreadPoolExecutor(self.concurrency) as pool:
            running: dict[Future[str], str] = {}
            while True:
                while failure is None and len(running) < self.concurrency and (item := next(waiting, None)) is not None:
                    running[pool.submit(self._answer, item[1])] = item[0]
                if not running:
                    break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    key = running.pop(future)
                    try:
                        journal.put(key, future.result())
                        done += 1
                        progress(done, len(missing), "answers")
                    except LuthierError as error:  # the others in flight are paid for: keep them
                        failure = failure or error
        if failure is not None:
            raise failure

    def _answer(self, prompt: str) -> str:
        last = ""
        for attempt in range(self.retries + 1):
            try:
                return self._request(prompt)
            except urllib.error.HTTPError as error:
                last = f"{error.code}: {self._clean(error.read(2000).decode('utf-8', 'replace'))[:200]}"
                if error.code != 429 and error.code < 500:
                    raise UserError(f"{self.url} refused the request ({last}).") from None
                asked = error.headers.get("Retry-After", "")
                pause = float(asked) if asked.isdigit() else self.backoff_seconds * 2**attempt
            except (OSError, ValueError) as error:  # a broken connection or a torn answer
                last, pause = self._clean(str(error)), self.backoff_seconds * 2**attempt
            if attempt < self.retries:
                time.sleep(min(pause, LONGEST_WAIT_SECONDS))
        raise LuthierError(f"{self.url} failed {self.retries + 1} times; last: {last}. Finished answers are kept; run again.")

    def _request(self, prompt: str) -> str:
        body = {"model": self.model, "messages": [{"role": "user", "content": prompt}],
                "max_tokens": self.max_tokens, "temperature": self.temperature}
        headers = {"Content-Type": "application/json"}
        if self.key_variable:
            headers["Authorization"] = f"Bearer {os.environ[self.key_variable]}"
        request = urllib.request.Request(f"{self.url.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers)
        with OPENER.open(request, timeout=self.timeout_seconds) as answer:
            said = json.loads(answer.read())
        try:
            return str(said["choices"][0]["message"]["content"] or "")
        except (KeyError, IndexError, TypeError):
            raise ValueError("the answer has no choices[0].message.content") from None

    def _clean(self, text: str) -> str:
        key = os.environ.get(self.key_variable, "") if self.key_variable else ""
        return text.replace(key, "***") if key else text


def check_address(url: str, variable: str, what: str = "url", holds: str = "key_variable") -> None:
    """Refuse an address that is none, and a secret (in the environment variable `variable`) that all could read on the way.

    what, holds: how the two settings are named. Raises UserError.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"{what}: '{url}' is no http:// or https:// address.")
    if parts.username or parts.password:
        raise UserError(f"{what} holds a user name or password; name an environment variable in {holds} instead.")
    if variable and not os.environ.get(variable):
        raise UserError(f"{holds}: the environment variable {variable} is not set.")
    if variable and parts.scheme == "http" and parts.hostname not in LOOPBACK:
        raise UserError(f"{what}: a key is not sent unencrypted to {parts.hostname}; use https://.")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to an address that nobody agreed to."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


OPENER = urllib.request.build_opener(_NoRedirect)

"""What is answered, for the description of the interface: OpenAI's bodies, field by field, and our own of /v1/answers.

Nothing is built from these classes: the endpoints write dictionaries, and tests hold them against what is said here.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Reply(BaseModel):
    """A body that is answered: no field but these."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class About(Reply):
    """What is wrong, in words; the field of the request that it is about; a word for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(Reply):
    """Every answer but 200."""

    error: About


class Name(Reply):
    """One name that may be asked."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class Names(Reply):
    """All of them."""

    object: Literal["list"]
    data: list[Name]


class Usage(Reply):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Completion(Reply):
    """What both kinds of completions begin with."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    usage: Usage


class TextWeights(Reply):
    """Log-probabilities of a text: token by token, the likeliest ones beside each, and where each begins."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class Text(Reply):
    """One text that goes on with a prompt."""

    index: int
    text: str
    finish_reason: Literal["stop", "length"]
    logprobs: TextWeights | None


class Texts(Completion):
    """POST /v1/completions."""

    object: Literal["text_completion"]
    choices: list[Text]


class Weight(Reply):
    """A token with its bytes and its log-probability."""

    token: str
    logprob: float
    bytes: list[int]


class Weighed(Weight):
    """And the likeliest ones in its place."""

    top_logprobs: list[Weight]


class ChatWeights(Reply):
    """Log-probabilities of a message."""

    content: list[Weighed]
    refusal: None


class Said(Reply):
    """What the model says."""

    role: Literal["assistant"]
    content: str
    refusal: None


class Turn(Reply):
    """One message that goes on with a conversation."""

    index: int
    message: Said
    finish_reason: Literal["stop", "length"]
    logprobs: ChatWeights | None


class Turns(Completion):
    """POST /v1/chat/completions."""

    object: Literal["chat.completion"]
    choices: list[Turn]


class Read(Reply):
    """Tokens read."""

    prompt_tokens: int
    total_tokens: int


class Vector(Reply):
    """Numbers, or float32 little-endian in base64."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Vectors(Reply):
    """POST /v1/embeddings."""

    object: Literal["list"]
    model: str
    usage: Read
    data: list[Vector]


class Shown(Reply):
    """A passage that the model was shown, with the score that it was found by. page, line: from 1, 0 where not known."""

    id: str
    document: str
    page: int
    line: int
    place: str
    headings: list[str]
    excerpt: str
    score: float


class Cited(Reply):
    """A passage that the answer cites by its number, with the sentence that supports the answer."""

    number: int
    id: str
    document: str
    page: int
    line: int
    sentence: str


class Answer(Reply):
    """POST /v1/answers. asked: the question before it was condensed with its history."""

    id: str
    object: Literal["answer"]
    model: str
    abstained: bool
    asked: str
    question: str
    answer: str
    arm: str
    stopped: bool
    seconds: float
    citations: list[Cited]
    passages: list[Shown]

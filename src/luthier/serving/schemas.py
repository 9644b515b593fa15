"""What may be asked: OpenAI's bodies, field by field. A field that would be ignored is refused instead."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, WithJsonSchema, model_validator

# Fields of OpenAI's that clients send at their defaults; any other value would have to be obeyed.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (None, 0), "presence_penalty": (None, 0), "logit_bias": (None, {}), "echo": (None, False),
    "suffix": (None,), "best_of": (None, 1), "tools": (None, []), "tool_choice": (None, "none", "auto"),
    "parallel_tool_calls": (None, True, False), "response_format": (None, {"type": "text"}), "modalities": (None, ["text"]),
    "store": (None, False), "metadata": (None, {}), "service_tier": (None, "auto", "default")}


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("holds half a surrogate pair, which is no character") from None
    return text


def _number(value: Any) -> Any:
    if isinstance(value, (bool, str)):
        raise ValueError("is no number")
    return value


Text = Annotated[str, AfterValidator(_encodable)]
# 1.0 is a whole number in JSON; true and "1" are none.
_NUMBER = BeforeValidator(_number)
Whole = Annotated[int, _NUMBER]
Count = Annotated[int, Field(ge=1), _NUMBER]
Real = Annotated[float, _NUMBER]
# Checked together with other fields, below; the description says of each what is legal.
_STOP = {"type": "string", "minLength": 1}
_Stop = Annotated[Text | list[Text] | None, WithJsonSchema(
    {"anyOf": [_STOP, {"type": "array", "items": _STOP, "maxItems": 4}, {"type": "null"}]})]
_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_Prompt = Annotated[Text | list[Text] | list[Whole] | list[list[Whole]], WithJsonSchema({"anyOf": [
    {"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}, _IDS,
    {"type": "array", "items": _IDS, "minItems": 1}]})]
_TEXT = {"type": "string", "minLength": 1}
_Input = Annotated[Text | list[Text], WithJsonSchema({"anyOf": [_TEXT, {"type": "array", "items": _TEXT, "minItems": 1}]})]


def only_with(one: str, other: str) -> dict[str, Any]:
    """For the description: a field that may be given where another one is true."""
    return {"anyOf": [{"properties": {one: {"type": "null"}}}, {"properties": {other: {"const": True}}, "required": [other]}]}


class Body(BaseModel):
    """A request. `user` is taken and kept nowhere."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, protected_namespaces=())
    neutral: ClassVar[bool] = True

    model: Text = Field(description="a name of /v1/models")
    user: str | None = Field(None, description="taken for compatibility, kept nowhere")

    @model_validator(mode="before")
    @classmethod
    def _without_neutral(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {k: v for k, v in values.items()
                if k in cls.model_fields or k not in NEUTRAL or v not in NEUTRAL[k]}


class StreamOptions(BaseModel):
    """What else a stream tells."""

    model_config = ConfigDict(extra="forbid")

    include_usage: StrictBool = Field(False, description="a last piece with the numbers of tokens")


class Sampling(Body):
    """How an answer is written."""

    temperature: Real = Field(1.0, ge=0, le=2, description="0: the likeliest token every time")
    top_p: Real = Field(1.0, gt=0, le=1, description="only the most probable tokens that hold this share")
    seed: Whole | None = Field(None, description="the same seed and question give the same answer; drawn when left out")
    n: Whole = Field(1, ge=1, description="answers to each prompt")
    stop: _Stop = Field(None, description="up to 4 strings that end an answer")
    stream: StrictBool = Field(False, description="pieces as they are written, as server-sent events")
    stream_options: StreamOptions | None = None

    @property
    def stops(self) -> list[str]:
        """The strings that end an answer."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @model_validator(mode="after")
    def _whole(self) -> Sampling:
        if len(self.stops) > 4 or "" in self.stops:
            raise ValueError("stop: at most 4 strings, none of them empty")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: only with stream: true")
        return self


class TextPart(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text"]
    text: Text


class Message(BaseModel):
    """What somebody said."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]
    name: str | None = Field(None, description="taken for compatibility, shown to no model")

    @property
    def said(self) -> tuple[str, str]:
        """Role and text."""
        text = self.content if isinstance(self.content, str) else "".join(p.text for p in self.content)
        return ("system" if self.role == "developer" else self.role), text


class ChatBody(Sampling):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_tokens: Count | None = Field(None, description="new tokens at most; what fits when left out")
    max_completion_tokens: Count | None = Field(None, description="the same by its newer name")
    logprobs: StrictBool = Field(False, description="log-probability of each token")
    top_logprobs: Annotated[int, Field(ge=0, le=20), _NUMBER] | None = Field(
        None, description="likeliest tokens beside each; needs logprobs")

    @model_validator(mode="after")
    def _agree(self) -> ChatBody:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: only with logprobs: true")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens differ; give one of them")
        return self


class CompletionBody(Sampling):
    """POST /v1/completions."""

    prompt: _Prompt = Field(description="texts or token ids to be continued")
    max_tokens: Whole = Field(16, ge=1, description="new tokens at most")
    logprobs: Annotated[int, Field(ge=0, le=5), _NUMBER] | None = Field(
        None, description="likeliest tokens beside each, with log-probabilities")

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt, as text or as ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [list(self.prompt)]  # type: ignore[arg-type]
        return list(self.prompt)  # type: ignore[arg-type]


class EmbeddingBody(Body):
    """POST /v1/embeddings."""

    input: _Input = Field(description="texts, each as long as the encoder reads")
    encoding_format: Literal["float", "base64"] = Field("float", description="numbers, or float32 little-endian in base64")

    @property
    def texts(self) -> list[str]:
        """All of them."""
        return [self.input] if isinstance(self.input, str) else self.input


class Exchange(BaseModel):
    """A question that was asked before, with its answer."""

    model_config = ConfigDict(extra="forbid")

    question: Text
    answer: Text


class AnswerBody(Body):
    """POST /v1/answers."""

    question: Text = Field(min_length=1, description="what is asked of the documents")
    history: list[Exchange] = Field(default=[], description="earlier exchanges that the question may refer to")
    passages: Annotated[int, Field(ge=1, le=50), _NUMBER] | None = Field(
        None, description="passages to show; as evaluated when left out")

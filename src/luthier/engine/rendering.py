"""Rendering: examples to token ids, in one place.

A template turns an example into segments; a segment is text and whether it is learned. Each segment is tokenised by
itself, so the mask is right by construction, and the prompt of training and the prompt of generation are the same
ids. The plain template reads::

    Passage: {passage}          (once for each passage)
    Question: {question}
    Answer: {answer}<eos>

with the part after `Answer:` learned. Prompts and completions are rendered as they are; nothing is added but the stop
token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from luthier.core.errors import UserError
from luthier.core.example import Dropped, Example, Part, Turn, question
from luthier.core.kinds import DroppedRow, Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from luthier.engine.models import Model

CUES: Mapping[str, str] = {"passage": "Passage: ", "question": "Question: "}
ANSWER_CUE = "Answer:"


@dataclass(frozen=True)
class Prompting:
    """What stands before the question: an instruction and solved examples; and where an answer ends."""

    instruction: str = ""
    shots: tuple[Example, ...] = ()
    stop: Literal["token", "newline"] = "token"


@dataclass
class Render:
    """Renders for one model. `max_tokens` is the longest sequence allowed, prompt and target together."""

    tokenizer: PreTrainedTokenizerBase
    architecture: str
    max_tokens: int
    over_long: Literal["drop", "truncate"] = "drop"
    labels: Sequence[str] = ()
    prompting: Prompting = field(default_factory=Prompting)
    decoder_start: int | None = None

    def segments(self, example: Example) -> list[tuple[str, bool]]:
        """Text and learned, in order; the segments of a learned turn end where its stop token goes."""
        head = self.prompting.instruction + "\n\n" if self.prompting.instruction else ""
        for shot in self.prompting.shots:
            head += "".join(text for text, _ in _turns(shot)) + "\n\n"
        body = _turns(example)
        if body and (not head or not body[0][1]):
            return [(head + body[0][0], body[0][1]), *body[1:]]
        return [(head, False), *body]

    def tokens(self, example: Example) -> Tokens:
        """Token ids with their mask; a learned turn ends with the learned stop token.

        Raises:
            DroppedRow: nothing is learned, or it is longer than `max_tokens`.
        """
        prompt: list[int] = self._start()
        ids, mask = list(prompt), [False] * len(prompt)
        target_ids: list[int] = []
        for text, learned in self.segments(example):
            piece = self.encode(text) + ([self.stop_id] if learned else [])
            if self.architecture == "encoder-decoder" and learned:
                target_ids += piece
                continue
            ids += piece
            mask += [learned] * len(piece)
        if self.architecture == "encoder-decoder":
            tokens = Tokens(ids, [False] + [True] * len(target_ids), [self._decoder_start(), *target_ids])
        else:
            tokens = Tokens(ids, mask)
        if not any(tokens.targets):
            raise DroppedRow(Dropped(example.id, "nothing to learn", "the row has no answer or completion"))
        longest = max(len(ids), len(tokens.decoder_ids or ()))
        if longest > self.max_tokens:
            raise DroppedRow(Dropped(example.id, "too long",
                                     f"{longest} tokens, at most max_tokens_per_example={self.max_tokens}"))
        return tokens

    def prompt(self, example: Example) -> list[int]:
        """Ids to continue: everything before the first learned segment."""
        ids = self._start()
        for text, learned in self.segments(example):
            if learned:
                break
            ids += self.encode(text)
        return ids

    def text(self, example: Example) -> Tokens:
        """A text for an encoder, with its special tokens; nothing is learned token by token.

        Raises:
            DroppedRow: longer than `max_tokens`, unless `over_long` says truncate.
        """
        text = "\n".join(t.text for t in example.turns if not t.target)
        ids = self.tokenizer(text, truncation=False, verbose=False)["input_ids"]
        if len(ids) > self.max_tokens:
            if self.over_long == "drop":
                raise DroppedRow(Dropped(example.id, "too long",
                                         f"{len(ids)} tokens, at most max_tokens_per_example={self.max_tokens}"))
            ids = self.tokenizer(text, truncation=True, max_length=self.max_tokens)["input_ids"]
        return Tokens(ids, [False] * len(ids))

    def label_id(self, label: Any) -> int:
        """Number of a label."""
        return list(self.labels).index(str(label))

    def encode(self, text: str) -> list[int]:
        """Ids of a piece of text, no special tokens."""
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    @property
    def stop_id(self) -> int:
        """The token that ends an answer."""
        return int(self.tokenizer.eos_token_id)

    def _start(self) -> list[int]:
        bos = self.tokenizer.bos_token_id
        return [] if bos is None or self.architecture == "encoder-decoder" else [bos]

    def _decoder_start(self) -> int:
        # Every encoder-decoder starts its decoder with one token that is never learned; the model says which.
        start = self.tokenizer.pad_token_id if self.decoder_start is None else self.decoder_start
        return int(start if start is not None else self.stop_id)

    def state(self) -> dict[str, Any]:
        """What a model artifact keeps of its template."""
        return {"name": "plain", "cues": dict(CUES), "answer_cue": ANSWER_CUE, "max_tokens": self.max_tokens}


def _turns(example: Example) -> list[tuple[str, bool]]:
    """Segments of an example without instruction and shots. Unlearned neighbours are joined into one segment."""
    segments: list[tuple[str, bool]] = []
    asked = False
    for turn in example.turns:
        if turn.spans:
            raise UserError(f"Row {example.id} narrows what is learned to spans; the plain template learns whole turns.")
        if turn.target:
            text = f" {turn.text}" if asked else turn.text
            segments.append((text, True))
        else:
            text, asked = _asked(turn)
            if segments and not segments[-1][1]:
                segments[-1] = (segments[-1][0] + text, False)
            else:
                segments.append((text if not segments else "\n\n" + text, False))
    return segments


def _asked(turn: Turn) -> tuple[str, bool]:
    named = [p for p in turn.parts if p.type == "text" and p.name in CUES]
    if not named:
        return turn.text, False
    lines = [CUES[p.name] + p.value for p in named]
    asked = any(p.name == "question" for p in named)
    return "\n".join([*lines, ANSWER_CUE] if asked else lines), asked


def with_passages(example: Example, passages: Sequence[str]) -> Example:
    """The same question with these passages before it, in this order."""
    first, *rest = example.turns
    kept = tuple(p for p in first.parts if p.name != "passage")
    parts = tuple(Part(text, name="passage") for text in passages) + kept
    return Example(**{**example.__dict__, "turns": (Turn(first.role, parts), *rest)})


def renderer(model: Model, max_tokens: int | None = None, **options: Any) -> Render:
    """A renderer for a loaded model, its invariants checked.

    Raises:
        UserError: `max_tokens` beyond what the model can read, or a broken invariant.
    """
    if max_tokens is not None and max_tokens > model.limit:
        raise UserError(f"max_tokens_per_example = {max_tokens}: {model.name} reads at most {model.limit} tokens.")
    if model.architecture == "encoder-decoder":
        options.setdefault("decoder_start", model.decoder_start)
    render = Render(model.tokenizer, model.architecture, max_tokens or model.limit, **options)
    if model.architecture != "encoder":
        check_invariants(render, model.name)
    return render


def check_invariants(render: Render, name: str) -> None:
    """Raises UserError naming the first invariant of rendering that this tokenizer breaks."""
    if render.tokenizer.eos_token_id is None:
        raise UserError(f"The tokenizer of {name} has no end token, so no answer could learn to stop.")
    probe = question("probe", "What is a module?", "A file of definitions.", passage="A module is a file.")
    try:
        tokens = render.tokens(probe)
    except DroppedRow as drop:
        raise UserError(f"max_tokens_per_example = {render.max_tokens} leaves no room for a short question with its "
                        f"passage ({drop.dropped.detail}). Give more.") from None
    ids = tokens.decoder_ids or tokens.ids
    learned = [i for i, t in zip(ids, tokens.targets, strict=True) if t]
    prompt = render.prompt(probe)
    checks = {
        "the stop token is learned last": learned[-1] == render.stop_id,
        "the learned tokens read as the answer": render.decode(learned).strip() == probe.answer,
        "the prompt of generation starts the row of training": tokens.ids[:len(prompt)] == prompt,
        "the start token stands once": render.tokenizer.bos_token_id is None
        or render.tokenizer.bos_token_id == render.stop_id
        or tokens.ids.count(render.tokenizer.bos_token_id) <= 1,
    }
    for what, holds in checks.items():
        if not holds:
            raise UserError(f"The tokenizer of {name} can't be used with the plain template: {what} does not hold.")

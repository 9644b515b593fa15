"""Rendering: examples to token ids, in one place.

A model has one template: the plain one (`engine/plain.py`), whose segments are tokenised one by one, or a chat template
(`engine/chat.py`), whose learned turns are found by rendering the conversation with and without them. Either way the
mask is right by construction, and the prompt of generation is the very ids that training puts before the answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from luthier.core.citing import numbered
from luthier.core.errors import UserError
from luthier.core.example import Dropped, Example, Part, Turn, question
from luthier.core.kinds import DroppedRow, Tokens
from luthier.engine import decisions, plain
from luthier.engine.chat import ChatTemplate, Message, choose, joined, messages_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from luthier.engine.models import Model
    from luthier.engine.pictures import Pictures
    from luthier.engine.sounds import Sounds

OverLong = Literal["drop", "truncate", "split", "truncate-context"]


@dataclass(frozen=True)
class Prompting:
    """What stands before the question: an instruction and solved examples; and where an answer ends."""

    instruction: str = ""
    shots: tuple[Example, ...] = ()
    stop: Literal["token", "newline"] = "token"


@dataclass(frozen=True)
class Cut:
    """What an over-long policy did to one example: how many tokens it left out, into how many rows it was divided."""

    id: str
    tokens: int
    rows: int
    detail: str
    reason: str = "shortened"


@dataclass
class Render:
    """Renders for one model. `max_tokens` is the longest sequence allowed, prompt and target together.

    `chat` is the chat template, None for the plain one. `cuts` grows with what `pieces` shortens or divides. `routes` are
    names of parts that the method's gates choose from.
    """

    tokenizer: PreTrainedTokenizerBase
    architecture: str
    max_tokens: int
    over_long: OverLong = "drop"
    labels: Sequence[str] = ()
    routes: Sequence[str] = ()
    prompting: Prompting = field(default_factory=Prompting)
    decoder_start: int | None = None
    chat: ChatTemplate | None = None
    cuts: list[Cut] = field(default_factory=list)
    pictures: Pictures | None = None
    sounds: Sounds | None = None

    def pieces(self, example: Example) -> list[Example]:
        """The examples that become one training row each: mostly the example itself.

        One for each learned turn where the template (or an encoder-decoder) can't show them in one row; shortened or
        divided as `over_long` says.

        Raises:
            DroppedRow: nothing that fits can be made of it.
        """
        from luthier.engine.overlong import pieces

        return pieces(example, self)

    def segments(self, example: Example) -> list[tuple[str, bool]]:
        """Text and learned of the plain template; the segments of an assistant's turn end where its stop token goes."""
        return [(s.text, s.learned) for s in self._plain(example)]

    def tokens(self, example: Example) -> Tokens:
        """Token ids with their mask; a learned turn ends with the learned stop token.

        Raises:
            DroppedRow: nothing is learned, it is longer than `max_tokens`, or its template can't show it in one row.
        """
        tokens = self.whole(example)
        longest = self.length(tokens)
        if longest > self.max_tokens:
            seen = sum(map(len, tokens.pieces.values()))
            of_it = f", {seen} x {self.pictures.places} of them for pictures" if seen and self.pictures else ""
            raise DroppedRow(Dropped(example.id, "too long",
                                     f"{longest} tokens{of_it}, at most max_tokens_per_example={self.max_tokens}"))
        return tokens

    def whole(self, example: Example) -> Tokens:
        """As `tokens`, of any length."""
        if not any(t.target for t in example.turns):
            raise DroppedRow(Dropped(example.id, "nothing to learn", "the row has no answer or completion"))
        if decisions.decides(example):
            return decisions.tokens(example, self)
        shown = self._shown(example)
        tokens = self._chat_tokens(shown) if self.chat else self._plain_tokens(shown)
        return self._with_pictures(tokens, example)

    @staticmethod
    def length(tokens: Tokens) -> int:
        """The longer side of a row, in tokens."""
        return max(len(tokens.ids), len(tokens.decoder_ids or ()))

    def one_row(self, example: Example) -> bool:
        """Whether all learned turns of an example can stand in one row."""
        if sum(t.target for t in example.turns) < 2:
            return True
        if self.architecture == "encoder-decoder":
            return False
        return self.chat is None or joined(self._learned(example)) is not None

    def prompt(self, example: Example) -> list[int]:
        """Ids to continue: everything before the last learned turn. What is seen beside them is in `seen`."""
        ids = self._prompt(self._shown(example))
        if self.pictures:
            self.pictures.check(_asked(example), ids)
        return ids

    def seen(self, example: Example) -> dict[str, Any]:
        """The pieces that go with `prompt`: the pixels of the pictures before the last learned turn."""
        return dict(self.pictures.pieces(_asked(example))) if self.pictures else {}

    def _shown(self, example: Example) -> Example:
        """The example with its pictures as tokens. Raises DroppedRow where the model reads none."""
        if self.pictures:
            return self.pictures.shown(example)
        # Pictures as nested lists are for objectives that hand them over themselves.
        if any(p.type == "image" and isinstance(p.value, str) for t in example.turns for p in t.parts):
            raise DroppedRow(Dropped(example.id, "pictures", "the row has pictures, and this model reads none"))
        return example

    def _with_pictures(self, tokens: Tokens, example: Example) -> Tokens:
        if not self.pictures:
            return tokens
        last = max(n for n, t in enumerate(example.turns) if t.target)
        shown = replace(example, turns=example.turns[:last + 1])
        self.pictures.check(shown, tokens.ids)
        return replace(tokens, pieces=self.pictures.pieces(shown))

    def _prompt(self, example: Example) -> list[int]:
        if self.chat:
            return self.chat.prompt(example, *self._before())
        segments = self._plain(example)
        last = max((n for n, s in enumerate(segments) if s.learned), default=len(segments))
        ids = self._start()
        for segment in segments[:last]:
            ids += self._piece(segment)
        return ids

    def target_text(self, example: Example) -> str:
        """What the last learned turn says, as generation would return it. Raises DroppedRow where it can't be shown."""
        tokens = self.whole(replace(example, turns=tuple(
            replace(t, target=t.target and not any(later.target for later in example.turns[n + 1:]))
            for n, t in enumerate(example.turns))))
        ids = tokens.decoder_ids or tokens.ids
        return self.decode([i for i, t in zip(ids, tokens.targets, strict=True) if t]).strip()

    def text(self, example: Example) -> Tokens:
        """A text for an encoder, with its special tokens, or a clip; nothing is learned token by token.

        Raises:
            DroppedRow: longer than `max_tokens`, unless `over_long` says truncate.
        """
        if self.sounds:
            return self.sounds.tokens(example, self)
        text = "\n".join(t.text for t in self._shown(example).turns if not t.target)
        ids = self.tokenizer(text, truncation=False, verbose=False)["input_ids"]
        if len(ids) > self.max_tokens:
            if self.over_long != "truncate":
                raise DroppedRow(Dropped(example.id, "too long",
                                         f"{len(ids)} tokens, at most max_tokens_per_example={self.max_tokens}"))
            ids = self.tokenizer(text, truncation=True, max_length=self.max_tokens)["input_ids"]
        return Tokens(ids, [False] * len(ids))

    def document(self, example: Example) -> list[int]:
        """A raw text from its start token to its end token."""
        text = "\n\n".join(t.text for t in self._shown(example).turns)
        return [*self._start(), *self.encode(text), self.stop_id]

    def blocks(self, example: Example) -> Iterator[Tokens]:
        """A raw text in rows of at most `max_tokens`; every token but the first is learned, in exactly one of them.

        A row after the first begins with the last token of the row before it, which is not learned again.
        """
        ids = self.document(example)
        for start in range(0, max(1, len(ids) - 1), self.max_tokens - 1):
            part = ids[start:start + self.max_tokens]
            yield Tokens(part, [False] + [True] * (len(part) - 1))

    def divided(self, example: Example, rows: int, lost: int = 0) -> None:
        """Note that an example became so many rows, and how many learned tokens none of them could hold."""
        if rows > 1 or lost:
            detail = f"divided into {rows} rows" + (f"; {lost} tokens of turns too long by themselves" if lost else "")
            self.cuts.append(Cut(example.id, lost, rows, detail))

    def label_id(self, label: Any) -> int:
        """Number of a label."""
        return list(self.labels).index(str(label))

    def route_id(self, example: Example) -> int:
        """Number of the part that an example's task belongs to, by the key `task` of its row.

        Raises:
            UserError: the method has no such parts, or the row names none of them.
        """
        if not self.routes:
            raise UserError("This objective teaches gates, and the method has none. Use --method meteora.")
        task = str(example.meta.get("task", ""))
        if task not in self.routes:
            found = f"names the task '{task}'" if task else "names no task"
            raise UserError(f"Row {example.id} {found}. Each row needs a key 'task' with the name of its adapter: "
                            f"{', '.join(self.routes)}. Without labels train with --objective supervised.")
        return list(self.routes).index(task)

    def encode(self, text: str) -> list[int]:
        """Ids of a piece of text, no special tokens."""
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids without special tokens and ends of turns."""
        return str(self.tokenizer.decode([i for i in ids if i not in self.stop_ids], skip_special_tokens=True))

    @property
    def stop_id(self) -> int:
        """The token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Every token that ends an answer: the end token, and those that end a turn of the chat template."""
        return frozenset({self.stop_id, *(self.chat.ends if self.chat else ())})

    def state(self) -> dict[str, Any]:
        """What a model artifact keeps of its template."""
        kept: dict[str, Any] = {"name": "chat" if self.chat else "plain", "max_tokens": self.max_tokens}
        if self.architecture != "encoder":
            kept["stop_ids"] = sorted(self.stop_ids)
        if self.chat:
            return {**kept, "chat": self.chat.state()}
        return {**kept, "cues": dict(plain.CUES), "answer_cue": plain.ANSWER_CUE, "chat_cues": dict(plain.CHAT_CUES)}

    # --- the plain template ------------------------------------------------------------------------------------

    def _plain(self, example: Example) -> list[plain.Segment]:
        head = self.prompting.instruction + "\n\n" if self.prompting.instruction else ""
        for shot in self.prompting.shots:
            head += "".join(s.text for s in plain.segments(shot)) + "\n\n"
        body = plain.segments(example)
        if body and (not head or not body[0].learned):
            return [body[0]._replace(text=head + body[0].text), *body[1:]]
        return [plain.Segment(head), *body]

    def _plain_tokens(self, example: Example) -> Tokens:
        ids = self._start()
        mask, target_ids = [False] * len(ids), []
        for segment in self._plain(example):
            piece = self._piece(segment)
            if self.architecture == "encoder-decoder" and segment.learned:
                target_ids += piece
                continue
            ids += piece
            mask += [segment.learned] * len(piece)
        return self._two_sided(ids, target_ids) if self.architecture == "encoder-decoder" else Tokens(ids, mask)

    def _piece(self, segment: plain.Segment) -> list[int]:
        return self.encode(segment.text) + ([self.stop_id] if segment.stop else [])

    # --- the chat template -------------------------------------------------------------------------------------

    def _before(self) -> tuple[list[Message], str]:
        return [m for shot in self.prompting.shots for m in messages_of(shot)], self.prompting.instruction

    def _learned(self, example: Example) -> list[Any]:
        assert self.chat is not None
        return self.chat.learned(example, *self._before())

    def _chat_tokens(self, example: Example) -> Tokens:
        turns = self._learned(example)
        if self.architecture == "encoder-decoder" and len(turns) == 1:
            return self._two_sided(turns[0].prompt, turns[0].target)
        row = joined(turns) if self.architecture != "encoder-decoder" else None
        if row is None:
            raise DroppedRow(Dropped(example.id, "the chat template can't show it", "its learned turns do not stand in one "
                                     "row: the template shows earlier turns in another way once later ones follow"))
        return Tokens(*row)

    def _two_sided(self, ids: list[int], target: list[int]) -> Tokens:
        return Tokens(ids, [False] + [True] * len(target), [self._decoder_start(), *target])

    def _start(self) -> list[int]:
        bos = self.tokenizer.bos_token_id
        return [] if bos is None or self.architecture == "encoder-decoder" else [bos]

    def _decoder_start(self) -> int:
        # Every encoder-decoder starts its decoder with one token that is never learned; the model says which.
        start = self.tokenizer.pad_token_id if self.decoder_start is None else self.decoder_start
        return int(start if start is not None else self.stop_id)


def _asked(example: Example) -> Example:
    """An example up to its last learned turn; all of it where nothing is learned."""
    last = max((n for n, t in enumerate(example.turns) if t.target), default=len(example.turns))
    return replace(example, turns=example.turns[:last])


def with_passages(example: Example, passages: Sequence[str]) -> Example:
    """The same question with these passages before it, in this order, numbered from 1 (`core/citing.py`)."""
    first, *rest = example.turns
    kept = tuple(p for p in first.parts if p.name != "passage")
    parts = tuple(Part(text, name="passage") for text in numbered(passages)) + kept
    return replace(example, turns=(Turn(first.role, parts), *rest))


def passages_of(example: Example) -> list[str]:
    """The passages before a question, without numbers if `with_passages` gave them some."""
    texts = [p.value for p in example.turns[0].parts if p.name == "passage"]
    plain = [t.removeprefix(f"[{n}] ") for n, t in enumerate(texts, 1)]
    return plain if numbered(plain) == texts else texts


def with_answer(example: Example, answer: str) -> Example:
    """The same question with this answer as its last learned turn."""
    last = max((n for n, t in enumerate(example.turns) if t.target), default=len(example.turns))
    turn = Turn("assistant", (Part(answer),), target=True)
    return replace(example, turns=(*example.turns[:last], turn, *example.turns[last + 1:]))


def renderer(model: Model, max_tokens: int | None = None, *, template: str = "auto", chats: bool = False,
             other_template: bool = False, **options: Any) -> Render:
    """A renderer for a loaded model, its invariants checked.

    template: auto, plain, chat or a Jinja file; see `chat.choose`. chats: the rows are conversations.

    Raises:
        UserError: `max_tokens` beyond what the model can read, another template than the trained one, or a broken
            invariant.
    """
    if max_tokens is not None and max_tokens > model.limit:
        raise UserError(f"max_tokens_per_example = {max_tokens}: {model.name} reads at most {model.limit} tokens.")
    if model.architecture == "encoder-decoder":
        options.setdefault("decoder_start", model.decoder_start)
    if model.architecture != "encoder":
        options.setdefault("chat", choose(model.tokenizer, model.name, template, chats, model.template, other_template))
    render = Render(model.tokenizer, model.architecture, max_tokens or model.limit, pictures=model.pictures,
                    sounds=model.sounds, **options)
    if model.architecture != "encoder":
        check_invariants(render, model.name)
    return render


def check_invariants(render: Render, name: str) -> None:
    """Raises UserError naming the first invariant of rendering that this tokenizer or template breaks."""
    if render.tokenizer.eos_token_id is None:
        raise UserError(f"The tokenizer of {name} has no end token, so no answer could learn to stop.")
    stops = render.stop_ids  # checks the chat template, and names the turn and what differs
    opening = render.chat.opening + "I think.\n</think>\n" if render.chat and render.chat.opening else ""
    probe = question("probe", "What is a module?", f"{opening}A file of definitions.", passage="A module is a file.")
    try:
        tokens = render.tokens(probe)
    except DroppedRow as drop:
        if drop.dropped.reason != "too long":
            raise UserError(f"{name}: {drop.dropped.reason}: {drop.dropped.detail}.") from None
        raise UserError(f"max_tokens_per_example = {render.max_tokens} leaves no room for a short question with its "
                        f"passage ({drop.dropped.detail}). Give more.") from None
    ids = tokens.decoder_ids or tokens.ids
    learned = [i for i, t in zip(ids, tokens.targets, strict=True) if t]
    prompt = render.prompt(probe)
    checks = {
        "the stop token is learned last": learned[-1] in stops,
        "the learned tokens read as the answer": render.decode(learned).strip().endswith("A file of definitions.")
        if render.chat else render.decode(learned).strip() == probe.answer,
        "the prompt of generation starts the row of training": tokens.ids[:len(prompt)] == prompt,
        "the start token stands once": render.tokenizer.bos_token_id is None
        or render.tokenizer.bos_token_id in stops
        or tokens.ids.count(render.tokenizer.bos_token_id) <= 1,
    }
    for what, holds in checks.items():
        if not holds:
            template = render.chat.name if render.chat else "the plain template"
            raise UserError(f"The tokenizer of {name} can't be used with {template}: {what} does not hold.")

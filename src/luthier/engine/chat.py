"""Chat templates: a conversation as the text its model expects, and what of it is learned.

Nothing is searched for in rendered text. A learned turn is found by rendering twice: the conversation before the turn
with the generation prompt (what a server hands to the model), and the conversation with the turn. What the second adds
to the first is what the model must write, up to and with the token that ends the turn.

A template is checked before it is used, on a short conversation: each turn must continue its generation prompt, and
must end with one token, the terminator. Where a template shows a turn in another way once later turns follow (some
strip the thinking), every learned turn becomes a row of its own. Where a template strips even the thinking of the turn
that is to be learned, while its generation prompt opens one, the turn's own text continues the prompt.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.errors import UserError
from luthier.core.example import Dropped, Example, Turn
from luthier.core.kinds import DroppedRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from luthier.engine.models import Model

Message = dict[str, Any]
OWN = "the tokenizer's own chat template"
CHOICES = ("auto", "plain", "chat")
SHOWN = 48
_PROBE = (("user", "What is a module?"), ("assistant", "A file of definitions."), ("user", "And a package?"),
          ("assistant", "A folder of modules."), ("user", "Thanks."), ("assistant", "You are welcome."))


class Unfit(ValueError):
    """Why a conversation can't be rendered by a template, in words."""


@dataclass(frozen=True)
class Learned:
    """One learned turn: its number among the turns, the ids before it, and its own ids with the terminator."""

    turn: int
    prompt: list[int]
    target: list[int]


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja template with the tokenizer it is used with; `name` says where it came from."""

    tokenizer: PreTrainedTokenizerBase
    jinja: str
    name: str = OWN

    def text(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = (), prompt: bool = False) -> str:
        """The conversation as text; with `prompt`, followed by what asks the model for its turn. Raises Unfit."""
        from jinja2.exceptions import TemplateError

        try:
            return str(self.tokenizer.apply_chat_template(
                list(messages), tools=list(tools) or None, chat_template=self.jinja, add_generation_prompt=prompt,
                tokenize=False))
        except (TemplateError, TypeError, KeyError, ValueError) as error:
            raise Unfit(f"the template refuses it: {error}") from None

    def encode(self, text: str) -> list[int]:
        """Ids of rendered text. The template wrote the start token, so none is added."""
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def learned(self, example: Example, before: Sequence[Message] = (), instruction: str = "") -> list[Learned]:
        """Every learned turn of an example, each with the ids that a server would hand to the model.

        before, instruction: solved examples as messages, and a sentence above the first message.

        Raises:
            DroppedRow: the template can't show a learned turn; the detail names the turn and what differs.
        """
        messages = [*before, *messages_of(example)]
        offset = len(before)
        found = []
        for number, turn in enumerate(example.turns):
            if not turn.target:
                continue
            try:
                found.append(self._turn(_headed(messages[:offset + number + 1], instruction), turn, number, example.tools))
            except Unfit as unfit:
                raise DroppedRow(Dropped(example.id, "the chat template can't show it",
                                         f"turn {number + 1} of {len(example.turns)}, {self.name}: {unfit}")) from None
        return found

    def prompt(self, example: Example, before: Sequence[Message] = (), instruction: str = "") -> list[int]:
        """Ids to continue: up to the last learned turn, or the whole conversation where nothing is learned."""
        last = max((n for n, t in enumerate(example.turns) if t.target), default=len(example.turns))
        messages = _headed([*before, *messages_of(example)[:last]], instruction)
        try:
            return self.encode(self.text(messages, example.tools, prompt=True))
        except Unfit as unfit:
            raise UserError(f"Row {example.id}, {self.name}: {unfit}.") from None

    def _turn(self, messages: list[Message], turn: Turn, number: int, tools: Sequence[dict[str, Any]]) -> Learned:
        asked = self.text(messages[:-1], tools, prompt=True)
        target = self._continuation(asked, self.text(messages, tools), turn)
        prompt = self.encode(asked)
        ids = self._ids_after(prompt, asked, target)
        ends = [i for i, token in enumerate(ids) if token in self.ends]
        if not ends:
            raise Unfit(f"it ends in {_shown(target[-SHOWN:])} without the end of turn {_shown(self.tail.strip())}")
        if self.tokenizer.decode(ids[ends[0] + 1:]).strip():
            raise Unfit(f"its text holds the end of turn {_shown(self.tail.strip())} itself")
        return Learned(number, prompt, ids[:ends[0] + 1])

    def _continuation(self, asked: str, whole: str, turn: Turn) -> str:
        """The text that a turn adds to its generation prompt."""
        if whole.startswith(asked):
            return whole[len(asked):]
        opening = self.opening.strip()
        said = turn.text.lstrip()
        if opening and not turn.calls and asked.endswith(self.opening) and whole.startswith(asked[:-len(self.opening)]):
            if not said.startswith(opening):
                raise Unfit(f"the generation prompt opens {_shown(opening)}, and the turn does not begin with it")
            rest = said[len(opening):]
            gap = self.opening[len(self.opening.rstrip()):]
            return (rest[len(gap):] if rest.startswith(gap) else rest.lstrip()) + self.tail
        raise Unfit(_difference(asked, whole))

    def _ids_after(self, prompt: list[int], asked: str, target: str) -> list[int]:
        """Ids of what follows the prompt, as a model that was handed the prompt would write them."""
        whole = self.encode(asked + target)
        if whole[:len(prompt)] == prompt:
            return whole[len(prompt):]
        # The last sign of the prompt and the first of the answer share a token: the model gets the prompt as it is.
        alone = self.encode(target)
        if self.tokenizer.decode(prompt + alone) != self.tokenizer.decode(whole):
            raise Unfit("the tokenizer can't part the turn from what stands before it")
        return alone

    # --- what is found by rendering ----------------------------------------------------------------------------

    @cached_property
    def _probed(self) -> tuple[str, str]:
        """The text after a turn's content, and what the generation prompt opens that a rendered turn does not show.

        Raises UserError naming the template and the turn.
        """
        tail = opening = ""
        messages = [{"role": role, "content": text} for role, text in _PROBE]
        for n in range(1, len(messages), 2):
            where, said = f"turn {n + 1}", messages[n]["content"]
            try:
                asked, whole = self.text(messages[:n], prompt=True), self.text(messages[:n + 1])
            except Unfit as unfit:
                raise UserError(f"{self._named}, {where} of a short conversation: {unfit}.") from None
            if not whole.startswith(asked):
                shared = len(os.path.commonprefix([asked, whole]))
                opening = asked[shared:]
                if said not in whole[shared:] or whole[shared:].index(said) or not opening.strip():
                    raise UserError(f"{self._named} is not prefix-stable at {where}: {_difference(asked, whole)}. "
                                    "Give another one with template: path/to/template.jinja, or template: plain.")
            added = whole[len(asked) - len(opening):]
            if said not in added:
                raise UserError(f"{self._named} does not show the text of {where}: it writes {_shown(added)}.")
            tail = added[added.rindex(said) + len(said):]
            if not tail.strip():
                raise UserError(f"{self._named} never ends a turn: nothing stands after the text of {where}, so no answer "
                                "could learn to stop. Give another one with template: path/to/template.jinja.")
        return tail, opening

    @property
    def _named(self) -> str:
        return self.name[0].upper() + self.name[1:]

    @property
    def tail(self) -> str:
        """The text that ends a turn, such as `<|im_end|>` and a line break."""
        return self._probed[0]

    @property
    def opening(self) -> str:
        """What the generation prompt writes for the model that rendered turns do not show; mostly nothing."""
        return self._probed[1]

    @cached_property
    def ends(self) -> frozenset[int]:
        """Ids of the tokens that end a turn: of a text and, where the template shows tool calls, of a call.

        Raises UserError where a turn does not end with one token of its own.
        """
        return frozenset({self._end(self.tail), *self._call_end()})

    def _end(self, tail: str) -> int:
        mark = tail.strip()
        first = self.encode(mark)[0]
        own = {*self.tokenizer.all_special_ids, *self.tokenizer.added_tokens_decoder}
        if first not in own:
            pieces = len(self.encode(mark))
            raise UserError(f"{self._named} ends a turn with {_shown(mark)}, which is {pieces} tokens of this tokenizer; "
                            f"generation stops at one. Make it one: new_tokens: ['{mark}'].")
        return int(first)

    def _call_end(self) -> list[int]:
        call = {"role": "assistant", "content": "", "tool_calls": [_call_message(
            {"id": "call00001", "name": "look_up", "arguments": {"word": "module"}})]}
        asked = [{"role": "user", "content": _PROBE[0][1]}]
        try:
            prompt, whole = self.text(asked, prompt=True), self.text([*asked, call])
        except Unfit:
            return []
        added = whole[len(prompt):] if whole.startswith(prompt) else ""
        if "look_up" not in added:
            return []
        own = {*self.tokenizer.all_special_ids, *self.tokenizer.added_tokens_decoder}
        tokens = self.encode(added)
        while tokens and not self.tokenizer.decode(tokens[-1:]).strip():
            tokens.pop()
        return tokens[-1:] if tokens and tokens[-1] in own else []

    def state(self) -> dict[str, Any]:
        """What a model artifact keeps of it."""
        return {"source": self.name, "jinja": self.jinja}


def joined(turns: Sequence[Learned]) -> tuple[list[int], list[bool]] | None:
    """All learned turns in one row, with their mask; None where a later prompt shows an earlier turn in another way."""
    ids: list[int] = []
    mask: list[bool] = []
    for turn in turns:
        if turn.prompt[:len(ids)] != ids:
            return None
        mask += [False] * (len(turn.prompt) - len(ids)) + [True] * len(turn.target)
        ids = turn.prompt + turn.target
    return ids, mask


def messages_of(example: Example) -> list[Message]:
    """The turns of an example, chat or not, as messages that every template reads."""
    return [_message(turn) for turn in example.turns]


def _message(turn: Turn) -> Message:
    made: Message = {"role": turn.role, "content": _content(turn), **turn.extra}
    if turn.calls:
        made["tool_calls"] = [_call_message(call) for call in turn.calls]
    return made


def _content(turn: Turn) -> str:
    """A turn's text. Passages are told from the question by their cues."""
    from luthier.engine.plain import CUES

    texts = [p for p in turn.parts if p.type == "text"]
    if len(texts) < 2 or not any(p.name == "passage" for p in texts):
        return turn.text
    return "\n".join(CUES.get(p.name, "") + p.value for p in texts)


def _call_message(call: dict[str, Any]) -> dict[str, Any]:
    function = {"name": call["name"], "arguments": call["arguments"]}
    return {**({"id": call["id"]} if call["id"] else {}), "type": "function", "function": function}


def _headed(messages: list[Message], instruction: str) -> list[Message]:
    """An instruction above the first message: not every template has a system role."""
    if not instruction or not messages:
        return messages
    first, *rest = messages
    return [{**first, "content": f"{instruction}\n\n{first['content']}"}, *rest]


def _difference(asked: str, whole: str) -> str:
    at = len(os.path.commonprefix([asked, whole]))
    return (f"asked for, it begins after {_shown(asked[max(0, at - SHOWN // 2):at])} with {_shown(asked[at:at + SHOWN])}, "
            f"rendered with {_shown(whole[at:at + SHOWN])}")


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN else text[:SHOWN - 1] + "…")


# --- choosing one --------------------------------------------------------------------------------------------------

def check_choice(template: str) -> None:
    """Refuse a template that is none of the words and no file."""
    if template not in CHOICES and not Path(template).expanduser().is_file():
        raise UserError(f"template = {template!r}: no such file. Legal: {', '.join(CHOICES)}, or the path of a Jinja file.")


def choose(model: Model, template: str, chats: bool, other: bool = False) -> ChatTemplate | None:
    """The chat template of a model, or None for the plain one.

    template: auto, plain, chat or a file. Auto is what a tuned model was trained with; of a base, its own template
    where rows are chats and it has one. other: a template other than the trained one is wanted on purpose.

    Raises:
        UserError: no such template, or not the trained one.
    """
    check_choice(template)
    trained = _trained(model)
    if template == "auto":
        if model.template:
            return trained
        return _own(model) if chats and own_jinja(model) else None
    if template == "plain":
        asked = None
    elif template == "chat":
        asked = trained or _own(model)
        if asked is None:
            raise UserError(f"template = chat: the tokenizer of {model.name} has no chat template. Give a file: "
                            "template: path/to/template.jinja.")
    else:
        path = Path(template).expanduser()
        asked = ChatTemplate(model.tokenizer, path.read_text(encoding="utf-8"), f"the template {path.name}")
    if model.template and not other and (asked.jinja if asked else "") != (trained.jinja if trained else ""):
        was, now = (f"'{t.name}'" if t else "the plain template" for t in (trained, asked))
        raise UserError(f"{model.name} was trained with {was}; {now} is asked for. Scores would measure the template. "
                        "Leave template out, or say other_template: true.")
    return asked


def own_jinja(model: Model) -> str:
    """The tokenizer's own chat template; empty when it has none."""
    found = getattr(model.tokenizer, "chat_template", None)
    return str(found.get("default", "")) if isinstance(found, dict) else str(found or "")


def _own(model: Model) -> ChatTemplate | None:
    jinja = own_jinja(model)
    return ChatTemplate(model.tokenizer, jinja) if jinja else None


def _trained(model: Model) -> ChatTemplate | None:
    kept = model.template.get("chat")
    return ChatTemplate(model.tokenizer, kept["jinja"], kept["source"]) if kept else None

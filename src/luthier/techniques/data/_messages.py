"""Chat rows: the `messages` of OpenAI and the `conversations` of ShareGPT, checked and made examples of one shape.

A message has `role` (system, developer, user, assistant, tool) and `content`; an assistant may have `tool_calls`, a tool
`tool_call_id` and `name`. Every assistant message is learned unless it says `"train": false` or `"weight": 0`.
Further keys of a message (`reasoning_content`, …) are handed to the chat template as they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from luthier.core.example import Example, Part, Turn

Role = Literal["system", "user", "assistant", "tool"]
ROLES: Mapping[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant",
                             "tool": "tool"}
SPEAKERS: Mapping[str, str] = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system",
    "function_call": "assistant", "observation": "tool", "tool": "tool"}
_READ = frozenset({"role", "content", "tool_calls", "train", "weight"})


class Wrong(ValueError):
    """What is wrong with a chat row, in words that follow "row N: "."""


def chat(name: str, row: Mapping[str, Any], learn: Literal["every", "last"], **rest: Any) -> Example:
    """The example of a row with `messages` or `conversations`.

    Raises:
        Wrong: a message that can't be used, or no assistant message is learned.
    """
    listed = "messages" if "messages" in row else "conversations"
    given = row[listed]
    if not isinstance(given, list) or not given:
        raise Wrong(f"{listed} is {found_value(given)}; expected a list of messages")
    made = [_turn(message, f"{listed}[{n}]") if listed == "messages" else _spoken(message, f"{listed}[{n}]")
            for n, message in enumerate(given)]
    if listed == "conversations" and row.get("system"):
        made.insert(0, Turn("system", (Part(_text(row["system"], "system"), name="content"),)))
    _check_calls(made, listed)
    learned = [n for n, turn in enumerate(made) if turn.target]
    if not learned:
        raise Wrong(f"{listed} has nothing to learn: no assistant message without \"train\": false or \"weight\": 0")
    if learn == "last":
        made = [turn if n == learned[-1] else Turn(turn.role, turn.parts, extra=turn.extra) for n, turn in enumerate(made)]
    return Example(name, tuple(made), task="chat", tools=_tools(row.get("tools")), **rest)


def said_by_user(row: Mapping[str, Any]) -> str:
    """What a chat is about: the words of everybody but the assistant and the system prompt, which many rows share."""
    example = chat("", row, "every")
    told = [t.text for t in example.turns if t.role in ("user", "tool")]
    return "\n".join(told) or "\n".join(t.text for t in example.turns)


def found_value(value: Any) -> str:
    """A value for an error message: its kind and its beginning."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    shown = json.dumps(value, ensure_ascii=False)
    return f"{names.get(type(value), 'a number')} ({shown if len(shown) <= 40 else shown[:39] + '…'})"


def _turn(message: Any, where: str) -> Turn:
    if not isinstance(message, dict):
        raise Wrong(f"{where} is {found_value(message)}; expected an object with role and content")
    if "role" not in message:
        raise Wrong(f"{where} has no role; its keys: {', '.join(message) or 'none'}")
    role = ROLES.get(message["role"]) if isinstance(message["role"], str) else None
    if role is None:
        raise Wrong(f"{where} has the role {json.dumps(message['role'])}; legal: {', '.join(ROLES)}")
    if "function_call" in message:
        raise Wrong(f"{where} has function_call; write it as tool_calls: [{{\"function\": {{\"name\", \"arguments\"}}}}]")
    calls = message.get("tool_calls") or []
    if calls and role != "assistant":
        raise Wrong(f"{where} has tool_calls, but its role is {role}; only an assistant calls tools")
    parts = _content(message.get("content"), where, needed=not calls)
    if not isinstance(calls, list):
        raise Wrong(f"{where}.tool_calls is {found_value(calls)}; expected a list")
    parts += tuple(Part(_call(call, f"{where}.tool_calls[{n}]"), type="tool_call") for n, call in enumerate(calls))
    extra = {k: v for k, v in message.items() if k not in _READ and v is not None}
    return Turn(role, parts, target=role == "assistant" and _trained(message, where), extra=extra)


def _spoken(message: Any, where: str) -> Turn:
    """A ShareGPT message: `from` and `value`."""
    if not isinstance(message, dict) or not {"from", "value"} <= message.keys():
        keys = ", ".join(message) or "none" if isinstance(message, dict) else found_value(message)
        raise Wrong(f"{where} needs from and value; found: {keys}")
    speaker = message["from"]
    if speaker not in SPEAKERS:
        raise Wrong(f"{where} is from {json.dumps(speaker)}; legal: {', '.join(SPEAKERS)}")
    further = {k: v for k, v in message.items() if k not in ("from", "value")}
    if speaker != "function_call":
        return _turn({"role": SPEAKERS[speaker], "content": message["value"], **further}, where)
    called = _parsed(message["value"], f"{where}.value")
    calls = called if isinstance(called, list) else [called]
    return _turn({"role": "assistant", "content": None, "tool_calls": calls, **further}, where)


def _content(content: Any, where: str, needed: bool) -> tuple[Part, ...]:
    if isinstance(content, list):
        kinds = [c.get("type") if isinstance(c, dict) else None for c in content]
        strange = next((k for k in kinds if k != "text"), "text")
        if strange != "text":
            raise Wrong(f"{where}.content holds a part of type {json.dumps(strange)}; only text is read here")
        content = "\n".join(_text(c.get("text"), f"{where}.content") for c in content)
    if content is None or content == "":
        if needed:
            raise Wrong(f"{where}.content is {found_value(content)}; only an assistant that calls tools may say nothing")
        return ()
    text = _text(content, f"{where}.content")
    if needed and not text.strip():
        raise Wrong(f"{where}.content is white space only")
    return (Part(text, name="content"),)


def _call(call: Any, where: str) -> dict[str, Any]:
    """`{"id", "name", "arguments"}` of a call; arguments are an object, or text that holds one."""
    inner = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        raise Wrong(f"{where} needs function: {{name, arguments}}; found {found_value(call)}")
    arguments = inner.get("arguments", {})
    if isinstance(arguments, str):
        arguments = _parsed(arguments or "{}", f"{where}.arguments")
    if not isinstance(arguments, dict):
        raise Wrong(f"{where}.arguments is {found_value(arguments)}; expected an object")
    return {"id": str(call.get("id") or ""), "name": inner["name"], "arguments": arguments}


def _check_calls(turns: list[Turn], listed: str) -> None:
    """A tool answers a call that was made before it."""
    known: set[str] = set()
    for n, turn in enumerate(turns):
        known |= {call["id"] for call in turn.calls if call["id"]}
        asked = turn.extra.get("tool_call_id") if turn.role == "tool" else None
        if asked and known and asked not in known:
            raise Wrong(f"{listed}[{n}] answers the call {json.dumps(asked)}, which no message before it makes; "
                        f"calls made: {', '.join(sorted(known))}")


def _tools(tools: Any) -> tuple[dict[str, Any], ...]:
    if isinstance(tools, str):
        tools = _parsed(tools, "tools") if tools.strip() else None
    if tools is None:
        return ()
    if not isinstance(tools, list) or not all(isinstance(t, dict) for t in tools):
        raise Wrong(f"tools is {found_value(tools)}; expected a list of objects")
    made = [t if "function" in t else {"type": "function", "function": t} for t in tools]
    for n, tool in enumerate(made):
        if not isinstance(tool["function"], dict) or not isinstance(tool["function"].get("name"), str):
            raise Wrong(f"tools[{n}] has no function with a name; its keys: {', '.join(tools[n])}")
    return tuple(made)


def _trained(message: Mapping[str, Any], where: str) -> bool:
    train, weight = message.get("train", True), message.get("weight", 1)
    if not isinstance(train, bool):
        raise Wrong(f"{where}.train is {found_value(train)}; expected true or false")
    if isinstance(weight, bool) or weight not in (0, 1):
        raise Wrong(f"{where}.weight is {found_value(weight)}; expected 0 or 1")
    return train and bool(weight)


def _parsed(text: Any, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError):
        raise Wrong(f"{where} is {found_value(text)}; expected JSON") from None


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise Wrong(f"{where} is {found_value(value)}; expected text")
    return value

"""Chat templates in the shapes that are met in practice, written for these tests, with what each teaches.

A `Case` names the tokens its tokenizer needs, and the texts that must be learned of `TALK`: exactly those, terminator
included. `alone` says that every learned turn is a row of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from luthier.core.example import Example, Part, Turn


def said(role: str, text: str, **extra: Any) -> Turn:
    """A chat turn; an assistant's is learned."""
    return Turn(role, (Part(text, name="content"),), target=role == "assistant", extra=extra)  # type: ignore[arg-type]


CALL = {"id": "call00001", "name": "weather", "arguments": {"city": "Oslo"}}
TOOLS = ({"type": "function", "function": {"name": "weather", "description": "Tell the weather.", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}}}},)
TALK = Example("talk", (
    said("system", "Be kind."), said("user", "Hello there"), said("assistant", "Hello to you."),
    said("user", "Is it cold in Oslo?"),
    Turn("assistant", (Part(CALL, type="tool_call"),), target=True),
    said("tool", "5 degrees", name="weather", tool_call_id="call00001"), said("assistant", "It is 5 degrees."),
    said("user", "Thanks"), said("assistant", "You are welcome."),
), task="chat", tools=TOOLS)
# The same without tools, for templates that know none.
PLAIN_TALK = replace(TALK, tools=(), turns=(*TALK.turns[:4], said("assistant", "Yes, 5 degrees."), *TALK.turns[7:]))
THINKING = replace(PLAIN_TALK, turns=tuple(
    said("assistant", f"<think>\nIt is a greeting.\n</think>\n\n{t.text}") if t.role == "assistant" else t
    for t in PLAIN_TALK.turns))


@dataclass(frozen=True)
class Case:
    """One template: its Jinja text, the tokens it needs, a conversation and what is learned of it."""

    jinja: str
    tokens: tuple[str, ...]
    talk: Example
    learned: tuple[str, ...]
    alone: bool = False
    generation: bool = False  # it has generation markers, so transformers can tell the mask too


CHATML = """{%- if tools %}
<|im_start|>system
{{ messages[0].content if messages[0].role == 'system' else '' }}
# Tools
{%- for tool in tools %}

{{ tool | tojson }}
{%- endfor %}<|im_end|>
{% elif messages[0].role == 'system' %}
<|im_start|>system
{{ messages[0].content }}<|im_end|>
{% endif %}
{%- for m in messages %}
{%- if m.role == 'user' %}
{{- '<|im_start|>user\\n' + m.content + '<|im_end|>\\n' }}
{%- elif m.role == 'assistant' %}
{{- '<|im_start|>assistant\\n' }}
{%- generation %}
{{- m.content }}
{%- for call in m.tool_calls or [] %}
{{- '<tool_call>\\n' }}{{ {'name': call.function.name, 'arguments': call.function.arguments} | tojson }}
{{- '\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>' }}
{%- endgeneration %}
{{- '\\n' }}
{%- elif m.role == 'tool' %}
{{- '<|im_start|>user\\n<tool_response>\\n' + m.content + '\\n</tool_response><|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

LLAMA3 = """{{- bos_token }}
{%- macro head(role) %}{{ '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' }}{% endmacro %}
{%- for m in messages %}
{%- if m.role == 'assistant' and m.tool_calls %}
{{- head('assistant') }}{% generation %}{{ '{"name": "' + m.tool_calls[0].function.name + '", "parameters": ' }}
{{- m.tool_calls[0].function.arguments | tojson }}{{ '}<|eom_id|>' }}{% endgeneration %}
{%- elif m.role == 'assistant' %}
{{- head('assistant') }}{% generation %}{{ m.content | trim }}{{ '<|eot_id|>' }}{% endgeneration %}
{%- elif m.role == 'tool' %}
{{- head('ipython') + m.content | tojson + '<|eot_id|>' }}
{%- else %}
{{- head(m.role) + m.content | trim + '<|eot_id|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ head('assistant') }}{% endif %}"""

GEMMA = """{{ bos_token }}
{%- set first = '' %}
{%- if messages[0].role == 'system' %}
{%- set first = messages[0].content + '\\n\\n' %}
{%- set messages = messages[1:] %}
{%- endif %}
{%- for m in messages %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('roles must alternate user/assistant') }}
{%- endif %}
{{- '<start_of_turn>' + ('model' if m.role == 'assistant' else 'user') + '\\n' }}
{{- first if loop.first else '' }}{{ m.content | trim }}{{ '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""

MISTRAL = """{{- bos_token }}
{%- if messages[0].role == 'system' %}
{%- set system = messages[0].content + '\\n\\n' %}{% set rest = messages[1:] %}
{%- else %}
{%- set system = '' %}{% set rest = messages %}
{%- endif %}
{%- for m in rest %}
{%- if m.role == 'user' %}
{{- '[INST] ' + (system if loop.first else '') + m.content + ' [/INST]' }}
{%- elif m.role == 'tool' %}
{{- '[TOOL_RESULTS] ' + {'content': m.content, 'call_id': m.tool_call_id} | tojson + '[/TOOL_RESULTS]' }}
{%- elif m.tool_calls %}
{{- '[TOOL_CALLS] [' }}
{%- for call in m.tool_calls %}{{ {'name': call.function.name, 'arguments': call.function.arguments, 'id': call.id} | tojson }}
{%- endfor %}{{ ']' + eos_token }}
{%- else %}
{{- ' ' + m.content + eos_token }}
{%- endif %}
{%- endfor %}"""

# The system prompt moves along to the last user message, as in later templates of that family.
MISTRAL_LATE = """{{- bos_token }}
{%- set system = messages[0].content if messages[0].role == 'system' else '' %}
{%- set rest = messages[1:] if system else messages %}
{%- set ns = namespace(last=-1) %}
{%- for m in rest %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for m in rest %}
{%- if m.role == 'user' %}
{{- '[INST] ' + (system + '\\n\\n' if system and loop.index0 == ns.last else '') + m.content + '[/INST]' }}
{%- else %}
{{- ' ' + m.content + eos_token }}
{%- endif %}
{%- endfor %}"""

ZEPHYR = """{% for m in messages %}
{{ '<|' + m.role + '|>' }}
{{ m.content + eos_token }}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}"""

PHI = """{% for m in messages %}
{% if m.role == 'assistant' %}
{{ '<|assistant|>\\n' }}{% generation %}{{ m.content + '<|end|>' }}{% endgeneration %}{{ '\\n' }}
{% else %}
{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}
{% endif %}
{% endfor %}
{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"""

# Strips the thinking of every turn, and opens it in the generation prompt.
REASONER = """{{- bos_token }}
{%- for m in messages %}
{%- if m.role == 'system' %}{{ m.content }}{% endif %}
{%- if m.role == 'user' %}{{ '<|User|>' + m.content }}{% endif %}
{%- if m.role == 'assistant' %}
{{- '<|Assistant|>' + (m.content.split('</think>')[-1] | trim) + '<|end_of_sentence|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|Assistant|><think>\\n' }}{% endif %}"""

# Keeps the thinking of the last turn and strips it from earlier ones.
FORGETFUL = """{%- set ns = namespace(last=0) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
{%- if m.role == 'assistant' and loop.index0 < ns.last %}
{{- '<|im_start|>assistant\\n' + (m.content.split('</think>')[-1] | trim) + '<|im_end|>\\n' }}
{%- else %}
{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

ANSWERS = ("Hello to you.", "Yes, 5 degrees.", "You are welcome.")
IM = ("<|im_start|>", "<|im_end|>")
CASES: dict[str, Case] = {
    "chatml": Case(CHATML, IM, TALK, (
        "Hello to you.<|im_end|>",
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>',
        "It is 5 degrees.<|im_end|>", "You are welcome.<|im_end|>"), generation=True),
    "llama3": Case(LLAMA3, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>"), TALK, (
        "Hello to you.<|eot_id|>", '{"name": "weather", "parameters": {"city": "Oslo"}}<|eom_id|>',
        "It is 5 degrees.<|eot_id|>", "You are welcome.<|eot_id|>"), generation=True),
    "gemma": Case(GEMMA, ("<start_of_turn>", "<end_of_turn>"), PLAIN_TALK,
                  tuple(f"{a}<end_of_turn>" for a in ANSWERS)),
    "mistral": Case(MISTRAL, ("[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"), TALK, (
        " Hello to you.<eos>",
        '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Oslo"}, "id": "call00001"}]<eos>',
        " It is 5 degrees.<eos>", " You are welcome.<eos>")),
    "mistral-late": Case(MISTRAL_LATE, (), PLAIN_TALK, tuple(f" {a}<eos>" for a in ANSWERS), alone=True),
    "zephyr": Case(ZEPHYR, (), PLAIN_TALK, tuple(f"{a}<eos>" for a in ANSWERS)),
    "phi": Case(PHI, ("<|user|>", "<|assistant|>", "<|end|>"), PLAIN_TALK, tuple(f"{a}<|end|>" for a in ANSWERS),
                generation=True),
    "reasoner": Case(REASONER, ("<|User|>", "<|Assistant|>", "<|end_of_sentence|>"), THINKING, tuple(
        f"It is a greeting.\n</think>\n\n{a}<|end_of_sentence|>" for a in ANSWERS), alone=True),
    "forgetful": Case(FORGETFUL, IM, THINKING, tuple(
        f"<think>\nIt is a greeting.\n</think>\n\n{a}<|im_end|>" for a in ANSWERS), alone=True),
}

COUNTING = """{{ 'A talk of ' + (messages | length) | string + ' messages\\n' }}
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
ENDLESS = """{%- for m in messages %}{{ ('\\n' if not loop.first else '') + m.role + ': ' + m.content }}{% endfor %}
{%- if add_generation_prompt %}{{ '\\nassistant: ' }}{% endif %}"""
SILENT = """{%- for m in messages %}{% if m.role == 'user' %}{{ m.content + '<eos>' }}{% else %}{{ 'x<eos>' }}{% endif %}
{%- endfor %}"""

"""What others rely on: the description of the interface, OpenAI's own client, and one way of answering for all commands."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "luthier"
HELLO = [{"role": "user", "content": "What is a peg?"}]


def calls(*names: str) -> dict[str, set[str]]:
    """For each name the files of the package in which something of that name is called."""
    found: dict[str, set[str]] = {name: set() for name in names}
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = getattr(node.func, "attr", getattr(node.func, "id", ""))
                if called in found:
                    found[called].add(str(path.relative_to(SOURCE)))
    return found


def test_one_scheduler_and_one_reader_of_runs_answer_for_all_commands():
    found = calls("Scheduler", "Padded", "scheduler_of", "Asker", "take")
    assert found["Scheduler"] == found["Padded"] == {"engine/generation.py"}, "made in one place"
    assert found["scheduler_of"] == {"engine/generation.py", "serving/desk.py"}
    assert found["Asker"] == {"pipelines/asking.py", "cli/chat.py", "serving/served.py"}
    assert not any("serving" in path for path in found["take"]), "where an answer ends, the engine says"
    stepping = {str(p.relative_to(SOURCE)) for p in SOURCE.rglob("*.py") if "scheduler.step()" in p.read_text("utf-8")}
    assert stepping == {"engine/generation.py", "serving/desk.py"}


def test_serving_makes_no_token_itself():
    """The next token is chosen in the engine's scheduler alone: no forward, no argmax, no draw in `serving`."""
    found = calls("argmax", "softmax", "log_softmax", "multinomial", "scores", "trunk_of", "hidden_states", "no_grad")
    assert not {p for paths in found.values() for p in paths if p.startswith("serving/")}


def test_the_description_is_valid(client):
    described = client.get("/openapi.json").json()
    validator = pytest.importorskip("openapi_spec_validator")
    validator.validate(described)
    assert {"/v1/models", "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/answers", "/healthz", "/readyz",
            "/metrics"} <= described["paths"].keys()
    for path, methods in described["paths"].items():
        for method in methods.values():
            assert method["description"], path
            assert "422" not in method["responses"], "what is wrong with a body is said with 400"


def test_no_page_is_served_that_loads_scripts_from_elsewhere(client):
    assert client.get("/docs").status_code == client.get("/redoc").status_code == 404


# --- OpenAI's own client -------------------------------------------------------------------------------------------

@pytest.fixture
def theirs(served):
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"http://127.0.0.1:{served.port}/v1", api_key="none", max_retries=0) as one:
        yield one


def test_the_client_lists_models(theirs):
    assert "run3/tuned" in [m.id for m in theirs.models.list()]
    assert theirs.models.retrieve("run3/tuned").object == "model"


def test_the_client_chats_whole_and_streamed(theirs):
    options = {"model": "run3", "messages": HELLO, "max_tokens": 12, "temperature": 1.2, "seed": 4}
    whole = theirs.chat.completions.create(**options, n=2, logprobs=True, top_logprobs=1)
    assert len(whole.choices) == 2 and whole.usage.completion_tokens == sum(len(c.logprobs.content) for c in whole.choices)
    said, usage = "", None
    for chunk in theirs.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        said += "".join(c.delta.content or "" for c in chunk.choices)
    assert said == whole.choices[0].message.content and usage.total_tokens > 0


def test_the_client_completes_texts(theirs):
    made = theirs.completions.create(model="run3/base", prompt="A peg is", max_tokens=5, temperature=0, logprobs=2)
    assert made.usage.completion_tokens == 5 and len(made.choices[0].logprobs.tokens) == 5
    pieces = theirs.completions.create(model="run3/base", prompt="A peg is", max_tokens=5, temperature=0, stream=True)
    assert "".join(p.choices[0].text for p in pieces) == made.choices[0].text


def test_the_client_embeds(theirs):
    made = theirs.embeddings.create(model="run3", input=["a peg", "a nut"])  # the client asks for base64 by itself
    assert len(made.data) == 2 and sum(x * x for x in made.data[0].embedding) == pytest.approx(1, abs=1e-4)


def test_the_client_hears_errors_as_its_own(theirs):
    import openai

    with pytest.raises(openai.NotFoundError, match="no model 'gpt'"):
        theirs.chat.completions.create(model="gpt", messages=HELLO)
    with pytest.raises(openai.BadRequestError, match="temperature"):
        theirs.chat.completions.create(model="run3", messages=HELLO, temperature=9)

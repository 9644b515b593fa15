"""The description of the interface: valid, true of this server, and held to by what it answers (schemathesis)."""

from __future__ import annotations

import pytest

TOKEN = b"a-token-of-thirty-two-characters"
# What a description can't say: rules that look at a whole conversation, at a model's own tokens, or at what it reads.
INEXPRESSIBLE = ("nothing is asked after it", "a control token of this model", "are to be written", "the encoder reads",
                 "has an id outside of", "one request gets at most", "surrogate", "Empty reply")


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


def test_it_says_what_is_legal_here(client, listen):
    made = client.get("/openapi.json").json()
    fields = {name: made["components"]["schemas"][name]["properties"] for name in ("ChatBody", "CompletionBody",
                                                                                    "EmbeddingBody", "AnswerBody")}
    assert "run3/tuned" in fields["ChatBody"]["model"]["enum"] and "run3/encoder" not in fields["ChatBody"]["model"]["enum"]
    assert fields["EmbeddingBody"]["model"]["enum"] == ["run3", "run4", "run3/encoder", "run4/encoder"]
    assert fields["CompletionBody"]["max_tokens"]["maximum"] == 256
    assert client.get("/openapi.json").json() == made
    responses = made["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert responses.keys() == {"200", "400", "403", "404", "408", "413", "429", "503", "504"}
    assert responses["200"]["content"].keys() == {"application/json", "text/event-stream"}
    told = listen(token=TOKEN).client.get("/openapi.json", headers={"Authorization": f"Bearer {TOKEN.decode()}"}).json()
    assert told["paths"]["/v1/models"]["get"]["security"] and "401" in told["paths"]["/v1/models"]["get"]["responses"]
    assert "security" not in told["paths"]["/healthz"]["get"]


def test_a_method_that_is_not_there_names_those_that_are(client):
    answer = client.get("/v1/completions")
    assert answer.status_code == 405 and answer.headers["Allow"] == "POST"
    assert client.post("/v1/models").headers["Allow"] == "GET"


# --- schemathesis --------------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_what_is_answered_is_what_is_described(served):
    """Legal and illegal requests from the description: no 5xx, no status and no body that it does not name."""
    schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis: pip install schemathesis")
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis import GenerationMode
    from schemathesis.checks import load_all_checks

    load_all_checks()
    schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{served.port}/openapi.json")
    asked = {}

    def hold(operation, mode):
        statuses = asked.setdefault(operation.label, set())

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(max_examples=40, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck),
                  phases=[Phase.explicit, Phase.generate])
        def answered(case):
            answer = case.call(timeout=60)
            statuses.add(answer.status_code)
            if answer.status_code != 400 or not any(words in answer.text for words in INEXPRESSIBLE):
                case.validate_response(answer)

        answered()

    for operation in (found.ok() for found in schema.get_all_operations()):
        hold(operation, GenerationMode.POSITIVE)
        if operation.label.startswith("POST"):  # what takes no field has no illegal form
            hold(operation, GenerationMode.NEGATIVE)
    assert all(200 in statuses for statuses in asked.values()), asked
    assert all({200, 400} <= statuses for label, statuses in asked.items() if label.startswith("POST")), asked

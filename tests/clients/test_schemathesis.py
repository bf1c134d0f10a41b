"""Requests that schemathesis makes from /openapi.json, right and wrong ones: no answer is the server's failure."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import requests
from conftest import MODEL, QUICK, WORK, post, server

LIMITS = ["--max-tokens", "8", "--timeout", "20", "--max-body", "1"]


def run(source, url, phases, *more):
    command = [
        Path(sys.executable).with_name("schemathesis"), "run", source, "--url", url, "--checks", "not_a_server_error",
        "--exclude-path-regex", "^/v1/models/(load|unload)$", "--phases", phases, "--request-timeout", "20",
        "--continue-on-failure", "--seed", "1", "--workers", "2", "--no-color",
        # How fast hypothesis makes up data says nothing about the server.
        "--suppress-health-check", "all", *more,
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=170, cwd=WORK)
    assert done.returncode == 0, done.stdout.split("= WARNINGS =")[0][-12000:] + done.stderr[-2000:]
    assert int(re.search(r"(\d+) generated", done.stdout).group(1)) > 100, done.stdout


@pytest.mark.skipif(QUICK, reason="--quick leaves it out")
def test_any_request():
    with server("fuzzed", *LIMITS) as url:
        run(f"{url}/openapi.json", url, "coverage,fuzzing", "--max-examples", "10", "--mode", "all")


def real(document, states, responses):
    """The description with names of what is there and fewer ways to go wrong, so that requests come through to the model."""
    text = {"type": "object", "properties": {"type": {"const": "text"}, "text": {"type": "string"}}, "required": ["type", "text"]}
    function = {
        "type": "object",
        "properties": {"name": {"enum": ["f", "g"]}, "parameters": {"enum": [{"type": "object"}, {"enum": [{"a": 1}]}]}},
        "required": ["name"],
    }
    tool = {"type": "object", "properties": {"type": {"const": "function"}, "function": function}, "required": ["function"]}
    anthropic_tool = {
        "type": "object",
        "properties": {"name": {"enum": ["f", "g"]}, "input_schema": {"enum": [{"type": "object"}]}},
        "required": ["name", "input_schema"],
    }
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
    known = {
        "model": {"enum": [MODEL, f"{MODEL}+rain"]},
        "state": {"enum": [states[0], None]},
        "from": {"enum": [states[0], None]},
        "previous_response_id": {"enum": [responses[0], None]},
        "template": {"enum": ["world", "g1", "g1-think", "raven", None]},
        "reasoning_effort": {"enum": ["none", "low", "high", None]},
        "encoding_format": {"enum": ["float", "base64", None]},
        "tool_choice": {"enum": ["auto", "none", None]},
        "tools": {"type": "array", "items": tool, "maxItems": 3},
        "logit_bias": {
            "type": "object", "propertyNames": {"pattern": "^[1-9][0-9]{0,2}$"}, "maxProperties": 4,
            "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
        },
        "response_format": {"enum": [None, {"type": "text"}, {"type": "json_object"},
                                     {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}]},
        "text": {"enum": [None, {"format": {"type": "json_schema", "name": "x", "schema": schema}}]},
        "continue_final_message": {"const": False},
        "logprobs": {"enum": [True]},
        "n": {"enum": [1, 2, None]},
        "best_of": {"enum": [2, 3]},
        "suffix": {"enum": ["", None]},
        "dimensions": {"enum": [256, None]},
    }
    for number in ("temperature", "presence_penalty", "frequency_penalty"):
        known[number] = {"type": "number", "minimum": 0, "maximum": 2}
    known["repetition_penalty"] = {"type": "number", "minimum": 1, "maximum": 2}
    for name, shape in document["components"]["schemas"].items():
        properties = shape.get("properties", {})
        if name.endswith("Request"):
            for field in [f for f in properties if f.startswith(("guided_", "mirostat_"))]:
                del properties[field]
            properties.update({field: known[field] for field in known.keys() & properties.keys()})
    shapes = {n: s.get("properties", {}) for n, s in document["components"]["schemas"].items()}
    shapes["CompletionRequest"]["logprobs"] = {"enum": [0, 3, None]}
    shapes["MessagesRequest"].update(tools={"type": "array", "items": anthropic_tool, "maxItems": 3},
                                     tool_choice={"enum": [None, {"type": "auto"}, {"type": "none"}]})
    shapes["StateRequest"].pop("messages")
    shapes["TokenizeRequest"].pop("messages")
    shapes["ChatMessage"]["tool_calls"] = {"type": "null"}
    shapes["ChatMessage"]["role"] = {"enum": ["system", "user", "assistant", "tool"]}
    document["components"]["schemas"]["Content"] = {"anyOf": [{"type": "string"}, {"type": "array", "items": text}]}
    ids = {"type": "integer", "minimum": 1, "maximum": 8191}
    document["components"]["schemas"]["Prompts"] = {"anyOf": [
        {"type": "string", "minLength": 1}, {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1, "maxItems": 3},
        {"type": "array", "items": ids, "minItems": 1}]}
    shapes["RankRequest"]["choices"] = {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1, "maxItems": 4}
    document["components"]["schemas"]["Input"] = {"type": "string"}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            for parameter in operation.get("parameters", []):
                if parameter["name"] == "model":
                    parameter["schema"] = known["model"]
                if parameter["name"] == "id":
                    # The first of each is what others go on from.
                    of = responses if "responses" in path else [MODEL] if "models" in path else states
                    parameter["schema"] = {"enum": of[1:] or of}
    return document


def test_requests_that_come_through():
    rain = ["--adapter", f"rain={os.environ['HAWFINCH_LORA']}"]
    with server("used", *LIMITS, *rain) as url:
        states = [post("/v1/states", {"model": MODEL, "prompt": f"Text {i}"}, url).json()["id"] for i in range(4)]
        asked = {"model": MODEL, "input": "x"}
        responses = [post("/v1/responses", asked, url).json()["id"] for _ in range(4)]
        document = real(requests.get(f"{url}/openapi.json", timeout=10).json(), states, responses)
        file = WORK / "openapi.json"
        file.write_text(json.dumps(document))
        before = good(url)
        if QUICK:
            run(file, url, "fuzzing", "--max-examples", "15", "--mode", "positive")
        else:
            run(file, url, "fuzzing,stateful", "--max-examples", "25", "--mode", "positive")
        assert good(url) - before > 50, "nearly no request was answered"


def good(url):
    """Requests that the model has finished."""
    text = requests.get(f"{url}/metrics", timeout=10).text
    return int(re.search(r'hawfinch_requests_finished_total\{model="demo"\} (\d+)', text).group(1))

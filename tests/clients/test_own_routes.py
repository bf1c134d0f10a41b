"""Routes beyond those of OpenAI and Anthropic: tokens, ranking, saved states, adapters, metrics, the description."""

import json
import os
import struct

import openapi_spec_validator
import pytest
import requests
from conftest import GREEDY, MODEL, URL, WORK, hawfinch, openai_client, post, said, server, tokens_of, tokens_of_chat
from prometheus_client.parser import text_string_to_metric_families

TEXTS = [
    "The rain fell.", " leading", "trailing \n\n", "Zürich — 東京 🐦 é", "a\tb\r\nc", "x" * 500, "\u0000\u0001\u007f", "1234567890 3.14",
    "ﬁ ﷽ \u200d \ufeff",
]


def get(path, url=URL, **more):
    return requests.get(url + path, timeout=30, **more)


def complete(prompt, url=URL, **more):
    reply = post("/v1/completions", {"model": MODEL, "prompt": prompt, "max_tokens": 16, **GREEDY, **more}, url)
    assert reply.status_code == 200, reply.text
    return reply.json()


def text(prompt, **more):
    return complete(prompt, **more)["choices"][0]["text"]


@pytest.mark.parametrize("given", TEXTS)
def test_tokens_and_back(given):
    tokenized = post("/tokenize", {"model": MODEL, "prompt": given, "return_token_strs": True}).json()
    assert tokenized["count"] == len(tokenized["tokens"]) == len(tokenized["token_strs"]) and tokenized["max_model_len"] > 1 << 20
    back = post("/detokenize", {"model": MODEL, "tokens": tokenized["tokens"]}).json()["prompt"]
    assert back == given
    # The same as the program's own.
    file = WORK / "text.txt"
    file.write_bytes(given.encode())
    assert json.loads(hawfinch("tokenize", file, "--model", MODEL, "--json"))["ids"] == tokenized["tokens"]


def test_tokens_of_conversations():
    info = get("/tokenizer_info").json()
    (end,) = tokens_of(info["eos_token"])
    assert post("/detokenize", {"tokens": [end]}).json()["prompt"] == info["eos_token"] and info["vocab_size"] == 8192
    messages = [{"role": "system", "content": "Be brief."}, *said("Hi")]
    with_reply = tokens_of_chat(messages)
    without = post("/tokenize", {"messages": messages, "add_generation_prompt": False}).json()["tokens"]
    assert with_reply[: len(without)] == without and len(with_reply) > len(without)
    used = openai_client().chat.completions.create(model=MODEL, messages=messages, max_tokens=1).usage
    assert used.prompt_tokens == len(with_reply)
    for wrong in ({}, {"prompt": "x", "messages": messages}):
        assert post("/tokenize", wrong).status_code == 400
    assert post("/detokenize", {"tokens": [8192]}).status_code == 400
    assert post("/tokenize", {"prompt": "x", "model": "other"}).status_code == 404


def logits_of(tokens):
    """Log-softmax of `hawfinch logits`, rows as lists."""
    import numpy
    from safetensors.numpy import load_file

    out = WORK / "logits.safetensors"
    out.unlink(missing_ok=True)
    hawfinch("logits", MODEL, "--ids", ",".join(map(str, tokens)), "--out", out)
    rows = load_file(out)["logits"].astype(numpy.float64)
    top = rows.max(axis=1, keepdims=True)
    return rows - top - numpy.log(numpy.exp(rows - top).sum(axis=1, keepdims=True))


def test_rank():
    prompt = "The old house by the river is"
    choices = [" a very long way from the town.", " blue", " the", " zxqj"]
    ranked = post("/v1/rank", {"model": MODEL, "prompt": prompt, "choices": choices}).json()
    results = ranked["results"]
    assert [r["index"] for r in results] == [0, 1, 2, 3] and [r["choice"] for r in results] == choices
    assert results[ranked["best"]]["logprob"] == max(r["logprob"] for r in results)
    assert results[ranked["best_per_token"]]["logprob_per_token"] == max(r["logprob_per_token"] for r in results)
    head = tokens_of(prompt)
    for r in results:
        ids = tokens_of(r["choice"])
        assert r["tokens"] == len(ids) and r["logprob_per_token"] == pytest.approx(r["logprob"] / len(ids))
        echo = complete(head + ids, max_tokens=0, echo=True, logprobs=1)["choices"][0]["logprobs"]["token_logprobs"]
        assert r["logprob"] == pytest.approx(sum(echo[len(head):]), abs=1e-4)
        # Computed by another way through the program.
        rows = logits_of(head + ids)
        own = sum(rows[len(head) + i - 1][token] for i, token in enumerate(ids))
        assert r["logprob"] == pytest.approx(own, abs=1e-3)
        greedy = all(rows[len(head) + i - 1].argmax() == token for i, token in enumerate(ids))
        assert r["greedy"] == greedy
    first = text(prompt, max_tokens=1)
    assert post("/v1/rank", {"model": MODEL, "prompt": prompt, "choices": [first]}).json()["results"][0]["greedy"] is True
    backwards = post("/v1/rank", {"model": MODEL, "prompt": prompt, "choices": choices[::-1]}).json()
    assert [r["logprob"] for r in backwards["results"]] == [r["logprob"] for r in results[::-1]]
    assert post("/v1/rank", {"model": MODEL, "choices": ["The"]}).status_code == 200, "without a prompt"
    for wrong in ({"choices": []}, {"choices": [""]}, {"choices": ["x"] * 257}, {"choices": "x"}):
        assert post("/v1/rank", {"model": MODEL, "prompt": prompt, **wrong}).status_code == 400, wrong
    assert post("/v1/rank", {"model": "other", "prompt": prompt, "choices": ["x"]}).status_code == 404


def save(**more):
    reply = post("/v1/states", {"model": MODEL, **more})
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_saved_states():
    begin, rest = "The old house by the river", " was built when the town"
    state = save(prompt=begin, name="house")
    assert (state["object"], state["model"], state["name"], state["tokens"]) == ("state", MODEL, "house", len(tokens_of(begin)))
    assert state in get("/v1/states").json()["data"] and get(f"/v1/states/{state['id']}").json() == state
    whole = text(tokens_of(begin) + tokens_of(rest))
    reply = complete(rest, state=state["id"])
    assert reply["choices"][0]["text"] == whole and reply["usage"]["prompt_tokens_details"]["cached_tokens"] >= state["tokens"]
    fork = save(**{"from": state["id"], "prompt": rest})
    assert fork["id"] != state["id"] and fork["tokens"] == state["tokens"] + len(tokens_of(rest))
    # Each goes its own way, the first is as it was.
    assert text(" and", state=fork["id"]) == text(tokens_of(begin) + tokens_of(rest) + tokens_of(" and"))
    assert text(rest, state=state["id"]) == whole
    copy = save(**{"from": state["id"]})
    assert copy["tokens"] == state["tokens"] and text(rest, state=copy["id"]) == whole
    # Out and in again, here and at a server that never read the text.
    file = get(f"/v1/states/{fork['id']}/content")
    assert file.headers["content-type"] == "application/octet-stream" and fork["id"] in file.headers["content-disposition"]
    (length,) = struct.unpack("<Q", file.content[:8])
    assert json.loads(file.content[8 : 8 + length]) and len(file.content) == fork["bytes"]
    binary = {"data": file.content, "headers": {"content-type": "application/octet-stream"}}
    imported = post(f"/v1/states/import?model={MODEL}&name=again", None, **binary).json()
    assert imported["name"] == "again" and imported["tokens"] == fork["tokens"]
    assert text(" and", state=imported["id"]) == text(" and", state=fork["id"])
    with server("importing", "--allow-load") as url:
        other = post(f"/v1/states/import?model={MODEL}", None, url, **binary).json()
        assert complete(" and", url, state=other["id"])["choices"][0]["text"] == text(" and", state=fork["id"])
        # Models come and go.
        path = WORK / "small.pth"
        hawfinch("synthesize", path, "--layers", "2", "--width", "64", "--force")
        assert post("/v1/models/load", {"path": str(path), "name": "small"}, url).json()["id"] == "small"
        small = openai_client(url).completions.create(model="small", prompt="x", max_tokens=4)
        assert small.model == "small" and small.usage.completion_tokens <= 4
        # A state of one model is none of another.
        assert post("/v1/states/import?model=small", None, url, **binary).status_code == 400
        asked = {"model": "small", "prompt": "x", "state": other["id"]}
        assert post("/v1/completions", asked, url).status_code in (400, 404)
        assert post("/v1/models/load", {"path": "/nowhere.pth"}, url).status_code == 400
        assert post("/v1/models/unload", {"model": "small"}, url).json()["unloaded"] is True
        assert post("/v1/completions", {"model": "small", "prompt": "x"}, url).status_code == 404
    assert post("/v1/models/load", {"path": str(path)}).status_code == 403
    for wrong in (b"", b"garbage", file.content[:-100], file.content[: 8 + length], b"\xff" * 4096):
        reply = post(f"/v1/states/import?model={MODEL}", None, **{**binary, "data": wrong})
        assert reply.status_code == 400 and "/" not in reply.json()["error"]["message"], reply.text
    for one in (state, fork, copy, imported):
        gone = requests.delete(f"{URL}/v1/states/{one['id']}", timeout=30).json()
        assert gone == {"id": one["id"], "object": "state.deleted", "deleted": True}
        assert get(f"/v1/states/{one['id']}").status_code == 404
        assert requests.delete(f"{URL}/v1/states/{one['id']}", timeout=30).status_code == 404
    assert post("/v1/completions", {"model": MODEL, "prompt": "x", "state": state["id"]}).status_code == 404


def test_state_of_a_conversation():
    talk = [*said("The rain fell on the roof."), {"role": "assistant", "content": "It did."}]
    state = save(messages=talk)
    chat = lambda messages, **more: post(
        "/v1/chat/completions", {"model": MODEL, "messages": messages, "max_tokens": 16, **GREEDY, **more}).json()
    goes_on, whole = chat(said("Why?"), state=state["id"]), chat([*talk, *said("Why?")])
    assert goes_on["choices"][0]["message"]["content"] == whole["choices"][0]["message"]["content"]
    assert goes_on["usage"]["prompt_tokens"] == whole["usage"]["prompt_tokens"]
    assert goes_on["usage"]["prompt_tokens_details"]["cached_tokens"] >= state["tokens"]
    for wrong in ({}, {"prompt": "x", "messages": talk}, {"prompt": "x", "name": "n" * 201}):
        assert post("/v1/states", {"model": MODEL, **wrong}).status_code == 400
    assert post("/v1/states", {"model": MODEL, "from": "state-none"}).status_code == 404


@pytest.mark.parametrize("id", ["..%2f..%2f..%2fetc%2fpasswd", "%2fetc%2fpasswd", "..", "%00", "none", "a" * 5000, "%ff", "state-%2e%2e"])
def test_ids_that_are_none(id):
    for path in (f"/v1/states/{id}", f"/v1/states/{id}/content", f"/v1/responses/{id}", f"/v1/models/{id}"):
        # requests would tidy the path.
        prepared = requests.Request("GET", URL).prepare()
        prepared.url = URL + path
        reply = requests.Session().send(prepared, timeout=30)
        assert reply.status_code in (400, 404), (path[:80], reply.status_code)
        assert b"root:" not in reply.content and reply.json()["error"]["message"]
    for at in ("../../etc/passwd", "/etc/passwd", "..\\..", "\u0000"):
        for body in ({"prompt": "x", "state": at}, {"prompt": "x", "model": at}):
            assert post("/v1/completions", {"model": MODEL, **body}).status_code == 404
        assert post("/v1/states", {"model": MODEL, "from": at}).status_code == 404


def test_queries_that_are_wrong():
    for query in ("", "?model=", "?name=x", "?model=%ff"):
        reply = post(f"/v1/states/import{query}", None, data=b"x")
        assert reply.status_code in (400, 404) and reply.json()["error"]["message"], query


@pytest.mark.parametrize("variant", ["rain", "begun"])
def test_adapters(variant):
    """A LoRA and a tuned state: other text than the model's, the same as the program writes with them."""
    model, prompt = f"{MODEL}+{variant}", "The rain in"
    plain, tuned = complete(prompt), complete(prompt, model=model)
    assert tuned["model"] == model and tuned["choices"][0]["text"] != plain["choices"][0]["text"]
    assert tuned["system_fingerprint"] != plain["system_fingerprint"]
    # After one another in both orders: what is known of one is not taken for the other.
    assert complete(prompt)["choices"] == plain["choices"] and complete(prompt, model=model)["choices"] == tuned["choices"]
    file = os.environ["HAWFINCH_LORA" if variant == "rain" else "HAWFINCH_STATE"]
    flag = ["--lora", file] if variant == "rain" else ["--state", file]
    written = hawfinch("generate", MODEL, prompt, *flag, "--greedy", "--max-tokens", "16")
    assert tuned["choices"][0]["text"].strip() in written
    chunks = openai_client().chat.completions.create(model=model, messages=said("Rain?"), max_tokens=5, stream=True)
    assert all(c.model == model for c in chunks)
    state = save(model=model, prompt=prompt)
    assert state["model"] == model
    assert complete(" town", model=model, state=state["id"])["choices"][0]["text"] == text(
        tokens_of(prompt) + tokens_of(" town"), model=model)
    # One of an adapter is not the model's; where a text began changes nothing in what computes.
    status = post("/v1/completions", {"model": MODEL, "prompt": "x", "state": state["id"]}).status_code
    assert status == (400 if variant == "rain" else 200)
    for other in (f"{MODEL}+other", "other+rain", f"{MODEL}+"):
        assert post("/v1/completions", {"model": other, "prompt": "x"}).status_code == 404, other


def test_health_and_metrics():
    health = get("/health").json()
    assert health["status"] == "ok" and health["models"][0]["id"] == MODEL

    def numbers():
        reply = get("/metrics")
        assert reply.headers["content-type"].startswith("text/plain")
        families = list(text_string_to_metric_families(reply.text))
        for f in families:
            assert f.name.startswith("hawfinch_") and f.documentation and f.type != "unknown", f.name
        assert len({f.name for f in families}) == len(families) >= 18
        return {(s.name, s.labels.get("model", ""), s.labels.get("le", "")): s.value for f in families for s in f.samples}

    before = numbers()
    complete("The rain", max_tokens=9, cache=False)
    after = numbers()
    grown = lambda name: after[name, MODEL, ""] - before[name, MODEL, ""]
    assert grown("hawfinch_requests_total") >= 1 and grown("hawfinch_requests_finished_total") >= 1
    assert grown("hawfinch_generated_tokens_total") >= 8 and grown("hawfinch_prompt_tokens_total") >= 2
    assert after["hawfinch_step_seconds_bucket", MODEL, "+Inf"] == after["hawfinch_step_seconds_count", MODEL, ""]


def test_description():
    document = get("/openapi.json").json()
    openapi_spec_validator.validate(document)
    assert document["openapi"].startswith("3.1") and len(document["paths"]) > 15
    for path, operations in document["paths"].items():
        for method in operations:
            # Each is there: the answer is not that of an unknown address or method.
            reply = requests.request(method, URL + path.replace("{id}", "none"), timeout=30)
            code = (reply.json().get("error") or {}).get("code") if "json" in reply.headers.get("content-type", "") else None
            assert reply.status_code != 405 and code != "unknown_url", (method, path)
    for path, code in (("/v1/none", 404), ("/none.js", 404)):
        assert get(path).status_code == code
    assert get("/v1/chat/completions").status_code == 405
    for path in ("/", "/docs"):
        page = get(path)
        assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
        assert "default-src 'self'" in page.headers["content-security-policy"]


def test_strangers():
    """Other names and other sites' pages are refused."""
    assert get("/v1/models", headers={"host": "evil.example"}).status_code == 421
    assert get("/v1/models", headers={"origin": "http://evil.example"}).status_code == 403
    assert get("/v1/models", headers={"origin": URL}).status_code == 200
    big = post("/v1/completions", None, data=b"x" * (17 << 20), headers={"content-type": "application/json"})
    assert big.status_code == 413

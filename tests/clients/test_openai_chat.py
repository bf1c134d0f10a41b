"""Chat completions with OpenAI's Python client."""

import json
from typing import Literal

import openai
import pytest
from conftest import GREEDY, MODEL, post, said, tokens_of, tokens_of_chat
from pydantic import BaseModel, Field

SAID = said("The rain fell on the roof and")


class Weather(BaseModel):
    sky: Literal["clear", "cloudy", "overcast"]
    degrees: int = Field(ge=-9, le=9)
    wet: bool


def tool(name, properties):
    parameters = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": f"Tells the {name}", "parameters": parameters}}


TOOLS = [
    tool("weather", {"city": {"type": "string", "enum": ["Oslo", "Lima"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}}),
    tool("hour", {"zone": {"type": "string", "enum": ["UTC", "CET"]}}),
]


def chat(client, messages=SAID, **more):
    return client.chat.completions.create(model=MODEL, messages=messages, **{"max_tokens": 24, **more})


def text(reply):
    return reply.choices[0].message.content


def check_arguments(name, arguments):
    arguments = json.loads(arguments)
    if name == "weather":
        assert set(arguments) == {"city", "days"} and arguments["city"] in ("Oslo", "Lima") and 1 <= arguments["days"] <= 9
    else:
        assert name == "hour" and set(arguments) == {"zone"} and arguments["zone"] in ("UTC", "CET")


def test_models(client):
    models = list(client.models.list())
    assert [m.id for m in models] == [MODEL, f"{MODEL}+rain", f"{MODEL}+begun"]
    for m in models:
        assert (m.object, m.owned_by) == ("model", "hawfinch") and m.created > 1_700_000_000
        assert client.models.retrieve(m.id) == m
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_shape(client):
    reply = chat(client, **GREEDY)
    assert reply.id.startswith("chatcmpl-") and reply.object == "chat.completion" and reply.model == MODEL
    assert reply.system_fingerprint.startswith("fp_") and reply.created > 1_700_000_000
    (choice,) = reply.choices
    assert (choice.index, choice.finish_reason, choice.message.role) == (0, "length", "assistant") and choice.message.content
    assert choice.message.tool_calls is None and choice.message.refusal is None and choice.logprobs is None
    assert reply.usage.prompt_tokens == len(tokens_of_chat(SAID)) and reply.usage.completion_tokens == 24
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + 24


def test_stream_says_the_same(client):
    whole = chat(client, seed=5, logprobs=True, top_logprobs=3)
    options = {"include_usage": True}
    chunks = list(chat(client, seed=5, logprobs=True, top_logprobs=3, stream=True, stream_options=options))
    assert {c.id for c in chunks} == {chunks[0].id} and all(c.object == "chat.completion.chunk" for c in chunks)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert all(c.usage is None for c in chunks[:-1])
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    assert chunks[-1].system_fingerprint == whole.system_fingerprint
    choices = [c.choices[0] for c in chunks[:-1]]
    assert "".join(c.delta.content or "" for c in choices) == text(whole)
    assert [c.finish_reason for c in choices if c.finish_reason] == ["length"] and choices[-1].finish_reason == "length"
    told = [t for c in choices if c.logprobs for t in c.logprobs.content]
    assert told == whole.choices[0].logprobs.content
    assert sum(bool(c.delta.content) for c in choices) > 5, "it came in one piece"
    assert all(c.usage is None for c in chat(client, stream=True, max_tokens=3)), "nobody asked for usage"


def test_stream_helper(client):
    with client.chat.completions.stream(model=MODEL, messages=SAID, max_tokens=12, **GREEDY) as stream:
        events = list(stream)
    deltas = "".join(e.delta for e in events if e.type == "content.delta")
    assert deltas == text(chat(client, max_tokens=12, **GREEDY))
    assert {e.type for e in events} >= {"chunk", "content.delta", "content.done"}


def test_logprobs(client):
    reply = chat(client, logprobs=True, top_logprobs=5, **GREEDY)
    content = reply.choices[0].logprobs.content
    assert len(content) == 24 and len(reply.choices[0].logprobs.content[0].top_logprobs) == 5
    assert b"".join(bytes(t.bytes) for t in content).decode(errors="replace").strip() == text(reply).strip()
    for t in content:
        best = [top.logprob for top in t.top_logprobs]
        assert best == sorted(best, reverse=True) and best[0] <= 0
        assert t.logprob == best[0] and t.token == t.top_logprobs[0].token, "temperature 0 takes the most probable"
    # The same numbers as the completions API tells of the same tokens.
    prompt, reply_tokens = tokens_of_chat(SAID), tokens_of(b"".join(bytes(t.bytes) for t in content).decode())
    if len(reply_tokens) == len(content):
        echo = client.completions.create(model=MODEL, prompt=prompt + reply_tokens, max_tokens=0, echo=True, logprobs=1)
        assert echo.choices[0].logprobs.token_logprobs[len(prompt):] == pytest.approx([t.logprob for t in content], abs=1e-5)
    assert chat(client, logprobs=True).choices[0].logprobs.content[0].top_logprobs == []
    with pytest.raises(openai.BadRequestError, match="top_logprobs"):
        chat(client, logprobs=True, top_logprobs=21)


def test_seed(client):
    one, again, other = (text(chat(client, seed=s, top_p=1)) for s in (11, 11, 12))
    assert one == again != other
    free = {text(chat(client, top_p=1)) for _ in range(4)}
    assert len(free) > 1, "without a seed, chance differs"


def test_same_as_completion(client):
    """The chat prompt's tokens through the completions API give the same text."""
    prompt = tokens_of_chat(SAID)
    other = client.completions.create(model=MODEL, prompt=prompt, max_tokens=24, **GREEDY).choices[0].text
    assert text(chat(client, **GREEDY)).strip() == other.strip()


def test_stop(client):
    whole = text(chat(client, max_tokens=40, **GREEDY))
    word = whole.split()[6]
    # A chat reply has no space at its end.
    before = whole[: whole.index(word)].rstrip()
    for stop in (word, ["@@@", word]):
        reply = chat(client, max_tokens=40, stop=stop, **GREEDY)
        assert (text(reply), reply.choices[0].finish_reason) == (before, "stop")
        chunks = [c.choices[0] for c in chat(client, max_tokens=40, stop=stop, stream=True, **GREEDY)]
        assert "".join(c.delta.content or "" for c in chunks) == before and chunks[-1].finish_reason == "stop"


def test_logit_bias(client):
    plain = chat(client, logprobs=True, **GREEDY).choices[0].logprobs.content
    (word,) = tokens_of(" old")
    forced = chat(client, logit_bias={str(word): 100}, max_tokens=5, **GREEDY)
    assert text(forced).strip() == " ".join(["old"] * 5)
    # Ban what it would say first.
    first = plain[0].token
    (id,) = tokens_of(first)
    banned = chat(client, logit_bias={str(id): -100}, logprobs=True, **GREEDY).choices[0].logprobs.content
    assert banned[0].token != first and all(t.token != first for t in banned)
    for wrong in ({"99999999": 1}, {"x": 1}, {"5": 101}):
        with pytest.raises(openai.BadRequestError, match="99999999|`x`|101"):
            chat(client, logit_bias=wrong)


def test_n(client):
    reply = chat(client, n=3, seed=4, top_p=1)
    texts = [c.message.content for c in reply.choices]
    assert [c.index for c in reply.choices] == [0, 1, 2] and len(set(texts)) == 3
    assert texts[0] == text(chat(client, seed=4, top_p=1)) and reply.usage.completion_tokens == 72
    streamed = ["", "", ""]
    ends = []
    for chunk in chat(client, n=3, seed=4, top_p=1, stream=True):
        for c in chunk.choices:
            streamed[c.index] += c.delta.content or ""
            ends += [c.index] if c.finish_reason else []
    assert streamed == texts and sorted(ends) == [0, 1, 2]
    for n in (0, 65):
        with pytest.raises(openai.BadRequestError):
            chat(client, n=n)


def test_penalties(client):
    def distinct(**more):
        tokens = chat(client, max_tokens=60, temperature=0, logprobs=True, **more).choices[0].logprobs.content
        return len({t.token for t in tokens})

    plain = distinct(presence_penalty=0, frequency_penalty=0)
    assert distinct(presence_penalty=2, frequency_penalty=2) > plain
    with pytest.raises(openai.BadRequestError):
        chat(client, temperature=-1)
    with pytest.raises(openai.BadRequestError):
        chat(client, top_p=1.5)


def test_lengths(client):
    for field in ("max_tokens", "max_completion_tokens"):
        reply = client.chat.completions.create(model=MODEL, messages=SAID, **{field: 7}, **GREEDY)
        assert reply.usage.completion_tokens == 7 and reply.choices[0].finish_reason == "length"
    assert text(chat(client, **GREEDY)).startswith(text(reply))


def test_roles_and_parts(client):
    messages = [
        {"role": "developer", "content": "Answer in a word."},
        {"role": "user", "content": [{"type": "text", "text": "One"}, {"type": "text", "text": "Two"}], "name": "ann"},
        {"role": "assistant", "content": "Three"},
        {"role": "user", "content": "Four"},
    ]
    plain = [{"role": "system", "content": "Answer in a word."}, {"role": "user", "content": "One\nTwo"}, *messages[2:]]
    assert text(chat(client, messages, **GREEDY)) == text(chat(client, plain, **GREEDY))
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    with pytest.raises(openai.BadRequestError, match="text only"):
        chat(client, [{"role": "user", "content": [image]}])


def test_parse(client):
    reply = client.chat.completions.parse(model=MODEL, messages=SAID, response_format=Weather, max_tokens=60)
    parsed = reply.choices[0].message.parsed
    assert isinstance(parsed, Weather) and reply.choices[0].finish_reason == "stop"
    assert Weather.model_validate_json(text(reply)) == parsed
    with client.chat.completions.stream(model=MODEL, messages=SAID, response_format=Weather, max_tokens=60) as stream:
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Weather)
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(model=MODEL, messages=SAID, response_format=Weather, max_tokens=3)


def test_json_object(client):
    for seed in range(3):
        reply = chat(client, response_format={"type": "json_object"}, max_tokens=120, seed=seed)
        assert text(reply).lstrip().startswith("{")
        if reply.choices[0].finish_reason == "stop":
            assert isinstance(json.loads(text(reply)), dict)
        else:
            assert reply.choices[0].finish_reason == "length" and reply.usage.completion_tokens == 120
    wrong = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}}
    with pytest.raises(openai.BadRequestError):
        chat(client, response_format=wrong)


def test_grammars_of_vllm(client):
    assert text(chat(client, extra_body={"guided_choice": ["yes", "no"]})) in ("yes", "no")
    date = text(chat(client, extra_body={"guided_regex": "[0-9]{4}-[0-9]{2}"}))
    assert len(date) == 7 and date[4] == "-" and date.replace("-", "").isdigit()


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "hour"}}])
def test_tool_choice(client, choice):
    for seed in range(3):
        reply = chat(client, tools=TOOLS, tool_choice=choice, max_tokens=80, seed=seed)
        (call,) = reply.choices[0].message.tool_calls
        assert reply.choices[0].finish_reason == "tool_calls" and text(reply) is None
        assert call.type == "function" and call.id.startswith("call_")
        check_arguments(call.function.name, call.function.arguments)
        assert choice == "required" or call.function.name == "hour"
        chunks = [c.choices[0] for c in chat(client, tools=TOOLS, tool_choice=choice, max_tokens=80, seed=seed, stream=True)]
        parts = [p for c in chunks for p in c.delta.tool_calls or []]
        assert {p.index for p in parts} == {0} and parts[0].function.name == call.function.name and parts[0].id
        assert "".join(p.function.arguments or "" for p in parts) == call.function.arguments
        assert chunks[-1].finish_reason == "tool_calls" and not any(c.delta.content for c in chunks)


def test_tools_free(client):
    none = chat(client, tools=TOOLS, tool_choice="none", **GREEDY)
    assert none.choices[0].message.tool_calls is None and text(none) == text(chat(client, **GREEDY))
    auto = chat(client, tools=TOOLS, tool_choice="auto", **GREEDY)
    assert auto.usage.prompt_tokens > none.usage.prompt_tokens, "the tools are told to the model"
    assert text(auto) == text(chat(client, tools=TOOLS, **GREEDY))
    streamed = "".join(c.choices[0].delta.content or "" for c in chat(client, tools=TOOLS, stream=True, **GREEDY))
    assert streamed == text(auto)
    for wrong in ({"tool_choice": "required"}, {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "no"}}}):
        with pytest.raises(openai.BadRequestError, match="tool_choice|function"):
            chat(client, **wrong)


def test_tool_results(client):
    """A call goes back with its result, as the client's own objects."""
    first = chat(client, tools=TOOLS, tool_choice="required", max_tokens=80, seed=1).choices[0].message
    result = {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": '{"degrees": 7}'}
    reply = chat(client, [*SAID, first, result], tools=TOOLS, tool_choice="none", **GREEDY)
    other = chat(client, [*SAID, first, {**result, "content": "no"}], tools=TOOLS, tool_choice="none", **GREEDY)
    assert text(reply) and reply.usage.prompt_tokens > other.usage.prompt_tokens > len(tokens_of_chat(SAID))


def test_parsed_tools(client):
    class Hour(BaseModel):
        """Tells the hour."""

        zone: Literal["UTC", "CET"]

    reply = client.chat.completions.parse(
        model=MODEL, messages=SAID, tools=[openai.pydantic_function_tool(Hour)], tool_choice="required", max_tokens=60
    )
    assert isinstance(reply.choices[0].message.tool_calls[0].function.parsed_arguments, Hour)


def test_errors(client):
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="other", messages=SAID)
    assert missing.value.code == "model_not_found" and "other" in missing.value.message
    for messages in ([], [{"role": "king", "content": "x"}], [{"role": "user", "content": 5}]):
        with pytest.raises(openai.BadRequestError) as wrong:
            chat(client, messages)
        assert wrong.value.type == "invalid_request_error"
    for field in ({"functions": [{"name": "f"}]}, {"modalities": ["text", "audio"]}, {"web_search_options": {}}):
        with pytest.raises(openai.BadRequestError):
            chat(client, extra_body=field)
    assert post("/v1/chat/completions", None, data="{").status_code == 415
    wrong = post("/v1/chat/completions", None, data="{", headers={"content-type": "application/json"})
    assert wrong.status_code == 400 and wrong.json()["error"]["message"]


def test_raw_response(client):
    raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=SAID, max_tokens=2)
    assert raw.headers["content-type"] == "application/json" and text(raw.parse())
    with client.chat.completions.with_streaming_response.create(model=MODEL, messages=SAID, max_tokens=2, stream=True) as raw:
        body = list(raw.iter_lines())
        assert raw.headers["content-type"].startswith("text/event-stream") and "data: [DONE]" in body

"""The responses API with OpenAI's Python client."""

import json
from typing import Literal

import openai
import pytest
from conftest import MODEL, said
from pydantic import BaseModel

SAID = "The rain fell on the roof and"
TOOL = {
    "type": "function",
    "name": "weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Oslo", "Lima"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}


def respond(client, input=SAID, **more):
    return client.responses.create(model=MODEL, input=input, **{"max_output_tokens": 24, "temperature": 0, **more})


def test_create(client):
    r = respond(client)
    assert r.id.startswith("resp_") and r.object == "response" and r.model == MODEL and r.output_text
    assert (r.status, r.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    (message,) = r.output
    assert (message.type, message.role, message.content[0].type) == ("message", "assistant", "output_text")
    assert r.usage.output_tokens == 24 and r.usage.total_tokens == r.usage.input_tokens + 24
    assert r.error is None and r.tools == [] and r.tool_choice == "auto"
    items = [{"role": "user", "content": [{"type": "input_text", "text": SAID}]}]
    assert respond(client, items).output_text == r.output_text
    # A seed and penalties are not the API's, but are taken beside.
    chat = client.chat.completions.create(model=MODEL, messages=said(SAID), max_tokens=24, temperature=0)
    assert chat.choices[0].message.content == r.output_text


def test_ends(client):
    r = respond(client, text={"format": {"type": "json_schema", "name": "x", "schema": {"enum": [1, 2]}}})
    assert r.status == "completed" and r.incomplete_details is None and r.output_text in ("1", "2")
    assert r.text.format.type == "json_schema"


def test_stream(client):
    events = list(respond(client, stream=True))
    kinds = [e.type for e in events]
    assert kinds[:4] == ["response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"]
    assert kinds[-4:] == ["response.output_text.done", "response.content_part.done", "response.output_item.done", "response.incomplete"]
    assert set(kinds[4:-4]) == {"response.output_text.delta"} and len(kinds) > 12
    assert [e.sequence_number for e in events] == list(range(len(events)))
    text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert text == events[-1].response.output_text == respond(client).output_text == events[-4].text
    assert len({e.item_id for e in events if hasattr(e, "item_id")}) == 1
    assert events[0].response.id == events[-1].response.id and events[-1].response.usage.output_tokens == 24
    assert client.responses.retrieve(events[-1].response.id).output_text == text


def test_stream_helper(client):
    format = {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"enum": ["yes", "no"]}, "strict": True}}}
    with client.responses.stream(model=MODEL, input=SAID, max_output_tokens=24, temperature=0, **format) as stream:
        said = "".join(e.delta for e in stream if e.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert said == final.output_text == respond(client, **format).output_text and json.loads(said) in ("yes", "no")


def test_goes_on(client):
    first = respond(client)
    second = respond(client, "And then?", previous_response_id=first.id)
    assert second.previous_response_id == first.id and second.usage.input_tokens > first.usage.input_tokens + 24
    assert second.usage.input_tokens_details.cached_tokens > 0
    items = [*said(SAID), *(o.model_dump() for o in first.output), *said("And then?")]
    assert respond(client, items).output_text == second.output_text
    assert respond(client, "And then?").usage.input_tokens < second.usage.input_tokens
    third = respond(client, "Why?", previous_response_id=second.id, instructions="Be brief.")
    assert third.instructions == "Be brief." and third.usage.input_tokens > second.usage.input_tokens
    with pytest.raises(openai.NotFoundError):
        respond(client, previous_response_id="resp_none")


def test_kept(client):
    r = respond(client, metadata={"who": "test"})
    again = client.responses.retrieve(r.id)
    assert again == r and again.metadata == {"who": "test"}
    client.responses.delete(r.id)
    for gone in (lambda: client.responses.retrieve(r.id), lambda: client.responses.delete(r.id)):
        with pytest.raises(openai.NotFoundError):
            gone()
    hidden = respond(client, store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(hidden.id)


def test_parse(client):
    class Sky(BaseModel):
        state: Literal["clear", "cloudy"]
        stars: bool

    r = client.responses.parse(model=MODEL, input=SAID, text_format=Sky, max_output_tokens=60)
    assert isinstance(r.output_parsed, Sky) and r.status == "completed"
    r = respond(client, text={"format": {"type": "json_object"}}, max_output_tokens=60)
    assert r.output_text.lstrip().startswith("{")


def test_tools(client):
    choices = ("required", {"type": "function", "name": "weather"})
    for choice in choices:
        r = respond(client, tools=[TOOL], tool_choice=choice, max_output_tokens=60)
        (call,) = r.output
        assert (call.type, call.name, call.status) == ("function_call", "weather", "completed") and r.status == "completed"
        assert json.loads(call.arguments)["city"] in ("Oslo", "Lima") and call.call_id.startswith("call_")
    events = list(respond(client, tools=[TOOL], tool_choice="required", max_output_tokens=60, stream=True))
    kinds = [e.type for e in events]
    assert kinds[2] == "response.output_item.added" and kinds[-3:] == [
        "response.function_call_arguments.done", "response.output_item.done", "response.completed"]
    assert "".join(e.delta for e in events if e.type == "response.function_call_arguments.delta") == call.arguments
    # The result, after the call by its id, or after the items themselves.
    result = {"type": "function_call_output", "call_id": call.call_id, "output": '{"degrees": 7}'}
    by_id = respond(client, [result], previous_response_id=r.id, tools=[TOOL], tool_choice="none")
    by_items = respond(client, [*said(SAID), call.model_dump(), result], tools=[TOOL], tool_choice="none")
    assert by_id.output_text == by_items.output_text and by_id.usage.input_tokens == by_items.usage.input_tokens


def test_errors(client):
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="other", input="x")
    image = {"type": "input_image", "image_url": "data:image/png;base64,AAAA", "detail": "auto"}
    for wrong in ({"background": True}, {"input": []}, {"tools": [{"type": "web_search"}]},
                  {"input": [{"role": "user", "content": [image]}]}, {"temperature": -2}):
        with pytest.raises(openai.BadRequestError):
            respond(client, **{"input": SAID, **wrong})

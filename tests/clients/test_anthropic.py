"""Anthropic's Python client."""

from typing import Literal

import anthropic
import pytest
from conftest import MODEL, said
from pydantic import BaseModel

SAID = said("The rain fell on the roof and")
TOOL = {
    "name": "weather",
    "description": "Tells the weather",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Oslo", "Lima"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


# The client has no argument for it any more; the API does.
GREEDY = {"extra_body": {"temperature": 0}}


def create(claude, messages=SAID, **more):
    return claude.messages.create(model=MODEL, messages=messages, **{"max_tokens": 24, **GREEDY, **more})


def text(m):
    return "".join(b.text for b in m.content if b.type == "text")


def read(m):
    return m.usage.input_tokens + m.usage.cache_read_input_tokens


def test_create(claude, client):
    m = create(claude)
    assert m.id.startswith("msg_") and (m.type, m.role, m.model) == ("message", "assistant", MODEL)
    assert (m.stop_reason, m.stop_sequence, m.usage.output_tokens) == ("max_tokens", None, 24) and text(m)
    chat = client.chat.completions.create(model=MODEL, messages=SAID, max_tokens=24, temperature=0)
    assert chat.choices[0].message.content == text(m) and chat.usage.prompt_tokens == read(m)
    assert text(create(claude, [{"role": "user", "content": [{"type": "text", "text": SAID[0]["content"]}]}])) == text(m)


def test_system_and_count(claude):
    count = claude.messages.count_tokens
    for more in ({}, {"system": "Be brief."}, {"system": [{"type": "text", "text": "Be brief."}]}, {"tools": [TOOL]}):
        assert count(model=MODEL, messages=SAID, **more).input_tokens == read(create(claude, **more)), more
    plain, with_system = (count(model=MODEL, messages=SAID, **m).input_tokens for m in ({}, {"system": "Be brief."}))
    assert with_system > plain


def test_stream(claude):
    whole = create(claude)
    events = list(create(claude, stream=True))
    kinds = [e.type for e in events if e.type != "ping"]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[2:-3]) == {"content_block_delta"} and len(kinds) > 8
    assert "".join(e.delta.text for e in events if e.type == "content_block_delta") == text(whole)
    (delta,) = (e for e in events if e.type == "message_delta")
    assert (delta.delta.stop_reason, delta.usage.output_tokens) == ("max_tokens", 24)
    with claude.messages.stream(model=MODEL, messages=SAID, max_tokens=24, **GREEDY) as stream:
        assert "".join(stream.text_stream) == text(whole)
        final = stream.get_final_message()
    assert text(final) == text(whole) and final.stop_reason == "max_tokens" and final.usage.output_tokens == 24
    assert read(final) == read(whole), "the tokens of the prompt are told"


def test_stop_sequences(claude):
    word = text(create(claude, max_tokens=40)).split()[6]
    whole = text(create(claude, max_tokens=40))
    m = create(claude, max_tokens=40, stop_sequences=["@@@", word])
    assert (m.stop_reason, m.stop_sequence, text(m)) == ("stop_sequence", word, whole[: whole.index(word)].rstrip())
    with claude.messages.stream(model=MODEL, messages=SAID, max_tokens=40, **GREEDY, stop_sequences=[word]) as stream:
        final = stream.get_final_message()
    assert (final.stop_reason, final.stop_sequence, text(final)) == ("stop_sequence", word, text(m))


def test_stop_sequence_of_lines(claude):
    """One that begins with a line end is the asker's, too."""
    bans = {"extra_body": {"temperature": 0, "logit_bias": {"0": -100}}}
    m = create(claude, max_tokens=300, stop_sequences=["\n"], **bans)
    if m.stop_reason != "max_tokens":
        assert (m.stop_reason, m.stop_sequence) == ("stop_sequence", "\n")


def test_tools(claude):
    for choice in ({"type": "any"}, {"type": "tool", "name": "weather"}):
        m = create(claude, tools=[TOOL], tool_choice=choice, max_tokens=60)
        (use,) = m.content
        assert (m.stop_reason, use.type, use.name) == ("tool_use", "tool_use", "weather")
        assert use.input["city"] in ("Oslo", "Lima") and use.id.startswith("toolu_")
    with claude.messages.stream(
        model=MODEL, messages=SAID, max_tokens=60, **GREEDY, tools=[TOOL], tool_choice={"type": "any"}
    ) as stream:
        kinds = {e.type for e in stream}
        final = stream.get_final_message()
    assert "input_json" in kinds and final.content[0].input == use.input and final.stop_reason == "tool_use"
    back = [
        *SAID,
        {"role": "assistant", "content": m.content},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "7 degrees, rain"}]},
    ]
    after = create(claude, back, tools=[TOOL], tool_choice={"type": "none"})
    assert text(after) and read(after) > read(create(claude, tools=[TOOL], tool_choice={"type": "none"}))
    back[2]["content"][0]["content"] = [{"type": "text", "text": "7 degrees, rain"}]
    assert text(create(claude, back, tools=[TOOL], tool_choice={"type": "none"})) == text(after)
    assert text(create(claude, tools=[TOOL], tool_choice={"type": "none"})) == text(create(claude))
    assert create(claude, tools=[TOOL], tool_choice={"type": "auto"}).stop_reason in ("max_tokens", "end_turn", "tool_use")


def test_output_format(claude):
    class Sky(BaseModel):
        state: Literal["clear", "cloudy"]
        stars: bool

    m = claude.messages.parse(model=MODEL, messages=SAID, max_tokens=60, output_format=Sky)
    assert isinstance(m.parsed_output, Sky) and m.stop_reason == "end_turn"
    with claude.messages.stream(model=MODEL, messages=SAID, max_tokens=60, output_format=Sky) as stream:
        assert isinstance(stream.get_final_message().parsed_output, Sky)
    wrong = {"format": {"type": "json_schema", "schema": {"type": "nothing"}}}
    with pytest.raises(anthropic.BadRequestError):
        create(claude, output_config=wrong)


def test_begun_reply(claude):
    """A last message of the assistant is gone on with."""
    whole = text(create(claude))
    cut = whole[: whole.index(" ", 12)]
    more = create(claude, [*SAID, {"role": "assistant", "content": cut}], max_tokens=12)
    assert (cut + text(more)).startswith(whole[: len(cut) + 5])


def test_thinking(claude):
    budget = {"type": "enabled", "budget_tokens": 1024}
    m = claude.messages.create(model=MODEL, messages=SAID, max_tokens=1040, thinking=budget, stop_sequences=["."])
    assert m.content and {b.type for b in m.content} <= {"text", "thinking"}
    assert text(create(claude, thinking={"type": "disabled"})) == text(create(claude))
    history = [*SAID, {"role": "assistant", "content": [
        {"type": "thinking", "thinking": "hm", "signature": "x"}, {"type": "text", "text": "Yes"}]}, *said("Why?")]
    assert create(claude, history).content


def test_known_conversation(claude):
    first = create(claude)
    talk = [*SAID, {"role": "assistant", "content": text(first)}, *said("Why?")]
    second = create(claude, talk)
    assert second.usage.cache_read_input_tokens >= read(first)


def test_errors(claude):
    with pytest.raises(anthropic.NotFoundError) as missing:
        claude.messages.create(model="other", messages=SAID, max_tokens=1)
    assert missing.value.body["type"] == "error" and missing.value.body["error"]["type"] == "not_found_error"
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
    wrongs = ({"messages": []}, {"extra_body": {"temperature": -1}}, {"messages": [{"role": "user", "content": [image]}]},
              {"stop_sequences": [""]}, {"tool_choice": {"type": "any"}}, {"messages": [{"role": "king", "content": "x"}]})
    for wrong in wrongs:
        with pytest.raises(anthropic.BadRequestError) as refused:
            create(claude, **wrong)
        assert refused.value.body["error"]["type"] == "invalid_request_error"
    with pytest.raises(anthropic.BadRequestError):
        claude.messages.count_tokens(model=MODEL, messages=[])
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.count_tokens(model="other", messages=SAID)


def test_async():
    import asyncio
    from conftest import URL

    async def ask():
        async with anthropic.AsyncAnthropic(base_url=URL, api_key="none", max_retries=0) as many:
            one = lambda: many.messages.create(model=MODEL, messages=SAID, max_tokens=12, **GREEDY)
            return await asyncio.gather(*(one() for _ in range(8)))

    assert len({text(m) for m in asyncio.run(ask())}) == 1


def test_models(claude):
    assert [m.id for m in claude.models.list()][0] == MODEL
    assert claude.models.retrieve(MODEL).id == MODEL

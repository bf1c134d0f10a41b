"""Many at once, queues, keys, cancelled requests, known states."""

import asyncio
import threading

import anthropic
import openai
import pytest
import requests
from conftest import GREEDY, KEY, KEYED_URL, MODEL, URL, anthropic_client, busy, openai_client, post, said, server, until

# The end of a text is banned: it goes on until it is stopped.
ENDLESS = {"model": MODEL, "prompt": "The rain", "max_tokens": 4000, "logit_bias": {"0": -100}}


def test_16_streams_at_once(client):
    asked = [f"The number {i} is the number of" for i in range(16)]
    seeded = {"max_tokens": 30, "top_p": 1}
    alone = [
        client.chat.completions.create(model=MODEL, messages=said(a), seed=i, **seeded).choices[0].message.content
        for i, a in enumerate(asked)
    ]

    async def all_of_them():
        async with openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0, timeout=60) as many:
            async def one(i, text):
                # Cold, so that all are really read beside each other.
                stream = await many.chat.completions.create(
                    model=MODEL, messages=said(text), seed=i, stream=True, extra_body={"cache": False}, **seeded)
                return "".join([c.choices[0].delta.content or "" async for c in stream])

            return await asyncio.gather(*(one(i, a) for i, a in enumerate(asked)))

    assert asyncio.run(all_of_them()) == alone, "who runs beside a request changes nothing"


def test_closing_a_stream_frees_its_place(client):
    until(lambda: busy() == (0, 0))
    streams = [client.completions.create(**ENDLESS, stream=True) for _ in range(3)]
    for stream in streams:
        next(iter(stream))
    assert busy()[0] == 3
    for stream in streams:
        stream.close()
    until(lambda: busy() == (0, 0), 3)


def test_leaving_a_reply_frees_its_place():
    until(lambda: busy() == (0, 0))
    with pytest.raises(openai.APITimeoutError):
        openai_client().with_options(timeout=0.5).completions.create(**ENDLESS)
    until(lambda: busy() == (0, 0), 3)


def test_full_queue():
    with server("narrow", "--width", "1", "--queue", "1") as url:
        narrow = openai_client(url)
        runs = narrow.completions.create(**ENDLESS, stream=True)
        next(iter(runs))
        waits = threading.Thread(target=lambda: narrow.completions.create(model=MODEL, prompt="x", max_tokens=1))
        waits.start()
        until(lambda: busy(url) == (1, 1))
        with pytest.raises(openai.RateLimitError) as refused:
            narrow.completions.create(model=MODEL, prompt="y", max_tokens=1)
        assert int(refused.value.response.headers["retry-after"]) >= 1 and refused.value.code == "queue_full"
        with pytest.raises(anthropic.RateLimitError):
            anthropic_client(url).messages.create(model=MODEL, messages=said("x"), max_tokens=1)
        runs.close()
        waits.join(20)
        assert not waits.is_alive()
        # It is free again; a client that tries again would have come through.
        assert narrow.completions.create(model=MODEL, prompt="y", max_tokens=1).choices
        assert openai_client(url).with_options(max_retries=2).completions.create(model=MODEL, prompt="y", max_tokens=1)


def test_keys():
    good = openai_client(KEYED_URL, KEY)
    assert good.chat.completions.create(model=MODEL, messages=said("x"), max_tokens=2).choices
    assert anthropic_client(KEYED_URL, KEY).messages.create(model=MODEL, messages=said("x"), max_tokens=2).content
    for wrong in ("sesame", KEY + "x"):
        bad = openai_client(KEYED_URL, wrong)
        for call in (bad.models.list, lambda: bad.completions.create(model=MODEL, prompt="x")):
            with pytest.raises(openai.AuthenticationError):
                call()
        with pytest.raises(anthropic.AuthenticationError):
            anthropic_client(KEYED_URL, wrong).messages.create(model=MODEL, messages=said("x"), max_tokens=2)
    for path in ("/v1/models", "/v1/states", "/metrics", "/tokenizer_info", "/openapi.json"):
        assert requests.get(KEYED_URL + path, timeout=10).status_code == 401, path
        assert requests.get(KEYED_URL + path, headers={"x-api-key": KEY}, timeout=10).status_code == 200, path
    assert requests.get(KEYED_URL, timeout=10).status_code == 200, "the page asks for the key itself"


def talk(client, turns, history=()):
    """Asks, keeps the answers; gives the conversation and what each turn cost."""
    history, used = list(history), []
    for turn in turns:
        history += said(turn)
        reply = client.chat.completions.create(model=MODEL, messages=history, max_tokens=20, **GREEDY)
        history.append({"role": "assistant", "content": reply.choices[0].message.content})
        used.append(reply.usage)
    return history, used


def test_conversations_are_not_read_again(client):
    turns = ["The house is old.", "Who lives in it?", "What do they eat?", "When did they come?"]
    history, used = talk(client, turns)
    cached = [u.prompt_tokens_details.cached_tokens for u in used]
    kept = 0
    for before, now, reply in zip(used, used[1:], history[1::2]):
        # What was read is known, and what was written but for its last token; a model may write a text in other tokens than
        # those that it is read in, which is another text to it.
        tokens = post("/tokenize", {"model": MODEL, "prompt": " " + reply["content"]}).json()["count"]
        written = before.completion_tokens - 1 if tokens == before.completion_tokens else 0
        assert now.prompt_tokens_details.cached_tokens >= before.prompt_tokens + written, (cached, history)
        kept += written
    assert kept > 0
    assert cached == sorted(cached), cached
    with server("fresh") as url:
        fresh = openai_client(url)
        assert talk(fresh, turns)[0] == history
        # An earlier turn is edited: the rest is as on a server that never saw another.
        edited = [*history[:2], *said("Who sleeps in it?")]
        here, used = talk(client, ["Why?", "And now?"], edited)
    with server("fresher") as url:
        assert talk(openai_client(url), ["Why?", "And now?"], edited)[0] == here
    # An answer is asked for again.
    again = post("/v1/chat/completions", {"model": MODEL, "messages": history[:5], "max_tokens": 20, **GREEDY}).json()
    assert again["choices"][0]["message"]["content"] == history[5]["content"]

"""Completions and embeddings with OpenAI's Python client."""

import math

import openai
import pytest
from conftest import GREEDY, MODEL, tokens_of

PROMPT = "The old house by the river"
OTHERS = ["In the year of the war,", "Ä day in Zürich — 東京"]


def complete(client, prompt=PROMPT, **more):
    return client.completions.create(model=MODEL, prompt=prompt, **{"max_tokens": 16, **GREEDY, **more})


def texts(reply):
    return [c.text for c in reply.choices]


def test_shape(client):
    reply = complete(client)
    assert reply.id.startswith("cmpl-") and (reply.object, reply.model) == ("text_completion", MODEL)
    assert (reply.choices[0].index, reply.choices[0].finish_reason, reply.choices[0].logprobs) == (0, "length", None)
    assert reply.usage.prompt_tokens == len(tokens_of(PROMPT)) and reply.usage.completion_tokens == 16
    default = client.completions.create(model=MODEL, prompt=PROMPT, **GREEDY)
    assert texts(default) == texts(reply), "16 tokens where nothing is said"


def test_kinds_of_prompt(client):
    all_prompts = [PROMPT, *OTHERS]
    alone = [texts(complete(client, p))[0] for p in all_prompts]
    together = complete(client, all_prompts)
    assert texts(together) == alone and [c.index for c in together.choices] == [0, 1, 2]
    assert together.usage.prompt_tokens == sum(len(tokens_of(p)) for p in all_prompts)
    lists = [tokens_of(p) for p in all_prompts]
    assert texts(complete(client, lists)) == alone
    assert texts(complete(client, lists[0])) == alone[:1]
    for wrong in ([], [9_999_999], [[1, 2], [8192]], [-1]):
        with pytest.raises(openai.BadRequestError):
            complete(client, wrong)


@pytest.mark.parametrize("max_tokens", [0, 1, 4])
def test_echo(client, max_tokens):
    ids = tokens_of(PROMPT)
    reply = complete(client, echo=True, logprobs=3, max_tokens=max_tokens)
    (choice,) = reply.choices
    told = choice.logprobs
    assert choice.text.startswith(PROMPT) and len(told.tokens) == len(ids) + max_tokens
    assert "".join(told.tokens) == choice.text
    assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == len(told.text_offset)
    assert told.token_logprobs[0] is None and told.top_logprobs[0] is None
    for token, logprob, top, offset in list(zip(told.tokens, told.token_logprobs, told.top_logprobs, told.text_offset))[1:]:
        assert logprob <= 0 and 3 <= len(top) <= 4 and top[token] == logprob <= max(top.values())
        assert choice.text[offset:].startswith(token)
    plain = complete(client, max_tokens=max_tokens) if max_tokens else None
    assert choice.text == PROMPT + (plain.choices[0].text if plain else "")
    assert reply.usage.completion_tokens == max_tokens
    # Known prompts are not read again; their log-probabilities are the same.
    again = complete(client, echo=True, logprobs=3, max_tokens=max_tokens)
    assert again.choices == reply.choices
    fresh = complete(client, echo=True, logprobs=3, max_tokens=max_tokens, extra_body={"cache": False})
    assert fresh.choices == reply.choices and fresh.usage.prompt_tokens_details.cached_tokens == 0
    assert texts(complete(client, ids, echo=True, max_tokens=max_tokens)) == [choice.text]


def test_logprobs(client):
    reply = complete(client, logprobs=5)
    told = reply.choices[0].logprobs
    assert "".join(told.tokens) == reply.choices[0].text and len(told.tokens) == 16
    for logprob, top in zip(told.token_logprobs, told.top_logprobs):
        assert logprob == max(top.values()) and sum(math.exp(p) for p in top.values()) <= 1 + 1e-5
    assert complete(client, logprobs=0).choices[0].logprobs.token_logprobs == told.token_logprobs
    with pytest.raises(openai.BadRequestError):
        complete(client, logprobs=21)


def test_choices(client):
    free = {"temperature": 1, "top_p": 1, "seed": 3}
    many = complete(client, n=3, **free)
    assert [c.index for c in many.choices] == [0, 1, 2] and len(set(texts(many))) == 3
    assert texts(many)[0] == texts(complete(client, **free))[0]
    both = complete(client, [PROMPT, OTHERS[0]], n=2, **free)
    assert [c.index for c in both.choices] == [0, 1, 2, 3] and texts(both)[:2] == texts(many)[:2]
    best = complete(client, n=1, best_of=4, logprobs=0, **free)
    every = complete(client, n=4, logprobs=0, **free)
    mean = lambda c: sum(c.logprobs.token_logprobs) / len(c.logprobs.token_logprobs)
    assert best.choices[0].text == max(every.choices, key=mean).text
    assert best.usage.completion_tokens == every.usage.completion_tokens
    for wrong in ({"n": 3, "best_of": 2}, {"best_of": 2, "stream": True}, {"n": 0}):
        with pytest.raises(openai.BadRequestError):
            complete(client, **wrong)


def test_refusals(client):
    with pytest.raises(openai.BadRequestError, match="suffix") as refused:
        complete(client, suffix="the end")
    assert refused.value.param == "suffix"
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="other", prompt="x")
    with pytest.raises(openai.BadRequestError, match="stop"):
        complete(client, stop=[""])


def test_stream(client):
    for more in ({}, {"echo": True}, {"echo": True, "logprobs": 2}, {"n": 2, "seed": 3, "temperature": 1}, {"stop": [" the"]}):
        prompts = [PROMPT, *OTHERS]
        whole = complete(client, prompts, **more)
        streamed, told, ends = {}, {}, {}
        chunks = list(complete(client, prompts, stream=True, stream_options={"include_usage": True}, **more))
        assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
        for c in (c for chunk in chunks for c in chunk.choices):
            streamed[c.index] = streamed.get(c.index, "") + c.text
            if c.logprobs:
                at = told.setdefault(c.index, ([], [], []))
                at[0].extend(c.logprobs.tokens)
                at[1].extend(c.logprobs.token_logprobs)
                at[2].extend(c.logprobs.text_offset)
            if c.finish_reason:
                assert c.index not in ends
                ends[c.index] = c.finish_reason
        for c in whole.choices:
            assert streamed.get(c.index, "") == c.text and ends[c.index] == c.finish_reason, more
            if c.logprobs:
                assert told[c.index] == (c.logprobs.tokens, c.logprobs.token_logprobs, c.logprobs.text_offset)


def test_sampling_beyond_openai(client):
    greedy = texts(complete(client))
    for more in ({"top_k": 1}, {"min_p": 1.0}, {"top_p": 0.0001}):
        assert texts(complete(client, temperature=1, extra_body=more)) == greedy, more
    for more in ({"min_p": 2}, {"typical_p": -1}, {"repetition_penalty": 0}):
        with pytest.raises(openai.BadRequestError):
            complete(client, extra_body=more)


def test_embeddings(client):
    create = lambda **more: client.embeddings.create(model=MODEL, **more)
    base64, plain = create(input=PROMPT), create(input=PROMPT, encoding_format="float")
    vector = plain.data[0].embedding
    assert len(vector) == 256 and base64.data[0].embedding == pytest.approx(vector, rel=1e-6)
    assert create(input=PROMPT).data[0].embedding == base64.data[0].embedding
    batch = create(input=[*OTHERS, PROMPT])
    assert [d.index for d in batch.data] == [0, 1, 2] and batch.usage.prompt_tokens == sum(len(tokens_of(p)) for p in [PROMPT, *OTHERS])
    assert batch.data[2].embedding == base64.data[0].embedding != batch.data[0].embedding
    assert create(input=tokens_of(PROMPT)).data[0].embedding == base64.data[0].embedding
    assert create(input=[tokens_of(PROMPT)], dimensions=256).data[0].embedding == base64.data[0].embedding
    assert all(math.isfinite(x) for x in vector) and any(vector)
    for wrong in ({"input": ""}, {"input": []}, {"input": PROMPT, "dimensions": 7}, {"input": [9_999_999]}):
        with pytest.raises(openai.BadRequestError):
            create(**wrong)
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="other", input="x")

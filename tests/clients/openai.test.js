// OpenAI's client for Node.

import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const model = "demo";
const connect = (url, apiKey) => new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0, timeout: 60_000 });
const client = connect(process.env.HAWFINCH_URL, "none");
const messages = [{ role: "user", content: "The rain fell on the roof and" }];
const greedy = { temperature: 0, presence_penalty: 0, frequency_penalty: 0 };
const chat = (more = {}) => client.chat.completions.create({ model, messages, max_tokens: 24, ...greedy, ...more });
const text = (reply) => reply.choices[0].message.content;
const parameters = {
  type: "object",
  properties: { city: { type: "string", enum: ["Oslo", "Lima"] } },
  required: ["city"],
  additionalProperties: false,
};

test("models", async () => {
  const ids = [];
  for await (const m of client.models.list()) ids.push(m.id);
  assert.deepEqual(ids, [model, `${model}+rain`, `${model}+begun`]);
  assert.equal((await client.models.retrieve(`${model}+rain`)).id, `${model}+rain`);
  await assert.rejects(client.models.retrieve("other"), OpenAI.NotFoundError);
});

test("chat", async () => {
  const reply = await chat({ logprobs: true, top_logprobs: 2 });
  assert.equal(reply.object, "chat.completion");
  assert.equal(reply.choices[0].finish_reason, "length");
  assert.equal(reply.usage.completion_tokens, 24);
  assert.equal(reply.choices[0].logprobs.content.length, 24);
  assert.equal(text(reply), text(await chat()));
});

test("chat as a stream", async () => {
  const stream = await chat({ stream: true, stream_options: { include_usage: true } });
  let said = "";
  let usage = null;
  for await (const chunk of stream) {
    said += chunk.choices[0]?.delta.content ?? "";
    usage = chunk.usage ?? usage;
  }
  assert.equal(said, text(await chat()));
  assert.equal(usage.completion_tokens, 24);
});

test("the stream helper", async () => {
  const runner = client.chat.completions.stream({ model, messages, max_tokens: 24, ...greedy });
  let said = "";
  runner.on("content", (delta) => (said += delta));
  const final = await runner.finalContent();
  assert.equal(said, final);
  assert.equal(final, text(await chat()));
});

test("a stream that is left frees its place", async () => {
  const stream = await client.completions.create({ model, prompt: "The rain", max_tokens: 4000, logit_bias: { 0: -100 }, stream: true });
  for await (const _ of stream) break;
  const end = Date.now() + 5000;
  for (;;) {
    const health = await (await fetch(`${process.env.HAWFINCH_URL}/health`)).json();
    if (health.models[0].running === 0) break;
    assert.ok(Date.now() < end, "it still runs");
    await new Promise((done) => setTimeout(done, 20));
  }
});

test("json schema with zod", async () => {
  const shape = z.object({ sky: z.enum(["clear", "cloudy"]), wet: z.boolean() });
  const reply = await client.chat.completions.parse({ model, messages, max_tokens: 60, response_format: zodResponseFormat(shape, "sky") });
  assert.ok(shape.safeParse(reply.choices[0].message.parsed).success);
});

test("tools", async () => {
  const tools = [{ type: "function", function: { name: "weather", parameters } }];
  const reply = await chat({ tools, tool_choice: "required", max_tokens: 60 });
  const [call] = reply.choices[0].message.tool_calls;
  assert.equal(reply.choices[0].finish_reason, "tool_calls");
  assert.ok(["Oslo", "Lima"].includes(JSON.parse(call.function.arguments).city));
  const back = [...messages, reply.choices[0].message, { role: "tool", tool_call_id: call.id, content: "7 degrees" }];
  assert.ok(text(await chat({ tools, tool_choice: "none", messages: back })));
});

test("runTools calls the function and goes on with its result", async () => {
  for (const stream of [false, true]) {
    const asked = [];
    const weather = (args) => {
      asked.push(args.city);
      return "7 degrees";
    };
    const tools = [{ type: "function", function: { name: "weather", function: weather, parse: JSON.parse, parameters } }];
    const tool_choice = { type: "function", function: { name: "weather" } };
    const runner = client.chat.completions.runTools({ model, messages, tools, tool_choice, stream, max_tokens: 60, ...greedy });
    await runner.done();
    assert.equal(asked.length, 1);
    assert.ok(["Oslo", "Lima"].includes(asked[0]));
    assert.equal(await runner.finalFunctionToolCallResult(), "7 degrees");
  }
});

test("completions", async () => {
  const create = (more) => client.completions.create({ model, prompt: "The old house", max_tokens: 12, ...greedy, ...more });
  const whole = await create({});
  let said = "";
  for await (const chunk of await create({ stream: true })) said += chunk.choices[0]?.text ?? "";
  assert.equal(said, whole.choices[0].text);
  const echo = await create({ echo: true, logprobs: 1, max_tokens: 0 });
  assert.equal(echo.choices[0].text, "The old house");
  assert.equal(echo.choices[0].logprobs.token_logprobs[0], null);
  const both = await create({ prompt: ["The old house", "In the year"] });
  assert.equal(both.choices[0].text, whole.choices[0].text);
  assert.equal(both.choices.length, 2);
});

test("embeddings", async () => {
  const [one, two] = ["The old house", "In the year"];
  const vector = async (input, more) => (await client.embeddings.create({ model, input, ...more })).data.map((d) => [...d.embedding]);
  const base64 = await vector(one);
  const float = await vector(one, { encoding_format: "float" });
  assert.equal(base64[0].length, 256);
  base64[0].forEach((x, i) => assert.ok(Math.abs(x - float[0][i]) <= 1e-6 * Math.abs(x)));
  assert.deepEqual((await vector([two, one]))[1], base64[0]);
});

test("responses", async () => {
  const create = (more) => client.responses.create({ model, input: "The rain fell", max_output_tokens: 16, temperature: 0, ...more });
  const whole = await create({});
  let said = "";
  const kinds = [];
  for await (const event of await create({ stream: true })) {
    kinds.push(event.type);
    if (event.type === "response.output_text.delta") said += event.delta;
  }
  assert.equal(said, whole.output_text);
  assert.equal(kinds[0], "response.created");
  assert.equal(kinds.at(-1), "response.incomplete");
  const next = await create({ input: "Why?", previous_response_id: whole.id });
  assert.ok(next.usage.input_tokens > whole.usage.input_tokens);
  assert.equal((await client.responses.retrieve(whole.id)).output_text, whole.output_text);
  await client.responses.delete(whole.id);
  await assert.rejects(client.responses.retrieve(whole.id), OpenAI.NotFoundError);
  const helper = client.responses.stream({ model, input: "The rain fell", max_output_tokens: 16, temperature: 0 });
  assert.equal((await helper.finalResponse()).output_text, whole.output_text);
});

test("errors", async () => {
  await assert.rejects(chat({ model: "other" }), (e) => e instanceof OpenAI.NotFoundError && e.code === "model_not_found");
  await assert.rejects(chat({ temperature: -1 }), OpenAI.BadRequestError);
  await assert.rejects(chat({ messages: [] }), OpenAI.BadRequestError);
  const keyed = process.env.HAWFINCH_KEYED_URL;
  await assert.rejects(connect(keyed, "wrong").models.list(), OpenAI.AuthenticationError);
  assert.equal((await connect(keyed, process.env.HAWFINCH_KEY).models.list()).data[0].id, model);
});

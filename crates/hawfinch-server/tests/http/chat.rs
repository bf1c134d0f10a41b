//! Chats in the shapes of the three APIs.

use super::client::Server;
use serde_json::{Value, json};

fn request(more: Value) -> Value {
    let mut r = json!({"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 24, "seed": 5});
    r.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    r
}

#[test]
fn a_stream_says_what_the_whole_says() {
    let server = Server::plain();
    for more in
        [json!({}), json!({"n": 3}), json!({"temperature": 0}), json!({"stop": ["e", "\u{0}"], "n": 2})]
    {
        let mut r = request(more);
        r["logprobs"] = json!(true);
        r["top_logprobs"] = json!(2);
        let whole = server.ok("/v1/chat/completions", &r);
        assert_eq!(whole["object"], "chat.completion");
        r["stream"] = json!(true);
        r["stream_options"] = json!({"include_usage": true});
        let chunks = server.post("/v1/chat/completions", &r).chunks();
        let (last, chunks) = chunks.split_last().unwrap();
        assert_eq!(last["choices"], json!([]));
        let n = whole["choices"].as_array().unwrap().len();
        for i in 0..n {
            let choice = &whole["choices"][i];
            let of = || chunks.iter().map(|c| &c["choices"][0]).filter(|c| c["index"] == i);
            let text: String = of().filter_map(|c| c["delta"]["content"].as_str()).collect();
            assert_eq!(choice["message"]["content"], text.as_str(), "{r}");
            let entries: Vec<Value> =
                of().filter_map(|c| c["logprobs"]["content"].as_array()).flatten().cloned().collect();
            assert_eq!(choice["logprobs"]["content"], json!(entries));
            let bytes: Vec<u8> = entries
                .iter()
                .flat_map(|e| e["bytes"].as_array().unwrap())
                .map(|b| u8::try_from(b.as_u64().unwrap()).unwrap())
                .collect();
            // The reply is the tokens' text without the space that belongs to neither.
            assert_eq!(String::from_utf8_lossy(&bytes).trim(), text);
            let finish: Vec<&Value> = of().map(|c| &c["finish_reason"]).filter(|f| !f.is_null()).collect();
            assert_eq!(finish, [&choice["finish_reason"]]);
            assert_eq!(of().next().unwrap()["delta"]["role"], "assistant");
        }
        assert_eq!(last["usage"]["completion_tokens"], whole["usage"]["completion_tokens"]);
        assert_eq!(whole["usage"]["prompt_tokens"], "User: Hello\n\nAssistant:".len());
        // The second time the prompt was known whole.
        assert_eq!(last["usage"]["prompt_tokens_details"]["cached_tokens"], whole["usage"]["prompt_tokens"]);
    }
}

#[test]
fn grammars_and_functions() {
    let server = Server::plain();
    let schema = json!({"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}, "n": {"type": "integer"}},
        "required": ["colour", "n"], "additionalProperties": false});
    let format = json!({"type": "json_schema", "json_schema": {"name": "c", "schema": schema}});
    let r = request(json!({"response_format": format, "max_tokens": 200}));
    let reply = server.ok("/v1/chat/completions", &r);
    let value: Value =
        serde_json::from_str(reply["choices"][0]["message"]["content"].as_str().unwrap()).unwrap();
    assert!(["red", "blue"].contains(&value["colour"].as_str().unwrap()) && value["n"].is_i64());
    assert_eq!(reply["choices"][0]["finish_reason"], "stop");
    let r = request(json!({"guided_regex": "[ab]{3}-[0-9]"}));
    let text = server.ok("/v1/chat/completions", &r)["choices"][0]["message"]["content"].clone();
    assert!(text.as_str().unwrap().len() == 5 && text.as_str().unwrap().as_bytes()[3] == b'-', "{text}");

    // By vLLM's names, too; a schema may be a text.
    for more in [
        json!({"structured_outputs": {"regex": "[ab]{3}-[0-9]"}}),
        json!({"guided_json": "{\"type\": \"string\", \"pattern\": \"^[ab]-[0-9]$\"}"}),
    ] {
        let r = request(more);
        let text = server.ok("/v1/chat/completions", &r)["choices"][0]["message"]["content"].clone();
        assert!(text.as_str().unwrap().len() == 5, "{text}");
    }

    let tool = |name: &str| {
        json!({"type": "function", "function": {"name": name, "description": "d", "parameters": {
            "type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"],
            "additionalProperties": false}}})
    };
    let tools = json!([tool("weather"), tool("time")]);
    let listed = json!([{"type": "function", "function": {"name": "time"}}]);
    let allowed = json!({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": listed}});
    for choice in [json!("required"), json!({"type": "function", "function": {"name": "time"}}), allowed] {
        let mut r = request(json!({"tools": tools, "tool_choice": choice, "max_tokens": 200}));
        let reply = server.ok("/v1/chat/completions", &r);
        let c = &reply["choices"][0];
        assert_eq!(
            (c["finish_reason"].as_str(), &c["message"]["content"]),
            (Some("tool_calls"), &Value::Null)
        );
        let f = &c["message"]["tool_calls"][0]["function"];
        let arguments: Value = serde_json::from_str(f["arguments"].as_str().unwrap()).unwrap();
        assert!(["Oslo", "Rome"].contains(&arguments["city"].as_str().unwrap()));
        if choice.is_object() {
            assert_eq!(f["name"], "time");
        }
        r["stream"] = json!(true);
        let chunks = server.post("/v1/chat/completions", &r).chunks();
        let call =
            chunks.iter().map(|c| &c["choices"][0]["delta"]["tool_calls"][0]).find(|c| !c.is_null()).unwrap();
        assert_eq!((&call["function"], &call["index"]), (f, &json!(0)));
        // The function's result goes back as a message.
        let messages = json!([{"role": "user", "content": "Hello"}, c["message"],
            {"role": "tool", "tool_call_id": c["message"]["tool_calls"][0]["id"], "content": "cold"}]);
        server.ok("/v1/chat/completions", &request(json!({"messages": messages, "tools": tools})));
    }
}

#[test]
fn what_changes_the_meaning_is_kept_to_or_refused() {
    let server = Server::plain();
    let cases = [
        json!({"function_call": "auto"}),
        json!({"min_tokens": 4}),
        json!({"ignore_eos": true}),
        json!({"prompt_logprobs": 1}),
        json!({"stop_token_ids": [256]}),
        json!({"stream_options": {"include_usage": true}}),
        json!({"structured_outputs": {}}),
        json!({"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}}),
    ];
    for more in cases {
        let answer = server.post("/v1/chat/completions", &request(more.clone()));
        let param = more.as_object().unwrap().keys().next().unwrap().as_str();
        assert_eq!(answer.status, 400, "{more}: {}", answer.text());
        assert_eq!(answer.json()["error"]["param"], param, "{}", answer.text());
    }
    // As they are without.
    let usual = json!({"min_tokens": 0, "ignore_eos": false, "prompt_logprobs": null, "stop_token_ids": [], "seed": 5,
        "parallel_tool_calls": true, "functions": null, "something_else": 1});
    let plain = server.ok("/v1/chat/completions", &request(json!({})));
    let same = server.ok("/v1/chat/completions", &request(usual));
    assert_eq!(plain["choices"], same["choices"]);
    // The types of OpenAI's errors, and of Anthropic's.
    let other = json!({"model": "other", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1});
    let e = server.post("/v1/chat/completions", &other).json()["error"].clone();
    assert_eq!((&e["type"], &e["code"]), (&json!("invalid_request_error"), &json!("model_not_found")));
    assert_eq!(server.post("/v1/messages", &other).json()["error"]["type"], "not_found_error");
    for more in [
        json!({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}),
        json!({"tool_choice": {"type": "auto", "disable_parallel_tool_use": "yes"}}),
    ] {
        let answer = server.post("/v1/messages", &request(more.clone()));
        assert_eq!(answer.status, 400, "{more}: {}", answer.text());
    }
    let own = json!({"tools": [{"type": "custom", "name": "go", "input_schema": {"type": "object"}}, {"name": "stay"}]});
    server.ok("/v1/messages", &request(own));
    for more in [json!({"top_logprobs": 2}), json!({"include": ["message.output_text.logprobs"]})] {
        let mut r = json!({"model": "tiny", "input": "Hello"});
        r.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        assert_eq!(server.post("/v1/responses", &r).status, 400, "{more}");
    }
}

#[test]
fn a_reply_can_be_continued() {
    let server = Server::plain();
    // Without penalties, which look at the tokens of one reply.
    let greedy = json!({"temperature": 0, "presence_penalty": 0, "frequency_penalty": 0});
    let mut r = request(greedy.clone());
    r["max_tokens"] = json!(20);
    let whole = server.ok("/v1/chat/completions", &r)["choices"][0]["message"]["content"].clone();
    let whole = whole.as_str().unwrap();
    let at = whole.char_indices().map(|(i, _)| i).nth(5).unwrap_or(1);
    let messages =
        json!([{"role": "user", "content": "Hello"}, {"role": "assistant", "content": &whole[..at]}]);
    let mut r = request(greedy);
    (r["messages"], r["continue_final_message"], r["max_tokens"]) = (messages, json!(true), json!(4));
    let more = server.ok("/v1/chat/completions", &r)["choices"][0]["message"]["content"].clone();
    assert!(!more.as_str().unwrap().is_empty());
    r["messages"] = json!([{"role": "user", "content": "Hello"}]);
    assert_eq!(server.post("/v1/chat/completions", &r).status, 400);
}

#[test]
fn anthropic_s_shape() {
    let server = Server::plain();
    let mut r = json!({"model": "tiny", "max_tokens": 20, "seed": 5, "system": [{"type": "text", "text": "Be kind."}],
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]});
    let whole = server.ok("/v1/messages", &r);
    assert_eq!((whole["type"].as_str(), whole["role"].as_str()), (Some("message"), Some("assistant")));
    assert_eq!(
        (whole["stop_reason"].as_str(), whole["usage"]["output_tokens"].as_u64()),
        (Some("max_tokens"), Some(20))
    );
    r["stream"] = json!(true);
    let events = server.post("/v1/messages", &r).events();
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).filter(|n| *n != "ping").collect();
    assert_eq!(names[..2], ["message_start", "content_block_start"]);
    assert_eq!(names[names.len() - 3..], ["content_block_stop", "message_delta", "message_stop"]);
    let data = |e: &(String, String)| serde_json::from_str::<Value>(&e.1).unwrap();
    let text: String =
        events.iter().map(data).filter_map(|d| d["delta"]["text"].as_str().map(str::to_owned)).collect();
    assert_eq!(whole["content"][0]["text"], text.as_str());
    for e in &events {
        assert_eq!(data(e)["type"], e.0.as_str());
    }
    let usage = data(events.iter().find(|e| e.0 == "message_delta").unwrap())["usage"].clone();
    let begun = data(&events[0])["message"]["usage"].clone();
    let sum = usage["input_tokens"].as_u64().unwrap() + usage["cache_read_input_tokens"].as_u64().unwrap();
    assert_eq!(server.ok("/v1/messages/count_tokens", &r)["input_tokens"], sum);
    assert_eq!(begun["input_tokens"], sum, "a stream begins with the prompt's length");
    // Functions.
    r["tools"] = json!([{"name": "go", "input_schema": {"type": "object", "properties": {"far": {"type": "boolean"}},
        "required": ["far"], "additionalProperties": false}}]);
    (r["tool_choice"], r["stream"], r["max_tokens"]) = (json!({"type": "any"}), json!(false), json!(100));
    let called = server.ok("/v1/messages", &r);
    assert_eq!(
        (called["stop_reason"].as_str(), called["content"][0]["type"].as_str()),
        (Some("tool_use"), Some("tool_use"))
    );
    assert!(called["content"][0]["input"]["far"].is_boolean());
    // Its errors have its shape.
    let wrong = server.post("/v1/messages", &json!({"model": "tiny", "messages": []})).json();
    assert_eq!(
        (wrong["type"].as_str(), wrong["error"]["type"].as_str()),
        (Some("error"), Some("invalid_request_error"))
    );
}

#[test]
fn responses_and_going_on_from_them() {
    let server = Server::plain();
    let mut r = json!({"model": "tiny", "input": "Hello", "max_output_tokens": 12, "seed": 3, "instructions": "Be kind."});
    let whole = server.ok("/v1/responses", &r);
    assert_eq!((whole["object"].as_str(), whole["status"].as_str()), (Some("response"), Some("incomplete")));
    let text = whole["output"][0]["content"][0]["text"].as_str().unwrap().to_owned();
    r["stream"] = json!(true);
    let events = server.post("/v1/responses", &r).events();
    let data: Vec<Value> = events.iter().map(|e| serde_json::from_str(&e.1).unwrap()).collect();
    for (i, d) in data.iter().enumerate() {
        assert_eq!(
            (d["sequence_number"].as_u64(), d["type"].as_str()),
            (Some(i as u64), Some(events[i].0.as_str()))
        );
    }
    let deltas = data.iter().filter(|d| d["type"] == "response.output_text.delta");
    assert_eq!(deltas.filter_map(|d| d["delta"].as_str()).collect::<String>(), text);
    assert_eq!(events.last().unwrap().0, "response.incomplete");
    let done = data.iter().find(|d| d["type"] == "response.output_item.done").unwrap();
    assert_eq!(done["item"], data.last().unwrap()["response"]["output"][0]);
    assert_eq!(done["item"]["status"], "incomplete");
    // A stream that fails says so at its end: nothing is left to draw from here.
    let banned: serde_json::Map<String, Value> = (0..256).map(|id| (id.to_string(), json!(-100))).collect();
    let failing = json!({"model": "tiny", "input": "Hello", "stream": true, "logit_bias": banned});
    let failed = server.post("/v1/responses", &failing).events();
    let last: Value = serde_json::from_str(&failed.last().unwrap().1).unwrap();
    assert_eq!((&last["type"], &last["response"]["status"]), (&json!("response.failed"), &json!("failed")));
    assert!(last["response"]["error"]["message"].is_string());
    // Calls have the ids that the stream told.
    let tool = json!({"type": "function", "name": "go", "parameters": {"type": "object", "additionalProperties": false}});
    let calling = json!({"model": "tiny", "input": "Hello", "stream": true, "tools": [tool], "tool_choice": "required",
        "parallel_tool_calls": false});
    let called = server.post("/v1/responses", &calling).events();
    let last: Value = serde_json::from_str(&called.last().unwrap().1).unwrap();
    let call = &last["response"]["output"][0];
    assert_eq!(
        (&call["type"], &last["response"]["parallel_tool_calls"]),
        (&json!("function_call"), &json!(false))
    );
    let told = called.iter().filter(|e| e.1.contains(call["call_id"].as_str().unwrap())).count();
    assert_eq!(told, 3, "added, done, completed");
    // The next one goes on from it, and its state.
    let id = whole["id"].as_str().unwrap();
    assert_eq!(server.get(&format!("/v1/responses/{id}")).json()["id"], id);
    let next = json!({"model": "tiny", "input": "More", "previous_response_id": id, "instructions": "Be kind.",
        "max_output_tokens": 5, "seed": 3});
    let next = server.ok("/v1/responses", &next);
    let chat = json!({"model": "tiny", "max_tokens": 5, "seed": 3, "messages": [
        {"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": text}, {"role": "user", "content": "More"}]});
    let chat = server.ok("/v1/chat/completions", &chat);
    assert_eq!(next["output"][0]["content"][0]["text"], chat["choices"][0]["message"]["content"]);
    assert!(next["usage"]["input_tokens_details"]["cached_tokens"].as_u64().unwrap() > 20);
    assert_eq!(server.send("DELETE", &format!("/v1/responses/{id}"), &[], b"").json()["deleted"], true);
    assert_eq!(server.get(&format!("/v1/responses/{id}")).status, 404);
}

//! Completions, log-probabilities, ranking, embeddings, tokens.

use super::client::{Server, endless, model};
use hawfinch_engine::schedule::Limits;
use hawfinch_server::Settings;
use serde_json::{Value, json};
use std::io::Read;
use std::time::Duration;

/// The log-probability of each token after the first, by the model itself.
fn logprobs(text: &[u8]) -> Vec<f64> {
    let model = model();
    let mut state = model.new_state();
    let mut all = Vec::new();
    for pair in text.windows(2) {
        let tokens = &[u32::from(pair[0])];
        let rows = hawfinch_model::Rows::Last;
        let call = hawfinch_model::Sequence {
            tokens,
            state: &mut state,
            logits: rows,
            hidden: hawfinch_model::Rows::None,
        };
        let logits = &model.forward(&mut [call]).unwrap()[0].logits;
        all.push(f64::from(logits[usize::from(pair[1])]) - hawfinch_model::log_sum_exp(logits));
    }
    all
}

#[test]
fn prompts_are_echoed_with_what_the_model_says_of_them() {
    let server = Server::plain();
    let text = "An echo, twice.";
    let want = logprobs(text.as_bytes());
    for (prompt, max_tokens) in [(json!(text), 0), (json!(text.as_bytes()), 1), (json!([text, text]), 3)] {
        let r = json!({"model": "tiny", "prompt": prompt, "echo": true, "logprobs": 1, "max_tokens": max_tokens,
            "temperature": 0});
        let reply = server.ok("/v1/completions", &r);
        for choice in reply["choices"].as_array().unwrap() {
            let l = &choice["logprobs"];
            let got = l["token_logprobs"].as_array().unwrap();
            assert_eq!((got.len(), &got[0]), (text.len() + max_tokens, &Value::Null));
            for (g, w) in got[1..].iter().zip(&want) {
                assert!((g.as_f64().unwrap() - w).abs() < 1e-4);
            }
            assert_eq!(l["tokens"].as_array().unwrap().len(), got.len());
            assert_eq!(l["text_offset"][3], 3);
            assert!(choice["text"].as_str().unwrap().starts_with(text));
            let greedy = &l["top_logprobs"].as_array().unwrap()[text.len()..];
            assert!(greedy.iter().all(|t| t.as_object().unwrap().len() == 1));
        }
    }
    // Ranking adds the same numbers up.
    let rank = server
        .ok("/v1/rank", &json!({"model": "tiny", "prompt": &text[..8], "choices": [&text[8..], "zzz"]}));
    let sum: f64 = want[7..].iter().sum();
    assert!((rank["results"][0]["logprob"].as_f64().unwrap() - sum).abs() < 1e-3, "{rank}");
    let better = rank["results"][0]["logprob"].as_f64() >= rank["results"][1]["logprob"].as_f64();
    assert_eq!(rank["best"], if better { 0 } else { 1 });
}

#[test]
fn choices_seeds_and_streams() {
    let server = Server::plain();
    let mut r = json!({"model": "tiny", "prompt": ["abc", "xyz"], "max_tokens": 10, "seed": 8, "n": 2, "logprobs": 2});
    let whole = server.ok("/v1/completions", &r);
    let texts = |v: &Value| -> Vec<String> {
        v["choices"].as_array().unwrap().iter().map(|c| c["text"].as_str().unwrap().to_owned()).collect()
    };
    let all = texts(&whole);
    assert_eq!(all.len(), 4);
    assert_ne!(all[0], all[1]);
    assert_eq!(texts(&server.ok("/v1/completions", &r)), all);
    // The first prompt alone, and its second choice by that choice's own seed.
    let one = json!({"model": "tiny", "prompt": "abc", "max_tokens": 10, "seed": 9});
    assert_eq!(texts(&server.ok("/v1/completions", &one)), [all[1].clone()]);
    r["stream"] = json!(true);
    let chunks = server.post("/v1/completions", &r).chunks();
    for (i, want) in all.iter().enumerate() {
        let of = || chunks.iter().map(|c| &c["choices"][0]).filter(|c| c["index"] == i);
        assert_eq!(of().filter_map(|c| c["text"].as_str()).collect::<String>(), *want);
        let told: usize = of().filter_map(|c| c["logprobs"]["tokens"].as_array()).map(Vec::len).sum();
        assert_eq!(told, whole["choices"][i]["logprobs"]["tokens"].as_array().unwrap().len());
    }
    // The best of four is at least as probable as each.
    let mean = |c: &Value| {
        let l: Vec<f64> =
            c["logprobs"]["token_logprobs"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
        l.iter().sum::<f64>() / l.len() as f64
    };
    let ask = |n: u32, best: u32| {
        let r = json!({"model": "tiny", "prompt": "abc", "max_tokens": 10, "seed": 8, "n": n, "best_of": best, "logprobs": 0});
        server.ok("/v1/completions", &r)["choices"].clone()
    };
    let four = ask(4, 4);
    let best = four.as_array().unwrap().iter().map(mean).fold(f64::MIN, f64::max);
    assert!((mean(&ask(1, 4)[0]) - best).abs() < 1e-6);
    assert_eq!(
        server.post("/v1/completions", &json!({"model": "tiny", "prompt": "a", "suffix": "b"})).status,
        400
    );
}

#[test]
fn more_prompts_than_places_are_taken_in_parts() {
    let texts = |v: &Value| -> Vec<Value> {
        v["choices"].as_array().unwrap().iter().map(|c| c["text"].clone()).collect()
    };
    let prompts: Vec<String> = (0..12).map(|i| format!("prompt {i}")).collect();
    let r = |more: Value| {
        let mut r = json!({"model": "tiny", "prompt": prompts, "max_tokens": 5, "seed": 3, "n": 2});
        r.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        r
    };
    let wide = Server::plain();
    let all = texts(&wide.ok("/v1/completions", &r(json!({}))));
    let best = texts(&wide.ok("/v1/completions", &r(json!({"n": 1, "best_of": 2}))));
    assert_eq!((all.len(), best.len()), (24, 12));
    for limits in [Limits { width: 2, queue: 1 }, Limits { width: 3, queue: 6 }] {
        let server = Server::with(Settings::default(), limits);
        assert_eq!(texts(&server.ok("/v1/completions", &r(json!({})))), all, "{limits:?}");
        assert_eq!(
            texts(&server.ok("/v1/completions", &r(json!({"n": 1, "best_of": 2})))),
            best,
            "{limits:?}"
        );
        let chunks = server.post("/v1/completions", &r(json!({"stream": true}))).chunks();
        for (i, want) in all.iter().enumerate() {
            let of = chunks.iter().map(|c| &c["choices"][0]).filter(|c| c["index"] == i);
            assert_eq!(of.filter_map(|c| c["text"].as_str()).collect::<String>(), want.as_str().unwrap());
        }
        server.idle();
    }
    // As many as one request may have.
    let many = json!({"model": "tiny", "prompt": vec!["x"; 256], "max_tokens": 1});
    assert_eq!(wide.ok("/v1/completions", &many)["choices"].as_array().unwrap().len(), 256);
    // The last is as wrong as the first.
    let mut wrong = vec![vec![7]; 255];
    wrong.push(vec![256]);
    let wrong = json!({"model": "tiny", "prompt": wrong, "max_tokens": 1, "stream": true});
    assert_eq!(wide.post("/v1/completions", &wrong).status, 400);
}

#[test]
fn what_ends_a_completion_and_what_is_refused() {
    let server = Server::plain();
    let r = |more: Value| {
        let mut r = json!({"model": "tiny", "prompt": "abc", "max_tokens": 10, "temperature": 0});
        r.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        r
    };
    let whole = server.ok("/v1/completions", &r(json!({"logprobs": 0})))["choices"][0].clone();
    // The tokens of these tests are bytes: the text ends before the first of this kind.
    let end = whole["text"].as_str().unwrap().as_bytes()[4];
    let stopped = server.ok("/v1/completions", &r(json!({"stop_token_ids": [end]})))["choices"][0].clone();
    let want = whole["text"].as_str().unwrap().split(char::from(end)).next().unwrap();
    assert_eq!((&stopped["text"], &stopped["finish_reason"]), (&json!(want), &json!("stop")));
    for more in [
        json!({"min_tokens": 1}),
        json!({"ignore_eos": true}),
        json!({"prompt_logprobs": 0}),
        json!({"stop_token_ids": [-1]}),
        json!({"stream_options": {}}),
        json!({"structured_outputs": {"structural_tag": "x"}}),
    ] {
        let answer = server.post("/v1/completions", &r(more.clone()));
        assert_eq!(answer.status, 400, "{more}: {}", answer.text());
    }
    // Likelihoods that were not read are no likelihoods.
    let late = Server::with(Settings { timeout: Duration::ZERO, ..Settings::default() }, Limits::default());
    let answer = late.post("/v1/completions", &r(json!({"echo": true, "logprobs": 1, "max_tokens": 0})));
    assert_eq!(answer.status, 503, "{}", answer.text());
}

#[test]
fn no_grammar_is_compiled_for_a_queue_that_is_full() {
    let settings = Settings { max_tokens: 1_000_000, ..Settings::default() };
    let server = Server::with(settings, Limits { width: 1, queue: 1 });
    let open = || {
        let mut stream = endless(server.address);
        assert!(stream.read(&mut [0; 200]).unwrap() > 0);
        stream
    };
    let held = (open(), open());
    // It would not compile, but nobody tried.
    let chat = json!({"model": "tiny", "messages": [{"role": "user", "content": "x"}], "guided_regex": "("});
    let complete = json!({"model": "tiny", "prompt": "x", "guided_regex": "("});
    for (path, r) in [("/v1/chat/completions", &chat), ("/v1/completions", &complete)] {
        let refused = server.post(path, r);
        assert_eq!((refused.status, &refused.json()["error"]["code"]), (429, &json!("queue_full")));
        assert!(refused.head.to_lowercase().contains("retry-after: "));
    }
    drop(held);
    server.idle();
    assert_eq!(server.post("/v1/completions", &complete).status, 400);
}

#[test]
fn embeddings_and_tokens() {
    let server = Server::plain();
    let r = json!({"model": "tiny", "input": ["one text", "another", "one text"]});
    let e = server.ok("/v1/embeddings", &r);
    assert_eq!(e["data"][0]["embedding"], e["data"][2]["embedding"]);
    let numbers: Vec<f64> =
        e["data"][1]["embedding"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
    assert!((numbers.iter().map(|v| v * v).sum::<f64>() - 1.0).abs() < 1e-5);
    assert_eq!(numbers.len(), model().config().width);
    let coded = json!({"model": "tiny", "input": "another", "encoding_format": "base64"});
    let coded = server.ok("/v1/embeddings", &coded)["data"][0]["embedding"].as_str().unwrap().to_owned();
    assert_eq!(coded.len(), (4 * numbers.len()).div_ceil(3) * 4);
    let tokens = server.ok("/tokenize", &json!({"prompt": "hé"}))["tokens"].clone();
    assert_eq!(tokens, json!([104, 195, 169]));
    assert_eq!(server.ok("/detokenize", &json!({"tokens": tokens}))["prompt"], "hé");
    let chat = json!({"messages": [{"role": "user", "content": "x"}]});
    assert_eq!(server.ok("/tokenize", &chat)["count"], "User: x\n\nAssistant:".len());
    assert_eq!(server.get("/tokenizer_info").json()["vocab_size"], 256);
}

//! Who may use it, and what it makes of what is wrong.

use super::client::{Server, endless};
use hawfinch_engine::schedule::Limits;
use hawfinch_server::Settings;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

const JSON: (&str, &str) = ("Content-Type", "application/json");

#[test]
fn every_route_needs_the_key() {
    let keys = vec!["first-key".into(), "second-key".into()];
    let server = Server::with(Settings { keys, ..Settings::default() }, Limits::default());
    let document = server.send("GET", "/openapi.json", &[("Authorization", "Bearer second-key")], b"").json();
    let mut routes = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            let path = path.replace("{id}", "state-0123456789abcdef");
            for key in ["", "Bearer ", "Bearer first-ke", "Bearer first-keyy", "Basic first-key", "first-key"]
            {
                let headers = [JSON, ("Authorization", key)];
                let answer = server.send(&method.to_uppercase(), &path, &headers, b"{}");
                assert_eq!(answer.status, 401, "{method} {path} {key}");
                let anthropic = path.starts_with("/v1/messages");
                let kind = if anthropic { "authentication_error" } else { "invalid_request_error" };
                assert_eq!(answer.json()["error"]["type"], kind);
            }
            // With it the request arrives, whatever it then is.
            let headers = [JSON, ("x-api-key", "first-key")];
            let answer = server.send(&method.to_uppercase(), &path, &headers, b"{}");
            assert!(![401, 405].contains(&answer.status), "{method} {path}: {}", answer.status);
            assert!(!answer.text().contains("unknown_url"), "{method} {path}");
            routes += 1;
        }
    }
    assert!(routes >= 25, "{routes}");
    // The page itself holds nothing.
    for path in ["/", "/app.js", "/style.css", "/docs"] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
}

#[test]
fn other_sites_and_names_are_refused() {
    let server = Server::plain();
    let own = format!("http://{}", server.address);
    let status = |headers: &[(&str, &str)]| server.send("GET", "/v1/models", headers, b"").status;
    assert_eq!(status(&[("Origin", &own)]), 200);
    assert_eq!(status(&[("Origin", "https://evil.example")]), 403);
    assert_eq!(status(&[("Host", "evil.example")]), 421);
    assert_eq!(status(&[("Host", "localhost:1234")]), 200);
    assert_eq!(status(&[("Host", "[::1]:1234")]), 200);
    let form = [("Content-Type", "text/plain")];
    assert_eq!(server.send("POST", "/v1/completions", &form, b"{\"model\":\"tiny\"}").status, 415);
    let settings = Settings {
        origins: vec!["https://friend.example".into()],
        hosts: vec!["models.example".into()],
        ..Settings::default()
    };
    let server = Server::with(settings, Limits::default());
    let friend = server.send(
        "GET",
        "/v1/models",
        &[("Origin", "https://friend.example"), ("Host", "models.example")],
        b"",
    );
    assert_eq!(friend.status, 200);
    assert!(friend.head.to_lowercase().contains("access-control-allow-origin: https://friend.example"));
    let asked = server.send("OPTIONS", "/v1/chat/completions", &[("Origin", "https://friend.example")], b"");
    assert!(asked.status == 204 && asked.head.to_lowercase().contains("access-control-allow-headers"));
    assert_eq!(server.send("OPTIONS", "/v1/models", &[("Origin", "https://evil.example")], b"").status, 403);
    let page = server.get("/");
    assert!(page.head.contains("default-src 'self'"));
}

#[test]
fn wrong_requests_get_one_sentence() {
    let server = Server::plain();
    let chat = |more: Value| {
        let mut r = json!({"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 3});
        r.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        ("/v1/chat/completions", r)
    };
    let complete = |more: Value| {
        let mut r = json!({"model": "tiny", "prompt": "x", "max_tokens": 3});
        r.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        ("/v1/completions", r)
    };
    let strings: Vec<String> = (0..1000).map(|i| format!("stop {i}")).collect();
    let cases = [
        (chat(json!({"model": "other"})), 404, "model"),
        (chat(json!({"messages": []})), 400, "messages"),
        (chat(json!({"temperature": -1})), 400, "temperature"),
        (chat(json!({"top_p": 7})), 400, "top_p"),
        (chat(json!({"presence_penalty": 1e300})), 400, "presence_penalty"),
        (chat(json!({"n": 0})), 400, "n"),
        (chat(json!({"n": 1000})), 400, "n"),
        (chat(json!({"stop": strings})), 400, "stop"),
        (chat(json!({"stop": ""})), 400, "stop"),
        (chat(json!({"logit_bias": {"abc": 1}})), 400, "logit_bias"),
        (chat(json!({"logit_bias": {"7": 101}})), 400, "logit_bias"),
        (chat(json!({"logit_bias": {"256": 1}})), 400, "logit_bias"),
        (chat(json!({"top_logprobs": 5})), 400, "top_logprobs"),
        (chat(json!({"logprobs": true, "top_logprobs": 21})), 400, "top_logprobs"),
        (chat(json!({"template": "none such"})), 400, "template"),
        (chat(json!({"tool_choice": "required"})), 400, "tool_choice"),
        (chat(json!({"tools": [{"type": "function", "function": {}}]})), 400, "tools"),
        (chat(json!({"functions": []})), 400, "functions"),
        (chat(json!({"response_format": {"type": "regex", "regex": "("}})), 400, "response_format"),
        (
            chat(
                json!({"response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": []}}}}),
            ),
            400,
            "response_format",
        ),
        (
            chat(
                json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}),
            ),
            400,
            "messages",
        ),
        (chat(json!({"state": "nothing"})), 404, ""),
        (complete(json!({"prompt": [0, 256]})), 400, "prompt"),
        (complete(json!({"prompt": []})), 400, "prompt"),
        (complete(json!({"best_of": 1, "n": 2})), 400, "best_of"),
        (complete(json!({"logprobs": 50})), 400, "logprobs"),
        (complete(json!({"suffix": "end"})), 400, "suffix"),
        (("/v1/embeddings", json!({"model": "tiny", "input": ""})), 400, "input"),
        (("/v1/embeddings", json!({"model": "tiny", "input": [[300]]})), 400, "input"),
        (("/v1/rank", json!({"model": "tiny", "prompt": "x", "choices": []})), 400, "choices"),
        (("/detokenize", json!({"tokens": [999]})), 400, "tokens"),
    ];
    for ((path, body), status, param) in cases {
        let answer = server.post(path, &body);
        let shown: String = body.to_string().chars().take(200).collect();
        assert_eq!(answer.status, status, "{path} {shown}: {}", answer.text());
        if status != 200 {
            let e = &answer.json()["error"];
            assert!(
                e["message"].as_str().is_some_and(|m| !m.is_empty() && !m.contains('\n')),
                "{shown}: {e}"
            );
            if !param.is_empty() {
                assert_eq!(e["param"], param, "{shown}: {e}");
            }
        }
    }
    let deep = [b"[".repeat(100_000), b"]".repeat(100_000)].concat();
    for body in [
        &b"{"[..],
        b"",
        b"null",
        b"[]",
        b"{\"model\": \"tiny\", \"messages\": \"\xff\"}",
        b"{\"model\": 5}",
        &deep,
    ] {
        let answer = server.send("POST", "/v1/chat/completions", &[JSON], body);
        assert_eq!(answer.status, 400, "{}", answer.text());
    }
    // What the framework itself refuses has the same shape.
    for (method, path) in
        [("GET", "/v1/states/%ff"), ("POST", "/v1/states/import"), ("POST", "/v1/states/import?a=%ff")]
    {
        let answer = server.send(method, path, &[], b"x");
        assert!(
            answer.status == 400 && answer.json()["error"]["message"].is_string(),
            "{path}: {}",
            answer.text()
        );
    }
    assert_eq!(server.get("/nothing/here").status, 404);
    assert_eq!(server.send("DELETE", "/v1/models", &[], b"").status, 405);
    // Nothing of it stays behind.
    server.idle();
    assert!(!server.log.lock().unwrap().iter().any(|l| l.contains("content")));
}

#[test]
fn bodies_heads_and_idlers_have_limits() {
    let settings =
        Settings { max_body: 10_000, io_timeout: Duration::from_millis(700), ..Settings::default() };
    let server = Server::with(settings, Limits::default());
    let large = server.send("POST", "/v1/completions", &[JSON], &vec![b' '; 20_000]);
    assert_eq!(large.status, 413);
    let head =
        format!("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n{}: application/json\r\n", JSON.0);
    // Announced or not.
    let chunked =
        format!("{head}Transfer-Encoding: chunked\r\n\r\n4e20\r\n{}\r\n0\r\n\r\n", " ".repeat(20_000));
    assert!(server.raw(chunked.as_bytes()).starts_with(b"HTTP/1.1 413"));
    let long = format!("GET /health HTTP/1.1\r\nHost: localhost\r\nX-Long: {}\r\n\r\n", "x".repeat(1 << 20));
    // It ends while the rest is still being sent, so that the answer may be lost on the way.
    let answer = server.raw(long.as_bytes());
    assert!(
        answer.is_empty() || answer.starts_with(b"HTTP/1.1 431"),
        "{:?}",
        String::from_utf8_lossy(&answer)
    );
    let began = Instant::now();
    let mut idle: Vec<TcpStream> = ["", "GET /hea", &format!("{head}Content-Length: 100\r\n\r\n{{")]
        .iter()
        .map(|part| {
            let mut stream = TcpStream::connect(server.address).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            stream.write_all(part.as_bytes()).unwrap();
            stream
        })
        .collect();
    assert_eq!(server.get("/health").status, 200, "others are answered");
    for stream in &mut idle {
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 4"), "{:?}", String::from_utf8_lossy(&rest));
    }
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[test]
fn who_leaves_frees_his_place_and_a_full_queue_says_when() {
    let settings = Settings { max_tokens: 1_000_000, ..Settings::default() };
    let server = Server::with(settings, Limits { width: 1, queue: 1 });
    let open = || {
        let mut stream = endless(server.address);
        assert!(stream.read(&mut [0; 200]).unwrap() > 0);
        stream
    };
    let (running, waiting) = (open(), open());
    let refused = server.post("/v1/completions", &json!({"model": "tiny", "prompt": "y"}));
    assert_eq!(refused.status, 429, "{}", refused.text());
    assert!(refused.head.to_lowercase().contains("retry-after: "));
    drop((running, waiting));
    server.idle();
    assert_eq!(server.post("/v1/completions", &json!({"model": "tiny", "prompt": "y"})).status, 200);
}

#[test]
fn stopping_hands_streams_back() {
    let settings = Settings { max_tokens: 1_000_000, ..Settings::default() };
    let server = Server::with(settings, Limits::default());
    let address = server.address;
    let reader = std::thread::spawn(move || {
        let mut stream = endless(address);
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        String::from_utf8_lossy(&all).into_owned()
    });
    while server.get("/health").json()["models"][0]["running"] == 0 {
        std::thread::sleep(Duration::from_millis(10));
    }
    server.stop(Duration::from_millis(300));
    let told = reader.join().unwrap();
    assert!(
        told.contains("\"finish_reason\":\"length\"") && told.contains("[DONE]"),
        "{}",
        &told[told.len() - 300..]
    );
}

#[test]
fn what_is_counted_can_be_read() {
    let server = Server::plain();
    server.ok("/v1/completions", &json!({"model": "tiny", "prompt": "count me", "max_tokens": 4}));
    server.idle();
    let text = server.get("/metrics").text();
    let value = |name: &str| {
        let line = text.lines().find(|l| l.starts_with(name)).unwrap_or_else(|| panic!("{name} in {text}"));
        line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()
    };
    assert_eq!(value("hawfinch_requests_total{model=\"tiny\"}"), 1.0);
    assert_eq!(value("hawfinch_prompt_tokens_total{model=\"tiny\"}"), 8.0);
    assert!(value("hawfinch_step_seconds_count{model=\"tiny\"}") >= 4.0);
    assert!(value("hawfinch_states{model=\"tiny\",in=\"memory\"}") >= 2.0);
    for line in text.lines() {
        assert!(line.starts_with("# ") || line.starts_with("hawfinch_"), "{line}");
    }
}

/// A text that takes longer than a request may is left, and the places for others are free again.
#[test]
fn embeddings_end_with_their_time() {
    let settings = Settings { timeout: Duration::from_secs(1), ..Settings::default() };
    let server = Server::with(settings, Limits::default());
    let long = "a bird with a large bill ".repeat(400_000);
    for _ in 0..3 {
        let began = std::time::Instant::now();
        let answer = server.post("/v1/embeddings", &json!({"model": "tiny", "input": long}));
        assert_eq!(answer.status, 503, "{}", answer.text());
        assert!(began.elapsed() < Duration::from_secs(20));
    }
    let short = server.post("/v1/embeddings", &json!({"model": "tiny", "input": "a bird"}));
    assert_eq!(short.status, 200, "{}", short.text());
}

//! `/health` and `/metrics`.

use crate::app::Shared;
use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use hawfinch_engine::schedule::Histogram;
use serde_json::{Value, json};
use std::fmt::Write;
use std::sync::atomic::Ordering::Relaxed;

/// That it runs, and how busy it is.
pub async fn health(State(app): State<Shared>) -> Json<Value> {
    let models: Vec<Value> = app
        .models
        .all()
        .iter()
        .map(|h| {
            let s = h.scheduler.stats();
            json!({"id": h.name, "running": s.active.load(Relaxed), "waiting": s.queued.load(Relaxed)})
        })
        .collect();
    Json(json!({
        "status": "ok",
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_seconds": app.started.elapsed().as_secs(),
        "models": models,
    }))
}

/// Writes metrics in Prometheus' text form.
struct Page(String);

impl Page {
    fn about(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP hawfinch_{name} {help}\n# TYPE hawfinch_{name} {kind}");
    }

    fn value(&mut self, name: &str, labels: &str, value: f64) {
        let labels = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
        let _ = writeln!(self.0, "hawfinch_{name}{labels} {value}");
    }

    fn histogram(&mut self, name: &str, labels: &str, h: &Histogram) {
        let (counts, sum) = h.cumulative();
        let comma = if labels.is_empty() { "" } else { "," };
        for (end, count) in hawfinch_engine::schedule::SECONDS.iter().zip(counts) {
            self.value(&format!("{name}_bucket"), &format!("{labels}{comma}le=\"{end}\""), count as f64);
        }
        let all = counts[counts.len() - 1] as f64;
        self.value(&format!("{name}_bucket"), &format!("{labels}{comma}le=\"+Inf\""), all);
        self.value(&format!("{name}_sum"), labels, sum);
        self.value(&format!("{name}_count"), labels, all);
    }
}

/// Counts and times for Prometheus.
pub async fn metrics(State(app): State<Shared>) -> Response {
    let mut p = Page(String::new());
    let hosted = app.models.all();
    let label = |name: &str| format!("model=\"{}\"", name.replace(['"', '\\', '\n'], "_"));
    type Get = fn(&hawfinch_engine::schedule::Stats) -> f64;
    let of_scheduler: [(&str, &str, &str, Get); 9] = [
        ("requests_total", "counter", "Requests taken.", |s| s.requests.load(Relaxed) as f64),
        ("requests_refused_total", "counter", "Requests refused since the queue was full.", |s| {
            s.refused.load(Relaxed) as f64
        }),
        ("requests_cancelled_total", "counter", "Requests whose client left or whose time was over.", |s| {
            s.cancelled.load(Relaxed) as f64
        }),
        ("requests_finished_total", "counter", "Requests that ended.", |s| s.finished.load(Relaxed) as f64),
        ("queue_length", "gauge", "Requests that wait.", |s| s.queued.load(Relaxed) as f64),
        ("batch_size", "gauge", "Sequences that run.", |s| s.active.load(Relaxed) as f64),
        ("prompt_tokens_total", "counter", "Tokens of prompts that were computed.", |s| {
            s.prompt_tokens.load(Relaxed) as f64
        }),
        ("generated_tokens_total", "counter", "Tokens of replies that were computed.", |s| {
            s.reply_tokens.load(Relaxed) as f64
        }),
        ("steps_total", "counter", "Steps of the model.", |s| s.steps.load(Relaxed) as f64),
    ];
    for (name, kind, help, get) in of_scheduler {
        p.about(name, kind, help);
        hosted.iter().for_each(|h| p.value(name, &label(&h.name), get(h.scheduler.stats())));
    }
    p.about("step_seconds", "histogram", "Time of a step.");
    hosted.iter().for_each(|h| p.histogram("step_seconds", &label(&h.name), &h.scheduler.stats().step_time));
    p.about("request_seconds", "histogram", "Time of a request, queue included.");
    hosted
        .iter()
        .for_each(|h| p.histogram("request_seconds", &label(&h.name), &h.scheduler.stats().request_time));
    p.about(
        "state_starts_total",
        "counter",
        "Texts by where they started: at a known state, or from nothing.",
    );
    for h in &hosted {
        let c = h.scheduler.cache().counts();
        for (from, count) in [("state", &c.hits), ("nothing", &c.misses)] {
            let labels = format!("{},from=\"{from}\"", label(&h.name));
            p.value("state_starts_total", &labels, count.load(Relaxed) as f64);
        }
    }
    p.about(
        "state_reads_total",
        "counter",
        "States that came into memory from the folder or the shared store.",
    );
    for h in &hosted {
        let c = h.scheduler.cache().counts();
        for (from, count) in [("files", &c.from_files), ("shared", &c.from_shared)] {
            let labels = format!("{},from=\"{from}\"", label(&h.name));
            p.value("state_reads_total", &labels, count.load(Relaxed) as f64);
        }
    }
    p.about("state_store_failures_total", "counter", "Times that a store of states could not be used.");
    for h in &hosted {
        let failures = h.scheduler.cache().counts().failures.load(Relaxed) as f64;
        p.value("state_store_failures_total", &label(&h.name), failures);
    }
    type Place = (&'static str, f64, f64);
    let sizes: Vec<(String, [Place; 2])> = hosted
        .iter()
        .map(|h| {
            let ([memory, files], bytes, file_bytes) = h.scheduler.cache().sizes();
            let places =
                [("memory", memory as f64, bytes as f64), ("files", files as f64, file_bytes as f64)];
            (label(&h.name), places)
        })
        .collect();
    for (name, help) in [("state_bytes", "Bytes of states."), ("states", "States that texts can start from.")]
    {
        p.about(name, "gauge", help);
        for (model, places) in &sizes {
            for (at, states, bytes) in places {
                let value = if name == "states" { states } else { bytes };
                p.value(name, &format!("{model},in=\"{at}\""), *value);
            }
        }
    }
    p.about("http_responses_total", "counter", "Answers by class of status.");
    for (class, count) in app.http.by_class.iter().enumerate().skip(1) {
        p.value("http_responses_total", &format!("class=\"{class}xx\""), count.load(Relaxed) as f64);
    }
    p.about("http_connections", "gauge", "Connections open now.");
    p.value("http_connections", "", app.http.connections.load(Relaxed) as f64);
    p.about("http_seconds", "histogram", "Time until the head of an answer.");
    p.histogram("http_seconds", "", &app.http.time);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], p.0).into_response()
}

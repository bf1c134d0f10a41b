//! Many short requests with prompts of their own: memory must stay what it is.

use crate::Options;
use crate::chats::{round, spread};
use crate::http::Client;
use crate::process::{mb, resident};
use crate::words::{Random, first_model};
use serde_json::{Value, json};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Instant;

/// After so many requests everything that grows once has grown.
const SETTLED: u64 = 1000;

/// Bytes of states that the server holds in memory.
async fn state_bytes(client: &mut Client) -> Option<u64> {
    let page = client.whole("GET", "/metrics", None).await.ok()?;
    let lines =
        page.lines().filter(|l| l.starts_with("hawfinch_state_bytes{") && l.contains("in=\"memory\""));
    let values = lines.filter_map(|l| l.rsplit_once(' ')?.1.parse::<f64>().ok());
    Some(values.sum::<f64>() as u64)
}

/// Runs it; false when a request failed or memory grew.
pub async fn run(o: &Options) -> Result<(bool, Value), String> {
    let server = o.server()?;
    let pid = o.pid.ok_or("shorts needs --pid: the server's process, whose memory is looked at")?;
    if o.requests <= SETTLED {
        return Err(format!("--requests must be more than {SETTLED}"));
    }
    let model = match &o.model {
        Some(model) => model.clone(),
        None => first_model(&server).await?,
    };
    let next = Rc::new(Cell::new(0));
    let done = Rc::new(Cell::new(0));
    let settled = Rc::new(RefCell::new(None));
    let times = Rc::new(RefCell::new(Vec::new()));
    let errors = Rc::new(RefCell::new(Vec::new()));
    let began = Instant::now();
    let mut tasks = Vec::new();
    for _ in 0..o.concurrency {
        let (o, server, model) = (o.clone(), server.clone(), model.clone());
        let (next, done, settled, times, errors) =
            (next.clone(), done.clone(), settled.clone(), times.clone(), errors.clone());
        tasks.push(tokio::task::spawn_local(async move {
            let mut client = Client::new(server);
            while next.get() < o.requests {
                let number = next.get();
                next.set(number + 1);
                let mut random = Random::new(o.seed ^ (number << 20));
                let length = random.between(2, 8);
                let prompt = format!("{number} {}", random.words(length));
                let body = json!({"model": model, "prompt": prompt, "max_tokens": 3, "seed": number});
                let began = Instant::now();
                match client.json("POST", "/v1/completions", Some(&body)).await {
                    Ok(answer) if answer["choices"][0]["finish_reason"].is_string() => {
                        times.borrow_mut().push(began.elapsed().as_secs_f64());
                    }
                    Ok(answer) => errors.borrow_mut().push(format!("no finish_reason: {answer}")),
                    Err(e) => errors.borrow_mut().push(e),
                }
                done.set(done.get() + 1);
                if done.get() == SETTLED {
                    let bytes = state_bytes(&mut client).await;
                    *settled.borrow_mut() = Some((resident(pid), bytes));
                }
                if errors.borrow().len() > 100 {
                    break;
                }
            }
        }));
    }
    for task in tasks {
        task.await.map_err(|e| format!("a worker broke: {e}"))?;
    }
    let seconds = began.elapsed().as_secs_f64();
    let states_end = state_bytes(&mut Client::new(server)).await;
    let end = resident(pid)?;
    let settled = settled.borrow_mut().take();
    let (after, states) =
        settled.ok_or_else(|| format!("it never came to {SETTLED} requests: {:?}", errors.borrow()))?;
    let after = after?;
    // States may still fill what is left of their budget; everything else must stay within a tenth.
    let room = (o.state_memory << 20).saturating_sub(states.unwrap_or(0));
    let allowed = after / 10 + room;
    let grew = end.saturating_sub(after);
    let errors = errors.borrow();
    let ok = errors.is_empty() && grew <= allowed;
    Ok((
        ok,
        json!({
            "load": "shorts", "ok": ok, "model": model, "requests": done.get(), "concurrency": o.concurrency,
            "errors": errors.len(), "error_messages": errors.iter().take(5).collect::<Vec<_>>(),
            "seconds": round(seconds, 10.0), "requests_per_second": round(done.get() as f64 / seconds, 10.0),
            "request_seconds": spread(times.take()),
            "server_rss_mb": {"after_1000": mb(after), "end": mb(end), "grew": mb(grew), "allowed": mb(allowed)},
            "state_mb": {"after_1000": states.map(mb), "end": states_end.map(mb), "budget": o.state_memory},
        }),
    ))
}

//! Chat replies under way, for every API that has them: each puts the same growth into its own words.

use crate::app::{App, Who};
use crate::conversation::Conversation;
use crate::error::{ApiError, ApiResult};
use crate::hosted::{Chosen, Hosted};
use crate::reply::{Choice, Delta, Ending, Growth, Usage};
use crate::run::{Events, Job, aside, submit_all};
use crate::sampling::Sampling;
use axum::http::StatusCode;
use axum::response::sse::{Event as Frame, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use hawfinch_engine::schedule::{Event, Limits};
use hawfinch_engine::{Sampled, StopReason, Template};
use serde_json::Value;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;

/// How a chat reply is made, whichever API asked.
pub struct Wish {
    /// The model.
    pub chosen: Chosen,
    /// What was said.
    pub conversation: Conversation,
    /// A template in place of the model's own.
    pub template: Option<String>,
    /// How much reasoning, in OpenAI's words.
    pub effort: Option<String>,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// Tokens of a choice at most.
    pub max_tokens: usize,
    /// Stop strings.
    pub stops: Vec<String>,
    /// Token ids that end it, too.
    pub stop_tokens: Vec<u32>,
    /// Choices.
    pub n: usize,
    /// Log-probabilities of so many tokens beside each.
    pub top_logprobs: u32,
    /// A saved state to go on from.
    pub state: Option<String>,
    /// Whether the state tree is used.
    pub cached: bool,
    /// Who asks, and for whom.
    pub who: Who,
}

/// The template of a request.
///
/// # Errors
/// There is none of that name.
pub fn template(hosted: &Hosted, name: Option<&str>, effort: Option<&str>) -> ApiResult<Template> {
    let own = &hosted.template;
    let name = match (name, effort) {
        (Some(name), _) => name,
        // Only models that can think are told how much.
        (None, Some(effort)) if own.name().starts_with("g1") => match effort {
            "none" | "minimal" => "g1",
            "low" => "g1-think-a-bit",
            "medium" => "g1-think",
            "high" | "xhigh" => "g1-think-a-lot",
            _ => {
                return Err(ApiError::field(
                    "reasoning_effort",
                    "it must be none, minimal, low, medium or high",
                ));
            }
        },
        _ => return Ok(own.clone()),
    };
    let mut template = Template::builtin(name)?.keeping_replies();
    template.stops.tokens.clone_from(&own.stops.tokens);
    Ok(template)
}

/// A chat reply under way.
pub struct Generation {
    /// The model.
    pub chosen: Chosen,
    /// Its choices.
    pub choices: Vec<Choice>,
    /// What its end told.
    pub ending: Ending,
    /// Log-probabilities of so many tokens beside each.
    pub top_logprobs: u32,
    events: Events,
    over: bool,
}

/// What happened to it.
pub enum Grown {
    /// A choice said something, or ended.
    Choice(usize, Growth),
    /// All ended.
    End,
}

impl Generation {
    /// Starts it.
    ///
    /// # Errors
    /// What is wrong with the wish; 429; 503.
    pub async fn start(app: &App, wish: Wish) -> ApiResult<Self> {
        let Wish { mut chosen, conversation, sampling, max_tokens, n, top_logprobs, who, .. } = wish;
        let template = template(&chosen.hosted, wish.template.as_deref(), wish.effort.as_deref())?;
        let mut sampler = sampling.over(&template.sampler, chosen.hosted.model.config().vocab)?;
        sampler.top_logprobs = top_logprobs;
        sampler.validate()?;
        let (goes_on, parallel) = (conversation.goes_on, conversation.parallel);
        let deadline = app.deadline();
        // Long conversations take their time.
        let (of, by) = (chosen.clone(), template.clone());
        let mut rendered = aside(move || conversation.render(&of.hosted, &by)).await?;
        app.log_text(|| chosen.hosted.tokenizer.decode_lossy(&rendered.prompt));
        if let Some(id) = &wish.state {
            crate::api::states::go_on_from(&mut chosen, id, &mut rendered.prompt, &mut rendered.marks)
                .await?;
        }
        let constrained = rendered.constrained(&chosen.hosted, deadline).await?;
        let mut stops = template.stops.clone();
        stops.strings.extend(wish.stops);
        stops.tokens.extend(wish.stop_tokens);
        let stream = || {
            let stream = if goes_on { template.continued_stream() } else { template.reply_stream() };
            Choice::new(stream, rendered.callable.clone(), parallel)
        };
        let choices = std::iter::repeat_with(stream).take(n).collect();
        // Known before it is told: streams begin with it.
        let ending = Ending { prompt: rendered.prompt.len(), ..Ending::default() };
        let job = Job {
            chosen: chosen.clone(),
            prompt: rendered.prompt,
            marks: rendered.marks,
            sampler,
            n,
            max_tokens,
            stops,
            constrained,
            prompt_logprobs: None,
            who,
            deadline,
            cached: wish.cached,
        };
        let events = job.submit().await?;
        Ok(Self { chosen, choices, ending, top_logprobs, events, over: false })
    }

    /// The next thing that happens.
    ///
    /// # Errors
    /// It failed; nothing follows.
    pub async fn next(&mut self) -> ApiResult<Grown> {
        loop {
            let event = self.events.recv().await;
            let event =
                event.ok_or_else(|| ApiError::internal("the reply broke off: the model was taken away"))?;
            if self.ending.note(&event) {
                self.over = true;
                return Ok(Grown::End);
            }
            match event {
                Event::Piece { choice, tokens, text, certain } => {
                    let growth =
                        self.choices[choice].piece(&self.chosen.hosted.tokenizer, tokens, &text, certain);
                    return Ok(Grown::Choice(choice, growth));
                }
                Event::Done { choice, stop, .. } => {
                    let growth = self.choices[choice].done(&stop);
                    if matches!(stop, StopReason::Cancelled) && self.events.is_closed() {
                        return Err(ApiError::closing());
                    }
                    return Ok(Grown::Choice(choice, growth));
                }
                Event::Failed(e) => return Err(e.into()),
                _ => {}
            }
        }
    }

    /// Its tokens.
    pub fn usage(&self) -> Usage {
        let completion = self.choices.iter().map(|c| c.completion_tokens).sum();
        let reasoning = self.choices.iter().map(|c| c.reasoning_tokens).sum();
        Usage::new(self.ending.prompt, self.ending.cached, completion, reasoning)
    }

    /// Waits for all of it.
    ///
    /// # Errors
    /// It failed.
    pub async fn whole(mut self) -> ApiResult<(Self, Vec<Whole>)> {
        let mut all = vec![Whole::default(); self.choices.len()];
        while let Grown::Choice(i, growth) = self.next().await? {
            all[i].tokens.extend(growth.tokens);
            for delta in growth.deltas {
                match delta {
                    Delta::Reasoning(text) => all[i].reasoning.push_str(&text),
                    Delta::Text(text) => all[i].text.push_str(&text),
                    Delta::Calls(calls) => all[i].calls.extend(calls),
                }
            }
        }
        Ok((self, all))
    }
}

/// A whole choice.
#[derive(Debug, Clone, Default)]
pub struct Whole {
    /// The reasoning.
    pub reasoning: String,
    /// The answer.
    pub text: String,
    /// Calls of functions.
    pub calls: Vec<crate::conversation::Call>,
    /// Its tokens.
    pub tokens: Vec<Sampled>,
}

/// An API's words for a stream.
pub trait Front: Send + 'static {
    /// What comes first.
    fn begin(&mut self, of: &Generation) -> Vec<Frame>;
    /// What a choice said.
    fn grew(&mut self, of: &Generation, choice: usize, growth: Growth) -> Vec<Frame>;
    /// What comes last.
    fn end(&mut self, of: &Generation) -> Vec<Frame>;
    /// What comes last when it failed.
    fn failed(&mut self, of: &Generation, e: &ApiError) -> Vec<Frame>;
}

/// A frame of JSON.
pub fn frame(data: &Value) -> Frame {
    Frame::default().data(data.to_string())
}

/// A stream in an API's words.
pub fn streamed(of: Generation, front: impl Front) -> Response {
    struct Streaming<F> {
        of: Generation,
        front: F,
        ready: VecDeque<Frame>,
        over: bool,
    }
    let mut front = front;
    let ready = front.begin(&of).into();
    let state = Streaming { of, front, ready, over: false };
    let frames = stream::unfold(state, |mut s| async move {
        loop {
            if let Some(frame) = s.ready.pop_front() {
                return Some((Ok::<_, Infallible>(frame), s));
            }
            if s.over {
                return None;
            }
            match s.of.next().await {
                Ok(Grown::Choice(choice, growth)) => s.ready.extend(s.front.grew(&s.of, choice, growth)),
                Ok(Grown::End) => {
                    s.over = true;
                    s.ready.extend(s.front.end(&s.of));
                }
                Err(e) => {
                    s.over = true;
                    s.ready.extend(s.front.failed(&s.of, &e));
                }
            }
        }
    });
    sse(frames)
}

/// A response of server-sent events, with a comment now and then while there is nothing to say.
pub fn sse(frames: impl futures_util::Stream<Item = Result<Frame, Infallible>> + Send + 'static) -> Response {
    let alive = KeepAlive::new().interval(Duration::from_secs(10)).text("keep-alive");
    let mut response = Sse::new(frames).keep_alive(alive).into_response();
    let headers = response.headers_mut();
    headers.insert(axum::http::header::CACHE_CONTROL, axum::http::HeaderValue::from_static("no-store"));
    // Proxies pass it on as it comes.
    headers.insert("x-accel-buffering", axum::http::HeaderValue::from_static("no"));
    response
}

/// How long a prompt whose part of the request has begun already waits before it asks for a place again.
const AGAIN: Duration = Duration::from_millis(100);

/// One of many prompts of a request: it waits in the queue, or for its place there.
pub struct Starting {
    /// Submits it when it is its turn.
    task: Option<JoinHandle<ApiResult<(Events, OwnedSemaphorePermit)>>>,
    events: Option<Events>,
    /// Its place among those of the request that are in the queue; given up when it has left the queue.
    place: Option<OwnedSemaphorePermit>,
}

impl Starting {
    /// Its next event. What is lost when this is dropped before it is done is nothing.
    ///
    /// # Errors
    /// It could not be submitted; the model was taken away.
    pub async fn next(&mut self) -> ApiResult<Event> {
        if let Some(task) = &mut self.task {
            let started = task.await.map_err(|e| ApiError::internal(e.to_string()));
            self.task = None;
            let (events, place) = started??;
            (self.events, self.place) = (Some(events), Some(place));
        }
        let event = match &mut self.events {
            Some(events) => events.recv().await,
            None => None,
        };
        // Whatever it is told, it is in the queue no more.
        self.place = None;
        event.ok_or_else(|| ApiError::internal("it broke off: the model was taken away"))
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// Submits any number of jobs of one request: the first of them now or not at all, the others as these leave the queue. Not
/// more of them wait there at once than others have places beside.
///
/// # Errors
/// 400, 429, 503 of the first.
pub async fn in_parts(mut jobs: Vec<Job>, limits: Limits) -> ApiResult<Vec<Starting>> {
    let at_once = (limits.queue / 4).clamp(1, limits.width.max(1));
    let places = Arc::new(Semaphore::new(at_once));
    let rest = jobs.split_off(at_once.min(jobs.len()));
    let mut all = Vec::new();
    for events in submit_all(jobs).await? {
        let place = places.clone().try_acquire_owned().ok();
        all.push(Starting { task: None, events: Some(events), place });
    }
    for job in rest {
        let task = tokio::spawn(in_turn(job, places.clone()));
        all.push(Starting { task: Some(task), events: None, place: None });
    }
    Ok(all)
}

/// Submits a job once there is a place for it: a request that has begun is not refused for want of one, as long as it has time.
async fn in_turn(job: Job, places: Arc<Semaphore>) -> ApiResult<(Events, OwnedSemaphorePermit)> {
    let late = |_| ApiError::from(hawfinch_engine::Error::TimedOut);
    let place = tokio::time::timeout_at(job.deadline.into(), places.acquire_owned()).await.map_err(late)?;
    let place = place.map_err(|e| ApiError::internal(e.to_string()))?;
    loop {
        // Asked first: nobody is refused, and nothing is looked up in vain.
        if !job.chosen.hosted.scheduler.has_room_for(&job.who.0) && Instant::now() < job.deadline {
            tokio::time::sleep(AGAIN).await;
            continue;
        }
        match job.clone().submit().await {
            Ok(events) => return Ok((events, place)),
            Err(e) if e.status == StatusCode::TOO_MANY_REQUESTS && Instant::now() < job.deadline => {
                tokio::time::sleep(AGAIN).await;
            }
            Err(e) => return Err(e),
        }
    }
}

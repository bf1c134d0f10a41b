//! Requests on their way: into the scheduler, and what comes back.

use crate::app::Who;
use crate::error::{ApiError, ApiResult};
use crate::hosted::Chosen;
use hawfinch_engine::schedule::{Constrained, Event, Request, Sink};
use hawfinch_engine::{GenerateOptions, Sampler, SamplerConfig, StopRules};
use hawfinch_model::{Model, Rng};
use std::time::Instant;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Events of a request; dropping it cancels the request. There are no more of them than tokens that a request may have, so
/// a reader that is slow holds nobody up.
pub type Events = UnboundedReceiver<Event>;

struct ToChannel(UnboundedSender<Event>);

impl Sink for ToChannel {
    fn tell(&mut self, event: Event) {
        let _ = self.0.send(event);
    }
    fn is_closed(&self) -> bool {
        self.0.is_closed()
    }
}

/// A prompt with everything that decides its continuation.
#[derive(Clone)]
pub struct Job {
    /// The model.
    pub chosen: Chosen,
    /// The prompt's tokens.
    pub prompt: Vec<u32>,
    /// Where other texts may go on.
    pub marks: Vec<usize>,
    /// How tokens are drawn.
    pub sampler: SamplerConfig,
    /// How many choices.
    pub n: usize,
    /// Tokens of a choice at most.
    pub max_tokens: usize,
    /// What ends it before.
    pub stops: StopRules,
    /// A grammar.
    pub constrained: Option<Constrained>,
    /// Log-probabilities of the prompt from this position on.
    pub prompt_logprobs: Option<usize>,
    /// Who asks, and for whom.
    pub who: Who,
    /// When it must have ended.
    pub deadline: Instant,
    /// Use the state tree.
    pub cached: bool,
}

impl Job {
    /// Submits it.
    ///
    /// # Errors
    /// 400, 429, 503.
    pub async fn submit(self) -> ApiResult<Events> {
        let mut all = submit_all(vec![self]).await?;
        all.pop().ok_or_else(|| ApiError::internal("nothing was submitted"))
    }

    fn request(self, sink: Box<dyn Sink>) -> ApiResult<Request<Model>> {
        let seed = self.sampler.seed.unwrap_or_else(Rng::fresh_seed);
        let uncounted = &self.chosen.hosted.uncounted;
        let samplers = (0..self.n as u64).map(|i| {
            let config = SamplerConfig { seed: Some(seed.wrapping_add(i)), ..self.sampler.clone() };
            Sampler::new(config, uncounted.clone())
        });
        Ok(Request {
            samplers: samplers.collect::<Result<_, _>>()?,
            base: self.chosen.base,
            prompt: self.prompt,
            marks: self.marks,
            options: GenerateOptions { max_tokens: self.max_tokens, stops: self.stops },
            constrained: self.constrained,
            prompt_logprobs: self.prompt_logprobs,
            client: self.who.0,
            user: self.who.1,
            deadline: Some(self.deadline),
            cached: self.cached,
            sink,
        })
    }
}

/// Submits jobs of one model, all or none.
///
/// # Errors
/// 400, 429, 503.
pub async fn submit_all(jobs: Vec<Job>) -> ApiResult<Vec<Events>> {
    // Samplers and grammars are made, others and the disk are asked for states.
    aside(move || {
        let Some(hosted) = jobs.first().map(|job| job.chosen.hosted.clone()) else { return Ok(Vec::new()) };
        let (mut requests, mut all) = (Vec::new(), Vec::new());
        for job in jobs {
            // Whom nobody will compute for need not be asked about.
            if job.cached && hosted.scheduler.has_room_for(&job.who.0) {
                let cache = hosted.scheduler.cache();
                cache.ask_others(&job.chosen.base.root, &job.prompt);
                // Into memory: who computes does not wait for a disk.
                cache.find(&job.chosen.base.root, &job.prompt);
            }
            let (to, events) = unbounded_channel();
            requests.push(job.request(Box::new(ToChannel(to)))?);
            all.push(events);
        }
        hosted.scheduler.submit_all(requests)?;
        Ok(all)
    })
    .await
}

/// Does what computes long or waits for a disk: not on the threads that serve connections.
///
/// # Errors
/// What the work says; 500 when it breaks.
pub async fn aside<T: Send + 'static>(work: impl FnOnce() -> ApiResult<T> + Send + 'static) -> ApiResult<T> {
    tokio::task::spawn_blocking(work).await.map_err(|e| ApiError::internal(e.to_string()))?
}

/// An id of 24 hexadecimal digits after a prefix.
pub fn fresh_id(prefix: &str) -> String {
    let mut rng = Rng::new(Rng::fresh_seed());
    format!("{prefix}{:016x}{:08x}", rng.next_u64(), rng.next_u64() as u32)
}

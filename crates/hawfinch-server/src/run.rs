//! Requests on their way: into the scheduler, and what comes back.

use crate::error::{ApiError, ApiResult};
use crate::hosted::Chosen;
use hawfinch_engine::schedule::{Constrained, Event, Request, Sink};
use hawfinch_engine::{GenerateOptions, Sampler, SamplerConfig, StopRules};
use hawfinch_model::{Model, Rng};
use std::sync::Arc;
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
    /// Who asks.
    pub client: Arc<str>,
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
        // Others may know the prompt's beginning; asking them waits for the network.
        let (cache, root) = (self.chosen.hosted.scheduler.cache().clone(), self.chosen.base.root.clone());
        let job = tokio::task::spawn_blocking(move || {
            if self.cached {
                cache.ask_others(&root, &self.prompt);
            }
            self
        });
        let job = job.await.map_err(|e| ApiError::internal(e.to_string()))?;
        let hosted = job.chosen.hosted.clone();
        let (to, events) = unbounded_channel();
        let request = job.request(Box::new(ToChannel(to)))?;
        hosted.scheduler.submit(request)?;
        Ok(events)
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
            client: self.client,
            deadline: Some(self.deadline),
            cached: self.cached,
            sink,
        })
    }
}

/// An id of 24 hexadecimal digits after a prefix.
pub fn fresh_id(prefix: &str) -> String {
    let mut rng = Rng::new(Rng::fresh_seed());
    format!("{prefix}{:016x}{:08x}", rng.next_u64(), rng.next_u64() as u32)
}

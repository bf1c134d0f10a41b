//! Token ids in, token ids out.

mod error;
pub mod sampler;
mod stop;
pub mod template;

pub use error::{Error, Result};
pub use sampler::{Mirostat, Rng, Sampled, Sampler, SamplerConfig, SamplerState, Uncounted};
pub use stop::{StopMatcher, StopRules};
pub use template::{Message, Role, Template};

//! The HTTP API of hawfinch, in the shapes that clients of OpenAI and Anthropic speak, and the chat page.
//!
//! [`hosted`] holds the models, each with its scheduler and state tree (`hawfinch-engine`); [`app`] the routes and who may use
//! them, one file a kind in [`api`]; [`serve()`] the connections. Requests become a [`run::Job`]; what the scheduler tells
//! of it becomes replies ([`reply`], [`generation`]). How a token is computed is none of this crate's business.

pub mod api;
pub mod app;
pub mod body;
pub mod conversation;
pub mod error;
pub mod generation;
pub mod hosted;
pub mod page;
#[cfg(feature = "redis")]
pub mod redis_store;
pub mod reply;
pub mod run;
pub mod sampling;
pub mod saved;
mod serve;
pub mod settings;

pub use app::App;
pub use error::ApiError;
pub use hosted::{Models, Opened, Opener};
pub use saved::SavedStates;
pub use serve::{bind, serve, tls};
pub use settings::Settings;

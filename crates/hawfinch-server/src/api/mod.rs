//! The routes, one file a kind.

pub mod chat;
pub mod completions;
pub mod embeddings;
pub mod health;
pub mod messages;
pub mod models;
pub mod openapi;
pub mod rank;
pub mod responses;
pub mod states;
pub mod tokens;

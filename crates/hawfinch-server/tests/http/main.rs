//! The server over real connections, with a small model of random weights whose tokens are bytes.

mod chat;
mod client;
mod completions;
mod conversations;
mod safety;
mod states;

//! The terminal chat behind `hawfinch chat`: where lines come from ([`lines`]), what slash commands there are
//! ([`commands`]), and the conversation they act on ([`talk`]).

pub mod commands;
pub mod lines;
#[cfg(feature = "serve")]
pub mod remote;
pub mod talk;

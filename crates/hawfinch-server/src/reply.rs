//! Replies as they grow: what the scheduler tells, turned into what clients read.

use crate::conversation::{Call, calls, may_be_call};
use hawfinch_engine::schedule::{Event, Timings};
use hawfinch_engine::template::{ReplyStream, Segment, SegmentKind};
use hawfinch_engine::{Sampled, StopReason};
use hawfinch_tokenizer::Tokenizer;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::VecDeque;

/// What a choice has said.
#[derive(Debug, Clone, PartialEq)]
pub enum Delta {
    /// More of the reasoning.
    Reasoning(String),
    /// More of the answer.
    Text(String),
    /// Calls of functions.
    Calls(Vec<Call>),
}

/// Why a choice ended, in OpenAI's words.
pub fn finish_reason(stop: &StopReason) -> &'static str {
    match stop {
        StopReason::MaxTokens | StopReason::TimedOut | StopReason::Cancelled => "length",
        _ => "stop",
    }
}

/// One choice of a chat reply.
pub struct Choice {
    stream: Option<ReplyStream>,
    segments: Vec<Segment>,
    /// Names of functions that it may call; empty when it may not.
    callable: Vec<String>,
    /// It may make several calls.
    parallel: bool,
    /// Text that may become a call.
    held: String,
    decided: bool,
    /// Tokens whose text is not certain yet, and the bytes before them.
    tokens: VecDeque<Sampled>,
    bytes: usize,
    /// Why it ended, once it has.
    pub finish: Option<&'static str>,
    /// The stop string that ended it.
    pub stop_string: Option<String>,
    /// Its tokens in all.
    pub completion_tokens: usize,
    /// Of which for reasoning, about: those that came before the answer began.
    pub reasoning_tokens: usize,
    answered: bool,
    reasoned: bool,
}

/// What one event made of a choice.
#[derive(Debug, Default)]
pub struct Growth {
    /// What it said.
    pub deltas: Vec<Delta>,
    /// Tokens whose text is part of the reply for certain.
    pub tokens: Vec<Sampled>,
}

impl Choice {
    /// A choice of a template's reply.
    pub fn new(stream: ReplyStream, callable: Vec<String>, parallel: bool) -> Self {
        Self {
            stream: Some(stream),
            segments: Vec::new(),
            decided: callable.is_empty(),
            callable,
            parallel,
            held: String::new(),
            tokens: VecDeque::new(),
            bytes: 0,
            finish: None,
            stop_string: None,
            completion_tokens: 0,
            reasoning_tokens: 0,
            answered: false,
            reasoned: false,
        }
    }

    /// It grew.
    pub fn piece(
        &mut self,
        tokenizer: &Tokenizer,
        tokens: Vec<Sampled>,
        text: &str,
        certain: usize,
    ) -> Growth {
        self.completion_tokens += tokens.len();
        if self.reasoned && !self.answered {
            self.reasoning_tokens += tokens.len();
        }
        self.tokens.extend(tokens);
        if let Some(stream) = &mut self.stream {
            stream.push(text, &mut self.segments);
        }
        let mut growth = Growth::default();
        self.release(&mut growth);
        while let Some(first) = self.tokens.front() {
            let end = self.bytes + tokenizer.token_bytes(first.id).map_or(0, <[u8]>::len);
            if end > certain {
                break;
            }
            self.bytes = end;
            growth.tokens.extend(self.tokens.pop_front());
        }
        growth
    }

    /// It ended.
    pub fn done(&mut self, stop: &StopReason) -> Growth {
        let mut growth = Growth::default();
        if let Some(stream) = self.stream.take() {
            stream.finish(&mut self.segments);
        }
        self.release(&mut growth);
        let mut finish = finish_reason(stop);
        if !self.decided {
            self.decided = true;
            let held = std::mem::take(&mut self.held);
            match calls(&held, &self.callable) {
                Some(mut calls) => {
                    if !self.parallel {
                        calls.truncate(1);
                    }
                    growth.deltas.push(Delta::Calls(calls));
                    finish = "tool_calls";
                }
                None if !held.is_empty() => growth.deltas.push(Delta::Text(held)),
                None => {}
            }
        }
        if let StopReason::StopString(s) = stop {
            self.stop_string = Some(s.clone());
        }
        self.finish = Some(finish);
        growth
    }

    fn release(&mut self, growth: &mut Growth) {
        for Segment { kind, text } in self.segments.drain(..) {
            match kind {
                SegmentKind::Reasoning => {
                    self.reasoned = true;
                    growth.deltas.push(Delta::Reasoning(text));
                }
                SegmentKind::Answer => {
                    self.answered = true;
                    if self.decided {
                        growth.deltas.push(Delta::Text(text));
                        continue;
                    }
                    self.held.push_str(&text);
                    if !may_be_call(&self.held) {
                        self.decided = true;
                        growth.deltas.push(Delta::Text(std::mem::take(&mut self.held)));
                    }
                }
            }
        }
    }
}

/// Tokens of a request.
#[derive(Debug, Clone, Default, PartialEq, Serialize, JsonSchema)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens generated.
    pub completion_tokens: usize,
    /// Both.
    pub total_tokens: usize,
    /// Of the prompt.
    pub prompt_tokens_details: PromptDetails,
    /// Of what was generated.
    pub completion_tokens_details: CompletionDetails,
}

/// Of the prompt.
#[derive(Debug, Clone, Default, PartialEq, Serialize, JsonSchema)]
pub struct PromptDetails {
    /// Tokens that a known state had read already.
    pub cached_tokens: usize,
}

/// Of what was generated.
#[derive(Debug, Clone, Default, PartialEq, Serialize, JsonSchema)]
pub struct CompletionDetails {
    /// Tokens before the answer.
    pub reasoning_tokens: usize,
}

impl Usage {
    /// Of these parts.
    pub fn new(prompt: usize, cached: usize, completion: usize, reasoning: usize) -> Self {
        Self {
            prompt_tokens: prompt,
            completion_tokens: completion,
            total_tokens: prompt + completion,
            prompt_tokens_details: PromptDetails { cached_tokens: cached },
            completion_tokens_details: CompletionDetails { reasoning_tokens: reasoning },
        }
    }
}

/// Times of a request, hawfinch's own.
pub fn timings(t: &Timings) -> Value {
    let rate = |tokens: usize, time: std::time::Duration| match time.as_secs_f64() {
        0.0 => 0.0,
        s => (tokens as f64 / s * 100.0).round() / 100.0,
    };
    let ms = |time: std::time::Duration| (time.as_secs_f64() * 1e5).round() / 100.0;
    json!({
        "queue_ms": ms(t.queued),
        "prompt_ms": ms(t.prompt),
        "prompt_tokens_computed": t.prompt_tokens,
        "prompt_per_second": rate(t.prompt_tokens, t.prompt),
        "predicted_ms": ms(t.generation),
        "predicted_per_second": rate(t.tokens, t.generation),
    })
}

/// A token's text: `bytes:\x..` for bytes that are no text on their own, as OpenAI's API writes them.
pub fn token_text(tokenizer: &Tokenizer, id: u32) -> String {
    let bytes = tokenizer.token_bytes(id).unwrap_or_default();
    match std::str::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(_) => bytes.iter().fold("bytes:".into(), |s, b| format!("{s}\\x{b:02x}")),
    }
}

/// Log-probabilities as JSON can hold them: it has no infinity.
pub fn finite(logprob: f32) -> f32 {
    logprob.max(-9999.0)
}

/// Entries of `logprobs.content` in chat.
pub fn chat_logprobs(tokenizer: &Tokenizer, tokens: &[Sampled], top: usize) -> Value {
    let entry = |id: u32, logprob: f32| {
        json!({
            "token": token_text(tokenizer, id),
            "logprob": finite(logprob),
            "bytes": tokenizer.token_bytes(id).unwrap_or_default(),
        })
    };
    let content: Vec<Value> = tokens
        .iter()
        .map(|t| {
            let mut e = entry(t.id, t.logprob);
            e["top_logprobs"] = t.top.iter().take(top).map(|&(id, l)| entry(id, l)).collect();
            e
        })
        .collect();
    json!({"content": content, "refusal": null})
}

/// What a request's end told.
#[derive(Debug, Clone, Default)]
pub struct Ending {
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Of which a known state had read so many.
    pub cached: usize,
    /// How long it took.
    pub timings: Timings,
}

impl Ending {
    /// Takes what concerns it; true when the event was the last.
    pub fn note(&mut self, event: &Event) -> bool {
        match event {
            Event::Begun { prompt, cached } => (self.prompt, self.cached) = (*prompt, *cached),
            Event::End(timings) => {
                self.timings = *timings;
                return true;
            }
            _ => {}
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hawfinch_engine::Template;

    /// What a reply with functions says, piece by piece.
    fn said(pieces: &[&str], parallel: bool) -> (Vec<Vec<Delta>>, Option<&'static str>) {
        let template = Template::builtin("world").unwrap();
        let mut choice = Choice::new(template.reply_stream(), vec!["time".into()], parallel);
        let mut all: Vec<Vec<Delta>> = Vec::new();
        for piece in pieces {
            all.push(choice.piece(&Tokenizer::bytes(), Vec::new(), piece, 0).deltas);
        }
        all.push(choice.done(&StopReason::MaxTokens).deltas);
        (all, choice.finish)
    }

    #[test]
    fn text_is_told_as_soon_as_it_cannot_be_a_call() {
        for pieces in [&[" ```", "python", "\nprint(1)"][..], &[" [", "1] See", " there"]] {
            let (all, finish) = said(pieces, true);
            assert!(all[0].is_empty(), "{all:?}");
            assert!(matches!(&all[1][..], [Delta::Text(_)]), "{all:?}");
            assert!(matches!(&all[2][..], [Delta::Text(_)]), "{all:?}");
            assert_eq!(finish, Some("length"));
        }
    }

    #[test]
    fn one_call_where_no_more_are_wanted() {
        let two = [" [{\"name\": \"time\"}", ", {\"name\": \"time\", \"arguments\": {\"h\": 1}}]"];
        for (parallel, count) in [(true, 2), (false, 1)] {
            let (all, finish) = said(&two, parallel);
            assert!(all[0].is_empty() && all[1].is_empty());
            let [Delta::Calls(calls)] = &all[2][..] else { panic!("{all:?}") };
            assert_eq!((calls.len(), finish), (count, Some("tool_calls")));
            assert!(parallel || calls[0].arguments == "{}");
        }
    }
}

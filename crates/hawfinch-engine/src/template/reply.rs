//! A model's reply to what a person reads: outer white space goes, reasoning is told from the answer.

/// How replies are cleaned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rule {
    /// White space around reasoning and answer is dropped (World models begin a reply with a space).
    pub trim: bool,
    /// A reply that begins with `<think>` has its reasoning up to `</think>`.
    pub reasoning: bool,
}

const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";

/// Which part of a reply a text belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SegmentKind {
    /// What the model thinks before it answers.
    Reasoning,
    /// The answer.
    Answer,
}

/// A piece of a cleaned reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Reasoning or answer.
    pub kind: SegmentKind,
    /// Its text; never empty.
    pub text: String,
}

/// A whole cleaned reply.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reply {
    /// The answer.
    pub text: String,
    /// The reasoning before it, when there was any.
    pub reasoning: Option<String>,
}

impl Reply {
    /// Puts the pieces of a stream together.
    pub fn from_segments(segments: &[Segment]) -> Self {
        let mut reply = Reply::default();
        for s in segments {
            match s.kind {
                SegmentKind::Answer => reply.text.push_str(&s.text),
                SegmentKind::Reasoning => reply.reasoning.get_or_insert_default().push_str(&s.text),
            }
        }
        reply
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It is not yet clear whether the reply begins with a think tag.
    Start,
    Reasoning,
    Answer,
}

/// Cleans a reply piece by piece; the pieces put together do not depend on how the text was divided.
#[derive(Debug, Clone)]
pub struct ReplyStream {
    rule: Rule,
    stage: Stage,
    /// Text not yet passed on: a possible tag, and white space that may turn out to be the end.
    held: String,
    /// Something of the current stage was passed on, so white space is no longer leading.
    begun: bool,
}

impl ReplyStream {
    pub(super) fn new(rule: Rule, opening: &str) -> Self {
        let stage = if rule.reasoning { Stage::Start } else { Stage::Answer };
        Self { rule, stage, held: opening.to_owned(), begun: false }
    }

    /// Of a reply that goes on behind an answer that is there already: nothing is leading any more.
    pub(super) fn within_answer(rule: Rule) -> Self {
        Self { rule, stage: Stage::Answer, held: String::new(), begun: true }
    }

    /// Takes raw text and appends what is certain to `out`.
    pub fn push(&mut self, text: &str, out: &mut Vec<Segment>) {
        self.held.push_str(text);
        if self.stage == Stage::Start {
            let rest = self.held.trim_start();
            if let Some(after) = rest.strip_prefix(OPEN) {
                self.held = after.to_owned();
                self.stage = Stage::Reasoning;
            } else if OPEN.starts_with(rest) {
                return;
            } else {
                self.stage = Stage::Answer;
            }
        }
        if self.stage == Stage::Reasoning {
            if let Some(at) = self.held.find(CLOSE) {
                let after = self.held.split_off(at + CLOSE.len());
                self.held.truncate(at);
                self.release(at, SegmentKind::Reasoning, out);
                self.held = after;
                self.begun = false;
                self.stage = Stage::Answer;
            } else {
                let tag = longest_beginning(&self.held, CLOSE);
                self.release(self.held.len() - tag, SegmentKind::Reasoning, out);
            }
        }
        if self.stage == Stage::Answer {
            self.release(self.held.len(), SegmentKind::Answer, out);
        }
    }

    /// The reply has ended: what was held back as a possible tag is text after all.
    pub fn finish(mut self, out: &mut Vec<Segment>) {
        let kind = match self.stage {
            Stage::Reasoning => SegmentKind::Reasoning,
            _ => SegmentKind::Answer,
        };
        self.release(self.held.len(), kind, out);
    }

    /// Passes on the first `len` bytes of what is held, but for leading and (so far) trailing white space.
    fn release(&mut self, len: usize, kind: SegmentKind, out: &mut Vec<Segment>) {
        let mut ready = &self.held[..len];
        if self.rule.trim {
            ready = ready.trim_end();
            if ready.is_empty() {
                return;
            }
        }
        let end = ready.len();
        if self.rule.trim && !self.begun {
            ready = ready.trim_start();
        }
        if !ready.is_empty() {
            self.begun = true;
            out.push(Segment { kind, text: ready.to_owned() });
        }
        self.held.drain(..end);
    }
}

/// The length of the longest end of `text` that is a beginning of `tag` (ASCII).
fn longest_beginning(text: &str, tag: &str) -> usize {
    (1..tag.len()).rev().find(|&n| text.ends_with(&tag[..n])).unwrap_or(0)
}

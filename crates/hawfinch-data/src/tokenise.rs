//! Text to parts: one thread reads, several turn text into tokens, one writes, in the order of the documents.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;

use hawfinch_tokenizer::Tokenizer;
use hawfinch_tokenizer::chat::Written;
use xxhash_rust::xxh3::xxh3_128;

use crate::control::{BadLines, Control, Invalid, Phase, Policy};
use crate::cut::documents;
use crate::error::{Error, Result};
use crate::feed::{Budget, Event, Feeder, Piece, document_error, end_path};
use crate::jsonl::{self, Line};
use crate::mask::tokens_within;
use crate::new_file::NewFile;
use crate::part::{Counts, PartWriter, Record, Span};
use crate::plan::{LossOn, Plan, Shard};

/// Documents of more bytes are turned into tokens by all threads together.
const LONG: usize = 4 << 20;

/// Id that ends a document, as the reference writes it whatever the vocabulary.
const END: u16 = 0;

/// What became of an event, in its turn.
enum Done {
    Begin(crate::plan::PartId),
    Tokens(Tokens),
    End,
    Ended { unit: usize, parts: u64 },
    Failed(Error),
}

/// The documents of a piece as tokens.
#[derive(Default)]
struct Tokens {
    tokens: Vec<u16>,
    spans: Vec<Span>,
    records: Vec<Record>,
    counts: Counts,
    /// Bytes of the piece.
    bytes: usize,
}

/// Makes the parts of a shard that are not there yet.
pub(crate) fn tokenise(
    plan: &Plan,
    work: &Path,
    shard: Shard,
    policy: Policy,
    tokenizer: &Tokenizer,
    control: Control,
) -> Result<()> {
    let threads = control.threads.max(1);
    let total = if plan.inputs.reads_stdin() { 0 } else { plan.inputs.files.iter().map(|f| f.size).sum() };
    let read = Arc::new(AtomicU64::new(0));
    let budget = Budget::new((32 + 8 * threads) << 20);
    let (to_writer, events) = mpsc::channel::<(u64, Done)>();
    let (to_workers, tasks) = mpsc::sync_channel::<(u64, Piece)>(4 * threads);
    let tasks = Arc::new(Mutex::new(tasks));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let (tasks, to_writer) = (tasks.clone(), to_writer.clone());
            let mut worker = Worker { plan, tokenizer, policy, threads, ids: Vec::new() };
            scope.spawn(move || {
                while let Some((turn, piece)) = next(&tasks) {
                    let done = worker.piece(&piece).map_or_else(Done::Failed, Done::Tokens);
                    if to_writer.send((turn, done)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(tasks);
        let (budget, read_by_feeder) = (&budget, read.clone());
        scope.spawn(move || {
            let turn = std::cell::Cell::new(0);
            let give = |event| {
                let number = turn.replace(turn.get() + 1);
                match event {
                    Event::Piece(piece) => {
                        budget.take(piece.bytes.len()) && to_workers.send((number, piece)).is_ok()
                    }
                    Event::Begin(part) => to_writer.send((number, Done::Begin(part))).is_ok(),
                    Event::End => to_writer.send((number, Done::End)).is_ok(),
                    Event::Ended { unit, parts } => {
                        to_writer.send((number, Done::Ended { unit, parts })).is_ok()
                    }
                }
            };
            let feeder = Feeder {
                plan,
                work,
                shard,
                policy,
                read: read_by_feeder,
                lines_of_stdin: Default::default(),
                give: &give,
            };
            if let Err(e) = feeder.run() {
                let _ = to_writer.send((turn.get(), Done::Failed(e)));
            }
        });
        let tell = || (control.progress)(Phase::Read, read.load(Ordering::Relaxed), total);
        let result = write(work, events, budget, control.stop, tell);
        // Whoever waits for room waits in vain; the channels are closed.
        budget.give_up();
        result
    })
}

fn next(tasks: &Mutex<Receiver<(u64, Piece)>>) -> Option<(u64, Piece)> {
    tasks.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
}

/// Puts what comes into order and writes it.
fn write(
    work: &Path,
    events: Receiver<(u64, Done)>,
    budget: &Budget,
    stop: &(dyn Fn() -> bool + Sync),
    tell: impl Fn(),
) -> Result<()> {
    let (mut waiting, mut turn) = (HashMap::new(), 0);
    let mut part: Option<PartWriter> = None;
    loop {
        if stop() {
            return Err(Error::Stopped);
        }
        match events.recv_timeout(Duration::from_millis(100)) {
            Ok((number, done)) => drop(waiting.insert(number, done)),
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
        while let Some(done) = waiting.remove(&turn) {
            turn += 1;
            match done {
                Done::Begin(id) => part = Some(PartWriter::create(&id.path(work))?),
                Done::Tokens(t) => {
                    budget.give_back(t.bytes);
                    if let Some(part) = &mut part {
                        part.push(&t.tokens, &t.spans, &t.records, &t.counts)?;
                    }
                }
                Done::End => part.take().map_or(Ok(()), PartWriter::finish)?,
                Done::Ended { unit, parts } => {
                    let mut file = NewFile::create(&end_path(work, unit))?;
                    file.put(format!("{parts}\n").as_bytes())?;
                    file.complete()?;
                }
                Done::Failed(e) => return Err(e),
            }
            tell();
        }
    }
}

/// What a thread needs to turn text into tokens.
struct Worker<'a> {
    plan: &'a Plan,
    tokenizer: &'a Tokenizer,
    policy: Policy,
    threads: usize,
    ids: Vec<u32>,
}

impl Worker<'_> {
    fn piece(&mut self, piece: &Piece) -> Result<Tokens> {
        let mut out = Tokens { bytes: piece.bytes.len(), ..Tokens::default() };
        out.tokens.reserve(piece.bytes.len() / 3);
        let mark = if piece.at == 0 && piece.bytes.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 };
        documents(&piece.bytes[mark..], piece.split, |at, document| {
            self.document(piece, mark + at, document, &mut out)
        })?;
        Ok(out)
    }

    /// The document at byte `at` of a piece.
    fn document(&mut self, piece: &Piece, at: usize, bytes: &[u8], out: &mut Tokens) -> Result<()> {
        let error = |what, advice| document_error(self.plan, piece, at, what, advice);
        let mut replaced = false;
        let text = match std::str::from_utf8(bytes) {
            Ok(text) => Cow::Borrowed(text),
            Err(e) => match self.policy.invalid {
                Invalid::Replace => {
                    replaced = true;
                    String::from_utf8_lossy(bytes)
                }
                Invalid::Skip => {
                    out.counts.invalid += 1;
                    return Ok(());
                }
                Invalid::Fail => {
                    let what = format!("byte {} of the document is not UTF-8", e.valid_up_to());
                    return Err(error(what, "mend it, or choose --invalid-utf8 replace or skip"));
                }
            },
        };
        if !piece.json {
            out.counts.replaced += u64::from(replaced);
            return self.text(piece, &text, None, out);
        }
        match jsonl::line(&text, self.plan.reading.field.as_deref(), self.plan.format()) {
            Line::Text(text) => {
                out.counts.replaced += u64::from(replaced);
                self.text(piece, &text, None, out)
            }
            Line::Chat(Written { text, replies, reasoning_left_out }) => {
                out.counts.replaced += u64::from(replaced);
                out.counts.reasoning += reasoning_left_out;
                let learned = (self.plan.reading.loss_on == LossOn::Assistant).then_some(&replies[..]);
                self.text(piece, &text, learned, out)
            }
            Line::Blank => Ok(()),
            Line::Bad(_) if self.policy.bad_lines == BadLines::Skip => {
                out.counts.bad += 1;
                Ok(())
            }
            Line::Bad(why) => Err(error(why, "mend it, or leave such lines out with --bad-lines skip")),
        }
    }

    /// A document's text, of which the ranges of bytes in `learned` are to be learned, or all.
    fn text(
        &mut self,
        piece: &Piece,
        text: &str,
        learned: Option<&[Range<usize>]>,
        out: &mut Tokens,
    ) -> Result<()> {
        self.ids.clear();
        if text.len() > LONG {
            self.ids = self.tokenizer.encode_parallel(text.as_bytes(), self.threads);
        } else {
            self.tokenizer.encode_into(text.as_bytes(), &mut self.ids);
        }
        let count = self.ids.len() as u64;
        if count < self.plan.reading.min_tokens {
            out.counts.short += 1;
            return Ok(());
        }
        if self.plan.reading.max_tokens.is_some_and(|max| count > max) {
            out.counts.long += 1;
            return Ok(());
        }
        // A document has at most 512 MiB.
        let tokens = self.ids.len() as u32 + 1;
        let spans = match learned {
            Some(ranges) => tokens_within(self.tokenizer, text, &self.ids, ranges),
            None => vec![[0, tokens]],
        };
        if spans.is_empty() {
            out.counts.unlearned += 1;
            return Ok(());
        }
        let hash = xxh3_128(text.as_bytes());
        out.records.push(Record {
            hash: [hash as u64, (hash >> 64) as u64],
            start: out.tokens.len() as u64,
            first_span: out.spans.len() as u64,
            spans: spans.len() as u32,
            learned: spans.iter().map(|s| s[1] - s[0]).sum(),
            tokens,
            bytes: text.len() as u32,
            chars: text.chars().count() as u32,
            file: piece.file as u32,
        });
        out.spans.extend(spans);
        // The plan has checked that the vocabulary goes into 16 bits.
        out.tokens.extend(self.ids.iter().map(|&id| id as u16));
        out.tokens.push(END);
        if text.len() > LONG {
            self.ids = Vec::new();
        }
        Ok(())
    }
}

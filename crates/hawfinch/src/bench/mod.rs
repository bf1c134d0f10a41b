//! What `hawfinch bench` is made of: models made up in memory, the measurements, their table and their plot.
//!
//! Every measurement is taken in rounds. A round measures what the machine can do at most (bytes read, multiply-adds)
//! and right after it the model, so that a percentage compares two things of the same moment.

pub mod made;
#[cfg(feature = "plot")]
pub mod plot;
pub mod report;
pub mod table;

use std::time::{Duration, Instant};

use hawfinch_model::{Model, Output, Rng, Rows, STEP_TOKENS, Sequence, State};

use crate::measure::Gauge;
use crate::progress::Progress;
use crate::system::load;
use report::{Mark, Speed, Spread};

/// How much is measured.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Sequences that decode at once.
    pub batches: Vec<usize>,
    /// Lengths of prompts.
    pub prompts: Vec<usize>,
    /// Rounds of each measurement.
    pub rounds: usize,
    /// A round decodes for about so long, at least one step.
    pub slice: Duration,
    /// A measurement that has taken longer begins no round after its second.
    pub patience: Duration,
}

/// Measures one model.
pub struct Bench<'a> {
    model: &'a Model,
    gauge: Gauge,
    plan: &'a Plan,
    random: Rng,
    /// The state that decoding starts from: after a short prompt.
    warm: State,
    /// Those of the last step, whose memory the next uses.
    outputs: Vec<Output>,
}

impl<'a> Bench<'a> {
    /// To measure a model whose state after some tokens is `warm`.
    pub fn new(model: &'a Model, gauge: Gauge, plan: &'a Plan, warm: State) -> Self {
        Bench { model, gauge, plan, random: Rng::new(2), warm, outputs: Vec::new() }
    }

    /// What measures the machine.
    pub fn gauge(&self) -> &Gauge {
        &self.gauge
    }

    /// One token a sequence and step, for so many sequences at once.
    pub fn decode(&mut self, batch: usize) -> hawfinch_model::Result<Speed> {
        let _bar = Progress::time(&format!("decoding {batch} at once"));
        let mut states = vec![self.warm.clone(); batch];
        // Not counted: makes the buffers of this size.
        self.step(&mut states)?;
        let slice = self.plan.slice;
        let rounds = self.rounds(|bench| {
            let (began, mut steps, mut fastest) = (Instant::now(), 0, f64::INFINITY);
            while steps == 0 || began.elapsed() < slice {
                let at = Instant::now();
                bench.step(&mut states)?;
                fastest = at.elapsed().as_secs_f64().min(fastest);
                steps += 1;
            }
            Ok((began.elapsed().as_secs_f64() / f64::from(steps), fastest))
        })?;
        let work = Work {
            tokens: batch,
            weight_bytes: self.model.weight_bytes(true) * batch.div_ceil(STEP_TOKENS) as u64,
            // Read and written.
            state_bytes: 8 * (self.warm.data().len() * batch) as u64,
            multiply_adds: self.model.multiply_adds(true) * batch as u64,
        };
        Ok(speed(batch, &work, &rounds, self.resident()))
    }

    /// A prompt of so many tokens from the empty context to the logits of its last.
    pub fn prefill(&mut self, tokens: usize) -> hawfinch_model::Result<Speed> {
        let _bar = Progress::time(&format!("reading a prompt of {tokens}"));
        let prompt = self.tokens(tokens);
        let rounds = self.rounds(|bench| {
            let seconds = first_token(bench.model, &prompt, &mut bench.model.new_state())?;
            Ok((seconds, seconds))
        })?;
        let steps = tokens.div_ceil(STEP_TOKENS) as u64;
        let (body, all) = (self.model.weight_bytes(false), self.model.weight_bytes(true));
        let (body_adds, all_adds) = (self.model.multiply_adds(false), self.model.multiply_adds(true));
        let work = Work {
            tokens,
            weight_bytes: body * (steps - 1) + all,
            state_bytes: 8 * self.warm.data().len() as u64 * steps,
            multiply_adds: body_adds * (tokens as u64 - 1) + all_adds,
        };
        Ok(speed(tokens, &work, &rounds, self.resident()))
    }

    /// Decoding and memory along one text of `length` tokens: at powers of two and at its end.
    pub fn along(&mut self, length: usize) -> hawfinch_model::Result<Vec<Mark>> {
        let mut bar = Progress::count("reading on (tokens)", length as u64);
        let mut marks = Vec::new();
        let mut state = self.model.new_state();
        let (mut at, mut seconds) = (0, 0.0);
        for mark in marks_to(length) {
            while at < mark {
                // Pieces, so that the bar moves.
                let piece = self.tokens((mark - at).min(8 * STEP_TOKENS));
                let began = Instant::now();
                forward(self.model, &piece, &mut state, Rows::None)?;
                seconds += began.elapsed().as_secs_f64();
                at += piece.len();
                bar.set(at as u64);
            }
            let peak = self.gauge.read();
            // From a copy: the text goes on as if nobody had decoded.
            let mut copies = [state.clone()];
            let (began, mut steps) = (Instant::now(), Vec::new());
            while steps.len() < 4 || (began.elapsed() < self.plan.slice && steps.len() < 64) {
                let at = Instant::now();
                self.step(&mut copies)?;
                steps.push(at.elapsed().as_secs_f64());
            }
            let step = Spread::of(&steps);
            let bytes = self.model.weight_bytes(true) as f64;
            marks.push(Mark {
                context: mark,
                read_seconds: seconds,
                step_seconds: step,
                tokens_per_second: 1.0 / step.median,
                percent_of_read: 100.0 * bytes / step.median / peak,
                state_bytes: state_bytes(&state),
                resident_bytes: self.resident(),
            });
        }
        Ok(marks)
    }

    /// One more token for each state, as generating does it but for the choice among the logits.
    fn step(&mut self, states: &mut [State]) -> hawfinch_model::Result<()> {
        let ids: Vec<[u32; 1]> = states.iter().map(|_| [self.token()]).collect();
        let mut sequences: Vec<Sequence> = states
            .iter_mut()
            .zip(&ids)
            .map(|(state, tokens)| Sequence { tokens, state, logits: Rows::Last, hidden: Rows::None })
            .collect();
        self.outputs.resize_with(sequences.len(), Output::default);
        self.model.forward_into(&mut sequences, &mut self.outputs)
    }

    fn token(&mut self) -> u32 {
        (self.random.next_u64() % self.model.config().vocab as u64) as u32
    }

    fn tokens(&mut self, n: usize) -> Vec<u32> {
        (0..n).map(|_| self.token()).collect()
    }

    /// Rounds of the machine's limits and of `run`, which tells its seconds: in the mean, and of the fastest step.
    fn rounds(
        &mut self,
        mut run: impl FnMut(&mut Self) -> hawfinch_model::Result<(f64, f64)>,
    ) -> hawfinch_model::Result<Vec<Round>> {
        let (began, mut rounds) = (Instant::now(), Vec::new());
        while rounds.len() < self.plan.rounds {
            let (read, multiply) = (self.gauge.read(), self.gauge.multiply());
            let (seconds, fastest) = run(self)?;
            rounds.push(Round { seconds, fastest, read, multiply });
            if rounds.len() >= 2 && began.elapsed() > self.plan.patience {
                break;
            }
        }
        Ok(rounds)
    }

    /// Memory of this process without the block that measures the machine.
    fn resident(&self) -> Option<u64> {
        load::resident().map(|r| r.now.saturating_sub(self.gauge.bytes()))
    }
}

/// One round: the model's seconds and the machine's limits right before.
struct Round {
    seconds: f64,
    fastest: f64,
    read: f64,
    multiply: f64,
}

/// What a run does.
struct Work {
    tokens: usize,
    weight_bytes: u64,
    state_bytes: u64,
    multiply_adds: u64,
}

fn speed(n: usize, work: &Work, rounds: &[Round], resident_bytes: Option<u64>) -> Speed {
    let spread = |f: &dyn Fn(&Round) -> f64| Spread::of(&rounds.iter().map(f).collect::<Vec<_>>());
    let (weights, adds) = (work.weight_bytes as f64, work.multiply_adds as f64);
    let seconds = Spread { min: spread(&|r| r.fastest).min, ..spread(&|r| r.seconds) };
    let best = |f: fn(&Round) -> f64| rounds.iter().map(f).fold(0.0, f64::max);
    Speed {
        n,
        rounds: rounds.len(),
        seconds,
        tokens_per_second: work.tokens as f64 / seconds.median,
        best_tokens_per_second: work.tokens as f64 / seconds.min,
        weight_bytes_per_second: weights / seconds.median,
        state_bytes_per_second: work.state_bytes as f64 / seconds.median,
        multiply_adds_per_second: adds / seconds.median,
        percent_of_read: spread(&|r| 100.0 * weights / r.seconds / r.read).median,
        percent_of_multiply: spread(&|r| 100.0 * adds / r.seconds / r.multiply).median,
        best_percent_of_read: 100.0 * weights / seconds.min / best(|r| r.read),
        best_percent_of_multiply: 100.0 * adds / seconds.min / best(|r| r.multiply),
        limit_read_bytes_per_second: spread(&|r| r.read),
        limit_multiply_adds_per_second: spread(&|r| r.multiply),
        resident_bytes,
    }
}

/// Seconds from the prompt to the logits that its first token is chosen from.
pub fn first_token(model: &Model, prompt: &[u32], state: &mut State) -> hawfinch_model::Result<f64> {
    let began = Instant::now();
    forward(model, prompt, state, Rows::Last)?;
    Ok(began.elapsed().as_secs_f64())
}

fn forward(model: &Model, tokens: &[u32], state: &mut State, logits: Rows) -> hawfinch_model::Result<()> {
    model.forward(&mut [Sequence { tokens, state, logits, hidden: Rows::None }]).map(|_| ())
}

/// Bytes of a state in memory.
pub fn state_bytes(state: &State) -> u64 {
    size_of_val(state.data()) as u64
}

/// Powers of two from 64 up to `length`, and `length`.
fn marks_to(length: usize) -> Vec<usize> {
    let powers = std::iter::successors(Some(64usize), |n| n.checked_mul(2));
    powers.take_while(|n| *n < length).chain([length]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_end_where_the_text_does() {
        assert_eq!(marks_to(1), [1]);
        assert_eq!(marks_to(64), [64]);
        assert_eq!(marks_to(300), [64, 128, 256, 300]);
        assert_eq!(marks_to(1_000_000).len(), 15);
    }

    #[test]
    fn speeds_follow_from_work_and_time() {
        let work = Work { tokens: 4, weight_bytes: 100, state_bytes: 8, multiply_adds: 1000 };
        let round = |seconds| Round { seconds, fastest: seconds, read: 400.0, multiply: 2000.0 };
        let s = speed(4, &work, &[round(1.0), round(0.5), round(2.0)], None);
        assert_eq!((s.tokens_per_second, s.best_tokens_per_second), (4.0, 8.0));
        assert_eq!((s.percent_of_read, s.percent_of_multiply), (25.0, 50.0));
        assert_eq!((s.best_percent_of_read, s.best_percent_of_multiply), (50.0, 100.0));
        assert_eq!(s.seconds, Spread { min: 0.5, median: 1.0 });
    }
}

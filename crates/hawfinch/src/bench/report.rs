//! What a run of `bench` found, as `--json` prints it. Units are in the names; every speed is of the median round.

use serde::Serialize;

use crate::system::cpu::Cpu;

/// The least and the middle of some measurements.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Least.
    pub min: f64,
    /// Middle (of an even number the mean of the middle two).
    pub median: f64,
}

impl Spread {
    /// Of at least one measurement.
    pub fn of(all: &[f64]) -> Spread {
        let mut all = all.to_vec();
        all.sort_by(f64::total_cmp);
        let n = all.len();
        Spread { min: all[0], median: (all[(n - 1) / 2] + all[n / 2]) / 2.0 }
    }
}

/// Everything found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub hawfinch: &'static str,
    pub system: String,
    pub cpu: Cpu,
    /// The instruction set computed with.
    pub isa: &'static str,
    pub threads: usize,
    /// Over 1, 5 and 15 minutes, before anything was measured.
    pub load_average: Option<[f64; 3]>,
    /// Processors that other programs kept busy meanwhile.
    pub others_used_processors: Option<f64>,
    pub warnings: Vec<String>,
    pub model: ModelReport,
    pub limits: Limits,
    /// From the file to a model that runs; of a made-up model, without making it up.
    pub load_seconds: f64,
    pub first_token: FirstToken,
    /// Of a packed file, what was done after the first token and before all below was measured.
    pub packed: Option<PackedReport>,
    pub memory: MemoryReport,
    /// `n` sequences at once, a token each and step.
    pub decode: Vec<Speed>,
    /// Prompts of `n` tokens, one at a time: `seconds` is the time to the first token.
    pub prefill: Vec<Speed>,
    /// Decoding along one text.
    pub context: Vec<Mark>,
}

/// The model measured.
#[derive(Clone, Debug, Serialize)]
pub struct ModelReport {
    pub name: String,
    /// Random weights, made up in memory.
    pub made_up: bool,
    pub version: String,
    pub layers: usize,
    pub width: usize,
    pub vocab: usize,
    pub parameters: u64,
    /// Number types of the linear weights as they are computed with: `bf16`, `int8`.
    pub weights: String,
    /// Weights that a token reads, as they lie in memory.
    pub weight_bytes_per_token: u64,
    /// Multiply-adds of a token with the weights.
    pub multiply_adds_per_token: u64,
    pub state_bytes: u64,
}

/// What the machine could do at most while the model was measured: all rounds of all measurements.
#[derive(Clone, Debug, Serialize)]
pub struct Limits {
    pub read_bytes_per_second: f64,
    pub read_streams_per_thread: usize,
    /// Of f32, operands in registers.
    pub multiply_adds_per_second: f64,
    pub best_read_bytes_per_second: f64,
    pub best_multiply_adds_per_second: f64,
}

/// The first token after the program was started: nothing is warm.
#[derive(Clone, Debug, Serialize)]
pub struct FirstToken {
    pub prompt_tokens: usize,
    /// From the beginning of opening.
    pub seconds: f64,
}

/// A packed file after the first token: checksums are compared, weights copied into huge pages if asked for.
#[derive(Clone, Debug, Serialize)]
pub struct PackedReport {
    /// Copying counted.
    pub checked_seconds: f64,
    /// 0: the weights are read where the file is mapped.
    pub copied_bytes: u64,
    /// From the beginning of opening until all of it was done.
    pub since_opening_seconds: f64,
    /// Memory of this process then.
    pub resident_bytes: Option<u64>,
}

/// Memory of this process without what measures the machine; absent where the system does not tell.
#[derive(Clone, Debug, Serialize)]
pub struct MemoryReport {
    /// With the model opened, before the first token.
    pub opened_bytes: Option<u64>,
    pub peak_bytes: Option<u64>,
    /// Of it, the checkpoint made up in memory, which otherwise is a file.
    pub made_up_bytes: u64,
}

/// One measurement.
#[derive(Clone, Debug, Serialize)]
pub struct Speed {
    /// Sequences at once, or tokens of the prompt.
    pub n: usize,
    pub rounds: usize,
    /// Of a step (the fastest, and the mean of the middle round), or from the prompt to its first token.
    pub seconds: Spread,
    /// All sequences together.
    pub tokens_per_second: f64,
    /// Of the fastest step, or prompt.
    pub best_tokens_per_second: f64,
    pub weight_bytes_per_second: f64,
    pub state_bytes_per_second: f64,
    pub multiply_adds_per_second: f64,
    /// Median over the rounds of weights read a second by what could be read.
    pub percent_of_read: f64,
    /// The same for multiply-adds.
    pub percent_of_multiply: f64,
    /// The fastest step by the best reading of all rounds: what a busy machine disturbs least.
    pub best_percent_of_read: f64,
    pub best_percent_of_multiply: f64,
    pub limit_read_bytes_per_second: Spread,
    pub limit_multiply_adds_per_second: Spread,
    pub resident_bytes: Option<u64>,
}

/// Decoding one sequence after so many tokens.
#[derive(Clone, Debug, Serialize)]
pub struct Mark {
    /// Tokens before.
    pub context: usize,
    /// Time it took to read them all.
    pub read_seconds: f64,
    pub step_seconds: Spread,
    pub tokens_per_second: f64,
    pub percent_of_read: f64,
    pub state_bytes: u64,
    pub resident_bytes: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::Spread;

    #[test]
    fn the_middle_of_some() {
        assert_eq!(Spread::of(&[3.0]), Spread { min: 3.0, median: 3.0 });
        assert_eq!(Spread::of(&[4.0, 1.0, 2.0, 9.0]), Spread { min: 1.0, median: 3.0 });
    }
}

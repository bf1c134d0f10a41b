//! How often a draft model's guesses are right, on real models: `cargo test --release -p hawfinch-engine --lib
//! acceptance_of_real_models -- --ignored --nocapture`, which prints the table of BENCHMARKS.md.

use crate::testing::sampler;
use crate::{
    Feed, GenerateOptions, LanguageModel, NgramDrafter, SamplerConfig, Session, Speculation, Wanted,
};

use hawfinch_model::{Cpu, Model, OpenOptions, Quant, State, StoredTensor, format, metadata};
use hawfinch_tokenizer::Tokenizer;
use std::ops::ControlFlow;
use std::path::Path;

const PROMPT: &[u8] = b"Once upon a time there was a little girl who ";

/// Ways to draw.
fn configs() -> [(&'static str, SamplerConfig); 3] {
    let free = SamplerConfig { temperature: 1.0, ..SamplerConfig::greedy() };
    [
        ("temperature 1", free.clone()),
        ("0.7", SamplerConfig { temperature: 0.7, ..free.clone() }),
        ("1, top-p 0.8", SamplerConfig { top_p: 0.8, ..free }),
    ]
}

/// The built-in model and its 4-bit form, and tokens that look themselves up.
#[test]
#[ignore = "a minute of measuring"]
fn acceptance_of_the_built_in_model() {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../hawfinch/data/demo.gguf"));
    let file = format::open(path).unwrap();
    let tokenizer = Tokenizer::from_carried(&file.metadata[metadata::TOKENIZER], 8192, path).unwrap();
    let mut floats = file.clone();
    for tensor in floats.tensors.values_mut() {
        *tensor = StoredTensor::from_f32(&tensor.shape, &tensor.to_f32());
    }
    let model = Model::from_checkpoint(file, OpenOptions::default(), Cpu::default()).unwrap();
    let four = Cpu::default().quantizing(Some(Quant::Int4));
    let four = Model::from_checkpoint(floats, OpenOptions::default(), four).unwrap();
    println!("| settings | shared | apart | greedy | best | n-gram: guesses, right |");
    for (name, config) in configs() {
        let prompt = tokenizer.encode(b"Click the button to");
        let shares = measure(&model, &four, &config, &prompt, 1600);
        // Guesses of n-grams, along text that repeats itself as much as the model's own does.
        let (mut guessed, mut right) = (0, 0);
        for seed in 0..4 {
            let mut session = Session::new(&model, tokenizer.clone(), sampler(config.clone(), seed));
            session.speculation = Some(Speculation::fixed(NgramDrafter::new(), 4));
            session.feed_text("Click the button to").unwrap();
            session.generate(&GenerateOptions::new(400, &tokenizer), |_| ControlFlow::Continue(())).unwrap();
            let s = session.speculation.as_mut().unwrap().take_statistics();
            (guessed, right) = (guessed + s.drafted, right + s.accepted);
        }
        println!(
            "| {name} | {} | {guessed}, {:.1}% |",
            shares.map(|s| format!("{:.1}%", 100.0 * s)).join(" | "),
            100.0 * right as f64 / guessed.max(1) as f64
        );
        assert!(shares[0] > shares[1] && shares[0] < shares[3] + 0.02, "{shares:?}");
    }
}

/// Feeds tokens and returns the logits after the last.
fn after(model: &Model, state: &mut State, tokens: &[u32]) -> Vec<f32> {
    let mut logits = Vec::new();
    let feed = Feed { tokens, state, logits: Wanted::Last(&mut logits) };
    LanguageModel::forward(model, &mut [feed]).unwrap();
    logits
}

/// Over `tokens` tokens of a text of the large model: how often the small one draws the same with the same random
/// number, Σ p·q (with another one), p of q's most probable token (a greedy draft), Σ min(p, q) (the best of all rules).
fn measure(large: &Model, small: &Model, config: &SamplerConfig, prompt: &[u32], tokens: u32) -> [f64; 4] {
    let (mut sum, mut n) = ([0.0; 4], 0.0);
    for seed in 0..4 {
        let (mut a, mut b) = (large.new_state(), small.new_state());
        let mut sampler = sampler(config.clone(), seed);
        let mut feed = prompt.to_vec();
        for _ in 0..tokens / 4 {
            let (logits_p, logits_q) = (after(large, &mut a, &feed), after(small, &mut b, &feed));
            let mut both = vec![[0.0; 2]; logits_p.len()];
            let q = sampler.clone().distribution(&logits_q);
            for (id, p) in sampler.clone().distribution(&logits_p) {
                both[id as usize][0] = p;
            }
            q.iter().for_each(|&(id, q)| both[id as usize][1] = q);
            let likeliest = q.iter().max_by(|a, b| a.1.total_cmp(&b.1)).unwrap().0;
            let guess = sampler.clone().sample(&logits_q).unwrap().id;
            let id = sampler.sample(&logits_p).unwrap().id;
            sampler.accept(id);
            sum[0] += f64::from(guess == id);
            sum[1] += both.iter().map(|[p, q]| p * q).sum::<f64>();
            sum[2] += both[likeliest as usize][0];
            sum[3] += both.iter().map(|[p, q]| p.min(*q)).sum::<f64>();
            n += 1.0;
            feed = vec![id];
        }
    }
    sum.map(|s| s / n)
}

#[test]
#[ignore = "a minute of measuring"]
fn acceptance_of_real_models() {
    let folder =
        Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data/weights/rwkv.cpp-tiny"));
    if !folder.exists() {
        eprintln!("skipped: {} is not there", folder.display());
        return;
    }
    let open = |name: &str| Model::open(folder.join(format!("tiny-rwkv-{name}.bin"))).unwrap();
    println!("| model | guesses | settings | shared | apart | greedy | best |");
    for (large, small) in
        [("6v0-3m-Q5_1", "6v0-1m-FP32"), ("6v0-1m-FP32", "6v0-1m-Q5_0"), ("5v2-730K-FP32", "5v1-730K-FP32")]
    {
        let (p, q) = (open(large), open(small));
        for (name, config) in &configs() {
            let prompt: Vec<u32> = PROMPT.iter().map(|&b| b.into()).collect();
            let shares = measure(&p, &q, config, &prompt, 1600);
            println!(
                "| {large} | {small} | {name} | {} |",
                shares.map(|s| format!("{:.1}%", 100.0 * s)).join(" | ")
            );
            assert!(shares[0] > shares[1] && shares[0] < shares[3] + 0.02, "{shares:?}");
        }
    }
}

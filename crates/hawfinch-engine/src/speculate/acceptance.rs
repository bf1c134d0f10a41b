//! How often a draft model's guesses are right, on real models: `cargo test --release -p hawfinch-engine --lib
//! acceptance_of_real_models -- --ignored --nocapture`, which prints the table of BENCHMARKS.md.

use crate::testing::sampler;
use crate::{Feed, LanguageModel, SamplerConfig, Wanted};
use hawfinch_model::{Model, State};
use std::path::Path;

const PROMPT: &[u8] = b"Once upon a time there was a little girl who ";

/// Feeds tokens and returns the logits after the last.
fn after(model: &Model, state: &mut State, tokens: &[u32]) -> Vec<f32> {
    let mut logits = Vec::new();
    let feed = Feed { tokens, state, logits: Wanted::Last(&mut logits) };
    LanguageModel::forward(model, &mut [feed]).unwrap();
    logits
}

/// Over `tokens` tokens of a text of the large model: how often the small one draws the same with the same random
/// number, Σ p·q (with another one), p of q's most probable token (a greedy draft), Σ min(p, q) (the best of all rules).
fn measure(large: &Model, small: &Model, config: &SamplerConfig, tokens: u32) -> [f64; 4] {
    let (mut sum, mut n) = ([0.0; 4], 0.0);
    for seed in 0..4 {
        let (mut a, mut b) = (large.new_state(), small.new_state());
        let mut sampler = sampler(config.clone(), seed);
        let mut feed: Vec<u32> = PROMPT.iter().map(|&b| b.into()).collect();
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
    let free = SamplerConfig { temperature: 1.0, ..SamplerConfig::greedy() };
    let configs = [
        ("temperature 1", free.clone()),
        ("0.7", SamplerConfig { temperature: 0.7, ..free.clone() }),
        ("1, top-p 0.8", SamplerConfig { top_p: 0.8, ..free }),
    ];
    println!("| model | guesses | settings | shared | apart | greedy | best |");
    for (large, small) in
        [("6v0-3m-Q5_1", "6v0-1m-FP32"), ("6v0-1m-FP32", "6v0-1m-Q5_0"), ("5v2-730K-FP32", "5v1-730K-FP32")]
    {
        let (p, q) = (open(large), open(small));
        for (name, config) in &configs {
            let shares = measure(&p, &q, config, 1600);
            println!(
                "| {large} | {small} | {name} | {} |",
                shares.map(|s| format!("{:.1}%", 100.0 * s)).join(" | ")
            );
            assert!(shares[0] > shares[1] && shares[0] < shares[3] + 0.02, "{shares:?}");
        }
    }
}

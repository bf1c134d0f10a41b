//! Times one sample over a 65,536-token vocabulary: `cargo run --release -p hawfinch-engine --example sampler_speed`.
//!
//! Prints minimum and median microseconds for a peaked (model-like), a middling and a flat distribution.

use hawfinch_engine::{Mirostat, Rng, Sampler, SamplerConfig, Uncounted};
use std::time::Instant;

fn main() -> hawfinch_engine::Result<()> {
    let base = SamplerConfig { seed: Some(1), ..SamplerConfig::default() };
    let settings = [
        ("defaults", base.clone()),
        ("greedy", SamplerConfig::greedy()),
        ("temperature only", SamplerConfig { temperature: 0.8, ..SamplerConfig::pure() }),
        ("top-k 40", SamplerConfig { top_k: 40, top_p: 1.0, ..base.clone() }),
        ("min-p 0.05", SamplerConfig { min_p: 0.05, top_p: 1.0, ..base.clone() }),
        ("typical 0.95", SamplerConfig { typical_p: 0.95, top_p: 1.0, ..base.clone() }),
        ("mirostat", SamplerConfig { mirostat: Some(Mirostat::default()), ..base.clone() }),
        ("top-20 logprobs", SamplerConfig { top_logprobs: 20, ..base }),
    ];
    println!(
        "{:<18} {:>24} {:>24} {:>24}",
        "us: min / median", "peaked (sd 4)", "middling (sd 1.5)", "flat (sd 0.05)"
    );
    for (name, config) in settings {
        print!("{name:<18}");
        for sd in [4.0f64, 1.5, 0.05] {
            let mut rng = Rng::new(3);
            let logits: Vec<f32> = (0..65_536)
                .map(|_| {
                    let (u, v) = (1.0 - rng.next_f64(), rng.next_f64());
                    (sd * (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
                })
                .collect();
            let mut sampler = Sampler::new(config.clone(), Uncounted::none())?;
            let mut times = Vec::new();
            for _ in 0..300 {
                let start = Instant::now();
                let id = sampler.sample(&logits)?.id;
                sampler.accept(id);
                times.push(start.elapsed().as_secs_f64() * 1e6);
            }
            times.sort_by(f64::total_cmp);
            print!(" {:>14.0} / {:>7.0}", times[0], times[times.len() / 2]);
        }
        println!();
    }
    Ok(())
}

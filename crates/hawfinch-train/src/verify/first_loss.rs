//! The loss of a new model beside what an `init.json` says of it: `"11.21 +- 0.02 for any text …"`.

use std::sync::Arc;

use hawfinch_kernels::{Isa, Pool};
use hawfinch_model::verify::Report;
use hawfinch_model::{Config, Cpu, Model, OpenOptions, Rng, Rows, Sequence, log_sum_exp, names};

use super::given::At;
use super::init::{LR_INIT, sizes, version};
use crate::Result;
use crate::init::{self, Options, Rule, Sizes, rule};

/// Rows of the head of the model that is made; ln V is all that more of them add. (The gain of the head is such that
/// logits have the same mean square whatever the vocabulary, and their distribution is Gaussian; a head of 65536 × 768
/// takes a gigabyte to be drawn.)
const VOCAB: usize = 4096;
/// Tokens that are read. Each one's loss is a mean over all next tokens, so a few are enough.
const TOKENS: usize = 16;

pub(super) fn check(report: &mut Report, file: &At, pool: &Arc<Pool>) -> Result<()> {
    let Some(losses) = file.maybe("initial_loss") else {
        report.absent.push("initial_loss: the loss of a new model".into());
        return Ok(());
    };
    for (name, at) in losses.entries()? {
        let sizes = sizes(file, version(name, &at)?)?;
        let Some((want, allowed)) = bounds(at.text()?) else {
            return at.wrong("no text that begins as `11.21 +- 0.02` does");
        };
        let made = cheaper(sizes)?;
        let got = loss(made, pool)? + (sizes.vocab as f64 / made.vocab as f64).ln();
        let note = format!(
            "{got:.4} against {want} in nats, every next token as likely as any other; {} of {} layers, {} of {} tokens made",
            made.layers, sizes.layers, made.vocab, sizes.vocab
        );
        let what = format!("initialisation: loss of a new {}", sizes.version);
        report.add(what, (got - want).abs(), allowed, note);
    }
    Ok(())
}

/// `A +- B …`, with B from 0 up.
fn bounds(text: &str) -> Option<(f64, f64)> {
    let (value, rest) = text.split_once("+-")?;
    let (value, allowed): (f64, f64) =
        (value.trim().parse().ok()?, rest.split_whitespace().next()?.parse().ok()?);
    Some((value, allowed)).filter(|(v, a)| v.is_finite() && a.is_finite() && *a >= 0.0)
}

/// Sizes of the smallest model that has the same loss but for ln V.
fn cheaper(sizes: Sizes) -> Result<Sizes> {
    let config = sizes.config()?;
    let layers = if (0..config.layers).all(|l| adds_nothing(&config, l)) { 1 } else { config.layers };
    Ok(Sizes { layers, vocab: sizes.vocab.min(VOCAB.max(sizes.width)), ..sizes })
}

/// Whether a block begins as the identity: what it adds is multiplied by zeros.
fn adds_nothing(config: &Config, layer: usize) -> bool {
    let last = ["att.output.weight", "ffn.value.weight"];
    let mut params = names::block_params(config.version).filter(|p| last.contains(&p.name));
    params.all(|p| rule(config, layer, p, LR_INIT) == Rule::Constant(0.0))
}

/// Mean over random tokens and all that could come next of -ln p.
fn loss(sizes: Sizes, pool: &Arc<Pool>) -> Result<f64> {
    let config = sizes.config()?;
    let isa = Isa::chosen().unwrap_or_else(|_| Isa::best());
    let weights = init::model(&config, &Options { seed: 1, lr_init: LR_INIT }, isa, pool);
    let cpu = Cpu::<f32>::with(pool.clone(), isa);
    let model = Model::from_checkpoint(weights, OpenOptions::default(), cpu)?;
    let mut random = Rng::new(1);
    let tokens: Vec<u32> = (0..TOKENS).map(|_| (random.next_u64() % config.vocab as u64) as u32).collect();
    let mut state = model.new_state();
    let call = Sequence { tokens: &tokens, state: &mut state, logits: Rows::All, hidden: Rows::None };
    let outputs = model.forward(&mut [call])?;
    let rows = outputs[0].logits.chunks_exact(config.vocab);
    let each = rows
        .map(|row| log_sum_exp(row) - row.iter().map(|&l| f64::from(l)).sum::<f64>() / config.vocab as f64);
    Ok(each.sum::<f64>() / TOKENS as f64)
}

#[cfg(test)]
mod tests {
    use hawfinch_model::Version;
    use serde_json::json;

    use super::*;
    use crate::testing::changed;

    fn report(value: serde_json::Value) -> Result<Report> {
        let (path, file) = changed("init.json", &|file| file["initial_loss"] = value.clone());
        let mut report = Report::default();
        check(&mut report, &At::whole(&path, &file), &Arc::new(Pool::new(2)))?;
        Ok(report)
    }

    #[test]
    fn a_new_model_begins_where_the_reference_does() {
        let given = report(json!({"v7": "11.21 +- 0.02 for any text"})).unwrap();
        assert!(given.passed() && given.checks[0].error < 0.005, "{given:?}");
        // ln V alone, what a head of another gain gives, is no pass.
        let uniform = report(json!({"v7": "11.09 +- 0.02 for any text"})).unwrap();
        assert!(!uniform.passed() && uniform.checks.len() == 1, "{uniform:?}");
        assert_eq!(report(json!(null)).unwrap().absent.len(), 1);
        for (wrong, words) in [
            (json!({"v7": "about 11"}), "/initial_loss/v7"),
            (json!({"v7": "11.21 +- -1"}), "+- 0.02"),
            (json!({"v7": "NaN +- 0.02"}), "+- 0.02"),
            (json!({"v7": 11.21}), "no text"),
            (json!({"v9": "11.21 +- 0.02"}), "a version that is not known"),
        ] {
            let e = report(wrong).unwrap_err().to_string();
            assert!(e.contains(words), "`{words}` in: {e}");
        }
    }

    /// What is left out, layers and rows of the head, changes nothing that is compared.
    #[test]
    fn the_cheaper_model_has_the_same_loss() {
        let pool = Arc::new(Pool::new(2));
        let sizes = |version, layers, vocab| Sizes {
            version,
            layers,
            width: 256,
            vocab,
            head_size: 64,
            ffn_width: None,
            ranks: None,
        };
        for version in [Version::V4, Version::V6, Version::V7] {
            let whole = sizes(version, 3, 4 * VOCAB);
            let made = cheaper(whole).unwrap();
            assert_eq!((made.layers, made.vocab), (1, VOCAB));
            let (a, b) = (loss(whole, &pool).unwrap(), loss(made, &pool).unwrap() + 4f64.ln());
            assert!((a - b).abs() < 0.003, "{version}: {a} {b}");
            let layers = loss(Sizes { layers: 3, ..made }, &pool).unwrap() + 4f64.ln();
            assert_eq!(layers, b, "{version}");
        }
    }
}

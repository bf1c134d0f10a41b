//! New models beside an `init.json`: numbers that formulas give, and how the random tensors are drawn.

use hawfinch_kernels::{DType, block};
use hawfinch_model::config::Ranks;
use hawfinch_model::names::{self, Param};
use hawfinch_model::verify::Report;
use hawfinch_model::{Config, Version};

use super::given::{At, Compared};
use crate::Result;
use crate::init::{Rule, Sizes, rule};

/// What the folders' README says of the reference's f32 and the closed formula, and so of ours and either, in units of the
/// number where it is above 1: libraries round powers in their own way. Rounded to bf16, as models are saved, nothing may differ.
const TOLERANCE: f64 = 4e-7;
/// Relative, of gains and bounds.
const RELATIVE: f64 = 1e-7;
/// The reference's first learning rate, where embeddings are bounded by it and the file says so in words.
pub(super) const LR_INIT: f64 = 6e-4;

pub(super) fn check(report: &mut Report, file: &At) -> Result<()> {
    let found = compare(file)?;
    let exact = found.f32_differ.len();
    let of = format!("initialisation: numbers of formulas, f32 ({exact} not to the bit)");
    found.f32.report(report, &of, TOLERANCE);
    found.bf16.report(report, "initialisation: numbers of formulas, rounded to bf16", 0.0);
    found.f64.report(report, "initialisation: numbers of formulas, beside f64", TOLERANCE);
    found.sums.report(report, "initialisation: sums of whole tensors, in what rounding allows", 1.0);
    found.drawn.report(report, "initialisation: gains and bounds of what is random, relative", RELATIVE);
    found.rules.report(report, "initialisation: kinds, shapes, norms, ranks", 0.0);
    Ok(())
}

#[derive(Default, Debug)]
struct Found {
    f32: Compared,
    f64: Compared,
    bf16: Compared,
    sums: Compared,
    drawn: Compared,
    rules: Compared,
    /// Where a number is not the reference's f32.
    f32_differ: Vec<String>,
}

fn compare(file: &At) -> Result<Found> {
    let mut found = Found::default();
    let indices: Vec<usize> = file.get("indices")?.counts()?.into_iter().map(|i| i as usize).collect();
    for (name, case) in file.get("versions")?.entries()? {
        let version = version(name, &case)?;
        let sizes = sizes(file, version)?;
        let config = sizes.config()?;
        for (name, layers) in case.get("tensors")?.entries()? {
            let param = of_block(version, name, &layers)?;
            for (layer, want) in layers.entries()? {
                let layer = match layer.parse() {
                    Ok(layer) if layer < config.layers => layer,
                    _ => return want.wrong("no layer of the model"),
                };
                found.formula(&config, layer, param, &indices, &want)?;
            }
        }
        found.random(&config, &case)?;
        for (name, shape) in case.get("shapes")?.entries()? {
            let param = of_block(version, name, &shape)?;
            found.shape(&config, param, &shape)?;
        }
        let one = case.maybe("lora_ranks").map(|want| (sizes.width as u64, want));
        let mut ranks: Vec<_> = one.into_iter().collect();
        if let Some(list) = case.maybe("lora_ranks_for_D") {
            for (width, want) in list.entries()? {
                let Ok(width) = width.parse() else { return want.wrong("a key that is no width") };
                ranks.push((width, want));
            }
        }
        for (width, want) in ranks {
            let got = Ranks::reference(version, width as usize);
            for (key, got) in [("w", got.decay), ("a", got.learn), ("v", got.value), ("g", got.gate)] {
                found.rules.same(|| format!("{}/{key}", want.place), got as u64, want.get(key)?.count()?);
            }
        }
    }
    Ok(found)
}

/// The version that a key names (`v5.2`).
pub(super) fn version(key: &str, at: &At) -> Result<Version> {
    let version = Version::from_number(key.trim_start_matches('v'));
    version.map_or_else(|| at.wrong("a version that is not known"), Ok)
}

/// The sizes of the file's models.
pub(super) fn sizes(file: &At, version: Version) -> Result<Sizes> {
    let size = |key: &str| match file.get(key)?.count()? {
        n if n <= 1 << 24 => Ok(n as usize),
        _ => file.wrong(&format!("a `{key}` that no model has")),
    };
    Ok(Sizes {
        version,
        layers: size("L")?,
        width: size("D")?,
        vocab: size("V")?,
        head_size: size("N")?,
        ffn_width: None,
        ranks: None,
    })
}

fn of_block(version: Version, name: &str, at: &At) -> Result<&'static Param> {
    let param = names::block_params(version).find(|p| p.name == name);
    param.map_or_else(|| at.wrong("a name that no parameter of this version has"), Ok)
}

impl Found {
    /// One tensor of one layer.
    fn formula(
        &mut self,
        config: &Config,
        layer: usize,
        param: &'static Param,
        indices: &[usize],
        want: &At,
    ) -> Result<()> {
        let n: usize = config.shape(param).iter().product();
        let got = match rule(config, layer, param, LR_INIT) {
            Rule::Constant(v) => vec![v; n],
            Rule::Values(v) => v,
            _ => return want.wrong("a tensor that is random here"),
        };
        let to_bf16 = |values: &[f32]| {
            let (mut bytes, mut back) = (Vec::new(), vec![0f32; values.len()]);
            block::encode(DType::BF16, values, &mut bytes);
            block::decode(DType::BF16, &bytes, &mut back);
            back
        };
        let bf16 = to_bf16(&got);
        let lists = ["f32", "bf16", "f64"].map(|key| want.get(key)?.numbers());
        let [want32, want16, want64] = lists;
        let (want32, want16, want64) = (want32?, want16?, want64?);
        if [&want32, &want16, &want64].iter().any(|list| list.len() != indices.len())
            || indices.iter().any(|&i| i >= n)
        {
            return want.wrong("not one number for each of `indices`");
        }
        // (Written with the digits of an f32: rounding undoes what the reader of decimals does.)
        let given32: Vec<f32> = want32.iter().map(|&v| v as f32).collect();
        let given16 = to_bf16(&given32);
        for (k, &i) in indices.iter().enumerate() {
            let place = |key: &str| format!("{}/{key}/{k}", want.place);
            // An f32 is rounded in proportion to its size.
            let size = |v: f64| v.abs().max(1.0);
            self.f32.near(|| place("f32"), got[i].into(), want32[k], size(want32[k]));
            self.f64.near(|| place("f64"), got[i].into(), want64[k], size(want64[k]));
            let exact = got[i] == given32[k];
            if !exact {
                self.f32_differ.push(place("f32"));
            }
            // A number beside the reference's by a rounding may be rounded once more to the other side; the file's own
            // two numbers must agree then.
            let near = !exact && f64::from((got[i] - given32[k]).abs()) <= TOLERANCE * size(want32[k]);
            let rounded = if near { given16[k] } else { bf16[i] };
            let got = if bf16[i] == want16[k] as f32 { bf16[i] } else { rounded };
            self.bf16.same(|| place("bf16"), got, want16[k] as f32);
        }
        let largest = got.iter().fold(0.5f64, |m, v| m.max(f64::from(v.abs())));
        let sum: f64 = got.iter().map(|&v| f64::from(v)).sum();
        let squares: f64 = got.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
        // Errors of single numbers have no common sign.
        let scale = TOLERANCE * (n as f64).sqrt();
        for (key, got, scale) in [("sum", sum, scale), ("sumsq", squares, scale * 2.0 * largest)] {
            let want = want.get(key)?;
            self.sums.near(|| want.place.clone(), got, want.number()?, scale);
        }
        Ok(())
    }

    fn shape(&mut self, config: &Config, param: &'static Param, want: &At) -> Result<()> {
        let text = |shape: &[u64]| shape.iter().map(u64::to_string).collect::<Vec<_>>().join(" × ");
        let got: Vec<u64> = config.shape(param).iter().map(|&d| d as u64).collect();
        self.rules.same(|| want.place.clone(), text(&got), text(&want.counts()?));
        Ok(())
    }

    /// Tensors that are drawn or zero, and norms.
    fn random(&mut self, config: &Config, case: &At) -> Result<()> {
        let random = case.get("random")?;
        let formulas = case.get("tensors")?;
        for (name, at) in random.entries()? {
            if !names::all_params(config.version, 1).iter().any(|(_, p)| p.name == name) {
                return at.wrong("a name that no parameter of this version has");
            }
        }
        // Layer 1, or the only one.
        let layer = usize::from(config.layers > 1);
        for (key, param) in names::all_params(config.version, 1) {
            let got = rule(config, layer, param, LR_INIT);
            let Some(want) = random.maybe(param.name) else {
                if formulas.maybe(param.name).is_none() {
                    // The folders' README: norms begin with weight 1 and bias 0 where nothing else is said.
                    let norm = param.name.contains("ln");
                    let plain = if param.name.ends_with("weight") { 1.0 } else { 0.0 };
                    let is = norm && got == Rule::Constant(plain);
                    let named = |is: bool| if is { "weight 1 or bias 0" } else { "no value that is given" };
                    self.rules.same(|| format!("{} {key}", case.place), named(is), named(true));
                }
                continue;
            };
            if let Some(shape) = want.maybe("shape") {
                self.shape(config, param, &shape)?;
            }
            let kind = want.get("kind")?;
            let is = match got {
                Rule::Constant(0.0) => "zeros",
                Rule::Uniform { .. } => "uniform",
                Rule::Orthogonal { .. } => "orthogonal",
                _ => "a formula",
            };
            self.rules.same(|| kind.place.clone(), is, kind.text()?);
            match got {
                Rule::Orthogonal { gain } if kind.value == is => {
                    let want = want.get("gain")?;
                    self.relative(&want, gain, want.number()?);
                }
                Rule::Uniform { bound } if kind.value == is => {
                    let bound = f64::from(bound);
                    for (key, sign) in [("low", -1.0), ("high", 1.0)] {
                        let want = want.get(key)?;
                        let number = match want.value.as_str() {
                            Some("lr_init" | "-lr_init") => sign * LR_INIT,
                            _ => want.number()?,
                        };
                        self.relative(&want, sign * bound, number);
                    }
                    if let Some(want) = want.maybe("std") {
                        self.relative(&want, bound / 3f64.sqrt(), want.number()?);
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn relative(&mut self, at: &At, got: f64, want: f64) {
        self.drawn.near(|| at.place.clone(), got, want, want.abs());
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{Change, changed};

    fn found(change: Change) -> Found {
        let (path, value) = changed("init.json", change);
        compare(&At::whole(&path, &value)).unwrap()
    }

    /// Every number to the bit but powers that PyTorch's library rounds the wrong way: (1/768)^(1/12) is 0.574848266 and
    /// the f32 nearest to it 0.574848294; the reference has 0.574848235, wherever it takes this power. Rounded to bf16,
    /// as models are saved, there is no difference.
    #[test]
    fn formulas_give_the_references_numbers() {
        let found = found(&|_| ());
        assert!(found.f32.values > 800, "{}", found.f32.values);
        assert_eq!(found.f32_differ.len(), 12, "{:#?}", found.f32_differ);
        assert!(found.f32_differ.iter().all(|place| place.ends_with("/11/f32/1")), "{:#?}", found.f32_differ);
        assert!(found.f32.error < 6.1e-8 && found.f64.error <= TOLERANCE, "{found:?}");
        assert_eq!((found.bf16.error, found.rules.error), (0.0, 0.0), "{found:?}");
        // A few of 768 numbers differ by 2^-24: what is allowed is far more than there is.
        assert!(found.sums.values > 200 && found.sums.error < 0.1, "{found:?}");
        assert!(found.drawn.values > 30 && found.drawn.error < RELATIVE, "{found:?}");
    }

    #[test]
    fn what_is_wrong_is_seen() {
        let wrong: [Change; 3] = [
            // The next layer, a model of one more, other heads.
            &|file| {
                let layers = file["versions"]["v6"]["tensors"]["att.time_maa_k"].as_object_mut().unwrap();
                let five = layers.remove("5").unwrap();
                layers.insert("6".into(), five);
            },
            &|file| file["L"] = 13.into(),
            &|file| file["N"] = 32.into(),
        ];
        for (i, change) in wrong.into_iter().enumerate() {
            let found = found(change);
            let all = [found.f32.error > TOLERANCE, found.bf16.error > 0.0, found.sums.error > 1.0];
            assert_eq!(all, [true; 3], "{i}: {found:?}");
        }
    }

    /// One number of each kind changed.
    #[test]
    fn every_number_counts() {
        let v7 = "/versions/v7";
        for (place, new) in [
            ("tensors/att.w0/5/f32/3", json!(-2.93148)),
            ("tensors/att.w0/5/f64/3", json!(-2.93148)),
            ("tensors/att.w0/5/bf16/3", json!(-2.921875)),
            ("tensors/att.w0/5/sum", json!(-2571.1557)),
            ("tensors/att.w0/5/sumsq", json!(12368.7436)),
            ("random/att.w2/gain", json!(0.1001)),
            ("random/emb.weight/low", json!(-0.00011)),
            ("random/emb.weight/high", json!(0.00011)),
            ("random/emb.weight/std", json!(5.77e-5)),
            ("random/att.w1/kind", json!("orthogonal")),
            ("random/head.weight/shape/0", json!(65_535)),
            ("shapes/att.w1/1", json!(63)),
            ("lora_ranks/g", json!(96)),
            ("lora_ranks_for_D/2560/v", json!(64)),
        ] {
            let found =
                found(&|file| *file.pointer_mut(&format!("{v7}/{place}")).expect(place) = new.clone());
            let wrong = [
                found.f32.error > TOLERANCE,
                found.f64.error > TOLERANCE,
                found.bf16.error > 0.0,
                found.sums.error > 1.0,
                found.drawn.error > RELATIVE,
                found.rules.error > 0.0,
            ];
            assert_eq!(wrong.iter().filter(|w| **w).count(), 1, "{place}: {wrong:?}");
        }
    }
}

//! Which learning rate and which weight decay each parameter gets: the references' groups, as lists of rules.
//!
//! Source: the training spec, section 2, from `configure_optimizers` of RWKV-v4neo (v4, v5.0, v5.1),
//! RWKV-v5 (v5.2, v6) and RWKV-v7/train_temp (v7). A tensor belongs to the first rule that fits it, so their order
//! matters: `time_decay_w1` is a low-rank matrix before it is a decay.

use std::collections::BTreeMap;
use std::fmt::Write;

use hawfinch_model::Version;
use serde::{Deserialize, Serialize};

/// Whether some tensors learn faster than others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layerwise {
    /// Decays twice, v4's and v5.0's bonus three times as fast: the reference's `--layerwise_lr 1`.
    #[default]
    On,
    /// Decays, bonuses and token-shift mixes five times as fast: the reference's `--layerwise_lr 1 --my_pile_stage 2`.
    /// v7 has no such stage; for it this is [`Layerwise::On`].
    Stage2,
    /// Everything at one rate: `--layerwise_lr 0`. Weight decay goes by the same rules.
    Off,
}

/// How the tensors of a group are updated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Group {
    /// The schedule's learning rate is multiplied by this.
    pub rate: f64,
    /// Whether weight decay, if there is any, applies.
    pub decays: bool,
}

/// What a rule asks of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fits {
    /// Its name contains this.
    Named(&'static str),
    /// At least two axes are longer than 1.
    Matrix,
    /// The same, and its name contains `.weight`: linear weights, embedding and head, but no low-rank matrix, no
    /// per-head vector.
    Weight,
    /// Nothing.
    Any,
}

/// One rule: the group of the tensors that it is the first to fit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rule {
    /// Which tensors.
    pub fits: Fits,
    /// Factor of the learning rate, with [`Layerwise::On`].
    pub rate: f64,
    /// The same with [`Layerwise::Stage2`].
    pub stage_2: f64,
    /// Whether weight decay applies.
    pub decays: bool,
    /// The rule exists for its learning rate and is passed over with [`Layerwise::Off`].
    pub layerwise: bool,
}

const fn faster(name: &'static str, rate: f64, stage_2: f64) -> Rule {
    Rule { fits: Fits::Named(name), rate, stage_2, decays: false, layerwise: true }
}

const fn plain(fits: Fits, decays: bool) -> Rule {
    Rule { fits, rate: 1.0, stage_2: 1.0, decays, layerwise: false }
}

const V4: &[Rule] = &[
    faster("time_mix", 1.0, 5.0),
    faster("time_decay", 2.0, 5.0),
    faster("time_faaaa", 1.0, 5.0),
    faster("time_first", 3.0, 5.0),
    plain(Fits::Matrix, true),
    plain(Fits::Any, false),
];

const V6: &[Rule] = &[
    faster("_w1", 1.0, 1.0),
    faster("_w2", 1.0, 1.0),
    // Tuned states; the reference trains nothing else beside them.
    plain(Fits::Named("time_sta"), true),
    faster("time_mix", 1.0, 5.0),
    faster("time_maa", 1.0, 5.0),
    faster("time_decay", 2.0, 5.0),
    faster("time_faaaa", 1.0, 5.0),
    faster("time_first", 3.0, 5.0),
    plain(Fits::Weight, true),
    plain(Fits::Any, false),
];

const V7: &[Rule] = &[faster("att.w0", 2.0, 2.0), plain(Fits::Weight, true), plain(Fits::Any, false)];

/// Ours: weight decay as in v7.
const ATTENTION: &[Rule] = &[plain(Fits::Weight, true), plain(Fits::Any, false)];

/// The rules of a version, in order; the last fits everything.
pub fn rules(version: Version) -> &'static [Rule] {
    match version {
        Version::V4 | Version::V5_0 | Version::V5_1 => V4,
        Version::V5_2 | Version::V6 => V6,
        Version::V7 => V7,
        Version::Attention => ATTENTION,
    }
}

impl Rule {
    fn fits(&self, name: &str, shape: &[usize]) -> bool {
        let matrix = || shape.iter().filter(|&&d| d != 1).count() >= 2;
        match self.fits {
            Fits::Named(part) => name.contains(part),
            Fits::Matrix => matrix(),
            Fits::Weight => matrix() && name.contains(".weight"),
            Fits::Any => true,
        }
    }
}

/// The group of a tensor by its version's [`rules`]: `name` as in official checkpoints (`blocks.0.att.key.weight`),
/// with its shape.
pub fn group(version: Version, layerwise: Layerwise, name: &str, shape: &[usize]) -> Group {
    group_by(rules(version), layerwise, name, shape)
}

/// The group of a tensor by any rules. What none fits learns at the plain rate, without decay.
pub fn group_by(rules: &[Rule], layerwise: Layerwise, name: &str, shape: &[usize]) -> Group {
    let skip = |rule: &&Rule| !(rule.layerwise && layerwise == Layerwise::Off);
    let rule = rules.iter().filter(skip).find(|rule| rule.fits(name, shape));
    rule.map_or(Group { rate: 1.0, decays: false }, |rule| Group {
        rate: if layerwise == Layerwise::Stage2 { rule.stage_2 } else { rule.rate },
        decays: rule.decays,
    })
}

/// The groups of a model as a table to read: a line a group with its factor, whether it decays, its numbers, and its
/// tensors, those of all blocks as `blocks.*`. `tensors` are names and shapes.
pub fn table<'a>(
    version: Version,
    layerwise: Layerwise,
    tensors: impl IntoIterator<Item = (&'a str, &'a [usize])>,
) -> String {
    struct Line {
        names: Vec<String>,
        tensors: usize,
        numbers: u64,
    }
    // Factors are small whole numbers: their order is that of their bits.
    let mut lines: BTreeMap<(bool, u64), Line> = BTreeMap::new();
    for (name, shape) in tensors {
        let Group { rate, decays } = group(version, layerwise, name, shape);
        let short = match hawfinch_model::names::split_block(name) {
            Some((_, rest)) => format!("blocks.*.{rest}"),
            None => name.to_owned(),
        };
        let line = lines.entry((!decays, rate.to_bits())).or_insert(Line {
            names: Vec::new(),
            tensors: 0,
            numbers: 0,
        });
        line.tensors += 1;
        line.numbers += shape.iter().map(|&d| d as u64).product::<u64>();
        if !line.names.contains(&short) {
            line.names.push(short);
        }
    }
    let mut out = String::from("rate  decays  tensors       numbers  names\n");
    for ((no_decay, rate), line) in lines {
        let decays = if no_decay { "no" } else { "yes" };
        let rate = format!("×{}", f64::from_bits(rate));
        let names = line.names.join(", ");
        let _ = writeln!(out, "{rate:<4}  {decays:<6}  {:>7}  {:>12}  {names}", line.tensors, line.numbers);
    }
    out
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::testing;

    /// What one version's `meta.json` says: factor and decay of each tensor.
    fn expected(meta: &serde_json::Value) -> Vec<(String, Group)> {
        let mut out = Vec::new();
        for (title, names) in meta["optimizer"]["groups"].as_object().unwrap() {
            let (rate, decay) = title.strip_prefix("lr x").unwrap().split_once(", wd ").unwrap();
            let group = Group { rate: rate.parse().unwrap(), decays: decay != "0" };
            out.extend(names.as_array().unwrap().iter().map(|n| (n.as_str().unwrap().to_owned(), group)));
        }
        out
    }

    /// Names that a list of rules puts elsewhere than the parity folder says; those of the model file that it does
    /// not name at all are among them.
    fn misplaced(rules: &[Rule], case: &str) -> Option<Vec<String>> {
        let dir = testing::parity(case)?;
        let meta = std::fs::read(dir.join("meta.json")).unwrap();
        let want = expected(&serde_json::from_slice(&meta).unwrap());
        let model = hawfinch_model::format::open(&dir.join("model.pth")).unwrap();
        let all: BTreeSet<&str> = model.tensors.keys().map(String::as_str).collect();
        assert_eq!(all, want.iter().map(|(name, _)| name.as_str()).collect(), "{case}");
        let wrong = |(name, group): &&(String, Group)| {
            group_by(rules, Layerwise::On, name, &model.tensors[name].shape) != *group
        };
        Some(want.iter().filter(wrong).map(|(name, _)| name.clone()).collect())
    }

    const CASES: [(&str, Version); 10] = [
        ("M/v4", Version::V4),
        ("M/v50", Version::V5_0),
        ("M/v51", Version::V5_1),
        ("M/v52", Version::V5_2),
        ("M/v6", Version::V6),
        ("M/v7", Version::V7),
        ("A/v51", Version::V5_1),
        ("A/v52", Version::V5_2),
        ("A/v6", Version::V6),
        ("A/v7", Version::V7),
    ];

    #[test]
    fn every_tensor_of_the_parity_models_is_in_its_group() {
        for (case, version) in CASES {
            let Some(wrong) = misplaced(rules(version), case) else { continue };
            assert_eq!(wrong, [""; 0], "{case}");
        }
    }

    /// The comparison above sees each kind of mistake that trainers have made.
    #[test]
    fn wrong_rules_are_seen() {
        let edit = |version: Version, change: &dyn Fn(&mut Vec<Rule>)| {
            let mut rules = rules(version).to_vec();
            change(&mut rules);
            rules
        };
        // Decaying every matrix of v7: its low-rank ones too.
        let all_matrices = edit(Version::V7, &|r| r[1].fits = Fits::Matrix);
        let wrong = misplaced(&all_matrices, "M/v7").unwrap();
        assert!(wrong.iter().any(|n| n == "blocks.0.att.w1") && wrong.iter().any(|n| n == "blocks.1.att.g2"));
        if let Some(wrong) = misplaced(&all_matrices, "A/v7") {
            assert!(wrong.iter().any(|n| n == "blocks.2.att.r_k"));
        }
        // No decay at all; no faster decays of v7.
        let none = edit(Version::V7, &|r| r[1].decays = false);
        assert!(misplaced(&none, "M/v7").unwrap().contains(&"emb.weight".to_owned()));
        let slow = edit(Version::V7, &|r| _ = r.remove(0));
        assert_eq!(misplaced(&slow, "M/v7").unwrap(), ["blocks.0.att.w0", "blocks.1.att.w0"]);
        // The low-rank parts of v6's decay are no decays.
        let order = edit(Version::V6, &|r| r.rotate_left(2));
        assert!(misplaced(&order, "M/v6").unwrap().contains(&"blocks.0.att.time_decay_w1".to_owned()));
        // Another version's rules.
        assert_eq!(misplaced(V6, "M/v4").unwrap(), [""; 0], "v4 has nothing that the two tell apart");
        assert!(!misplaced(V7, "M/v4").unwrap().is_empty());
        assert!(!misplaced(V4, "M/v6").unwrap().is_empty());
    }

    #[test]
    fn the_second_stage_and_one_rate_for_all() {
        let at = |version, layerwise, name: &str, shape: &[usize]| {
            let Group { rate, decays } = group(version, layerwise, name, shape);
            (rate, decays)
        };
        use Layerwise::{Off, On, Stage2};
        for (version, name, shape, on, stage_2) in [
            (Version::V4, "blocks.1.att.time_mix_k", &[1, 1, 8][..], 1.0, 5.0),
            (Version::V4, "blocks.1.ffn.time_mix_r", &[1, 1, 8], 1.0, 5.0),
            (Version::V4, "blocks.1.att.time_decay", &[8], 2.0, 5.0),
            (Version::V4, "blocks.1.att.time_first", &[8], 3.0, 5.0),
            (Version::V5_0, "blocks.1.att.time_faaaa", &[2], 1.0, 5.0),
            (Version::V4, "blocks.1.ln1.weight", &[8], 1.0, 1.0),
            (Version::V5_2, "blocks.1.att.time_faaaa", &[2, 4], 1.0, 5.0),
            (Version::V6, "blocks.1.att.time_maa_w1", &[8, 5], 1.0, 1.0),
            (Version::V6, "blocks.1.att.time_decay_w2", &[3, 8], 1.0, 1.0),
            (Version::V6, "blocks.1.att.time_maa_x", &[1, 1, 8], 1.0, 5.0),
            (Version::V6, "blocks.1.att.time_decay", &[1, 1, 8], 2.0, 5.0),
            (Version::V7, "blocks.1.att.w0", &[1, 1, 8], 2.0, 2.0),
            (Version::V7, "blocks.1.att.w1", &[8, 4], 1.0, 1.0),
            (Version::V7, "blocks.1.att.r_k", &[2, 4], 1.0, 1.0),
        ] {
            assert_eq!(at(version, On, name, shape), (on, false), "{name}");
            assert_eq!(at(version, Stage2, name, shape), (stage_2, false), "{name}");
            assert_eq!(at(version, Off, name, shape), (1.0, false), "{name}");
        }
        for version in [Version::V4, Version::V5_1, Version::V5_2, Version::V6, Version::V7] {
            for layerwise in [On, Stage2, Off] {
                for name in ["emb.weight", "head.weight", "blocks.3.ffn.value.weight"] {
                    assert_eq!(at(version, layerwise, name, &[16, 8]), (1.0, true), "{version} {name}");
                }
            }
        }
        assert_eq!(at(Version::V6, On, "blocks.0.att.time_state", &[2, 4, 4]), (1.0, true));
    }

    #[test]
    fn the_table_names_what_is_in_each_group() {
        let tensors: [(&str, &[usize]); 6] = [
            ("emb.weight", &[50, 8]),
            ("blocks.0.att.w0", &[1, 1, 8]),
            ("blocks.0.att.key.weight", &[8, 8]),
            ("blocks.1.att.w0", &[1, 1, 8]),
            ("blocks.1.att.key.weight", &[8, 8]),
            ("blocks.1.att.w1", &[8, 4]),
        ];
        let got = table(Version::V7, Layerwise::On, tensors);
        let want = "\
rate  decays  tensors       numbers  names
×1    yes           3           528  emb.weight, blocks.*.att.key.weight
×1    no            1            32  blocks.*.att.w1
×2    no            2            16  blocks.*.att.w0
";
        assert_eq!(got, want);
    }
}

//! What rounding each kind of parameter would cost, those too that are never quantised: the evidence for which
//! stay wide.

use std::fmt::Write;

use hawfinch_kernels::DType;
use hawfinch_model::names::Role;
use hawfinch_model::quantize::quality::Reference;
use hawfinch_model::quantize::rounding::as_if;
use hawfinch_model::quantize::weights::{Kind, kinds};
use hawfinch_model::{Cpu, Model};
use serde_json::{Value, json};

use crate::progress::Progress;

/// A kind of parameter, and the KL of all its tensors rounded at once.
pub struct Row {
    kind: Kind,
    /// Share of the model's parameters.
    share: f64,
    /// KL in nats as if in Q4_0 and Q8_0; `None` where no tensor has whole blocks.
    kl: [Option<f64>; 2],
}

/// Rounds every kind of parameter in turn, all layers at once, activations as they are.
pub fn evidence(model: &Model, reference: &Reference<'_, '_, Cpu>) -> anyhow::Result<Vec<Row>> {
    let kinds = kinds(model.checkpoint(), model.config());
    let all: u64 = kinds.iter().map(|k| k.numbers).sum();
    let mut bar = Progress::count("measuring kinds", 2 * kinds.len() as u64);
    let mut rows = Vec::new();
    for kind in kinds {
        let mut kl = [None; 2];
        for (kl, dtype) in kl.iter_mut().zip([DType::Q4_0, DType::Q8_0]) {
            let rounded = |name: &str| model.checkpoint().get(name).and_then(|t| as_if(t, dtype));
            let names: Vec<&str> =
                kind.tensors.iter().map(|n| &**n).filter(|n| rounded(n).is_some()).collect();
            if !names.is_empty() {
                let mut make = |name: &str| Ok(rounded(name).expect("was made before"));
                *kl = Some(reference.compare(model.ops().pool(), &names, &mut make)?.kl);
            }
            bar.add(1);
        }
        rows.push(Row { share: kind.numbers as f64 / all.max(1) as f64, kind, kl });
    }
    rows.sort_by(|a, b| b.kl[0].unwrap_or(0.0).total_cmp(&a.kl[0].unwrap_or(0.0)));
    Ok(rows)
}

fn role(role: Role) -> &'static str {
    match role {
        Role::Matrix => "matrix",
        Role::LowRank => "low-rank",
        Role::Vector => "vector",
    }
}

/// A table for people.
pub fn text(rows: &[Row]) -> String {
    let mut out =
        String::from("parameter              role      tensors   share  KL in 4 bits  KL in 8 bits\n");
    for r in rows {
        let kl = |kl: Option<f64>| kl.map_or("no blocks".into(), |kl| format!("{kl:.1e}"));
        let _ = writeln!(
            out,
            "{:<22} {:<9} {:>7} {:>6.2}% {:>13} {:>13}",
            r.kind.name,
            role(r.kind.role),
            r.kind.tensors.len(),
            100.0 * r.share,
            kl(r.kl[0]),
            kl(r.kl[1])
        );
    }
    out
}

/// The same for programs.
pub fn json(rows: &[Row]) -> Value {
    let row = |r: &Row| {
        json!({
            "parameter": r.kind.name,
            "role": role(r.kind.role),
            "tensors": r.kind.tensors.len(),
            "share": r.share,
            "kl_4_bits": r.kl[0],
            "kl_8_bits": r.kl[1],
        })
    };
    rows.iter().map(row).collect()
}

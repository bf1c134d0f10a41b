//! The attention baseline against its equations written out in f64, number by number.

use std::sync::Arc;

use hawfinch_kernels::cross_entropy::Targets;
use hawfinch_kernels::gemm::Precision;
use hawfinch_kernels::{DType, Isa, Pool};
use hawfinch_model::cpu::Cpu;
use hawfinch_model::{Checkpoint, Model, OpenOptions, Trace, Version, synthetic};
use hawfinch_train::{Learner, Lesson};

type Rows = Vec<Vec<f64>>;

/// A model of the checkpoint's tensors.
struct Naive<'a> {
    tensors: &'a Checkpoint,
    heads: usize,
}

impl Naive<'_> {
    fn values(&self, name: &str) -> Vec<f64> {
        self.tensors.get(name).unwrap().to_f64()
    }

    fn linear(&self, x: &Rows, name: &str) -> Rows {
        let w = self.values(name);
        let row = |x: &Vec<f64>| -> Vec<f64> {
            w.chunks(x.len()).map(|w| w.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
        };
        x.iter().map(row).collect()
    }

    fn norm(&self, x: &Rows, name: &str) -> Rows {
        let (weight, bias) = (self.values(&format!("{name}.weight")), self.values(&format!("{name}.bias")));
        let row = |x: &Vec<f64>| -> Vec<f64> {
            let mean = x.iter().sum::<f64>() / x.len() as f64;
            let variance = x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / x.len() as f64;
            let each = x.iter().zip(weight.iter().zip(&bias));
            each.map(|(v, (w, b))| (v - mean) / (variance + 1e-5).sqrt() * w + b).collect()
        };
        x.iter().map(row).collect()
    }

    /// Unit length a head, scaled, turned by the position: [token][head][channel].
    fn turned(&self, x: &Rows, scale: &str) -> Vec<Rows> {
        let scale = self.values(scale);
        let n = scale.len() / self.heads;
        let head = |t: usize, x: &[f64], scale: &[f64]| -> Vec<f64> {
            let length = x.iter().map(|v| v * v).sum::<f64>().sqrt();
            let unit: Vec<f64> = x.iter().zip(scale).map(|(x, s)| x / length * s).collect();
            let angle = |i: usize| t as f64 / 10_000f64.powf(2.0 * (i % (n / 2)) as f64 / n as f64);
            let other = |i: usize| if i < n / 2 { -unit[i + n / 2] } else { unit[i - n / 2] };
            (0..n).map(|i| unit[i] * angle(i).cos() + other(i) * angle(i).sin()).collect()
        };
        let heads = |(t, x): (usize, &Vec<f64>)| {
            x.chunks(n).zip(scale.chunks(n)).map(|(x, scale)| head(t, x, scale)).collect()
        };
        x.iter().enumerate().map(heads).collect()
    }

    fn losses(&self, layers: usize, tokens: &[u32], targets: &[u32]) -> Vec<f64> {
        let table = self.values("emb.weight");
        let d = self.values("ln_out.weight").len();
        let rows = tokens.iter().map(|&id| table[id as usize * d..][..d].to_vec()).collect();
        let mut x = self.norm(&rows, "blocks.0.ln0");
        for l in 0..layers {
            let name = |rest: &str| format!("blocks.{l}.{rest}");
            let normal = self.norm(&x, &name("ln1"));
            let q = self.turned(&self.linear(&normal, &name("att.query.weight")), &name("att.q_scale"));
            let k = self.turned(&self.linear(&normal, &name("att.key.weight")), &name("att.k_scale"));
            let v = self.linear(&normal, &name("att.value.weight"));
            let n = q[0][0].len();
            let mut y = vec![vec![0.0; self.heads * n]; tokens.len()];
            for t in 0..tokens.len() {
                for h in 0..self.heads {
                    let dot = |j: usize| q[t][h].iter().zip(&k[j][h]).map(|(q, k)| q * k).sum::<f64>();
                    let weights: Vec<f64> = (0..=t).map(|j| (dot(j) * (n as f64).sqrt()).exp()).collect();
                    let sum: f64 = weights.iter().sum();
                    for (j, w) in weights.iter().enumerate() {
                        for i in h * n..(h + 1) * n {
                            y[t][i] += w / sum * v[j][i];
                        }
                    }
                }
            }
            add(&mut x, &self.linear(&y, &name("att.output.weight")));
            let normal = self.norm(&x, &name("ln2"));
            let gate = self.linear(&normal, &name("ffn.gate.weight"));
            let mut inner = self.linear(&normal, &name("ffn.key.weight"));
            for (k, g) in inner.iter_mut().flatten().zip(gate.iter().flatten()) {
                *k *= g / (1.0 + (-g).exp());
            }
            add(&mut x, &self.linear(&inner, &name("ffn.value.weight")));
        }
        let logits = self.linear(&self.norm(&x, "ln_out"), "head.weight");
        let loss = |(logits, &id): (&Vec<f64>, &u32)| {
            logits.iter().map(|v| v.exp()).sum::<f64>().ln() - logits[id as usize]
        };
        logits.iter().zip(targets).map(loss).collect()
    }
}

fn add(x: &mut Rows, y: &Rows) {
    x.iter_mut().flatten().zip(y.iter().flatten()).for_each(|(x, y)| *x += y);
}

#[test]
fn losses_are_those_of_the_equations() {
    let shape =
        synthetic::Shape { version: Version::Attention, layers: 2, width: 24, vocab: 30, head_size: 6 };
    let tensors = synthetic::checkpoint(&shape.config(), DType::F64, 5);
    let naive = Naive { tensors: &tensors, heads: 4 };
    let ids = |len: usize, seed: usize| -> Vec<u32> {
        (0..len).map(|n| ((n * n + 7 * n + seed) % 30) as u32).collect()
    };
    let (tokens, targets) = (ids(53, 1), ids(53, 8));
    // Two sequences, of which neither sees the other.
    let lengths = [40, 13];
    let want =
        [naive.losses(2, &tokens[..40], &targets[..40]), naive.losses(2, &tokens[40..], &targets[40..])]
            .concat();
    let cpu = || Cpu::<f64>::with(Arc::new(Pool::new(2)), Isa::best());
    let learner = Learner::new(&tensors, cpu(), Precision::Full).unwrap();
    let given = Targets { ids: &targets, weights: &[1.0; 53], l2wrap: 0.0 };
    let lesson = Lesson { lengths: &lengths, tokens: &tokens, targets: given, initial: None, d_last: None };
    let apart = |got: &[f64]| got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    let got = learner.evaluate(&lesson).unwrap().losses.each;
    assert!(apart(&got) < 1e-11, "on the tape: {}", apart(&got));
    // The same operations without the tape, in f64; logits come as f32.
    let model = Model::from_checkpoint(tensors.clone(), OpenOptions::default(), cpu()).unwrap();
    let trace = Trace::new(&model, &[&tokens[..40], &tokens[40..]]).unwrap();
    let mut got = Vec::new();
    let mut take = |_: usize, logits: &[f32]| {
        for row in logits.chunks(30) {
            let id = targets[got.len()] as usize;
            got.push(row.iter().map(|v| f64::from(*v).exp()).sum::<f64>().ln() - f64::from(row[id]));
        }
    };
    trace.logits(&[], &mut |_| unreachable!("nothing is changed"), &mut take).unwrap();
    assert!(got.len() == 53 && apart(&got) < 1e-6, "run on the CPU: {}", apart(&got));
}

//! RWKV-7, Goose (spec section 5): the state is edited by a delta rule with a learning rate of its own
//! for every channel.

use hawfinch_kernels::elementwise::{Binary, Unary};

use super::{Block, Linear, Loader, Step};
use crate::Result;
use crate::ops::{Norm, Ops};

/// `bias + f(x @ a) @ b`
struct LowRank<O: Ops> {
    bias: O::Tensor,
    a: O::Matrix,
    b: O::Matrix,
}

pub(super) struct V7<O: Ops> {
    heads: usize,
    x_r: O::Tensor,
    x_w: O::Tensor,
    x_k: O::Tensor,
    x_v: O::Tensor,
    x_a: O::Tensor,
    x_g: O::Tensor,
    w: LowRank<O>,
    a: LowRank<O>,
    /// Not in layer 0.
    v: Option<LowRank<O>>,
    g1: O::Matrix,
    g2: O::Matrix,
    k_k: O::Tensor,
    k_a: O::Tensor,
    r_k: O::Tensor,
    receptance: Linear<O>,
    key: Linear<O>,
    value: Linear<O>,
    output: Linear<O>,
    ln_x: Norm<O::Tensor>,
    ffn_x_k: O::Tensor,
    ffn_key: Linear<O>,
    ffn_value: Linear<O>,
}

impl<O: Ops> V7<O> {
    pub fn load(load: &Loader<'_, O>, layer: usize) -> Result<Self> {
        let att = |name: &str| format!("blocks.{layer}.att.{name}");
        let ffn = |name: &str| format!("blocks.{layer}.ffn.{name}");
        let low_rank = |z: &str| -> Result<LowRank<O>> {
            Ok(LowRank {
                bias: load.vector(&att(&format!("{z}0")))?,
                a: load.low_rank(&att(&format!("{z}1")))?,
                b: load.low_rank(&att(&format!("{z}2")))?,
            })
        };
        Ok(V7 {
            heads: load.config.heads,
            x_r: load.vector(&att("x_r"))?,
            x_w: load.vector(&att("x_w"))?,
            x_k: load.vector(&att("x_k"))?,
            x_v: load.vector(&att("x_v"))?,
            x_a: load.vector(&att("x_a"))?,
            x_g: load.vector(&att("x_g"))?,
            w: low_rank("w")?,
            a: low_rank("a")?,
            v: if layer == 0 { None } else { Some(low_rank("v")?) },
            g1: load.low_rank(&att("g1"))?,
            g2: load.low_rank(&att("g2"))?,
            k_k: load.vector(&att("k_k"))?,
            k_a: load.vector(&att("k_a"))?,
            r_k: load.vector(&att("r_k"))?,
            receptance: load.linear(&att("receptance.weight"))?,
            key: load.linear(&att("key.weight"))?,
            value: load.linear(&att("value.weight"))?,
            output: load.linear(&att("output.weight"))?,
            ln_x: load.group_norm(&att("ln_x"))?,
            ffn_x_k: load.vector(&ffn("x_k"))?,
            ffn_key: load.linear(&ffn("key.weight"))?,
            ffn_value: load.linear_after_relu(&ffn("value.weight"))?,
        })
    }
}

impl<O: Ops> Block<O> for V7<O> {
    fn time_mix(&self, o: &O, layer: usize, x: &O::Tensor, step: &mut Step<'_, '_, O>) -> O::Tensor {
        let last = o.token_shift(x, step.batch, layer, "att_x");
        let mix = |weight| o.lerp(x, &last, weight);
        let add_low_rank = |m: &O::Tensor, p: &LowRank<O>| o.binary(Binary::Add, &o.linear(m, &p.b), &p.bias);

        let r = self.receptance.forward(o, &mix(&self.x_r));
        let k = self.key.forward(o, &mix(&self.x_k));
        let x_v = mix(&self.x_v);
        let mut v = self.value.forward(o, &x_v);
        let om = add_low_rank(&o.unary(Unary::Tanh, &o.linear(&mix(&self.x_w), &self.w.a)), &self.w);
        let a = o.unary(Unary::Sigmoid, &add_low_rank(&o.linear(&mix(&self.x_a), &self.a.a), &self.a));
        let g = o.linear(&o.unary(Unary::Sigmoid, &o.linear(&mix(&self.x_g), &self.g1)), &self.g2);

        match (&self.v, &step.v_first) {
            (Some(p), Some(first)) => {
                let weight = o.unary(Unary::Sigmoid, &add_low_rank(&o.linear(&x_v, &p.a), p));
                v = o.lerp(&v, first, &weight);
            }
            _ => step.v_first = Some(v.clone()),
        }

        let kk = o.normalize_heads(&o.binary(Binary::Mul, &k, &self.k_k), self.heads);
        let k = o.scale_key(&k, &a, &self.k_a);
        let y = o.wkv7([&r, &k, &v], &om, &kk, &a, step.batch, layer);
        let y = o.group_norm(&y, &self.ln_x, self.heads);
        let y = o.bonus(&y, [&r, &k, &v], &self.r_k, self.heads);
        self.output.forward(o, &o.binary(Binary::Mul, &y, &g))
    }

    fn channel_mix(&self, o: &O, layer: usize, x: &O::Tensor, step: &mut Step<'_, '_, O>) -> O::Tensor {
        let last = o.token_shift(x, step.batch, layer, "ffn_x");
        let k = self.ffn_key.forward(o, &o.lerp(x, &last, &self.ffn_x_k));
        self.ffn_value.forward(o, &o.unary(Unary::ReluSquared, &k))
    }
}

//! RWKV-7, Goose (spec section 5): the state is edited by a delta rule with a learning rate of its own
//! for every channel.

use hawfinch_kernels::elementwise::{Binary, Toward, Unary};

use super::{Block, Input, Linear, Loader, Step};
use crate::Result;
use crate::ops::{Norm, Ops, Then};

/// `bias + f(x @ a) @ b`
struct LowRank<O: Ops> {
    bias: O::Tensor,
    a: Linear<O>,
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
    g1: Linear<O>,
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
                a: load.low_rank_first(&att(&format!("{z}1")))?,
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
            g1: load.low_rank_first(&att("g1"))?,
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
    fn time_mix(&self, o: &O, x: Input<'_, O>, step: &mut Step<'_, '_, O>) -> O::Tensor {
        let mixes = [&self.x_r, &self.x_k, &self.x_v, &self.x_w, &self.x_a, &self.x_g];
        let [x_r, x_k, x_v, x_w, x_a, x_g] = x.mixes(o, step, mixes, Toward::Before);
        let add = |y: &O::Tensor, p: &LowRank<O>| o.binary(Binary::Add, y, &p.bias);

        // All that depends on the mixes alone, down to the ranks of the low-rank functions; then up again.
        let first = [
            (&self.receptance, &x_r),
            (&self.key, &x_k),
            (&self.value, &x_v),
            (&self.w.a, &x_w),
            (&self.a.a, &x_a),
            (&self.g1, &x_g),
        ];
        let activate = |w: &O::Tensor, g: &O::Tensor| (o.unary(Unary::Tanh, w), o.unary(Unary::Sigmoid, g));
        let (r, k, mut v, w, a, g, mixed);
        match (&self.v, &step.v_first) {
            (Some(p), Some(v_first)) => {
                let [of_r, of_k, of_v, of_w, of_a, of_g] = first;
                let all = [of_r, of_k, of_v, of_w, of_a, of_g, (&p.a, &x_v)];
                let (w_1, a_1, g_1, v_1);
                [r, k, v, w_1, a_1, g_1, v_1] = Linear::forward_all(o, step, all);
                let (w_1, g_1) = activate(&w_1, &g_1);
                let weight;
                [w, a, g, weight] =
                    o.linears([(&w_1, &self.w.b), (&a_1, &self.a.b), (&g_1, &self.g2), (&v_1, &p.b)]);
                mixed = Some((add(&weight, p), v_first));
            }
            _ => {
                let (w_1, a_1, g_1);
                [r, k, v, w_1, a_1, g_1] = Linear::forward_all(o, step, first);
                let (w_1, g_1) = activate(&w_1, &g_1);
                [w, a, g] = o.linears([(&w_1, &self.w.b), (&a_1, &self.a.b), (&g_1, &self.g2)]);
                mixed = None;
            }
        }
        let (om, a) = (add(&w, &self.w), o.unary(Unary::Sigmoid, &add(&a, &self.a)));
        match mixed {
            Some((weight, v_first)) => v = o.lerp(&v, v_first, &o.unary(Unary::Sigmoid, &weight)),
            None => step.v_first = Some(v.clone()),
        }

        let kk = o.normalize_heads(&o.binary(Binary::Mul, &k, &self.k_k), self.heads);
        let k = o.scale_key(&k, &a, &self.k_a);
        let y = o.wkv7([&r, &k, &v], &om, &kk, &a, step.batch, x.layer);
        let y = o.group_norm(&y, &self.ln_x, self.heads);
        let y = o.bonus(&y, [&r, &k, &v], &self.r_k, self.heads);
        x.plus(o, step, &self.output, &o.binary(Binary::Mul, &y, &g))
    }

    fn channel_mix(&self, o: &O, x: Input<'_, O>, step: &mut Step<'_, '_, O>) -> O::Tensor {
        let [x_k] = x.mixes(o, step, [&self.ffn_x_k], Toward::Before);
        let k = self.ffn_key.forward_then(o, step, &x_k, Then::ReluSquared);
        x.plus(o, step, &self.ffn_value, &k)
    }
}

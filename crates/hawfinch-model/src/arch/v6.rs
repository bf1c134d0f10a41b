//! RWKV-6, Finch (spec section 4): token shift and decay depend on the data.

use std::array;

use hawfinch_kernels::elementwise::{Binary, Toward, Unary};

use super::{Block, Input, Linear, Loader, Step};
use crate::Result;
use crate::ops::{Norm, Ops};

pub(super) struct V6<O: Ops> {
    heads: usize,
    mix_rank: usize,
    maa_x: O::Tensor,
    /// Static mixes in the order w, k, v, r, g.
    maa: [O::Tensor; 5],
    maa_w1: O::Matrix,
    maa_w2: [O::Matrix; 5],
    time_decay: O::Tensor,
    decay_w1: Linear<O>,
    decay_w2: O::Matrix,
    bonus: O::Tensor,
    receptance: Linear<O>,
    key: Linear<O>,
    value: Linear<O>,
    gate: Linear<O>,
    output: Linear<O>,
    ln_x: Norm<O::Tensor>,
    ffn_maa_k: O::Tensor,
    ffn_maa_r: O::Tensor,
    ffn_key: Linear<O>,
    ffn_receptance: Linear<O>,
    ffn_value: Linear<O>,
}

impl<O: Ops> V6<O> {
    pub fn load(load: &Loader<'_, O>, layer: usize) -> Result<Self> {
        let att = |name: &str| format!("blocks.{layer}.att.{name}");
        let ffn = |name: &str| format!("blocks.{layer}.ffn.{name}");
        let maa = |z: &str| load.vector(&att(&format!("time_maa_{z}")));
        let w2 = |z| load.low_rank_of(&att("time_maa_w2"), z);
        Ok(V6 {
            heads: load.config.heads,
            mix_rank: load.config.ranks.mix,
            maa_x: maa("x")?,
            maa: [maa("w")?, maa("k")?, maa("v")?, maa("r")?, maa("g")?],
            maa_w1: load.low_rank(&att("time_maa_w1"))?,
            maa_w2: [w2(0)?, w2(1)?, w2(2)?, w2(3)?, w2(4)?],
            time_decay: load.vector(&att("time_decay"))?,
            decay_w1: load.low_rank_first(&att("time_decay_w1"))?,
            decay_w2: load.low_rank(&att("time_decay_w2"))?,
            bonus: load.vector(&att("time_faaaa"))?,
            receptance: load.linear(&att("receptance.weight"))?,
            key: load.linear(&att("key.weight"))?,
            value: load.linear(&att("value.weight"))?,
            gate: load.linear(&att("gate.weight"))?,
            output: load.linear(&att("output.weight"))?,
            ln_x: load.group_norm(&att("ln_x"))?,
            ffn_maa_k: load.vector(&ffn("time_maa_k"))?,
            ffn_maa_r: load.vector(&ffn("time_maa_r"))?,
            ffn_key: load.linear(&ffn("key.weight"))?,
            ffn_receptance: load.linear(&ffn("receptance.weight"))?,
            ffn_value: load.linear_after_relu(&ffn("value.weight"))?,
        })
    }
}

impl<O: Ops> Block<O> for V6<O> {
    fn time_mix(&self, o: &O, x: Input<'_, O>, step: &mut Step<'_, '_, O>) -> O::Tensor {
        let [now, last] = x.shifted(o, step);
        // Five mixes, each a static one plus a low-rank function of the tokens.
        let m = o.unary(Unary::Tanh, &o.linear(&o.lerp(&now, &last, &self.maa_x), &self.maa_w1));
        let m = array::from_fn::<_, 5, _>(|z| o.columns(&m, z * self.mix_rank, self.mix_rank));
        let m = o.linears(array::from_fn::<_, 5, _>(|z| (&m[z], &self.maa_w2[z])));
        let mix = |z: usize| o.lerp(&now, &last, &o.binary(Binary::Add, &m[z], &self.maa[z]));
        let [x_w, x_k, x_v, x_r, x_g] = array::from_fn(mix);
        let [k, v, r, g, d] = Linear::forward_all(
            o,
            step,
            [
                (&self.key, &x_k),
                (&self.value, &x_v),
                (&self.receptance, &x_r),
                (&self.gate, &x_g),
                (&self.decay_w1, &x_w),
            ],
        );
        let d = o.linear(&o.unary(Unary::Tanh, &d), &self.decay_w2);
        let d = o.binary(Binary::Add, &d, &self.time_decay);
        let y = o.wkv6([&r, &k, &v], &d, &self.bonus, step.batch, x.layer);
        let y = o.group_norm(&y, &self.ln_x, self.heads);
        x.plus(o, step, &self.output, &o.binary(Binary::SiluMul, &g, &y))
    }

    fn channel_mix(&self, o: &O, x: Input<'_, O>, step: &mut Step<'_, '_, O>) -> O::Tensor {
        let [x_k, x_r] = x.mixes(o, step, [&self.ffn_maa_k, &self.ffn_maa_r], Toward::Before);
        let [k, r] = Linear::forward_all(o, step, [(&self.ffn_key, &x_k), (&self.ffn_receptance, &x_r)]);
        let kv = self.ffn_value.forward(o, step, &o.unary(Unary::ReluSquared, &k));
        x.plus_gated(o, &r, &kv)
    }
}

//! RWKV-4 (spec section 1).

use hawfinch_kernels::elementwise::{Binary, Toward, Unary};

use super::{Block, Input, Linear, Loader, Step};
use crate::Result;
use crate::ops::Ops;

pub(super) struct V4<O: Ops> {
    time_decay: O::Tensor,
    time_first: O::Tensor,
    mix_k: O::Tensor,
    mix_v: O::Tensor,
    mix_r: O::Tensor,
    key: Linear<O>,
    value: Linear<O>,
    receptance: Linear<O>,
    output: Linear<O>,
    ffn: ChannelMix<O>,
}

impl<O: Ops> V4<O> {
    pub fn load(load: &Loader<'_, O>, layer: usize) -> Result<Self> {
        let att = |name: &str| format!("blocks.{layer}.att.{name}");
        Ok(V4 {
            time_decay: load.time_decay(&att("time_decay"))?,
            time_first: load.vector(&att("time_first"))?,
            mix_k: load.vector(&att("time_mix_k"))?,
            mix_v: load.vector(&att("time_mix_v"))?,
            mix_r: load.vector(&att("time_mix_r"))?,
            key: load.linear(&att("key.weight"))?,
            value: load.linear(&att("value.weight"))?,
            receptance: load.linear(&att("receptance.weight"))?,
            output: load.linear(&att("output.weight"))?,
            ffn: ChannelMix::load(load, layer)?,
        })
    }
}

impl<O: Ops> Block<O> for V4<O> {
    fn time_mix(&self, o: &O, x: Input<'_, O>, step: &mut Step<'_, '_, O>) -> O::Tensor {
        let mixes = [&self.mix_r, &self.mix_k, &self.mix_v];
        let [x_r, x_k, x_v] = x.mixes(o, step, mixes, Toward::Row);
        let rkv = [(&self.receptance, &x_r), (&self.key, &x_k), (&self.value, &x_v)];
        let [r, k, v] = Linear::forward_all(o, step, rkv);
        let y = o.wkv4(&k, &v, &self.time_decay, &self.time_first, step.batch, x.layer);
        x.plus(o, step, &self.output, &o.binary(Binary::SigmoidMul, &r, &y))
    }

    fn channel_mix(&self, o: &O, x: Input<'_, O>, step: &mut Step<'_, '_, O>) -> O::Tensor {
        self.ffn.forward(o, x, step)
    }
}

/// The channel mix of v4 and v5.
pub(super) struct ChannelMix<O: Ops> {
    mix_k: O::Tensor,
    mix_r: O::Tensor,
    key: Linear<O>,
    receptance: Linear<O>,
    value: Linear<O>,
}

impl<O: Ops> ChannelMix<O> {
    pub fn load(load: &Loader<'_, O>, layer: usize) -> Result<Self> {
        let ffn = |name: &str| format!("blocks.{layer}.ffn.{name}");
        Ok(ChannelMix {
            mix_k: load.vector(&ffn("time_mix_k"))?,
            mix_r: load.vector(&ffn("time_mix_r"))?,
            key: load.linear(&ffn("key.weight"))?,
            receptance: load.linear(&ffn("receptance.weight"))?,
            value: load.linear_after_relu(&ffn("value.weight"))?,
        })
    }

    pub fn forward(&self, o: &O, x: Input<'_, O>, step: &mut Step<'_, '_, O>) -> O::Tensor {
        let [x_k, x_r] = x.mixes(o, step, [&self.mix_k, &self.mix_r], Toward::Row);
        let [k, r] = Linear::forward_all(o, step, [(&self.key, &x_k), (&self.receptance, &x_r)]);
        let kv = self.value.forward(o, step, &o.unary(Unary::ReluSquared, &k));
        x.plus_gated(o, &r, &kv)
    }
}

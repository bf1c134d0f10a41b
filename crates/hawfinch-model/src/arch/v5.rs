//! RWKV-5.0, 5.1 and 5.2 (Eagle): spec sections 2 and 3. They differ in the shapes of decay and bonus
//! and in whether there is a gate.

use hawfinch_kernels::elementwise::{Binary, Toward};

use super::v4::ChannelMix;
use super::{Block, Input, Linear, Loader, Step};
use crate::Result;
use crate::config::Version;
use crate::ops::{Norm, Ops};

pub(super) struct V5<O: Ops> {
    heads: usize,
    /// `[1, h]` (5.0, 5.1) or `[1, h*n]` (5.2)
    time_decay: O::Tensor,
    /// As `time_decay`.
    bonus: O::Tensor,
    mix_k: O::Tensor,
    mix_v: O::Tensor,
    mix_r: O::Tensor,
    /// 5.1 and 5.2
    gate: Option<(O::Tensor, Linear<O>)>,
    receptance: Linear<O>,
    key: Linear<O>,
    value: Linear<O>,
    output: Linear<O>,
    ln_x: Norm<O::Tensor>,
    ffn: ChannelMix<O>,
}

impl<O: Ops> V5<O> {
    pub fn load(load: &Loader<'_, O>, layer: usize) -> Result<Self> {
        let att = |name: &str| format!("blocks.{layer}.att.{name}");
        let gate = match load.config.version {
            Version::V5_0 => None,
            _ => Some((load.vector(&att("time_mix_g"))?, load.linear(&att("gate.weight"))?)),
        };
        Ok(V5 {
            heads: load.config.heads,
            time_decay: load.time_decay(&att("time_decay"))?,
            bonus: load.bonus5(&att(""))?,
            mix_k: load.vector(&att("time_mix_k"))?,
            mix_v: load.vector(&att("time_mix_v"))?,
            mix_r: load.vector(&att("time_mix_r"))?,
            gate,
            receptance: load.linear(&att("receptance.weight"))?,
            key: load.linear(&att("key.weight"))?,
            value: load.linear(&att("value.weight"))?,
            output: load.linear(&att("output.weight"))?,
            ln_x: load.group_norm(&att("ln_x"))?,
            ffn: ChannelMix::load(load, layer)?,
        })
    }
}

impl<O: Ops> Block<O> for V5<O> {
    fn time_mix(&self, o: &O, x: Input<'_, O>, step: &mut Step<'_, '_, O>) -> O::Tensor {
        let (r, k, v) = (&self.receptance, &self.key, &self.value);
        let mixes = [&self.mix_r, &self.mix_k, &self.mix_v];
        let (g, [r, k, v]) = match &self.gate {
            Some((mix_g, g)) => {
                let [m_r, m_k, m_v] = mixes;
                let [x_r, x_k, x_v, x_g] = x.mixes(o, step, [m_r, m_k, m_v, mix_g], Toward::Row);
                let [r, k, v, g] = Linear::forward_all(o, step, [(r, &x_r), (k, &x_k), (v, &x_v), (g, &x_g)]);
                (Some(g), [r, k, v])
            }
            None => {
                let [x_r, x_k, x_v] = x.mixes(o, step, mixes, Toward::Row);
                (None, Linear::forward_all(o, step, [(r, &x_r), (k, &x_k), (v, &x_v)]))
            }
        };
        let y = o.wkv5([&r, &k, &v], &self.time_decay, &self.bonus, step.batch, x.layer);
        let mut y = o.group_norm(&y, &self.ln_x, self.heads);
        if let Some(g) = g {
            y = o.binary(Binary::SiluMul, &g, &y);
        }
        x.plus(o, step, &self.output, &y)
    }

    fn channel_mix(&self, o: &O, x: Input<'_, O>, step: &mut Step<'_, '_, O>) -> O::Tensor {
        self.ffn.forward(o, x, step)
    }
}

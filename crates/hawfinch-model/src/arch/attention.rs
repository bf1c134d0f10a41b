//! A plain transformer decoder, the baseline that the recurrent versions are compared with: the same frame (embedding,
//! norms, head, residual stream), with softmax attention for the time mix and SwiGLU for the channel mix. Queries and keys
//! are normalised, head by head, and turned by their positions (QK-norm and rotary embeddings, as in Qwen 3 and OLMo 2).
//!
//! ```text
//! x ← x + W_o attention(q, k, v)        q = q_scale · W_q x̂ / |W_q x̂|, k likewise, v = W_v x̂, x̂ = ln1(x)
//! x ← x + W_value (silu(W_gate x̂) · W_key x̂)                                                 x̂ = ln2(x)
//! ```
//!
//! It keeps no state: a sequence comes whole.

use hawfinch_kernels::elementwise::Binary;

use super::{Block, Input, Linear, Loader, Step};
use crate::Result;
use crate::ops::Ops;

pub(super) struct Attention<O: Ops> {
    heads: usize,
    /// Root of the head size: with queries and keys of unit length, scores are those of RMS-normed ones over it.
    scale: f64,
    query: Linear<O>,
    key: Linear<O>,
    value: Linear<O>,
    output: Linear<O>,
    q_scale: O::Tensor,
    k_scale: O::Tensor,
    ffn_gate: Linear<O>,
    ffn_key: Linear<O>,
    ffn_value: Linear<O>,
}

impl<O: Ops> Attention<O> {
    pub fn load(load: &Loader<'_, O>, layer: usize) -> Result<Self> {
        let att = |name: &str| format!("blocks.{layer}.att.{name}");
        let ffn = |name: &str| format!("blocks.{layer}.ffn.{name}");
        Ok(Attention {
            heads: load.config.heads,
            scale: (load.config.head_size as f64).sqrt(),
            query: load.linear(&att("query.weight"))?,
            key: load.linear(&att("key.weight"))?,
            value: load.linear(&att("value.weight"))?,
            output: load.linear(&att("output.weight"))?,
            q_scale: load.vector(&att("q_scale"))?,
            k_scale: load.vector(&att("k_scale"))?,
            ffn_gate: load.linear(&ffn("gate.weight"))?,
            ffn_key: load.linear(&ffn("key.weight"))?,
            ffn_value: load.linear(&ffn("value.weight"))?,
        })
    }
}

impl<O: Ops> Block<O> for Attention<O> {
    fn time_mix(&self, o: &O, x: Input<'_, O>, step: &mut Step<'_, '_, O>) -> O::Tensor {
        let normal = x.normalised(o);
        let qkv = [(&self.query, &normal), (&self.key, &normal), (&self.value, &normal)];
        let [q, k, v] = Linear::forward_all(o, step, qkv);
        let unit = |x: &O::Tensor, scale| o.binary(Binary::Mul, &o.normalize_heads(x, self.heads), scale);
        let (q, k) = (unit(&q, &self.q_scale), unit(&k, &self.k_scale));
        let y = o.attention([&q, &k, &v], self.heads, self.scale, step.batch);
        x.plus(o, step, &self.output, &y)
    }

    fn channel_mix(&self, o: &O, x: Input<'_, O>, step: &mut Step<'_, '_, O>) -> O::Tensor {
        let normal = x.normalised(o);
        let [gate, k] = Linear::forward_all(o, step, [(&self.ffn_gate, &normal), (&self.ffn_key, &normal)]);
        x.plus(o, step, &self.ffn_value, &o.binary(Binary::SiluMul, &gate, &k))
    }
}

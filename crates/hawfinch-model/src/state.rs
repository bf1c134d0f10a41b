//! The state of one sequence: small, of constant size, exact.

use crate::config::{Config, Version};

/// One field of a layer's state.
#[derive(Clone, Debug, PartialEq)]
pub struct Field {
    /// Name in state files: `att_x`, `wkv`, `ffn_x`; v4: `aa`, `bb`, `pp` in place of `wkv`.
    pub name: &'static str,
    /// Shape within a layer.
    pub shape: Vec<usize>,
    /// Value in the state of the empty context.
    pub fresh: f32,
    /// Where it starts within a layer's floats.
    pub offset: usize,
}

impl Field {
    /// Floats in the field.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }
    /// Never true.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Which fields a version's state has, in which order (spec section 9).
#[derive(Clone, Debug, PartialEq)]
pub struct StateLayout {
    /// Fields of each layer.
    pub fields: Vec<Field>,
    /// Layers.
    pub layers: usize,
    /// Floats in a layer.
    pub layer_len: usize,
}

/// Exponent of v4's empty accumulator (the reference's inference value).
pub const V4_FRESH_PP: f32 = -1e30;

impl StateLayout {
    /// The layout for a model.
    pub fn new(config: &Config) -> Self {
        let (d, a) = (config.width, config.att_width);
        let mut fields = Vec::new();
        let mut layer_len = 0;
        let mut push = |name, shape: Vec<usize>, fresh| {
            let field = Field { name, shape, fresh, offset: layer_len };
            layer_len += field.len();
            fields.push(field);
        };
        push("att_x", vec![d], 0.0);
        if config.version == Version::V4 {
            push("aa", vec![a], 0.0);
            push("bb", vec![a], 0.0);
            push("pp", vec![a], V4_FRESH_PP);
        } else {
            // [head, key, value] for v5 and v6, [head, value, key] for v7.
            push("wkv", vec![config.heads, config.head_size, config.head_size], 0.0);
        }
        push("ffn_x", vec![d], 0.0);
        StateLayout { fields, layers: config.layers, layer_len }
    }

    /// Floats in a whole state.
    pub fn len(&self) -> usize {
        self.layers * self.layer_len
    }

    /// Never true for a model.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

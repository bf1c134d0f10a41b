//! The state of one sequence: small, of constant size, exact. Saving it and loading it back, forking it
//! and feeding it in any split give what feeding everything at once gives.

use std::sync::Arc;

use hawfinch_kernels::Real;

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
    /// Never true for a model's field.
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
        if !config.version.has_state() {
            return StateLayout { fields, layers: config.layers, layer_len };
        }
        push("att_x", vec![d], 0.0);
        if config.version == Version::V4 {
            push("aa", vec![a], 0.0);
            push("bb", vec![a], 0.0);
            push("pp", vec![a], V4_FRESH_PP);
        } else {
            // [head, key, value] in every version. (State files of v7 are [head, value, key].)
            push("wkv", vec![config.heads, config.head_size, config.head_size], 0.0);
        }
        push("ffn_x", vec![d], 0.0);
        StateLayout { fields, layers: config.layers, layer_len }
    }

    /// Floats in a whole state.
    pub fn len(&self) -> usize {
        self.layers * self.layer_len
    }

    /// True for the attention baseline alone.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The field of that name.
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find(|f| f.name == name)
    }
}

/// The state of one sequence, in f32 (f64 when checking). Cloning it is forking the conversation.
#[derive(Debug, PartialEq)]
pub struct State<F: Real = f32> {
    layout: Arc<StateLayout>,
    data: Vec<F>,
    /// Tokens that led here from the empty context (from a tuned state, since it); [`crate::Model::forward`]
    /// counts them.
    pub tokens: u64,
}

impl<F: Real> Clone for State<F> {
    fn clone(&self) -> Self {
        State { layout: self.layout.clone(), data: self.data.clone(), tokens: self.tokens }
    }

    /// Into the memory that is there: what takes snapshots again and again allocates once.
    fn clone_from(&mut self, source: &Self) {
        self.layout.clone_from(&source.layout);
        self.data.clone_from(&source.data);
        self.tokens = source.tokens;
    }
}

impl<F: Real> State<F> {
    /// The empty context.
    pub fn new(layout: Arc<StateLayout>) -> Self {
        let mut data = Vec::with_capacity(layout.len());
        for _ in 0..layout.layers {
            for f in &layout.fields {
                data.extend(std::iter::repeat_n(F::from_f32(f.fresh), f.len()));
            }
        }
        State { layout, data, tokens: 0 }
    }

    /// Which fields it has.
    pub fn layout(&self) -> &Arc<StateLayout> {
        &self.layout
    }

    /// All floats: layer by layer, field by field.
    pub fn data(&self) -> &[F] {
        &self.data
    }

    /// All floats, to change.
    pub fn data_mut(&mut self) -> &mut [F] {
        &mut self.data
    }

    /// One field of one layer.
    ///
    /// # Panics
    /// When the layout has no such field or layer.
    pub fn field(&self, layer: usize, name: &str) -> &[F] {
        let f = self.layout.field(name).expect("a field of the layout");
        let at = layer * self.layout.layer_len + f.offset;
        &self.data[at..at + f.len()]
    }

    /// One field of one layer, to change; panics as [`State::field`].
    pub fn field_mut(&mut self, layer: usize, name: &str) -> &mut [F] {
        let f = self.layout.field(name).expect("a field of the layout");
        let at = layer * self.layout.layer_len + f.offset;
        &mut self.data[at..at + f.len()]
    }

    /// All fields of one layer, in the order of the layout.
    pub(crate) fn layer_mut(&mut self, layer: usize) -> &mut [F] {
        let len = self.layout.layer_len;
        &mut self.data[layer * len..(layer + 1) * len]
    }

    /// SHA-256 of all floats as 64 bits (the same for the same values in another number type), in hexadecimal: tells states of
    /// one model apart.
    pub fn fingerprint(&self) -> String {
        use sha2::{Digest, Sha256};
        let mut hash = Sha256::new();
        let mut bytes = Vec::with_capacity(8 * 1024);
        for part in self.data.chunks(1024) {
            bytes.clear();
            part.iter().for_each(|v| bytes.extend_from_slice(&v.to_f64().to_le_bytes()));
            hash.update(&bytes);
        }
        hash.finalize().iter().fold(String::new(), |s, b| format!("{s}{b:02x}"))
    }

    /// The same state in another number type.
    pub fn cast<G: Real>(&self) -> State<G> {
        State {
            layout: self.layout.clone(),
            data: self.data.iter().map(|v| G::from_f64(v.to_f64())).collect(),
            tokens: self.tokens,
        }
    }
}

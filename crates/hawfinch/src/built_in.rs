//! The model that the program carries inside: trained by `recipes/demo`, whose model card says of what.

use std::path::Path;

use bytes::Bytes;
use hawfinch_model::{Checkpoint, format, synthetic};

/// Its name, for whoever wants a model and has none. A file of that name goes first.
pub const DEMO: &str = "demo";
/// A model of random weights, in which a text's bytes are its tokens: small, for tests.
const UNTRAINED: &str = "untrained";

/// GGUF, Q8_0, with its vocabulary.
static MODEL: &[u8] = include_bytes!("../data/demo.gguf");

/// Whether a built-in model has that name.
pub fn is_name(name: &str) -> bool {
    matches!(name, DEMO | UNTRAINED)
}

/// The built-in model of that name.
pub fn open(name: &Path) -> Option<Checkpoint> {
    match name.to_str() {
        _ if name.exists() => None,
        Some(DEMO) => Some(demo()),
        Some(UNTRAINED) => Some(synthetic::demo()),
        _ => None,
    }
}

fn demo() -> Checkpoint {
    let read = format::read("the built-in model".as_ref(), Bytes::from_static(MODEL));
    read.expect("the built-in model was read by the tests")
}

/// Beginnings of texts in several languages, for the built-in model to go on with: what a new user sees first.
pub const BEGINNINGS: [&str; 5] =
    ["Click the button to", "Wenn Sie die Datei", "El archivo de", "В этом разделе", "この章では"];

#[cfg(test)]
mod tests {
    use super::*;
    use hawfinch_model::{Config, metadata};

    #[test]
    fn the_built_in_model_is_whole_and_small() {
        let demo = open(Path::new(DEMO)).unwrap();
        let config = Config::infer(&demo).unwrap();
        assert!(config.unused(&demo).is_empty());
        assert!(demo.metadata.contains_key(metadata::TOKENIZER));
        assert!(MODEL.len() < 20 << 20);
        assert!(demo.tensors.values().all(|t| t.layout == hawfinch_model::checkpoint::Layout::Rows));
    }
}

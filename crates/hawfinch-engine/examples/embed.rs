//! Sentence embeddings: which of some texts is nearest to a question.
//! `cargo run --release --example embed [MODEL]` (the built-in stand-in is untrained: its answer means nothing)

use hawfinch_engine::{Embedding, embed};
use hawfinch_model::{Cpu, Model, OpenOptions, synthetic};
use hawfinch_tokenizer::Tokenizer;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1);
    let model = match &path {
        Some(path) => Model::open(path)?,
        None => Model::from_checkpoint(synthetic::demo(), OpenOptions::default(), Cpu::default())?,
    };
    let tokenizer =
        Tokenizer::for_vocab_size(model.config().vocab, path.as_deref().map(std::path::Path::new))?;
    let texts = ["Where do finches live?", "Hawfinches nest in old woods.", "The bank closes at five."];
    let ids: Vec<Vec<u32>> = texts.iter().map(|t| tokenizer.encode(t.as_bytes())).collect();
    let vectors = embed(&model, &ids, Embedding::Mean, || 128, |_| Ok(()))?;
    for (text, vector) in texts.iter().zip(&vectors).skip(1) {
        let cosine: f32 = vectors[0].iter().zip(vector).map(|(a, b)| a * b).sum();
        println!("{cosine:.3}  {text}");
    }
    Ok(())
}

//! The state as a value: read a long text once, save, load, and go on in two directions.
//! `cargo run --release --example states [MODEL]`

use hawfinch_model::{Cpu, Model, OpenOptions, Rows, Sequence, State, synthetic};
use hawfinch_tokenizer::Tokenizer;

/// Feeds a text to a state and returns the logits after it.
fn read(model: &Model, state: &mut State, tokens: &[u32]) -> hawfinch_model::Result<Vec<f32>> {
    let call = Sequence { tokens, state, logits: Rows::Last, hidden: Rows::None };
    Ok(model.forward(&mut [call])?.remove(0).logits)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1);
    let model = match &path {
        Some(path) => Model::open(path)?,
        None => Model::from_checkpoint(synthetic::demo(), OpenOptions::default(), Cpu::default())?,
    };
    let tokenizer =
        Tokenizer::for_vocab_size(model.config().vocab, path.as_deref().map(std::path::Path::new))?;

    let mut state = model.new_state();
    read(&model, &mut state, &tokenizer.encode(b"A long document that is read only once. "))?;

    // A state goes to a file of a few megabytes, whatever the length of the text, and knows its model.
    let path = std::env::temp_dir().join(format!("hawfinch-example-{}.safetensors", std::process::id()));
    model.save_state(&state, &path)?;
    let loaded = model.load_state(&path)?;
    std::fs::remove_file(&path)?;
    assert_eq!(loaded, state);

    // Cloning it forks the text.
    let (mut left, mut right) = (loaded.clone(), loaded);
    let a = read(&model, &mut left, &tokenizer.encode(b"Question one?"))?;
    let b = read(&model, &mut right, &tokenizer.encode(b"Another question?"))?;
    assert_ne!(a, b);

    // Two sequences in one call give the same bits as one after the other.
    let (mut one, mut two) = (state.clone(), state);
    let (x, y) = (tokenizer.encode(b"Question one?"), tokenizer.encode(b"Another question?"));
    let out = model.forward(&mut [
        Sequence { tokens: &x, state: &mut one, logits: Rows::Last, hidden: Rows::None },
        Sequence { tokens: &y, state: &mut two, logits: Rows::Last, hidden: Rows::None },
    ])?;
    assert_eq!((&out[0].logits, &out[1].logits), (&a, &b));
    println!("one state of {} floats, read once, continued twice", left.data().len());
    Ok(())
}

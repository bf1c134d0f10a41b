//! Load a model and generate: `cargo run --release --example generate [MODEL [PROMPT]]`. Without arguments it
//! runs the built-in stand-in, whose text is noise.

use std::io::Write;
use std::ops::ControlFlow;

use hawfinch_engine::{Event, GenerateOptions, Sampler, SamplerConfig, Session, Uncounted};
use hawfinch_model::{Cpu, Model, OpenOptions, synthetic};
use hawfinch_tokenizer::Tokenizer;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next();
    let model = match &path {
        Some(path) => Model::open(path)?, // any version, any file format
        None => Model::from_checkpoint(synthetic::demo(), OpenOptions::default(), Cpu::default())?,
    };
    let tokenizer =
        Tokenizer::for_vocab_size(model.config().vocab, path.as_deref().map(std::path::Path::new))?;

    let config = SamplerConfig { seed: Some(42), ..SamplerConfig::default() };
    let uncounted = Uncounted::from_texts(tokenizer.vocab_size(), |id| tokenizer.token_bytes(id));
    let mut session = Session::new(&model, tokenizer.clone(), Sampler::new(config, uncounted)?);

    session.feed_text(&args.next().unwrap_or_else(|| "The Eiffel tower is in the city of".into()))?;
    let reply = session.generate(&GenerateOptions::new(40, &tokenizer), |event| {
        if let Event::Text(text) = event {
            print!("{text}");
            let _ = std::io::stdout().flush();
        }
        ControlFlow::Continue(())
    })?;
    println!("\n({} tokens, ended by {:?})", reply.tokens.len(), reply.stop);
    Ok(())
}

//! What must hold of any bytes that a reader of this crate is given, one function a fuzz target. The
//! targets in `fuzz/` call these on what the fuzzer makes up, `fuzz_replay.rs` on what it has found.
#![allow(dead_code)] // each fuzz target calls one of them

use hawfinch_tokenizer::{Bpe, StreamDecoder, Tokenizer, World};

/// Texts that every tokenizer is tried on, besides the input itself.
const TEXTS: [&[u8]; 5] = [
    b"",
    b"ab abc  abab\n\n<|endoftext|>caf\xC3\xA9",
    b"\xFF\xC0\x80",
    "e\u{301} 你好🦜".as_bytes(),
    &[b'a'; 300],
];

/// An error's message is one sentence that a terminal can show.
fn sentence(error: impl std::fmt::Display) {
    let text = error.to_string();
    assert!(!text.is_empty() && text.len() < 3000, "an error of {} bytes", text.len());
    assert!(!text.chars().any(char::is_control), "control characters in an error: {text:?}");
}

/// What a tokenizer does with a text, against its documentation.
fn works(tokenizer: &Tokenizer, text: &[u8]) {
    let ids = tokenizer.encode(text);
    let bytes = tokenizer.decode(&ids).expect("ids of its own");
    assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
    if let Tokenizer::World(_) = tokenizer {
        assert_eq!(bytes, text, "World changes no text");
    }
    let mut stream = StreamDecoder::new();
    let mut said = String::new();
    for &id in &ids {
        said += stream.push(tokenizer.token_bytes(id).unwrap_or_default());
    }
    said += stream.finish();
    assert_eq!(said, String::from_utf8_lossy(&bytes), "streaming changes the text");
    assert_eq!(tokenizer.decode_lossy(&ids), said);
}

fn try_all(tokenizer: &Tokenizer, input: &[u8]) {
    for text in TEXTS {
        works(tokenizer, text);
    }
    works(tokenizer, &input[input.len().saturating_sub(200)..]);
    let _ = (tokenizer.eos(), tokenizer.is_special(0), tokenizer.token_bytes(u32::MAX));
}

/// A World vocabulary file; once more behind lines for the 256 bytes, without which none is accepted.
pub fn world_vocabulary(data: &[u8]) {
    let mut complete: Vec<u8> =
        (0..=255).flat_map(|b: u8| format!("{} b'\\x{b:02x}' 1\n", u32::from(b) + 1).into_bytes()).collect();
    complete.extend(data);
    for file in [data, &complete] {
        match World::from_vocabulary(file) {
            Ok(world) => try_all(&Tokenizer::World(world.into()), data),
            Err(e) => sentence(e),
        }
    }
    if let Err(e) = Tokenizer::from_bytes(data) {
        sentence(e);
    }
}

/// A `tokenizer.json`; where the input does not begin with `{`, pieces of one with zero bytes between:
/// vocabulary, merges, added tokens, normaliser.
pub fn tokenizer_json(data: &[u8]) {
    let file = if data.starts_with(b"{") { data.to_vec() } else { assembled(data) };
    match Bpe::from_tokenizer_json(&file) {
        Ok(bpe) => try_all(&Tokenizer::Bpe(bpe.into()), data),
        Err(e) => sentence(e),
    }
}

fn assembled(data: &[u8]) -> Vec<u8> {
    let mut pieces = data.splitn(4, |&b| b == 0);
    let mut next = || pieces.next().unwrap_or_default();
    let (vocabulary, merges, added, normalizer) = (next(), next(), next(), next());
    let mut spare = 0x100..;
    let letters: Vec<String> = (0..=255u8)
        .map(|b| match b {
            b'"' | b'\\' => format!("\"\\{}\":{b}", char::from(b)),
            0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => format!("\"{}\":{b}", char::from(b)),
            _ => format!("\"{}\":{b}", spare.next().and_then(char::from_u32).expect("a letter")),
        })
        .collect();
    let normalizer = if normalizer.is_empty() { b"null" } else { normalizer };
    let parts: [&[u8]; 9] = [
        b"{\"normalizer\":",
        normalizer,
        b",\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false},\"decoder\":{\"type\":\"ByteLevel\"},\
          \"added_tokens\":[",
        added,
        b"],\"model\":{\"type\":\"BPE\",\"merges\":[",
        merges,
        b"],\"vocab\":{",
        &[letters.join(",").as_bytes(), vocabulary].concat(),
        b"}}}",
    ];
    parts.concat()
}

/// (name, file) that a target starts from.
pub fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let named = |name: &str, file: &[u8]| (name.to_string(), file.to_vec());
    match target {
        "world_vocabulary" => {
            let built_in = include_bytes!("../../data/rwkv_vocab_v20230424.txt");
            let lines: Vec<&[u8]> = built_in.split_inclusive(|&b| b == b'\n').collect();
            vec![
                named("bytes", &lines[..256].concat()),
                named("some", &lines.iter().step_by(997).copied().collect::<Vec<_>>().concat()),
                named(
                    "forms",
                    b"300 'ab' 2\r\n301 \"it's\" 4\r\n302 b'\\xff\\x00' 2\r\n303 '\\u4f60' 3\r\n304 '\\U0001f99c' 4\r\n\
                      305 '\\n\\t\\r\\\\\\'' 5\r\n306 '  ' 2",
                ),
                named("long", format!("300 '{}' 900\n", "a".repeat(900)).as_bytes()),
            ]
        }
        "tokenizer_json" => vec![
            named("small", include_bytes!("../data/small_tokenizer.json")),
            named(
                "pieces",
                b",\"ab\":300,\"abab\":301,\"\xC4\xA0a\":302\0\"a b\",[\"ab\",\"ab\"],\"\xC4\xA0 a\"\0{\"id\":303,\
                  \"content\":\"<|endoftext|>\",\"single_word\":false,\"lstrip\":false,\"rstrip\":false,\
                  \"normalized\":false,\"special\":true},{\"id\":304,\"content\":\"  \",\"normalized\":true}\0\
                  {\"type\":\"NFC\"}",
            ),
            named("none", b"\0\0\0null"),
        ],
        _ => panic!("no target {target}"),
    }
}

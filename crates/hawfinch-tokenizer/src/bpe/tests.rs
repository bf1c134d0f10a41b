use super::*;
use serde_json::{Value, json};

use crate::testing::{Random, shared_data};

#[test]
fn shared_vectors() {
    let Some(file) = shared_data("tokenizer/20B_tokenizer.json") else { return };
    let neox = Bpe::from_tokenizer_json(&file).unwrap();
    assert_eq!((neox.name(), neox.vocab_size(), neox.eos()), ("GPT-NeoX 20B", 50_277, Some(0)));
    let cases =
        crate::testing::vectors(&shared_data("tokenizer/20b_vectors.jsonl").expect("beside the file"));
    assert_eq!(cases.len(), 1548);
    for (text, ids) in cases {
        assert_eq!(neox.encode(&text), ids, "{}", text.escape_ascii());
        let normalized = nfc(std::str::from_utf8(&text).unwrap()).into_owned();
        assert_eq!(neox.decode(&ids).unwrap(), normalized.as_bytes());
    }
}

const SMALL: &str = include_str!("../../tests/data/small_tokenizer.json");

fn small() -> Bpe {
    Bpe::from_tokenizer_json(SMALL.as_bytes()).unwrap()
}

#[test]
fn small_vectors() {
    let bpe = small();
    assert_eq!((bpe.name(), bpe.vocab_size(), bpe.eos()), ("byte-level BPE", 487, Some(0)));
    let cases = crate::testing::vectors(include_bytes!("../../tests/data/small_vectors.jsonl"));
    assert_eq!(cases.len(), 136);
    for (text, ids) in cases {
        assert_eq!(bpe.encode(&text), ids, "{}", text.escape_ascii());
        let normalized = nfc(std::str::from_utf8(&text).unwrap()).into_owned();
        assert_eq!(bpe.decode(&ids).unwrap(), normalized.as_bytes());
    }
}

#[test]
fn special_tokens() {
    let bpe = small();
    assert!(bpe.is_special(0) && bpe.is_special(1) && !bpe.is_special(484) && !bpe.is_special(9_999));
    assert_eq!(bpe.token_bytes(0), Some(&b"<|endoftext|>"[..]));
    assert_eq!(bpe.token_bytes(484), Some(&b"  "[..]));
    assert_eq!(bpe.token_bytes(487), None);
    assert!(matches!(bpe.decode(&[0, 487]), Err(Error::UndefinedId { id: 487, .. })));
}

#[test]
fn any_bytes_have_ids() {
    let bpe = small();
    let mut random = Random::new(8);
    for _ in 0..500 {
        let text: Vec<u8> = (0..random.below(300))
            .map(|_| if random.below(2) == 0 { b'a' + random.below(6) as u8 } else { random.next() as u8 })
            .collect();
        // Valid stretches may be normalised; nothing else changes.
        let expected: Vec<u8> = text
            .utf8_chunks()
            .flat_map(|c| [nfc(c.valid()).into_owned().into_bytes(), c.invalid().to_vec()].concat())
            .collect();
        assert_eq!(bpe.decode(&bpe.encode(&text)).unwrap(), expected, "{}", text.escape_ascii());
    }
}

#[test]
fn bytes_that_the_vocabulary_lacks_become_replacement_characters() {
    // 0xF5 is written as õ in the byte alphabet; no UTF-8 has it. The small vocabulary has all 256, so take it away.
    let mut file: Value = serde_json::from_str(SMALL).unwrap();
    file["model"]["vocab"].as_object_mut().unwrap().remove("õ").unwrap();
    let bpe = Bpe::from_tokenizer_json(file.to_string().as_bytes()).unwrap();
    assert_eq!(bpe.decode(&bpe.encode(b"a\xF5b")).unwrap(), "a\u{FFFD}b".as_bytes());
}

#[test]
fn a_megabyte_word_is_quick_and_exact() {
    let bpe = small();
    let start = std::time::Instant::now();
    for word in ["a".repeat(1 << 20), "thein".repeat(1 << 17), "\u{301}".repeat(1 << 18)] {
        let ids = bpe.encode(word.as_bytes());
        assert_eq!(bpe.decode(&ids).unwrap(), nfc(&word).as_bytes());
    }
    assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
}

#[test]
fn repeated_words_come_from_memory_unchanged() {
    let bpe = small();
    let text = "The finch sat on the hawthorn and sang. ".repeat(50);
    let mut one_by_one = Vec::new();
    for word in split::words(&text) {
        bpe.encode_into(word.as_bytes(), &mut one_by_one);
    }
    let mut ids = vec![42; 3];
    bpe.encode_into(text.as_bytes(), &mut ids);
    assert_eq!(ids[3..], one_by_one);
}

#[test]
fn ignore_merges_takes_whole_words() {
    let mut file: Value = serde_json::from_str(SMALL).unwrap();
    file["model"]["ignore_merges"] = true.into();
    file["model"]["merges"] = Value::Array(Vec::new());
    let bpe = Bpe::from_tokenizer_json(file.to_string().as_bytes()).unwrap();
    let the = small().encode(" the".as_bytes());
    assert_eq!(the.len(), 1);
    assert_eq!(bpe.encode(b" the"), the);
    assert_eq!(bpe.encode(b" thethe").len(), 7);
}

#[test]
fn merges_may_be_written_joined() {
    let mut file: Value = serde_json::from_str(SMALL).unwrap();
    for pair in file["model"]["merges"].as_array_mut().unwrap() {
        *pair = format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()).into();
    }
    let bpe = Bpe::from_tokenizer_json(file.to_string().as_bytes()).unwrap();
    let text = "The hawfinch's bill, 2024: Дубонос".as_bytes();
    assert_eq!(bpe.encode(text), small().encode(text));
}

#[test]
fn what_is_not_implemented_is_refused_by_name() {
    let cases: &[(&str, Value, &str)] = &[
        ("/model/type", json!("Unigram"), "of type Unigram"),
        ("/model/dropout", json!(0.1), "dropout"),
        ("/model/continuing_subword_prefix", json!("##"), "continuing_subword_prefix"),
        ("/model/end_of_word_suffix", json!("</w>"), "end_of_word_suffix"),
        ("/model/byte_fallback", json!(true), "byte_fallback"),
        ("/model/vocab", json!([["a", 0.5]]), "cannot be read"),
        ("/model/vocab", json!({"a": 0}), "0x00"),
        ("/model/vocab/the", json!(5_000_000), "above the highest"),
        ("/model/vocab/the", json!(-1), "cannot be read"),
        ("/model/vocab/the", json!(77), "given to two"),
        ("/model/merges/0", json!("a"), "merge 0 is not two"),
        ("/model/merges/0", json!("a b c"), "merge 0 is not two"),
        ("/model/merges/0", json!(["a", "b", "c"]), "cannot be read"),
        ("/model/merges/0", json!(["x", "qq"]), "merge 0 (\"x\" and \"qq\")"),
        ("/normalizer", json!({"type": "Lowercase"}), "normalizer is Lowercase"),
        ("/normalizer", json!(3), "normalizer is without a type"),
        ("/pre_tokenizer", json!({"type": "Whitespace"}), "pre-tokenizer is Whitespace"),
        ("/pre_tokenizer", Value::Null, "pre-tokenizer is without a type"),
        ("/pre_tokenizer/add_prefix_space", json!(true), "add_prefix_space"),
        ("/pre_tokenizer/use_regex", json!(false), "use_regex"),
        ("/post_processor", json!({"type": "BertProcessing"}), "post-processor is BertProcessing"),
        ("/post_processor", json!({"type": "TemplateProcessing", "single": [1, 2]}), "adds tokens"),
        ("/decoder", json!({"type": "WordPiece"}), "decoder is WordPiece"),
        ("/truncation", json!({"max_length": 3}), "truncates"),
        ("/padding", json!({}), "truncates or pads"),
        ("/added_tokens/0/lstrip", json!(true), "lstrip"),
        ("/added_tokens/0/content", json!(""), "0 bytes"),
        ("/added_tokens/0/content", json!("x".repeat(1024)), "1024 bytes"),
        ("/added_tokens/0/id", json!(3), "has id 3, but 0"),
        ("/added_tokens/2/id", json!(3), "given to two"),
        ("/added_tokens/2/id", json!(4_000_000_000u32), "above the highest"),
        ("/added_tokens/2/content", json!("     "), "appears twice"),
    ];
    for (path, value, says) in cases {
        let mut file: Value = serde_json::from_str(SMALL).unwrap();
        match file.pointer_mut(path) {
            Some(place) => *place = value.clone(),
            None => {
                let (parent, name) = path.rsplit_once('/').unwrap();
                file.pointer_mut(parent).unwrap()[name] = value.clone();
            }
        }
        let message = Bpe::from_tokenizer_json(file.to_string().as_bytes()).unwrap_err().to_string();
        assert!(message.contains(says), "{path} = {value}: {message}");
    }
    let template = json!({"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}]});
    for harmless in
        [("/post_processor", template), ("/post_processor", Value::Null), ("/normalizer", Value::Null)]
    {
        let mut file: Value = serde_json::from_str(SMALL).unwrap();
        *file.pointer_mut(harmless.0).unwrap() = harmless.1;
        assert!(Bpe::from_tokenizer_json(file.to_string().as_bytes()).is_ok());
    }
    for text in ["", "{", "null", "[]", "{}", "{\"model\":{}}", "{\"model\":{\"vocab\":{},\"merges\":[]}}"] {
        assert!(Bpe::from_tokenizer_json(text.as_bytes()).is_err(), "{text}");
    }
    let deep = "[".repeat(100_000);
    assert!(Bpe::from_tokenizer_json(deep.as_bytes()).is_err());
}

#[test]
fn damaged_files_never_panic() {
    let mut random = Random::new(9);
    for _ in 0..600 {
        let mut file = SMALL.as_bytes().to_vec();
        for _ in 0..1 + random.below(2) {
            let at = random.below(file.len());
            match random.below(4) {
                0 => file[at] = b"0123456789\"{}[],:"[random.below(17)],
                1 => file[at] = random.next() as u8,
                2 => {
                    file.remove(at);
                }
                _ if random.below(10) == 0 => file.truncate(at),
                _ => file.insert(at, b'9'),
            }
        }
        if let Ok(bpe) = Bpe::from_tokenizer_json(&file) {
            bpe.encode(SMALL.as_bytes());
        }
    }
}

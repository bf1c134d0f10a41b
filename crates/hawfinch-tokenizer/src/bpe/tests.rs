use super::*;
use crate::testing::shared_data;

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

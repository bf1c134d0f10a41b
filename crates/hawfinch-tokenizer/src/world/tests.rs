use super::*;
use crate::testing::{Random, shared_data};

/// Specification section 13.
const VECTORS: &[(&[u8], &[u32])] = &[
    (b"", &[]),
    (b"Hello world", &[33155, 40213]),
    (b"User: hi\n\nAssistant: Hello", &[24281, 59, 4571, 261, 5585, 41693, 59, 36786]),
    (b"The Eiffel tower is in the city of", &[6699, 304, 25740, 109, 39990, 4600, 4596, 22590, 30449, 4706]),
    (b"\r\n\r\n", &[19244]),
    (b" \t  \n", &[264, 3339]),
    (b"3.14159265", &[52, 47, 634, 635, 712, 685]),
    ("你好，世界".as_bytes(), &[10464, 11685, 19137, 10267, 14610]),
    ("こんにちは".as_bytes(), &[10115, 10165, 10136, 10127, 10139]),
    ("안녕하세요".as_bytes(), &[18815, 3266, 150, 19052, 18777, 18862]),
    ("🦜🚀".as_bytes(), &[3319, 167, 157, 3319, 155, 129]),
    (b"\xFF\xFE", &[256, 255]),
    (b"\xE4\xBD", &[3030]),
    (b"\x00\x01", &[1, 2]),
    (b"\n", &[11]),
    (b"\n\n", &[261]),
    (b"\r\n", &[263]),
    (b" ", &[33]),
    (b"  ", &[267]),
    (b"\t", &[10]),
];

/// Longest match by comparing slices: the meaning, for tests.
fn naive(world: &World, text: &[u8]) -> Vec<u32> {
    let ids: std::collections::HashMap<&[u8], u32> =
        (1..world.vocab_size() as u32).filter_map(|id| Some((world.token_bytes(id)?, id))).collect();
    let mut found = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (len, id) = (1..=rest.len().min(128))
            .rev()
            .find_map(|len| Some((len, *ids.get(&rest[..len])?)))
            .expect("every byte is a token");
        found.push(id);
        rest = &rest[len..];
    }
    found
}

#[test]
fn specification_vectors() {
    let world = World::built_in();
    for (text, ids) in VECTORS {
        assert_eq!(world.encode(text), *ids, "{}", text.escape_ascii());
        assert_eq!(world.decode(ids).unwrap(), *text);
    }
}

#[test]
fn built_in_vocabulary_is_the_published_one() {
    let world = World::built_in();
    assert_eq!(BUILT_IN.len(), 1_093_733);
    assert_eq!(world.vocab_size(), 65_530);
    assert_eq!(world.name(), "World");
    for byte in 0..=255u8 {
        assert_eq!(world.token_bytes(u32::from(byte) + 1), Some(&[byte][..]));
    }
    assert_eq!(world.token_bytes(65_529), Some(&[b' '; 128][..]));
    assert_eq!(world.token_bytes(0), Some(&[][..]));
    assert_eq!(world.token_bytes(65_530), None);
    assert_eq!(world.token_bytes(u32::MAX), None);
    let not_utf8 = (1..65_530).filter(|&id| std::str::from_utf8(world.token_bytes(id).unwrap()).is_err());
    assert_eq!(not_utf8.count(), 486);
    for id in 1..65_530 {
        let token = world.token_bytes(id).unwrap();
        assert_eq!(world.token_id(token), Some(id));
        assert_eq!(world.encode(token), [id]);
    }
    assert_eq!(world.token_id(b"User:"), None);
    assert_eq!(world.token_id(b""), None);
}

#[test]
fn trie_is_compact() {
    let slots = World::built_in().trie.slots();
    assert!((116_078..160_000).contains(&slots), "{slots} slots for 116,078 nodes");
}

#[test]
fn decode_names_the_undefined_id() {
    let world = World::built_in();
    assert_eq!(world.decode(&[0, 33155, 0]).unwrap(), b"Hello");
    assert!(matches!(world.decode(&[33155, 65_530]), Err(Error::UndefinedId { id: 65_530, .. })));
}

/// Texts on which lanes, pieces and the one-by-one walk could part: token pieces, random bytes, long runs.
fn texts(random: &mut Random) -> Vec<Vec<u8>> {
    let world = World::built_in();
    let mut texts = Vec::new();
    for round in 0..40 {
        let size = 1 + random.below(if round % 4 == 0 { 40_000 } else { 3_000 });
        let mut text = Vec::with_capacity(size + 128);
        while text.len() < size {
            match (round + random.below(2)) % 5 {
                0 => text.push(random.next() as u8),
                1 => text.extend_from_slice(world.token_bytes(random.below(65_530) as u32).unwrap()),
                2 => {
                    let run = [b' ', b'\n', b'=', 0, 0xE3][random.below(5)];
                    text.resize(text.len() + random.below(700), run);
                }
                3 => {
                    let token = world.token_bytes(random.below(65_530) as u32).unwrap();
                    text.extend_from_slice(&token[..random.below(token.len() + 1)]);
                }
                _ => text.extend_from_slice("naïve 試験 — тест\r\n".as_bytes()),
            }
        }
        texts.push(text);
    }
    texts.push(vec![b' '; 20_000]);
    texts
}

#[test]
fn lanes_pieces_and_naive_matcher_agree() {
    let world = World::built_in();
    for text in texts(&mut Random::new(1)) {
        let mut ids = Vec::new();
        assert_eq!(world.encode_one_by_one(&text, 0, text.len(), &mut ids), text.len());
        assert_eq!(world.decode(&ids).unwrap(), text);
        if text.len() < 3_000 {
            assert_eq!(ids, naive(&world, &text));
        }
        assert!(world.encode(&text) == ids, "lanes differ on {} bytes", text.len());
        for (threads, size) in [(1, 9), (2, 1 + text.len() / 50), (3, 1 + text.len() / 7), (4, 5_000)] {
            let found = world.encode_pieces(&text, threads, size);
            assert!(found == ids, "pieces of {size} differ on {} bytes", text.len());
        }
    }
}

#[test]
fn joining_that_never_meets_is_still_exact() {
    // Tokens "ab" and "a", "b" on "abab…": a guess from an odd place never begins a token where the truth does
    // if "ba" is a token too.
    let mut vocabulary = single_bytes();
    vocabulary.push_str("257 'ab' 2\n258 'ba' 2\n");
    let world = World::from_vocabulary(vocabulary.as_bytes()).unwrap();
    let text = "ab".repeat(9_001);
    let ids = vec![257; 9_001];
    assert_eq!(world.encode(text.as_bytes()), ids);
    for size in [19, 6_001, 9_001] {
        assert_eq!(world.encode_pieces(text.as_bytes(), 2, size), ids);
    }
}

#[test]
fn encode_parallel_is_encode() {
    let world = World::built_in();
    let mixed = texts(&mut Random::new(2)).concat();
    let text = mixed.repeat((1 << 20) / mixed.len() + 1); // several pieces
    for threads in [0, 1, 2, 5] {
        assert!(world.encode_parallel(&text, threads) == world.encode(&text));
    }
}

#[test]
fn encode_into_appends() {
    let mut ids = vec![7];
    World::built_in().encode_into(b"Hello", &mut ids);
    assert_eq!(ids, [7, 33155]);
}

/// A vocabulary of the 256 bytes, ids byte + 1.
fn single_bytes() -> String {
    (0..256).map(|byte| format!("{} b'\\x{byte:02x}' 1\n", byte + 1)).collect()
}

#[test]
fn line_ends_and_escapes() {
    let lines = "257 '\\n\\r\\t\\\\\\'\\\"' 6\n258 \"it's\" 4\n259 '\\xe9' 2\n260 b'\\xe9\\x80' 2\n\
                 261 '\\u4f60' 3\n262 '\\U0001F99C' 4\n700 '  a b ' 6\n300 'é' 2";
    let file = (single_bytes() + lines).replace("300 'é' 2", "300 'éé' 4");
    for file in [file.clone(), file.replace('\n', "\r\n"), file.clone() + "\n", format!("\u{feff}{file}\r\n")]
    {
        let world = World::from_vocabulary(file.as_bytes()).unwrap();
        assert_eq!(world.vocab_size(), 701);
        let expected: &[(u32, &[u8])] = &[
            (1, b"\0"),
            (257, b"\n\r\t\\'\""),
            (258, b"it's"),
            (259, "é".as_bytes()),
            (260, b"\xE9\x80"),
            (261, "你".as_bytes()),
            (262, "🦜".as_bytes()),
            (300, "éé".as_bytes()),
            (700, b"  a b "),
        ];
        for &(id, token) in expected {
            assert_eq!(world.token_bytes(id), Some(token), "id {id}");
            assert_eq!(world.encode(token), [id]);
        }
        assert_eq!(world.token_bytes(699), None);
    }
}

#[test]
fn malformed_vocabularies_are_refused() {
    let bytes = single_bytes();
    let cases: &[(&str, &str)] = &[
        ("257", "form"),
        ("", "form"),
        ("257 'ab'", "form"),
        ("257 'a b'", "length is not"),
        ("257 2", "form"),
        ("x 'ab' 2", "the id is not"),
        ("-1 'ab' 2", "the id is not"),
        ("99999999999999999999 'ab' 2", "the id is not"),
        ("0 'ab' 2", "id 0"),
        ("1048576 'ab' 2", "id 1048576 is above"),
        ("999999999 'ab' 2", "above"),
        ("257 'ab' 3", "has 2 bytes, but the line says 3"),
        ("257 'ab' x", "length is not"),
        ("257 'ab' 99999999999", "length is not"),
        ("257 '' 0", "empty"),
        ("256 'ab' 2", "given to another"),
        ("257 ab 2", "quoted"),
        ("257 'ab\" 2", "quoted"),
        ("257 ' 1", "quoted"),
        ("257 b 1", "quoted"),
        ("257 'a'b' 3", "quotation mark"),
        ("257 'a\\' 2", "ends inside"),
        ("257 'a\\q' 2", "escape \\q"),
        ("257 'a\\x1' 2", "too few"),
        ("257 'a\\xzz' 2", "too few"),
        ("257 '\\ud800' 3", "U+D800 is not"),
        ("257 '\\U00110000' 4", "U+110000 is not"),
        ("257 b'\\u0041' 1", "escape \\u"),
        ("257 b'é' 2", "ASCII"),
    ];
    for (line, says) in cases {
        let file = format!("{bytes}{line}\n258 'fine' 4\n");
        match World::from_vocabulary(file.as_bytes()) {
            Err(Error::VocabularyLine { line: 257, problem }) => {
                assert!(problem.contains(says), "{line}: {problem}");
            }
            other => panic!("{line}: {other:?}"),
        }
    }
    let not_utf8 = [bytes.as_bytes(), b"257 '\xFF' 1"].concat();
    assert!(matches!(World::from_vocabulary(&not_utf8), Err(Error::VocabularyLine { line: 257, .. })));
    let long = format!("{bytes}257 '{}' 1024", "a".repeat(1024));
    assert!(matches!(World::from_vocabulary(long.as_bytes()), Err(Error::VocabularyLine { line: 257, .. })));
    let fits = format!("{bytes}257 '{}' 1023", "a".repeat(1023));
    let world = World::from_vocabulary(fits.as_bytes()).unwrap();
    assert_eq!(world.encode(&[b'a'; 3000]), [vec![257; 2], vec![98; 954]].concat());
    let twice = format!("{bytes}257 'ab' 2\n258 'ab' 2");
    let message = World::from_vocabulary(twice.as_bytes()).unwrap_err().to_string();
    assert!(message.contains("257 and 258"), "{message}");
    let lacking = bytes.replace("66 b'\\x41' 1\n", "");
    let message = World::from_vocabulary(lacking.as_bytes()).unwrap_err().to_string();
    assert!(message.contains("0x41"), "{message}");
    assert!(World::from_vocabulary(b"").is_err());
}

#[test]
fn damaged_vocabularies_never_panic() {
    let mut random = Random::new(3);
    let start = single_bytes() + "257 '\\u00e9\\n' 3\n258 b'\\xe9\\x80' 2\n259 \"don't\" 5\n";
    for _ in 0..2_000 {
        let mut file = start.clone().into_bytes();
        for _ in 0..1 + random.below(3) {
            let at = file.len() - 1 - random.below(60);
            match random.below(3) {
                0 => file[at] = random.next() as u8,
                1 => {
                    file.remove(at);
                }
                _ => file.truncate(at.max(70)),
            }
        }
        if let Ok(world) = World::from_vocabulary(&file) {
            assert_eq!(world.decode(&world.encode(&file)).unwrap(), file);
        }
    }
}

#[test]
fn random_vocabularies_match_naively() {
    // Few letters make many shared prefixes with gaps between accepted ones.
    let mut random = Random::new(4);
    for _ in 0..30 {
        let mut tokens = std::collections::BTreeSet::new();
        for _ in 0..random.below(400) {
            let len = 2 + random.below(9);
            tokens.insert((0..len).map(|_| [b'a', b'b', 0, 0xFF][random.below(4)]).collect::<Vec<u8>>());
        }
        let mut file = single_bytes();
        for (id, token) in (257..).zip(&tokens) {
            let hex: String = token.iter().map(|b| format!("\\x{b:02x}")).collect();
            file += &format!("{id} b'{hex}' {}\n", token.len());
        }
        let world = World::from_vocabulary(file.as_bytes()).unwrap();
        let text: Vec<u8> = (0..5_000).map(|_| [b'a', b'b', 0, 0xFF, b'c'][random.below(5)]).collect();
        let expected = naive(&world, &text);
        assert_eq!(world.encode(&text), expected);
        assert_eq!(world.encode_pieces(&text, 2, 333), expected);
    }
}

#[test]
fn own_vectors() {
    let world = World::built_in();
    let cases = crate::testing::vectors(include_bytes!("../../tests/data/world_vectors.jsonl"));
    assert_eq!(cases.len(), 158);
    for (text, ids) in cases {
        assert_eq!(world.encode(&text), ids, "{}", text.escape_ascii());
        assert_eq!(world.decode(&ids).unwrap(), text);
    }
}

#[test]
fn shared_vectors() {
    let Some(lines) = shared_data("tokenizer/world_vectors.jsonl") else { return };
    let crlf = shared_data("tokenizer/rwkv_vocab_v20230424.crlf.txt").expect("beside the vectors");
    let worlds = [World::built_in(), Arc::new(World::from_vocabulary(&crlf).unwrap())];
    let cases = crate::testing::vectors(&lines);
    assert_eq!(cases.len(), 1873);
    for (text, ids) in cases {
        for world in &worlds {
            assert_eq!(world.encode(&text), ids, "{}", text.escape_ascii());
            assert_eq!(world.decode(&ids).unwrap(), text);
        }
    }
}

#![no_main]
//! Lists of token ids and of piece lengths, as the command line takes them. They belong to the binary, so the
//! checks are here; its own tests hold what has been found.

#[path = "../../crates/hawfinch/src/ids.rs"]
mod ids;
#[path = "../../crates/hawfinch-model/tests/fuzz_checks/limit.rs"]
mod limit;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match ids::parse(text) {
        Ok(found) => {
            // What is written out reads back.
            let list = found.iter().map(u32::to_string).collect::<Vec<_>>();
            assert_eq!(ids::parse(&list.join(",")).expect("a list"), found);
            assert_eq!(ids::parse(&format!("{{\"ids\": [{}]}}", list.join(", "))).expect("JSON"), found);
        }
        Err(e) => assert!(!format!("{e:#}").chars().any(char::is_control), "{e:#}"),
    }
    if let Err(e) = ids::parse_split(text, 8) {
        assert!(!format!("{e:#}").chars().any(char::is_control), "{e:#}");
    }
});

//! `bench`: what it reports, what it refuses, what it draws.

use crate::util::Place;

#[test]
fn the_report_says_what_was_measured() {
    let place = Place::new();
    let run = place.run(&["bench", "untrained", "--quick", "--json", "--context", "100"]).ok();
    let json = run.json();
    assert_eq!(json["threads"], 2);
    assert!(json["isa"].is_string());
    assert_eq!(json["model"]["name"], "untrained");
    assert_eq!(json["model"]["made_up"], false);
    let number = |v: &serde_json::Value| v.as_f64().unwrap_or_else(|| panic!("{v} in {json}"));
    // The embedding has 256 rows of 128 numbers; of all the matrices of the demo it alone is not read whole.
    let (bytes, adds) =
        (number(&json["model"]["weight_bytes_per_token"]), number(&json["model"]["multiply_adds_per_token"]));
    assert_eq!(bytes, 4.0 * (adds + 128.0));
    assert!(adds < number(&json["model"]["parameters"]));
    let (read, multiply) =
        (&json["limits"]["read_bytes_per_second"], &json["limits"]["multiply_adds_per_second"]);
    assert!(number(read) > 1e6 && number(multiply) > 1e6);
    assert!(number(&json["first_token"]["seconds"]) > number(&json["load_seconds"]));
    for (what, sizes) in [("decode", &[1, 4][..]), ("prefill", &[64])] {
        let rows = json[what].as_array().unwrap();
        assert_eq!(rows.iter().map(|r| r["n"].as_i64().unwrap()).collect::<Vec<_>>(), sizes);
        for r in rows {
            let speed = number(&r["tokens_per_second"]);
            assert!(speed > 0.0 && number(&r["best_tokens_per_second"]) >= speed, "{r}");
            assert!(number(&r["seconds"]["min"]) <= number(&r["seconds"]["median"]), "{r}");
            assert!(number(&r["percent_of_read"]) > 0.0 && number(&r["percent_of_multiply"]) > 0.0, "{r}");
        }
    }
    let marks: Vec<_> = json["context"].as_array().unwrap().iter().map(|m| m["context"].clone()).collect();
    assert_eq!(marks, [64, 100]);
    if cfg!(target_os = "linux") {
        assert!(number(&json["memory"]["peak_bytes"]) > 1e6);
    }
}

#[test]
fn the_table_begins_with_the_machine() {
    let place = Place::new();
    let run = place
        .run(&["bench", "untrained", "--quick", "--quant", "int8", "--batch", "2", "--prefill", "3"])
        .ok();
    let text = run.text();
    let at = |word: &str| text.find(word).unwrap_or_else(|| panic!("{word} in {text}"));
    assert!(
        at("processor") < at("2 threads") && at("2 threads") < at("int8") && at("int8") < at("2 at once")
    );
    assert!(at("2 at once") < at("3 tokens"));
}

#[test]
fn published_shapes_need_no_file() {
    let place = Place::new();
    let args = ["bench", "--shape", "Goose-0.1B", "--quant", "int8", "--quick", "--json"];
    let run = place.run(&[&args[..], &["--batch", "1", "--prefill", "4"]].concat()).ok();
    // They are made up quantised: nothing is left to quantise, and nothing to say of it.
    assert!(!run.err.contains("--quant"), "{}", run.err);
    let json = run.json();
    assert_eq!(json["model"]["name"], "goose-0.1b");
    assert_eq!(json["model"]["made_up"], true);
    assert_eq!(json["model"]["parameters"], 191_084_544);
    // 8.5 bits a linear weight, 16 bits a low-rank one, and one row of the embedding.
    let bytes = json["model"]["weight_bytes_per_token"].as_f64().unwrap();
    let adds = json["model"]["multiply_adds_per_token"].as_f64().unwrap();
    assert!(bytes / adds > 1.06 && bytes / adds < 1.15, "{bytes} for {adds}");
}

#[test]
fn what_cannot_be_is_refused_at_once() {
    let place = Place::new();
    place.run(&["bench"]).fails(2, &["--shape"]);
    place.run(&["bench", "--shape", "swan-1b"]).fails(2, &["`swan-1b`", "goose-0.1b", "raven-14b"]);
    for (option, value) in [("--context", "0"), ("--batch", "1,0"), ("--prefill", "0"), ("--rounds", "0")] {
        place.run(&["bench", "untrained", option, value]).fails(2, &[option]);
    }
    let threads = place.run(&["bench", "untrained", "--threads", "0"]);
    assert_eq!(threads.code, 2);
    assert!(threads.err.contains("--threads"), "{}", threads.err);
    assert_eq!(place.run(&["bench", "untrained", "--shape", "goose-0.1b"]).code, 2);
}

#[cfg(feature = "plot")]
#[test]
fn the_plot_is_written_where_it_can_be() {
    let place = Place::new();
    place.run(&["bench", "untrained", "--quick", "--plot", "nowhere/a.svg"]).fails(2, &["nowhere"]);
    place.run(&["bench", "untrained", "--quick", "--plot", "a.pdf"]).fails(2, &["a.pdf", ".svg", ".png"]);
    std::fs::create_dir(place.path("folder.svg")).unwrap();
    place.run(&["bench", "untrained", "--quick", "--plot", "folder.svg"]).fails(2, &["folder"]);

    place.run(&["bench", "untrained", "--quick", "--plot", "a.svg"]).ok();
    let svg = String::from_utf8(place.read("a.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
    for words in ["tokens a second", "memory", "untrained", "polyline"] {
        assert!(svg.contains(words), "{words} in {svg}");
    }
    place.run(&["bench", "untrained", "--quick", "--context", "70", "--plot", "a.PNG"]).ok();
    assert_eq!(place.read("a.PNG")[..8], *b"\x89PNG\r\n\x1a\n");
    // A model is not drawn over, and a failed run leaves nothing.
    place.model("m.safetensors", &[]);
    std::fs::rename(place.path("m.safetensors"), place.path("m.svg")).unwrap();
    place.run(&["bench", "m.svg", "--quick", "--plot", "m.svg"]).fails(2, &["m.svg"]);
    place.run(&["bench", "absent.pth", "--plot", "b.svg"]).fails(1, &["absent.pth"]);
    let left =
        std::fs::read_dir(place.path("")).unwrap().filter_map(|e| e.unwrap().file_name().into_string().ok());
    let left: Vec<String> = left.filter(|name| name.contains(".part") || name.starts_with("b.")).collect();
    assert!(left.is_empty(), "{left:?}");
}

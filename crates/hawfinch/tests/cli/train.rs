//! `train`: from text to a model that other commands open, and back to it after whatever happens.

use std::process::Stdio;
use std::time::{Duration, Instant};

use hawfinch_model::{StoredTensor, format};

use crate::util::{Place, Run, TINY};

const CONFIG: &str = r#"
version = "7"
layers = 2
width = 32
head-size = 16
tokenizer = "bytes"
text = ["text.jsonl"]
held-out = 0.2
ctx = 32
batch = 2
steps = 12
lr = 1e-2
warmup-steps = 2
save-every = 4
eval-every = 6
sample-every = 12
"#;

fn place() -> Place {
    let place = Place::new();
    let line =
        |n: usize| format!("{{\"text\": \"the {n}th line of a text that repeats itself {n} times\"}}\n");
    place.write("text.jsonl", (0..40).map(line).collect::<String>());
    place.write("run.toml", CONFIG);
    place
}

fn train(place: &Place, more: &[&str]) -> Run {
    place.run(&[&["train", "run.toml"], more].concat())
}

fn losses(place: &Place, run: &str) -> Vec<(u64, String)> {
    let lines = String::from_utf8(place.read(&format!("{run}/metrics.jsonl"))).unwrap();
    let records = lines.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
    let steps = records.filter(|r| r["kind"] == "train");
    steps.map(|r| (r["step"].as_u64().unwrap(), r["loss"].to_string())).collect()
}

/// The baseline is trained, saved and gone on with like every version; what would run it says what it is.
#[test]
fn the_attention_baseline_is_trained_and_not_run() {
    let place = place();
    let run = train(&place, &["--version", "attention", "--steps", "8", "--sample-every", "8"]).ok();
    for said in ["the attention baseline", "step 8/8: loss", "validation loss", "no sample: "] {
        assert!(run.err.contains(said), "`{said}` in: {}", run.err);
    }
    let steps = losses(&place, "runs/run");
    let number = |n: usize| steps[n].1.parse::<f64>().unwrap();
    assert!((number(0) - 256f64.ln()).abs() < 0.5 && number(7) < number(0) - 0.3, "{steps:?}");
    train(&place, &["--steps", "8"]).fails(2, &["the attention baseline, not RWKV-7"]);
    let model = "runs/run/step-00000008/model.safetensors";
    place.run(&["inspect", model]).ok();
    for args in [
        &["generate", model, "a", "-n", "1"][..],
        &["chat", model],
        &["logits", model, "--ids", "1", "--out", "l.st"],
        &["embed", model, "a"],
        &["bench", model, "--quick"],
        &["convert", model, "m.gguf"],
        &["convert", model, "m.packed.safetensors"],
    ] {
        place.run(args).fails(1, &[model, "trained and evaluated only"]);
    }
    assert!(!place.path("m.gguf").exists() && !place.path("l.st").exists());
    place.run(&["convert", model, "m.pth"]).ok();
    assert!(place.run(&["inspect", "m.pth"]).ok().text().contains("attention"));
}

#[test]
fn a_run_gives_a_model_that_every_command_opens() {
    let place = place();
    place.write("probe.jsonl", "{\"text\": \"a text that repeats itself 3 times\"}\n{\"text\": \"word\"}\n");
    let run = train(&place, &["--probe", "probe.jsonl"]).ok();
    assert!(run.out.is_empty() && run.err.contains("% of last words"), "{}", run.err);
    for said in
        ["RWKV-7", "step 12/12: loss", "validation loss", "bits a byte", "done: runs/run/step-00000012"]
    {
        assert!(run.err.contains(said), "`{said}` in: {}", run.err);
    }
    let steps = losses(&place, "runs/run");
    assert_eq!(steps.len(), 12);
    let number = |n: usize| steps[n].1.parse::<f64>().unwrap();
    assert!((number(0) - 256f64.ln()).abs() < 0.5 && number(11) < number(0) - 0.5, "{steps:?}");
    // Two checkpoints are kept, and the best is one of them.
    let model = "runs/run/step-00000012/model.safetensors";
    let text = place.run(&["generate", model, "the", "--max-tokens", "4", "--tokenizer", "bytes"]).ok();
    assert!(!text.out.is_empty());
    place.run(&["verify", model]).ok();
    place.run(&["convert", model, "model.pth", "--dtype", "bf16"]).ok();
    assert!(place.run(&["inspect", "model.pth"]).ok().text().contains("RWKV-7"));
    #[cfg(feature = "plot")]
    {
        // The run has drawn itself; so does the command, from what the run wrote down and by its model's size.
        let own = place.read("runs/run/loss.svg");
        assert!(own.starts_with(b"<svg"));
        place.run(&["plot", "runs/run"]).ok();
        assert!(place.read("runs/run/loss.svg") == own);
        place.run(&["plot", "runs/run", "--x", "flops", "--out", "flops.svg"]).ok();
        let flops = String::from_utf8(place.read("flops.svg")).unwrap();
        assert!(flops.contains("MFLOP"), "{flops}");
    }
    let config = String::from_utf8(place.read("runs/run/config.toml")).unwrap();
    assert!(config.contains("width = 32") && config.contains("beta2 = 0.99"), "{config}");
    // Done is done.
    let again = train(&place, &[]).ok();
    assert!(again.err.contains("going on from") && again.err.contains("done"), "{}", again.err);
    assert_eq!(losses(&place, "runs/run"), steps);
    // A longer run goes on, from the model as it was.
    train(&place, &["--steps", "15"]).ok();
    assert_eq!(losses(&place, "runs/run").len(), 15);
    // Another run starts from it.
    let more = place.run(&["train", "run.toml", "--from", "model.pth", "-o", "second", "--lr", "1e-3"]).ok();
    assert!(more.err.contains("done: second/"), "{}", more.err);
    let first = losses(&place, "second")[0].1.parse::<f64>().unwrap();
    assert!(first < number(0) - 0.5, "{first}");
}

/// A model most of whose channel mix does nothing is told of, and written down; one that is well is not.
#[test]
fn dead_channels_are_told() {
    let place = place();
    let evals = |run: &str| -> Vec<f64> {
        let lines = String::from_utf8(place.read(&format!("{run}/metrics.jsonl"))).unwrap();
        let records = lines.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
        records.filter(|r| r["kind"] == "eval").map(|r| r["dead_channels"].as_f64().unwrap()).collect()
    };
    let well = train(&place, &["--steps", "6"]).ok();
    assert!(!well.err.contains("never fired") && evals("runs/run")[0] < 0.5, "{}", well.err);
    let mut model = format::open(&place.path("runs/run/step-00000006/model.safetensors")).unwrap();
    for layer in 0..2 {
        let bias = format!("blocks.{layer}.ln2.bias");
        model.tensors[&bias] = StoredTensor::from_f32(&[32], &[20.0; 32]);
        let mix = format!("blocks.{layer}.ffn.x_k");
        model.tensors[&mix] = StoredTensor::from_f32(&model.tensors[&mix].shape.clone(), &[0.5; 32]);
        let key: Vec<f32> = (0..128 * 32).map(|i| if i / 32 < 77 { -1.0 } else { 1.0 }).collect();
        model.tensors[&format!("blocks.{layer}.ffn.key.weight")] = StoredTensor::from_f32(&[128, 32], &key);
    }
    let options = format::SaveOptions {
        format: format::SaveFormat::Safetensors,
        dtype: None,
        vocabulary: None,
        progress: None,
    };
    format::save(&place.path("dead.safetensors"), &model, options).unwrap();
    let run =
        train(&place, &["--from", "dead.safetensors", "-o", "dead", "--steps", "6", "--lr", "1e-9"]).ok();
    let said = "60% of the channel mix's channels never fired: the learning rate is probably too high";
    assert_eq!(run.err.matches(said).count(), 1, "{}", run.err);
    // Before the first step, too, where no rate of this run can be why.
    assert_eq!(evals("dead"), [77.0 / 128.0; 2]);
}

/// Where the plot cannot be, the run goes on and says so once.
#[cfg(feature = "plot")]
#[test]
fn a_plot_that_cannot_be_written_ends_no_run() {
    let place = place();
    std::fs::create_dir_all(place.path("runs/run/loss.svg")).unwrap();
    let run = train(&place, &[]).ok();
    let said = run.err.lines().filter(|l| l.contains("loss.svg")).count();
    assert!(
        said == 1 && run.err.contains("is not drawn") && run.err.contains("done: runs/run/step-00000012"),
        "{}",
        run.err
    );
}

#[cfg(unix)]
#[test]
fn whatever_ends_a_run_it_goes_on_to_the_bit() {
    let place = place();
    let args =
        ["train", "run.toml", "--steps", "400", "--save-every", "20", "--eval-every", "0", "--keep", "3"];
    place.run(&[&args[..], &["-o", "whole"]].concat()).ok();
    let want = losses(&place, "whole");
    assert_eq!(want.len(), 400);
    for signal in [libc::SIGINT, libc::SIGKILL] {
        let name = format!("after-{signal}");
        let metrics = place.path(&format!("{name}/metrics.jsonl"));
        let args = [&args[..], &["-o", &name]].concat();
        let mut child = place.command(&args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let began = Instant::now();
        while std::fs::read(&metrics).map_or(0, |m| m.iter().filter(|b| **b == b'\n').count()) < 50 {
            assert!(began.elapsed() < Duration::from_secs(100), "no steps");
            std::thread::sleep(Duration::from_millis(2));
        }
        // SAFETY: kill(2) with the id of a child that was not waited for.
        assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
        let status = child.wait().unwrap();
        if signal == libc::SIGINT && !status.success() {
            assert_eq!(status.code(), Some(130));
        }
        let rest = place.run(&args).ok();
        assert!(rest.err.contains("going on from"), "{}", rest.err);
        assert!(losses(&place, &name) == want, "signal {signal}");
        let model = |run: &str| place.read(&format!("{run}/step-00000400/model.safetensors"));
        assert!(model(&name) == model("whole"), "signal {signal}: the same bytes");
    }
}

#[test]
fn what_is_wrong_is_said_before_anything_is_done() {
    let place = place();
    place.write("slip.toml", CONFIG.replace("warmup-steps", "warmup-step"));
    place
        .run(&["train", "slip.toml"])
        .fails(2, &["slip.toml", "no key `warmup-step`", "did you mean `warmup-steps`"]);
    place.run(&["train"]).fails(2, &["what to train on"]);
    place.run(&["train", "absent.toml"]).fails(1, &["absent.toml"]);
    train(&place, &["--steps", "3", "--tokens", "9"]).fails(2, &["only one of `steps`"]);
    train(&place, &["--version", "8"]).fails(2, &["version `8`"]);
    train(&place, &["--width", "40"]).fails(2, &["head"]);
    train(&place, &["--order", "backwards"]).fails(2, &["backwards"]);
    train(&place, &["--vocab", "10"]).fails(2, &["`vocab` is 10", "256"]);
    train(&place, &["--order", "magic-prime", "--ctx", "2000"]).fails(1, &["plain shuffle"]);
    train(&place, &["--data", "corpus"]).fails(2, &["not both"]);
    train(&place, &["--from", "absent.pth"]).fails(1, &["absent.pth"]);
    assert!(!place.path("runs/run").join("metrics.jsonl").exists());
    place.write("probe.jsonl", "{\"text\": \"word\"}\n");
    train(&place, &["--probe", "probe.jsonl"]).fails(2, &["probe.jsonl", "two words"]);
    place.write("empty.txt", "");
    let empty =
        place.run(&["train", "--text", "empty.txt", "--tokenizer", "bytes", "--steps", "2", "-o", "empty"]);
    empty.fails(1, &["nothing to learn from"]);
    // One line is little, but a text.
    place.write("line.txt", "one line");
    let line = ["train", "--text", "line.txt", "--tokenizer", "bytes", "--steps", "2", "-o", "line"];
    let line = [&line[..], &TINY].concat();
    place.run(&line).ok();
    // A run of another shape is not gone on with.
    train(&place, &["--steps", "4"]).ok();
    train(&place, &["--width", "64"]).fails(2, &["runs/run", "width", "another folder"]);
    place.write("text.jsonl", "{\"text\": \"another text, rather longer than nothing at all\"}\n".repeat(3));
    train(&place, &[]).fails(1, &["other data"]);
}

#[test]
fn a_cut_vocabulary_goes_with_the_model() {
    let place = Place::new();
    let line = |n: usize| {
        format!(
            "{{\"text\": \"Zeile {n}: die Donaudampfschifffahrt und ihr Kapitän\\nстрока {n}: привет\"}}\n"
        )
    };
    place.write("text.jsonl", (0..60).map(line).collect::<String>());
    place.run(&["data", "build", "text.jsonl", "-o", "world"]).ok();
    let cut = place.run(&["data", "vocab", "world", "--size", "288", "-o", "vocab.txt"]).ok();
    assert!(cut.err.contains("288 ids") && cut.err.contains("bytes a token"), "{}", cut.err);
    place.run(&["data", "vocab", "world", "--size", "288", "-o", "again.txt", "--threads", "1"]).ok();
    assert_eq!(place.read("vocab.txt"), place.read("again.txt"));
    let new = ["train", "--text", "text.jsonl", "--tokenizer", "vocab.txt", "-o", "runs/cut"];
    place.run(&[&new[..], &TINY, &["--steps", "2"]].concat()).ok();
    let model = "runs/cut/step-00000002/model.safetensors";
    // Without the file that it came from, in every format.
    let vocabulary = place.read("vocab.txt");
    std::fs::remove_file(place.path("vocab.txt")).unwrap();
    let text = "die Kapitän привет";
    let ids = place.run(&["tokenize", "--text", text, "--tokenizer", "again.txt"]).ok().text();
    for name in [model, "m.pth", "m.gguf", "m.packed.safetensors"] {
        if name != model {
            place.run(&["convert", model, name]).ok();
        }
        assert_eq!(place.run(&["tokenize", "--text", text, "--model", name]).ok().text(), ids, "{name}");
        assert!(place.run(&["inspect", name]).ok().text().contains("288 (in this file)"), "{name}");
        place.run(&["generate", name, "die", "-n", "3"]).ok();
        assert_eq!(place.run(&["tokenize", "--text", text, "--tokenizer", name]).ok().text(), ids, "{name}");
    }
    // Trained on, the model keeps it, whether it is the beginning of a run or a run that goes on.
    place
        .run(&[
            "train",
            "--from",
            "m.pth",
            "--text",
            "text.jsonl",
            "--steps",
            "1",
            "--warmup-steps",
            "0",
            "-o",
            "runs/on",
        ])
        .ok();
    let on = "runs/on/step-00000001/model.safetensors";
    assert_eq!(place.run(&["tokenize", "--text", text, "--model", on]).ok().text(), ids);
    place.write("vocab.txt", vocabulary);
    place.run(&[&new[..], &TINY, &["--steps", "3"]].concat()).ok();
    let on = "runs/cut/step-00000003/model.safetensors";
    assert_eq!(place.run(&["tokenize", "--text", text, "--model", on]).ok().text(), ids);
}

#[test]
fn vocabularies_that_cannot_be_cut() {
    let place = Place::new();
    place.write("text.txt", "some words");
    place.run(&["data", "build", "text.txt", "-o", "set"]).ok();
    place.run(&["data", "vocab", "set", "--size", "256", "-o", "v.txt"]).fails(2, &["256 ids are too few"]);
    place.run(&["data", "vocab", "none", "--size", "300", "-o", "v.txt"]).fails(1, &["none"]);
    let bytes = ["data", "vocab", "set", "--size", "300", "-o", "v.txt", "--tokenizer", "bytes"];
    place.run(&bytes).fails(2, &["only a World vocabulary"]);
    place.write("there.txt", "a file");
    place
        .run(&["data", "vocab", "set", "--size", "300", "-o", "there.txt"])
        .fails(2, &["there.txt", "--force"]);
}

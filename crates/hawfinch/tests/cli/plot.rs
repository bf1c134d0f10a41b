//! `plot`: what it draws and tells of runs, and what it says of those that are none.

use crate::util::Place;

/// Lines of a run of so many steps whose loss falls to `end`; validations every fourth.
fn metrics(steps: u64, end: f64) -> String {
    let mut lines = format!("{}\n", eval(0, 9.0));
    for step in 1..=steps {
        let loss = end + 6.0 / step as f64;
        lines += &format!("{}\n", train(step, &loss.to_string()));
        if step % 4 == 0 {
            lines += &format!("{}\n", eval(step, loss + 0.125));
        }
    }
    lines
}

fn train(step: u64, loss: &str) -> String {
    format!(
        "{{\"kind\":\"train\",\"step\":{step},\"tokens\":{},\"loss\":{loss},\"lr\":0.001,\"weight_decay\":0.1,\
         \"grad_norm\":1.5,\"seconds\":{},\"tokens_per_second\":2000.0,\"skipped\":false}}",
        step * 1000,
        step as f64 / 2.0
    )
}

fn eval(step: u64, loss: f64) -> String {
    format!(
        "{{\"kind\":\"eval\",\"step\":{step},\"tokens\":{},\"loss\":{loss},\"bits_per_byte\":{}}}",
        step * 1000,
        loss / 4.0
    )
}

fn run(place: &Place, name: &str, lines: impl AsRef<[u8]>) {
    std::fs::create_dir_all(place.path(name)).unwrap();
    place.write(&format!("{name}/metrics.jsonl"), lines);
}

fn svg(place: &Place, name: &str) -> String {
    let svg = String::from_utf8(place.read(name)).unwrap();
    assert!(svg.starts_with("<svg width=\"1200\"") && svg.trim_end().ends_with("</svg>"), "{svg}");
    svg
}

/// Lines of a plot in the n-th colour that are as wide as this.
fn lines(svg: &str, color: &str, width: u32) -> usize {
    let wide = format!("stroke=\"{color}\" stroke-width=\"{width}\"");
    svg.lines().filter(|l| l.starts_with("<polyline") && l.contains(&wide)).count()
}

const BLUE: &str = "#0072B2";
const RED: &str = "#D55E00";
const VALIDATION: u32 = 7;

#[test]
fn one_run_is_drawn_into_its_folder() {
    let place = Place::new();
    run(&place, "runs/small", metrics(12, 2.0));
    let said = place.run(&["plot", "runs/small"]).ok();
    assert!(said.err.contains("wrote runs/small/loss.svg"), "{}", said.err);
    let text = said.text();
    let cells: Vec<Vec<&str>> = text.lines().map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(cells[1], ["small", "12", "12,000", "2.5000", "2.6250", "2.6250", "12", "2,000"], "{text}");
    let drawn = svg(&place, "runs/small/loss.svg");
    for words in
        ["small", "loss, nats a token", "tokens", "training", "validation", "best", "2.5000", "2.6250", "10k"]
    {
        assert!(drawn.contains(&format!("\n{words}\n")), "{words} in {drawn}");
    }
    // One in the plot, one in the legend.
    assert_eq!(lines(&drawn, BLUE, VALIDATION), 2, "{drawn}");
    // From within, from its file, and as another thing.
    let mut inside = place.command(&["plot", "."]);
    assert!(inside.current_dir(place.path("runs/small")).output().unwrap().status.success());
    assert_eq!(svg(&place, "runs/small/loss.svg"), drawn);
    place.run(&["plot", "runs/small/metrics.jsonl", "--y", "bits-per-byte", "--x", "time"]).ok();
    let bits = svg(&place, "runs/small/bits-per-byte.svg");
    assert!(
        bits.contains("seconds of training") && bits.contains("0.6562") && !bits.contains("2.6250"),
        "{bits}"
    );
    for y in ["lr", "grad-norm", "speed"] {
        place.run(&["plot", "runs/small", "--y", y, "--x", "steps", "--log-x", "--out", "a.svg"]).ok();
    }
    let json = place.run(&["plot", "runs/small", "--json", "--out", "b.PNG", "--smooth", "1"]).ok().json();
    assert_eq!(json[0]["best_step"], 12);
    assert_eq!(json[0]["training_loss"], 2.5);
    let png = place.read("b.PNG");
    assert_eq!(png[..8], *b"\x89PNG\r\n\x1a\n");
    assert_eq!(u32::from_be_bytes(png[16..20].try_into().unwrap()), 1200);
}

#[test]
fn runs_of_one_label_are_one_curve() {
    let place = Place::new();
    for (name, steps, end) in [("a1", 12, 2.0), ("a2", 12, 3.0), ("a3", 8, 4.0), ("b", 12, 1.0)] {
        run(&place, name, metrics(steps, end));
    }
    let title = "a < b & \"c\"";
    let args = ["plot", "lr=1e-3=a1", "lr=1e-3=a2", "lr=1e-3=a3", "b", "--title", title];
    let said = place.run(&args).ok();
    assert!(said.err.contains("lr=1e-3: 3 runs, drawn to where the shortest"), "{}", said.err);
    assert!(said.err.contains("wrote plot.svg"), "{}", said.err);
    assert_eq!(said.text().lines().count(), 5);
    let drawn = svg(&place, "plot.svg");
    // The mean of 2.75, 3.75 and 4.75, where the third ends; validations lie an eighth above.
    for words in ["lr=1e-3 (3 runs)", "3.7500", "3.8750", "b", "1.5000", "a &lt; b &amp; &quot;c&quot;"] {
        assert!(drawn.contains(&format!("\n{words}\n")), "{words} in {drawn}");
    }
    assert!(drawn.contains("band: smallest to largest"));
    let bands =
        drawn.lines().filter(|l| l.starts_with("<polygon") && l.contains(&format!("fill=\"{BLUE}\"")));
    // Of training and of validation.
    assert_eq!(bands.filter(|l| l.contains("opacity=\"0.2\"")).count(), 2, "{drawn}");
    assert_eq!((lines(&drawn, BLUE, VALIDATION), lines(&drawn, RED, VALIDATION)), (2, 2));
    // Without labels they are three.
    place.run(&["plot", "a1", "a2", "a3", "--out", "three.svg"]).ok();
    let three = svg(&place, "three.svg");
    assert!(!three.contains("runs)") && three.contains("#009E73"), "{three}");
}

#[test]
fn runs_that_go_wrong_or_on_are_drawn_as_far_as_they_are() {
    let place = Place::new();
    // NaN, as the trainer writes it.
    let mut lines = metrics(12, 2.0);
    lines += &format!("{}\n{}\n", train(13, "null"), train(14, "null"));
    run(&place, "nan", &lines);
    let said = place.run(&["plot", "nan"]).ok();
    assert!(said.text().contains("2.5000"), "{}", said.text());
    assert!(!svg(&place, "nan/loss.svg").contains("NaN"));
    run(&place, "all-nan", [train(1, "null"), train(2, "null")].join("\n"));
    let said = place.run(&["plot", "all-nan"]).ok();
    assert!(said.err.contains("all-nan: nothing to draw yet"), "{}", said.err);
    assert!(said.text().contains("--") && !place.path("all-nan/loss.svg").exists(), "{}", said.text());
    // Numbers that leave no room.
    run(
        &place,
        "huge",
        [train(1, "1e308"), train(2, "-1e308"), train(3, "3.0"), train(4, "1e29")].join("\n"),
    );
    place.run(&["plot", "huge"]).ok();
    // A line that is being written.
    run(&place, "going", metrics(12, 2.0) + "{\"kind\":\"train\",\"step\":13,\"tok");
    place.run(&["plot", "going"]).ok();
    assert!(place.path("going/loss.svg").exists());
    // One step is a point.
    run(&place, "one", train(1, "3.0"));
    place.run(&["plot", "one", "--log-x"]).ok();
    // Nothing yet: said, and no failure; others are drawn all the same.
    run(&place, "empty", "");
    let said = place.run(&["plot", "empty"]).ok();
    assert_eq!(said.err.trim_end(), "empty: nothing to draw yet, no step has been made");
    assert!(said.text().contains("--") && !place.path("empty/loss.svg").exists());
    let said = place.run(&["plot", "empty", "going", "--y", "bits-per-byte"]).ok();
    assert!(said.err.contains("empty: nothing") && said.err.contains("wrote plot.svg"), "{}", said.err);
    let said = place.run(&["plot", "going", "--y", "probe"]).ok();
    assert!(said.err.contains("no validation has asked a probe"), "{}", said.err);
}

#[test]
fn what_is_no_run_is_told_in_a_sentence() {
    let place = Place::new();
    run(&place, "runs/good", metrics(4, 2.0));
    let damaged = metrics(4, 2.0).replacen("\"kind\":\"train\"", "\"kind\":\"trai", 1);
    run(&place, "damaged", damaged);
    place.run(&["plot", "damaged"]).fails(1, &["damaged/metrics.jsonl line 2", "no record of a run"]);
    place.run(&["plot", "absent"]).fails(1, &["there is no run absent"]);
    place.run(&["plot", "a=absent"]).fails(1, &["there is no run absent"]);
    place.run(&["plot", "runs"]).fails(1, &["runs is no run", "metrics.jsonl", "runs/good"]);
    place.write("text.txt", "no run\n");
    place.run(&["plot", "text.txt"]).fails(1, &["text.txt line 1", "no record of a run"]);
    place.run(&["plot", "=runs/good"]).fails(2, &["no name before `=`"]);
    place.run(&["plot", "runs/good", "--out", "a.pdf"]).fails(2, &["a.pdf", ".svg or .png"]);
    place.run(&["plot", "runs/good", "--out", "nowhere/a.svg"]).fails(2, &["nowhere"]);
    place.run(&["plot", "runs/good", "--smooth", "0"]).fails(2, &["--smooth"]);
    place.run(&["plot", "runs/good", "--x", "flops"]).fails(1, &["runs/good", "no checkpoint", "--x tokens"]);
    assert_eq!(place.run(&["plot"]).code, 2);
    assert_eq!(place.run(&["plot", "runs/good", "--y", "beauty"]).code, 2);
    assert!(!place.path("runs/good/loss.svg").exists() && !place.path("plot.svg").exists());
    let many: Vec<String> = (0..43).map(|n| format!("{n}=runs/good")).collect();
    let many: Vec<&str> = std::iter::once("plot").chain(many.iter().map(String::as_str)).collect();
    place.run(&many).fails(2, &["43 curves", "at most 42"]);
}

//! Conversations as training data: what is learned of them, and that a model reads when it is used what it read in training.

use hawfinch_data::binidx::Reader;
use hawfinch_data::{Control, Inputs, LossOn, Mask, Mixing, Plan, Policy, Reading, Shard, Source, build};
use hawfinch_engine::{Message, Role, Template};
use hawfinch_tokenizer::Tokenizer;
use serde_json::json;

use crate::util::Place;

/// What is said in turn.
type Talk = Vec<(Role, &'static str)>;

/// Conversations of one turn and of several, in several scripts.
fn talks() -> Vec<Talk> {
    use Role::{Assistant as A, System as S, Tool as T, User as U};
    vec![
        vec![(U, "Why is the sky blue?"), (A, "It scatters light.")],
        vec![(U, "q"), (A, "\"Quoted\": (so) {it} :) ☃")],
        vec![(S, "Sei kurz."), (U, "天空为什么是蓝色的?"), (A, "因为散射。🦜"), (U, "🦜👩‍👩‍👧?"), (A, "👨‍👩: Да!")],
        vec![
            (U, "a\r\n\r\nb "),
            (A, " - x\n\n - y\n"),
            (U, "1+1"),
            (A, "2"),
            (U, "?"),
            (A, "\tfn main() {}\n}"),
        ],
        vec![
            (U, "Weather?"),
            (A, "{\"name\": \"weather\"}"),
            (T, "{\"sky\": \"blue\"}"),
            (A, "Blue."),
            (U, "Thanks"),
        ],
    ]
}

/// The conversations as lines of a file.
fn lines(talks: &[Talk]) -> String {
    let line = |talk: &Talk| {
        let message = |(role, said): &(Role, &str)| json!({"role": role, "content": said});
        format!("{}\n", json!({"messages": talk.iter().map(message).collect::<Vec<_>>()}))
    };
    talks.iter().map(line).collect()
}

/// A data set of a file's conversations, written by a template: the ids of each and which of them are learned.
fn built(place: &Place, template: &str) -> Vec<(Vec<u32>, Vec<bool>)> {
    let (out, world) = (place.path(template), Tokenizer::world());
    let source = Source::parse(&place.path("chats.jsonl").display().to_string()).unwrap();
    let reading = Reading { template: template.into(), loss_on: LossOn::Assistant, ..Reading::default() };
    let inputs = Inputs::find(&[source], None).unwrap();
    let plan = Plan::new(inputs, &world, reading, Mixing::default()).unwrap();
    let control = Control::quiet(1);
    build::tokenise_shard(&plan, &out, Shard::WHOLE, Policy::default(), false, &world, control).unwrap();
    build::finish(&plan, &out, control).unwrap();
    let data = Reader::open(&out).unwrap();
    let mask = Mask::open(&data).unwrap().unwrap();
    let document = |n: u64| {
        let ((start, len), mut learned) = (data.span(n).unwrap(), Vec::new());
        mask.read(start, len, &mut learned).unwrap();
        (data.document(n).unwrap(), learned)
    };
    (0..data.documents()).map(document).collect()
}

/// For every template: up to each reply the tokens of the training text are those of the prompt for it, none of which is
/// learned but earlier replies; and what a chat feeds after a reply is what the training text goes on with.
#[test]
fn prompts_are_what_was_read_in_training() {
    let place = Place::new();
    let talks = talks();
    place.write("chats.jsonl", lines(&talks));
    let world = Tokenizer::world();
    for name in Template::builtin_names() {
        let template = Template::builtin(name).unwrap();
        let documents = built(&place, name);
        assert_eq!(documents.len(), talks.len());
        for (talk, (ids, learned)) in talks.iter().zip(&documents) {
            let kept = |(role, said): &(Role, &str)| match (role, template.opening()) {
                (Role::User, _) => template.user_message(said),
                (Role::Assistant, "<think") => template.reply_message(&format!(">\n</think>\n{said}")),
                (Role::Assistant, opening) if !opening.is_empty() => {
                    template.reply_message(&format!(">\n{said}"))
                }
                _ => Message::new(*role, *said),
            };
            let messages: Vec<Message> = talk.iter().map(kept).collect();
            // Where the reply before ended.
            let mut told = 0;
            for (n, _) in talk.iter().enumerate().filter(|(_, m)| m.0 == Role::Assistant) {
                let prompt = world.encode(template.render(&messages[..n], &[], true).unwrap().as_bytes());
                if name == "completion" {
                    // Its turns have no borders: what is said may run together with what was said.
                    continue;
                }
                assert!(ids.starts_with(&prompt), "{name}, {talk:?}");
                let at = prompt.len();
                assert!(
                    learned[told..at].iter().all(|l| !l),
                    "{name}: {:?}",
                    world.decode_lossy(&ids[told..at])
                );
                let len = learned[at..].iter().take_while(|l| **l).count();
                told = at + len;
                let said = world.decode_lossy(&ids[at..told]);
                let last = n + 1 == talk.len();
                assert!(last == (told == ids.len()) && (last || said.ends_with("\n\n")), "{name}: {said:?}");
                let Some(next) = messages.get(n + 1).filter(|m| m.role != Role::Assistant) else { continue };
                let new = std::slice::from_ref(next);
                let piece = template.continuation(&messages[..n], &messages[n], new, &[]).unwrap().unwrap();
                // The blank line that ends the reply is fed with what follows.
                let fed = [&prompt[..], &ids[at..told - 1], &world.encode(piece.as_bytes())].concat();
                let whole = template.render(&messages[..n + 2], &[], true).unwrap();
                assert_eq!(fed, world.encode(whole.as_bytes()), "{name}, {talk:?}");
            }
            assert!(learned[told..].iter().all(|l| !l) || name == "completion");
        }
    }
}

#[test]
fn from_a_chat_file_to_a_model() {
    let place = Place::new();
    let mut file = lines(&[vec![
        (Role::User, "a"),
        (Role::Assistant, "b"),
        (Role::User, "c"),
        (Role::Assistant, "d\n\ne"),
    ]]);
    file +=
        "{\"text\": \"plain\"}\n{\"messages\": [{\"role\": \"user\", \"content\": \"nobody answers\"}]}\n";
    let thought = json!({"role": "assistant", "content": "x", "reasoning_content": "hm"});
    file += &json!({"messages": [{"role": "user", "content": "q"}, thought]}).to_string();
    place.write("chats.jsonl", &file);
    let build = |more: &[&str]| place.run(&[&["data", "build", "chats.jsonl"], more].concat());
    let run = build(&["-o", "world"]).ok();
    // By hand: ` b` `\n\n`, ` d` `\n` `e` and the end; `plain` and its end; ` x` and the end.
    for said in [
        "wrote world.bin and .idx: 3 documents",
        "left out: 1 conversation without a reply to learn, 1 message's reasoning, for which the template has no place",
        "of the tokens are learned, of conversations the assistant's alone: world.mask.bin and .idx; --loss-on all",
    ] {
        assert!(run.err.contains(said), "`{said}` in: {}", run.err);
    }
    let shown = place.run(&["data", "inspect", "world", "--document", "0", "--count", "9"]).ok().text();
    let want = "── document 0, 20 tokens, 6 learned, with the end
User: a\n\nAssistant:⟦ b\n\n⟧User: c\n\nAssistant:⟦ d\ne⟧
── document 1, 2 tokens, 2 learned, with the end
⟦plain⟧
── document 2, 9 tokens, 2 learned, with the end
User: q\n\nAssistant:⟦ x⟧\n";
    assert_eq!(shown, want);
    let json = place.run(&["data", "inspect", "world", "--document", "2", "--json"]).ok().json();
    assert_eq!((&json[0]["learned"], &json[0]["learned_end"]), (&json!(2), &json!(true)));
    assert_eq!(json[0]["text"], "User: q\n\nAssistant: x");
    assert_eq!(json[0]["parts"][1], json!({"learned": true, "text": " x"}));
    let facts = place.run(&["data", "inspect", "world"]).ok().text();
    assert!(facts.contains("  learned      10 (32%)\n"), "{facts}");
    assert_eq!(place.run(&["data", "inspect", "world", "--json"]).ok().json()["learned"], 10);
    let json = build(&["-o", "w2", "--json"]).ok().json();
    assert_eq!((&json["written"]["learned"], &json["masked"]), (&json!(10), &json!(true)));
    assert_eq!((&json["nothing_to_learn"], &json["reasoning_left_out"]), (&json!(1), &json!(1)));
    // With a place for reasoning; and everything.
    build(&["-o", "g1", "--template", "g1-think"]).ok();
    let shown = place.run(&["data", "inspect", "g1", "--document", "2"]).ok().text();
    assert!(shown.ends_with("User: q\n\nAssistant: <think⟦>\nhm\n</think>\nx⟧\n"), "{shown}");
    let run = build(&["-o", "all", "--loss-on", "all"]).ok();
    assert!(!place.path("all.mask.idx").exists() && !run.err.contains("learned"), "{}", run.err);
    assert!(
        place.run(&["data", "inspect", "all", "--count", "1"]).ok().text().contains("c\n\nAssistant: d\ne\n")
    );
    // What is there is not replaced unasked, a mask that no longer belongs is taken away.
    std::fs::remove_file(place.path("world.bin")).unwrap();
    std::fs::remove_file(place.path("world.idx")).unwrap();
    build(&["-o", "world", "--loss-on", "all"]).fails(2, &["world.mask.bin exists", "--force"]);
    build(&["-o", "world", "--loss-on", "all", "--force"]).ok();
    assert!(!place.path("world.mask.bin").exists() && !place.path("world.mask.idx").exists());

    build(&["-o", "x", "--template", "qwen"]).fails(2, &["`qwen`", "world, g1"]);
    place.write(
        "cat.jsonl",
        format!("{file}\n{{\"messages\": [{{\"role\": \"cat\", \"content\": \"x\"}}]}}\n"),
    );
    let words = ["cat.jsonl, line 5", "message 1", "role `cat`", "assistant", "--bad-lines skip"];
    place.run(&["data", "build", "cat.jsonl", "-o", "x"]).fails(1, &words);
    place.write("users.jsonl", "{\"messages\": [{\"role\": \"user\", \"content\": \"q\"}]}\n");
    place.run(&["data", "build", "users.jsonl", "-o", "x"]).fails(2, &["nothing is to be learned"]);
}

#[test]
fn a_run_on_a_chat_file() {
    let place = Place::new();
    place.write("chats.jsonl", lines(&talks()).repeat(4));
    let build = ["data", "build", "chats.jsonl", "--tokenizer", "bytes", "-o", "chats", "--force"];
    place.run(&build).ok();
    let train = |out: &str, steps: &str, more: &[&str]| {
        let sizes = ["--version", "7", "--layers", "1", "--width", "32", "--head-size", "16", "--ctx", "32"];
        let rest = ["--tokenizer", "bytes", "--batch", "2", "--warmup-steps", "0", "--save-every", "1"];
        place.run(&[&["train", "--steps", steps, "-o", out], &sizes[..], &rest, more].concat())
    };
    let data = ["--data", "chats", "--order", "packed"];
    let run = train("run", "2", &[&data[..], &["--validation", "chats"]].concat()).ok();
    let facts = place.run(&["data", "inspect", "chats", "--json"]).ok().json();
    let share = 100.0 * facts["learned"].as_f64().unwrap() / facts["tokens"].as_f64().unwrap();
    let said = format!("loss on {share:.0}% of tokens, in validation on {share:.0}%\n");
    assert!(run.err.contains(&said) && run.err.contains("step 2/2: loss"), "`{said}` in: {}", run.err);
    assert!(run.err.contains("validation loss") && !run.err.contains("NaN"), "{}", run.err);
    // Another mask is other data, and so is none.
    let [bin, idx] = ["chats.mask.bin", "chats.mask.idx"];
    let (mut mask, table) = (place.read(bin), place.read(idx));
    mask[0] ^= 1;
    place.write(bin, &mask);
    train("run", "3", &data).fails(1, &["other data"]);
    mask[0] ^= 1;
    place.write(bin, &mask[1..]);
    train("run", "3", &data).fails(1, &["chats.mask.bin"]);
    place.write(bin, mask.iter().map(|_| 0).collect::<Vec<u8>>());
    train("run", "3", &data).fails(1, &["chats.mask.bin", "no token is to be learned"]);
    std::fs::remove_file(place.path(bin)).unwrap();
    train("run", "3", &data).fails(1, &["chats.mask.bin"]);
    std::fs::remove_file(place.path(idx)).unwrap();
    train("run", "3", &data).fails(1, &["other data"]);
    // The mask of other documents.
    place.write(bin, &mask);
    place.write(idx, &table);
    place.run(&[&build[..], &["--template", "raven"]].concat()).ok();
    place.write(bin, &mask);
    place.write(idx, &table);
    train("run", "3", &data).fails(1, &["chats.mask.idx", "it is a mask of", "build the data set again"]);
    // `text` is made into a data set as `data build` does.
    let run = train("text", "1", &["--text", "chats.jsonl", "--held-out", "0"]).ok();
    assert!(run.err.contains("the assistant's alone") && run.err.contains("loss on "), "{}", run.err);
    place.write("once.jsonl", lines(&talks()));
    let as_is = ["--template", "raven", "--loss-on", "all"];
    train("all", "1", &[&["--text", "once.jsonl"], &as_is[..]].concat()).ok();
    let build = ["data", "build", "once.jsonl", "--tokenizer", "bytes", "-o", "built"];
    place.run(&[&build[..], &as_is].concat()).ok();
    assert_eq!(place.read("all/data/text.bin"), place.read("built.bin"));
    assert!(!place.path("all/data/text.mask.bin").exists());
    // Unasked, as `chat` talks with the model that it begins with: told by its name here. What was begun so goes on so.
    place.write("raven.safetensors", place.read("all/step-00000001/model.safetensors"));
    let from =
        ["train", "--from", "raven.safetensors", "--text", "once.jsonl", "--loss-on", "all", "-o", "talk"];
    let rest = ["--tokenizer", "bytes", "--ctx", "32", "--batch", "2", "--warmup-steps", "0", "--steps"];
    for steps in ["1", "2"] {
        place.run(&[&from[..], &rest, &[steps]].concat()).ok();
        assert_eq!(place.read("talk/data/text.bin"), place.read("built.bin"));
    }
    train("x", "1", &[&data[..], &as_is[..2]].concat()).fails(2, &["`data` is one already"]);
    train("x", "1", &["--text", "chats.jsonl", "--template", "qwen"])
        .fails(2, &["no template `qwen`", "world"]);
    train("x", "1", &["--text", "chats.jsonl", "--loss-on", "user"]).fails(2, &["`loss-on`", "assistant"]);
}

/// In a terminal what is not learned is dim.
#[cfg(unix)]
#[test]
fn a_terminal_shows_the_mask_in_shades() {
    use std::io::Read;
    let place = Place::new();
    place.write("chats.jsonl", lines(&talks()[..1]));
    place.run(&["data", "build", "chats.jsonl", "-o", "x"]).ok();
    let shown = |marks: &[&str]| {
        let (theirs, mut ours) = crate::util::terminal();
        let mut command = place.command(&[&["data", "inspect", "x", "--document", "0"], marks].concat());
        let mut child = command.env("TERM", "xterm").stdout(theirs).spawn().unwrap();
        command.stdout(std::process::Stdio::null());
        let mut seen = Vec::new();
        let _ = ours.read_to_end(&mut seen);
        assert!(child.wait().unwrap().success());
        String::from_utf8(seen).unwrap().replace('\r', "")
    };
    let dim = "\x1b[2mUser: Why is the sky blue?\n\nAssistant:\x1b[22m It scatters light.\n";
    assert!(shown(&[]).ends_with(dim), "{:?}", shown(&[]));
    assert!(shown(&["--marks"]).ends_with("Assistant:⟦ It scatters light.⟧\n"));
}

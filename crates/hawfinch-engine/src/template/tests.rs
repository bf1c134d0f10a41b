//! Renderings word for word, the prefix property, replies in pieces, hostile templates.

use super::*;
use serde_json::json;

fn builtin(name: &str) -> Template {
    Template::builtin(name).unwrap()
}

fn talk() -> Vec<Message> {
    vec![Message::user("Hi"), Message::assistant("Hello!"), Message::user("Why is the sky blue?")]
}

#[test]
fn the_built_ins_word_for_word() {
    let full = [vec![Message::system("Be kind.")], talk()].concat();
    let cases: &[(&str, &[Message], &str)] = &[
        ("world", &talk()[..1], "User: Hi\n\nAssistant:"),
        ("world", &talk(), "User: Hi\n\nAssistant: Hello!\n\nUser: Why is the sky blue?\n\nAssistant:"),
        (
            "world",
            &full,
            "System: Be kind.\n\nUser: Hi\n\nAssistant: Hello!\n\nUser: Why is the sky blue?\n\nAssistant:",
        ),
        ("g1", &talk()[..1], "User: Hi\n\nAssistant: <think>\n</think"),
        ("g1-think", &talk()[..1], "User: Hi\n\nAssistant: <think"),
        ("raven", &talk(), "Bob: Hi\n\nAlice: Hello!\n\nBob: Why is the sky blue?\n\nAlice:"),
        ("raven", &full[..2], "Be kind.\n\nBob: Hi\n\nAlice:"),
        ("instruct", &talk()[..1], "Instruction: Hi\n\nResponse:"),
        ("instruct", &full[..2], "Instruction: Be kind.\n\nInput: Hi\n\nResponse:"),
        ("completion", &talk()[..1], "Hi"),
    ];
    for (name, messages, want) in cases {
        assert_eq!(builtin(name).render(messages, &[], true).unwrap(), *want, "{name}");
    }
    let pile = builtin("pile").render(&talk()[..1], &[], true).unwrap();
    assert!(pile.starts_with("The following is") && pile.ends_with("know?\n\nBob: Hi\n\nAlice:"), "{pile}");
    assert_eq!(builtin("pile").render(&full[..2], &[], true).unwrap(), "Be kind.\n\nBob: Hi\n\nAlice:");
    // Without the prompt the turn is complete.
    assert_eq!(builtin("world").render(&talk()[..1], &[], false).unwrap(), "User: Hi\n\n");
    for (name, suffix) in [("world", ""), ("g1-think", ""), ("g1-think-normal", " (think)")] {
        assert_eq!(builtin(name).user_message("x").content, format!("x{suffix}"));
    }
    assert_eq!(builtin("g1-think-a-bit").user_message("x ").content, "x (think a bit)");
    assert_eq!(builtin("g1-think-a-lot").user_message("x").content, "x (think a lot)");
    assert!(matches!(Template::builtin("qwen"), Err(Error::UnknownTemplate { .. })));
    // A built-in's source stands alone.
    let again = Template::from_source("copy", builtin("g1").source()).unwrap();
    assert_eq!(again.render(&talk()[..1], &[], true).unwrap(), "User: Hi\n\nAssistant: <think>\n</think");
}

#[test]
fn contents_are_normalised_once() {
    let cases = [
        ("a\r\n\r\nb", "a\nb"),
        ("  a\n \t\n\n\nb\n", "a\nb"),
        ("a\n    b", "a\n    b"),
        ("\n\n", ""),
        ("a\rb", "a\rb"),
        ("日本\n\n\n語", "日本\n語"),
    ];
    for (raw, want) in cases {
        assert_eq!(normalise(raw), want);
        assert_eq!(normalise(want), want);
    }
    let text = builtin("world").render(&[Message::user(" two\r\n\r\nlines ")], &[], true).unwrap();
    assert_eq!(text, "User: two\nlines\n\nAssistant:");
    // Plain completion changes nothing.
    assert_eq!(
        builtin("completion").render(&[Message::user(" a\r\n\r\nb ")], &[], true).unwrap(),
        " a\r\n\r\nb "
    );
}

#[test]
fn tools_as_the_g1_models_know_them() {
    let tools = [json!({"type": "function", "function": {
        "name": "weather", "description": "Weather of a\n city", "parameters": {"type": "object", "properties": {
            "city": {"type": "string"}, "days": {"type": ["integer", "null"]}, "x": {"enum": [1]}}}}})];
    let call =
        json!({"type": "function", "function": {"name": "weather", "arguments": "{\"city\":\"Rome\"}"}});
    let messages = [
        Message::user("Weather in Rome?"),
        Message { tool_calls: vec![call], ..Message::assistant("") },
        Message::tool("{\"sky\": \"blue\"}"),
    ];
    let listed = "System: Tools:\n- weather(city: string, days: integer or null, x: any): Weather of a city\n\
                  Return only a JSON function call.\n\n";
    let rest = "User: Weather in Rome?\n\nAssistant: {\"name\": \"weather\", \"arguments\": {\"city\": \"Rome\"}}\n\n\
                User: Function output:\n{\"sky\": \"blue\"}\n\nAssistant:";
    let t = builtin("world");
    assert_eq!(t.render(&messages, &tools, true).unwrap(), format!("{listed}{rest}"));
    let with_system = [&[Message::system("Be brief.")], &messages[..]].concat();
    let said = t.render(&with_system, &tools, true).unwrap();
    assert_eq!(said, format!("{}{rest}", listed.replace("System: Tools", "System: Be brief.\nTools")));
    let bare = [json!({"name": "now"})];
    let said = t.render(&messages[..1], &bare, true).unwrap();
    assert!(said.starts_with("System: Tools:\n- now()\nReturn only"), "{said}");
}

/// Appending piece after piece gives the whole rendering, for each built-in and several conversations.
#[test]
fn pieces_put_together_are_the_whole() {
    let users = ["Hi", "two\n\nparagraphs", "  日本語? ", "User: x", "last"];
    let raws = [" Hello!", " a\n\nb ", "no space", " {{ not jinja }}", " x"];
    for name in Template::builtin_names() {
        let t = builtin(name);
        for system in [None, Some("Be kind.")] {
            let mut history: Vec<Message> = system.map(Message::system).into_iter().collect();
            history.push(t.user_message(users[0]));
            let mut pieces = t.render(&history, &[], true).unwrap();
            for (user, raw) in users[1..].iter().zip(raws) {
                let raw =
                    if name.starts_with("g1") { format!(">\nhm</think>\n{raw}") } else { raw.to_owned() };
                let reply = t.reply_message(&raw);
                let new = [t.user_message(user)];
                let piece = t.continuation(&history, &reply, &new, &[]).unwrap();
                let piece = piece.unwrap_or_else(|| panic!("{name} must be extendable"));
                // The content as rendered stands for the raw reply, which a state holds as it was generated.
                let content = t.prepare(&reply).content;
                let glue = if t.opening.is_empty() && name != "completion" { " " } else { "" };
                pieces += &format!("{glue}{}{piece}", content.strip_prefix(t.opening).unwrap());
                history.push(reply);
                history.extend(new);
                assert_eq!(pieces, t.render(&history, &[], true).unwrap(), "{name}");
                if name == "world" {
                    let user = normalise(user);
                    assert_eq!(piece, format!("\n\nUser: {user}\n\nAssistant:"));
                }
            }
        }
    }
}

#[test]
fn templates_that_rewrite_the_past_are_told_apart() {
    let history = [Message::user("a")];
    let (reply, new) = (Message::assistant("b"), [Message::user("c")]);
    let next = |source: &str| {
        Template::from_source("t", source).unwrap().continuation(&history, &reply, &new, &[]).unwrap()
    };
    let chatml = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                  {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    let want = "<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(next(chatml).as_deref(), Some(want));
    // Numbers its messages from the end, drops replies, repeats them, upper-cases them: nothing to append to.
    assert_eq!(next("{% for m in messages %}{{ loop.revindex }}{{ m.content }}{% endfor %}"), None);
    assert_eq!(next("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"), None);
    assert_eq!(next("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}"), None);
    assert_eq!(next("{% for m in messages %}{{ m.content | upper }}{% endfor %}"), None);
    // An assistant message from elsewhere lacks the tag that the state has read.
    assert_eq!(builtin("g1-think").continuation(&history, &reply, &new, &[]).unwrap(), None);
}

#[test]
fn hugging_face_templates_work() {
    let source = "{{ bos_token }}{% if messages[0]['role'] == 'system' %}\n    {% set sys = messages[0]['content'].strip() %}\n\
        {% else %}\n    {{- raise_exception('System message needed') }}\n{% endif %}\n\
        [{{ sys }}]{% for m in messages[1:] %}{% if not m.content.startswith('x') %}{{ m['role'].upper() }}={{ m.content }};\
        {% endif %}{% endfor %}{% if tools is defined and tools %}{{ tools | tojson }}{% endif %}{{ eos_token }}";
    let mut t = Template::from_source("hf", source).unwrap();
    t.special = SpecialTokens { bos: "<s>".into(), eos: "</s>".into() };
    let messages = [Message::system(" s "), Message::user("a <b> & \"c\""), Message::user("xx")];
    let tools = [json!({"b": [1, 2], "a": "é<&'"})];
    assert_eq!(
        t.render(&messages, &tools, true).unwrap(),
        "<s>[s]USER=a <b> & \"c\";[{\"b\": [1, 2], \"a\": \"é<&'\"}]</s>"
    );
    let said = t.render(&messages[1..], &[], true).unwrap_err().to_string();
    assert!(said.contains("System message needed") && !said.contains('\n'), "{said}");
    let world = "{{ '<|rwkv_tokenizer_end_of_text|>' }}{% for m in messages %}{{ 'User: ' + m['content'] }}{% endfor %}";
    let t = Template::from_source("world", world).unwrap();
    assert_eq!(t.render(&messages[1..2], &[], true).unwrap(), "User: a <b> & \"c\"");
    let indented = Template::from_source("i", "{{ {'a': [1]} | tojson(indent=2) }}").unwrap();
    assert_eq!(indented.render(&[], &[], true).unwrap(), "{\n  \"a\": [\n    1\n  ]\n}");
    let m: Vec<Message> = serde_json::from_str(
        r#"[{"role":"developer","content":"d"},{"role":"assistant","content":null,"tool_calls":null},{"role":"function","content":"f"}]"#,
    )
    .unwrap();
    assert_eq!((m[0].role, m[1].content.as_str(), m[2].role), (Role::System, "", Role::Tool));
}

#[test]
fn hostile_templates_end_with_a_sentence() {
    let endless = "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}";
    let deep = "{% macro m(n) %}{{ m(n) }}{% endmacro %}{{ m(1) }}";
    let long = "{% set x = 'x' * 1000000 %}{% for i in range(100) %}{{ x }}{% endfor %}";
    let file = "{% include '/etc/passwd' %}";
    for (source, word) in
        [(endless, "steps"), (deep, "recursion"), (long, "MiB"), (file, "passwd"), ("{{ f() }}", "f")]
    {
        let said = Template::from_source("bad", source).unwrap().render(&talk(), &[], true).unwrap_err();
        let said = said.to_string();
        assert!(said.contains("`bad`") && said.contains(word) && !said.contains('\n'), "{said}");
    }
    let said = Template::from_source("bad", "{% for %}").unwrap_err().to_string();
    assert!(said.contains("`bad` does not parse") && said.contains("line 1"), "{said}");
    let said = Template::from_file("/no/such/file").unwrap_err().to_string();
    assert!(said.contains("/no/such/file"), "{said}");
    // A name that ends in .html does not switch escapes on.
    let t = Template::from_source("x.html", "{{ messages[0].content }}").unwrap();
    assert_eq!(t.render(&[Message::user("<&>")], &[], true).unwrap(), "<&>");
}

fn stream(t: &Template, raw: &str, cut: impl Fn(usize) -> bool) -> Reply {
    let mut s = t.reply_stream();
    let mut out = Vec::new();
    let mut piece = String::new();
    for (i, c) in raw.chars().enumerate() {
        piece.push(c);
        if cut(i) {
            s.push(&piece, &mut out);
            piece.clear();
        }
    }
    s.push(&piece, &mut out);
    s.finish(&mut out);
    assert!(out.iter().all(|s| !s.text.is_empty()));
    Reply::from_segments(&out)
}

#[test]
fn replies_are_cleaned_the_same_however_they_arrive() {
    let r = |text: &str, reasoning: Option<&str>| Reply {
        text: text.into(),
        reasoning: reasoning.map(Into::into),
    };
    let cases = [
        ("world", " Hello  there.\n\n", r("Hello  there.", None)),
        ("world", " <think>kept</think>", r("<think>kept</think>", None)),
        ("world", "  \n ", r("", None)),
        ("g1", ">\nYes, 1 < 2.", r("Yes, 1 < 2.", None)),
        (
            "g1-think",
            ">\nLet me see: a </b> < c.\n</think>\n\nIt is so. ",
            r("It is so.", Some("Let me see: a </b> < c.")),
        ),
        ("g1-think", "> never closed </thin", r("", Some("never closed </thin"))),
        ("g1-think", "ing aloud", r("<thinking aloud", None)),
        ("g1-think", ">x</think></think>y", r("</think>y", Some("x"))),
        ("completion", " as it is \n", r(" as it is \n", None)),
    ];
    for (name, raw, want) in cases {
        let t = builtin(name);
        assert_eq!(t.clean(raw), want, "{name} {raw:?}");
        assert_eq!(stream(&t, raw, |_| true), want, "{name} {raw:?} by characters");
        for n in 2..6 {
            assert_eq!(stream(&t, raw, |i| i % n == 0), want, "{name} {raw:?} by {n}");
        }
    }
    // A stored message is cleaned like the reply it came from.
    let t = builtin("g1-think");
    let raw = ">\nhm</think>\nyes";
    assert_eq!(t.clean(&t.reply_message(raw).content), t.clean(raw));
    assert_eq!(t.reply_message(raw).content, "<think>\nhm</think>\nyes");
}

#[test]
fn each_model_gets_its_template() {
    let facts = |version, vocab, name, chat_template| ModelFacts { version, vocab, chat_template, name };
    let pick = |f: ModelFacts<'_>| choose(&f).unwrap().name().to_owned();
    use VocabKind::{Bytes, NeoX, Other, World};
    let cases = [
        (facts(7, World, "rwkv7-g1a-0.4b-20250905-ctx4096.pth", None), "g1"),
        (facts(7, World, "RWKV7-G0a3-13.3B.gguf", Some("rwkv-world")), "g1"),
        (facts(7, World, "rwkv7-g1-0.1b", None), "g1"),
        (facts(7, World, "RWKV-x070-World-1.5B-v3.pth", None), "world"),
        (facts(7, World, "model.safetensors", None), "world"),
        (facts(6, World, "g1.pth", None), "world"),
        (facts(7, World, "big10-g16b.pth", None), "world"),
        (facts(6, World, "x.gguf", Some("rwkv-world")), "world"),
        (facts(7, World, "x.gguf", Some("{{ messages }}")), "of the model file"),
        (facts(4, NeoX, "RWKV-4-Raven-7B-v12-Eng98%.pth", None), "raven"),
        (facts(4, NeoX, "RWKV-4-Pile-169M-20220807-8023.pth", None), "pile"),
        (facts(4, NeoX, "x.bin", None), "pile"),
        (facts(4, World, "RWKV-4-World-0.1B.pth", None), "world"),
        (facts(7, Bytes, "tiny.pth", None), "completion"),
        (facts(5, Other, "music.pth", Some(" ")), "completion"),
    ];
    for (f, want) in cases {
        assert_eq!(pick(f), want, "{f:?}");
    }
    assert!(choose(&facts(7, World, "x", Some("{% if %}"))).is_err());
    assert!(choose(&facts(7, Bytes, "tiny.pth", None)).unwrap().stops.tokens.is_empty());
    for name in Template::builtin_names() {
        let t = builtin(name);
        t.sampler.validate().unwrap();
        assert!(t.stops.tokens.contains(&0), "{name} must stop at the end of the document");
    }
    assert_eq!(builtin("world").stops.strings, ["\n\nUser:", "\nUser:"]);
}

/// What data sets are written with is what the templates render, for each format and every kind of conversation.
#[test]
fn training_data_is_written_as_templates_render() {
    use hawfinch_tokenizer::chat::{Format, Turn};
    let message = |(role, content): &(Role, &'static str)| Message::new(*role, *content);
    let (s, u, a, t) = (Role::System, Role::User, Role::Assistant, Role::Tool);
    let talks: &[&[(Role, &'static str)]] = &[
        &[(u, "q"), (a, "a")],
        &[(s, "Be\r\n\r\nkind. "), (u, " one\n \n\ntwo"), (a, " 你好 🦜\n"), (u, "again"), (a, "b")],
        &[(u, "q"), (a, "calls"), (t, "{\"sky\": 1}"), (a, "blue"), (u, "thanks")],
        &[(s, "x"), (u, "q"), (a, "f"), (t, "1"), (a, "c"), (s, "y"), (u, ""), (a, "")],
        &[(a, "begins"), (a, "again"), (u, "q")],
    ];
    for format in Format::all() {
        let template = builtin(format.name);
        for talk in talks {
            let turns: Vec<Turn<'_>> = talk.iter().map(|(role, said)| Turn::new(*role, *said)).collect();
            let written = format.write(&turns);
            // As a chat keeps them: what a person says with the suffix, a reply with what the prompt opened.
            let kept = |m: &(Role, &'static str)| match (m.0, format.opening) {
                (Role::User, _) => template.user_message(m.1),
                (Role::Assistant, " <think") => template.reply_message(&format!(">\n</think>\n{}", m.1)),
                (Role::Assistant, " <think>\n</think") => template.reply_message(&format!(">\n{}", m.1)),
                _ => message(m),
            };
            let messages: Vec<Message> = talk.iter().map(kept).collect();
            let rendered = template.render(&messages, &[], false).unwrap();
            assert_eq!(format!("{}{}", written.text, format.end), rendered, "{}: {talk:?}", format.name);
            // What stands before each reply is the prompt for it.
            let replies = talk.iter().enumerate().filter(|(_, m)| m.0 == Role::Assistant);
            let prompts = replies.map(|(n, _)| template.render(&messages[..n], &[], true).unwrap());
            let before = written.replies.iter().map(|r| written.text[..r.start].to_owned());
            assert!(prompts.eq(before), "{}: {talk:?}", format.name);
        }
    }
}

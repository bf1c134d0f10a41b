//! With speculation a session says and becomes exactly what it does without.

use super::{Ask, Drafter, ModelDrafter, NgramDrafter, Speculation};
use crate::testing::{HashModel, ScriptModel, sampler};
use crate::{
    Chat, Error, Event, Feed, GenerateOptions, LanguageModel, Mirostat, Result, Rng, SamplerConfig, Session,
    StopReason, StopRules, Template, Wanted,
};
use hawfinch_tokenizer::Tokenizer;
use std::ops::ControlFlow;
use std::sync::Arc;

fn go(_: Event<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// A model much like a [`HashModel`]: its logits are moved by up to `blur`.
#[derive(Clone)]
struct Blurred(Arc<HashModel>, f32);

impl LanguageModel for Blurred {
    type State = u64;
    fn vocab(&self) -> usize {
        self.0.vocab()
    }
    fn new_state(&self) -> u64 {
        self.0.new_state()
    }
    fn forward(&self, feeds: &mut [Feed<'_, u64>]) -> Result<()> {
        for f in feeds {
            self.0.forward(&mut [Feed { tokens: f.tokens, state: f.state, logits: f.logits.reborrow() }])?;
            let mut rng = Rng::new(*f.state ^ 99);
            for l in f.logits.buffer().into_iter().flatten() {
                *l += self.1 * (rng.next_f64() as f32 - 0.5);
            }
        }
        Ok(())
    }
}

fn blurred(model: &HashModel, blur: f32) -> ModelDrafter<Blurred> {
    ModelDrafter::new(Blurred(Arc::new(HashModel(model.0)), blur), model.0).unwrap()
}

/// Proposes tokens that mean nothing, some of them impossible, and more than it was asked for.
#[derive(Clone)]
struct Noise(Rng, usize);

impl Drafter for Noise {
    fn begin(&mut self, _: &[u32]) -> Result<()> {
        Ok(())
    }
    fn advance(&mut self, tokens: &[u32]) {
        assert!(!tokens.is_empty());
    }
    fn propose(&mut self, ask: &Ask<'_>, drafts: &mut Vec<u32>) -> Result<()> {
        assert!(ask.most > 0 && drafts.is_empty());
        let n = self.0.next_u64() as usize % (ask.most + 3);
        drafts.extend((0..n).map(|_| (self.0.next_u64() % (self.1 as u64 + 1)) as u32));
        Ok(())
    }
    fn fork(&self) -> Box<dyn Drafter> {
        Box::new(self.clone())
    }
}

/// Ways to speculate.
fn speculations(model: &HashModel) -> Vec<(String, Speculation)> {
    let mut all = Vec::new();
    for k in [1, 3, 8, 200] {
        all.push((format!("n-gram {k}"), Speculation::fixed(NgramDrafter::new(), k)));
        for blur in [0.0, 2.0, 50.0] {
            all.push((format!("model {blur} {k}"), Speculation::fixed(blurred(model, blur), k)));
        }
        all.push((format!("noise {k}"), Speculation::fixed(Noise(Rng::new(5), model.0), k)));
    }
    all.push(("n-gram".into(), Speculation::new(NgramDrafter::new(), 8)));
    all.push(("model".into(), Speculation::new(blurred(model, 1.0), 8)));
    all.push(("nothing".into(), Speculation::new(NgramDrafter::new(), 0)));
    all
}

/// Settings of every kind, those with a memory of their own among them.
fn configs() -> Vec<SamplerConfig> {
    let base = SamplerConfig::default();
    vec![
        SamplerConfig::greedy(),
        base.clone(),
        SamplerConfig { presence_penalty: 1.0, frequency_penalty: 1.5, ..base.clone() },
        SamplerConfig { repetition_penalty: 1.4, repetition_last_n: 3, top_k: 4, ..base.clone() },
        SamplerConfig { repetition_penalty: 1.2, typical_p: 0.9, min_p: 0.05, ..base.clone() },
        SamplerConfig { mirostat: Some(Mirostat::default()), temperature: 1.3, ..base.clone() },
        SamplerConfig { logit_bias: [(1, 2.0), (2, f32::NEG_INFINITY)].into(), top_logprobs: 2, ..base },
    ]
}

/// Everything that can be seen of a session, over several replies with texts between them.
fn story(model: &HashModel, config: &SamplerConfig, speculation: Option<Speculation>, seed: u64) -> String {
    let mut s = Session::new(model, Tokenizer::bytes(), sampler(config.clone(), seed));
    s.speculation = speculation;
    let mut told = String::new();
    let options = |max_tokens, strings: &[&str], tokens: &[u32]| GenerateOptions {
        max_tokens,
        stops: StopRules { strings: strings.iter().map(|s| (*s).into()).collect(), tokens: tokens.into() },
    };
    let all = [
        (options(40, &[], &[]), usize::MAX),
        (options(40, &["\u{3}\u{1}", "\u{4}\u{4}\u{0}"], &[]), usize::MAX),
        (options(40, &["\u{2}\u{5}"], &[3]), usize::MAX),
        (options(40, &[], &[]), 7),
        (options(1, &[], &[]), usize::MAX),
        (options(0, &[], &[]), usize::MAX),
        (options(2, &[], &[]), usize::MAX),
        (options(25, &["\u{1}"], &[]), usize::MAX),
    ];
    for (i, (o, cancel_at)) in all.iter().enumerate() {
        let mut seen = 0;
        let g = s.generate(o, |e| {
            told += &format!("{e:?} ");
            seen += usize::from(matches!(e, Event::Token(_)));
            if seen >= *cancel_at { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        told += &format!("{:?} {:?} {:?}\n", g.unwrap(), s.position(), s.sampler.state());
        // Sometimes the text goes on as the stop string does, sometimes elsewhere, sometimes with nothing between.
        match i % 3 {
            0 => s.feed_text("\u{3}\u{1}\u{2}").unwrap(),
            1 => s.feed_text("\u{5}\u{6}").unwrap(),
            _ => {}
        }
        told += &format!("{:?}\n", s.position());
    }
    told
}

#[test]
fn text_state_and_sampler_are_those_without_speculation() {
    let model = HashModel(8);
    for (c, config) in configs().iter().enumerate() {
        for seed in 0..6 {
            let want = story(&model, config, None, seed);
            for (name, speculation) in speculations(&model) {
                let got = story(&model, config, Some(speculation), seed);
                assert!(got == want, "config {c} seed {seed} {name}:\n{got}\n{want}");
            }
        }
    }
}

#[test]
fn every_way_to_stop_came_up_amid_drafts() {
    // The model drafts for itself: all it says is drafted, so every stop lies within drafts.
    let model = HashModel(8);
    let mut reasons = std::collections::HashSet::new();
    for seed in 0..300 {
        let mut s = Session::new(&model, Tokenizer::bytes(), sampler(plain(), seed));
        s.speculation = Some(Speculation::fixed(blurred(&model, 0.0), 30));
        let stops = StopRules { strings: vec!["\u{2}\u{5}".into(), "\u{4}".into()], tokens: vec![3] };
        let g = s.generate(&GenerateOptions { max_tokens: 12, stops }, go).unwrap();
        let statistics = s.speculation.as_mut().unwrap().take_statistics();
        let read = g.tokens.len() - usize::from(g.stop != StopReason::StopToken(3));
        assert_eq!(statistics.steps, u64::from(read > 0));
        assert_eq!(statistics.steps + statistics.accepted, read as u64);
        reasons.insert(std::mem::discriminant(&g.stop));
    }
    assert_eq!(reasons.len(), 3, "a stop string, a stop token, the limit");
}

#[test]
fn a_model_that_drafts_for_itself_is_always_right() {
    let model = HashModel(200);
    for config in configs() {
        let mut s = Session::new(&model, Tokenizer::bytes(), sampler(config.clone(), 4));
        s.speculation = Some(Speculation::fixed(blurred(&model, 0.0), 4));
        s.feed_tokens(&[7, 8, 9]).unwrap();
        let o = GenerateOptions { max_tokens: 101, stops: StopRules::default() };
        s.generate(&o, go).unwrap();
        let statistics = s.speculation.as_mut().unwrap().take_statistics();
        // The first token comes from the prompt's logits, each step then gives five; the last is not read any more.
        assert_eq!((statistics.steps, statistics.drafted, statistics.accepted), (20, 80, 80), "{config:?}");
    }
}

/// The probabilities of the sampler's softmax at temperature 1 without truncation.
fn softmax(logits: &[f32]) -> Vec<f64> {
    let weights: Vec<f64> = logits.iter().map(|&l| f64::from(l).exp()).collect();
    let total: f64 = weights.iter().sum();
    weights.iter().map(|w| w / total).collect()
}

fn logits<M: LanguageModel>(model: &M, tokens: &[u32]) -> Vec<f32> {
    let (mut state, mut logits) = (model.new_state(), Vec::new());
    model.forward(&mut [Feed { tokens, state: &mut state, logits: Wanted::Last(&mut logits) }]).unwrap();
    logits
}

fn plain() -> SamplerConfig {
    SamplerConfig { temperature: 1.0, top_p: 1.0, ..SamplerConfig::greedy() }
}

/// The joint distribution of the first tokens is the model's, by a chi-squared test; a rule that takes every draft is
/// told by the same test.
#[test]
fn the_distribution_is_the_models() {
    const VOCAB: usize = 3;
    const TOKENS: usize = 3;
    const RUNS: u64 = 30_000;
    let model = HashModel(VOCAB);
    let draft = Blurred(Arc::new(HashModel(VOCAB)), 3.0);
    let cells = VOCAB.pow(TOKENS as u32);
    let mut exact = vec![1.0; cells];
    for (cell, p) in exact.iter_mut().enumerate() {
        let ids: Vec<u32> = (0..TOKENS).map(|i| (cell / VOCAB.pow(i as u32) % VOCAB) as u32).collect();
        for i in 0..TOKENS {
            *p *= softmax(&logits(&model, &[&[0], &ids[..i]].concat()))[ids[i] as usize];
        }
    }
    let o = GenerateOptions { max_tokens: TOKENS, stops: StopRules::default() };
    let chi_squared = |ids: &mut dyn FnMut(u64) -> Vec<u32>| {
        let mut counts = vec![0.0; cells];
        for seed in 0..RUNS {
            let cell: usize = ids(seed).iter().rev().fold(0, |c, &id| c * VOCAB + id as usize);
            counts[cell] += 1.0;
        }
        let terms = counts.iter().zip(&exact).map(|(n, p)| {
            let want = p * RUNS as f64;
            (n - want) * (n - want) / want
        });
        terms.sum::<f64>()
    };
    let mut right = 0;
    let speculated = chi_squared(&mut |seed| {
        let mut s = Session::new(&model, Tokenizer::bytes(), sampler(plain(), seed));
        s.speculation = Some(Speculation::fixed(ModelDrafter::new(draft.clone(), VOCAB).unwrap(), TOKENS));
        let tokens = s.generate(&o, go).unwrap().tokens;
        right += s.speculation.as_mut().unwrap().take_statistics().accepted;
        tokens
    });
    let always = chi_squared(&mut |seed| {
        let mut s = Session::new(&draft, Tokenizer::bytes(), sampler(plain(), seed));
        s.generate(&o, go).unwrap().tokens
    });
    // 26 degrees of freedom: 54.1 is passed once in a thousand times.
    assert!(speculated < 54.1, "{speculated}");
    assert!(always > 540.0, "{always}");
    assert!(right > RUNS / 3 && right < RUNS * 9 / 10, "{right} drafts were right: the test says little");
}

/// How often drafts are right that are drawn with the sampler's own random numbers, beside what any rule can reach,
/// Σ min(p, q), and what drafts drawn with other random numbers reach, Σ p·q.
#[test]
fn shared_random_numbers_make_drafts_right() {
    for (vocab, blur) in [(8, 1.0), (20, 1.0), (50, 2.0)] {
        let model = HashModel(vocab);
        let drafter = blurred(&model, blur);
        let draft = Blurred(Arc::new(HashModel(vocab)), blur);
        let (mut best, mut apart, mut right) = (0.0, 0.0, 0.0);
        const RUNS: u32 = 1500;
        for seed in 0..RUNS {
            let mut s = Session::new(&model, Tokenizer::bytes(), sampler(plain(), seed.into()));
            s.speculation = Some(Speculation::fixed(drafter.clone(), 1));
            s.feed_tokens(&[seed % vocab as u32, seed / 7 % vocab as u32]).unwrap();
            // Of three tokens only the second is drafted.
            let g = s.generate(&GenerateOptions { max_tokens: 3, stops: StopRules::default() }, go).unwrap();
            let text = [&s.position().tokens[..2], &g.tokens[..1]].concat();
            let (p, q) = (softmax(&logits(&model, &text)), softmax(&logits(&draft, &text)));
            best += p.iter().zip(&q).map(|(p, q)| p.min(*q)).sum::<f64>() / f64::from(RUNS);
            apart += p.iter().zip(&q).map(|(p, q)| p * q).sum::<f64>() / f64::from(RUNS);
            right += s.speculation.as_mut().unwrap().take_statistics().accepted as f64 / f64::from(RUNS);
        }
        println!("vocabulary {vocab}, blur {blur}: {right:.3} right, at best {best:.3}, apart {apart:.3}");
        assert!(right < best + 0.03 && right > apart + 0.4 * (best - apart), "{right} {best} {apart}");
    }
}

/// What a model says of the text it has read, and how much it was fed.
#[test]
fn a_draft_model_reads_nothing_twice() {
    let model = HashModel(100);
    let draft = Arc::new(ScriptModel::new(Tokenizer::bytes(), |_| "abcdefgh".into()));
    let target = ScriptModel::new(Tokenizer::bytes(), |_| "abcdefgh".into());
    assert!(matches!(
        ModelDrafter::new(draft.clone(), model.vocab()).map(|_| ()),
        Err(Error::DraftVocab { draft: 259, target: 100 })
    ));
    let drafter = ModelDrafter::new(draft.clone(), target.vocab()).unwrap();
    let mut s = Session::new(&target, Tokenizer::bytes(), sampler(SamplerConfig::greedy(), 1));
    s.speculation = Some(Speculation::fixed(drafter, 4));
    s.feed_text(&"x".repeat(1000)).unwrap();
    let start = s.position().clone();
    let o = GenerateOptions { max_tokens: 11, stops: StopRules::default() };
    let mut fed = 0;
    let mut fed_since = || {
        let before = std::mem::replace(&mut fed, draft.fed());
        fed - before
    };
    let reply = s.generate(&o, go).unwrap();
    assert_eq!(reply.text, "aaaaaaaaaaa");
    // The prompt, and of the reply what was drafted: all but the last of each four.
    let first = fed_since();
    assert!((1000..1015).contains(&first), "{first}");
    // The same prompt again: not its thousand tokens.
    s.restore(start);
    s.generate(&o, go).unwrap();
    assert!(fed_since() < 15);
    // On from there.
    s.feed_text("more").unwrap();
    s.generate(&o, go).unwrap();
    assert!(fed_since() < 30);
    // A fork goes its own way.
    let mut fork = s.clone();
    for s in [&mut s, &mut fork] {
        s.feed_text("!").unwrap();
        s.generate(&o, go).unwrap();
        assert!(fed_since() < 20);
    }
}

/// A model that has no numbers after some tokens.
#[derive(Clone)]
struct Broken(Arc<HashModel>, u32);

impl LanguageModel for Broken {
    type State = u64;
    fn vocab(&self) -> usize {
        self.0.vocab()
    }
    fn new_state(&self) -> u64 {
        self.0.new_state()
    }
    fn forward(&self, feeds: &mut [Feed<'_, u64>]) -> Result<()> {
        self.0.forward(feeds)?;
        match feeds.iter().any(|f| f.tokens.contains(&self.1)) {
            true => Err(Error::Model("not finite".into())),
            false => Ok(()),
        }
    }
}

#[test]
fn what_only_wrong_drafts_lead_to_does_not_matter_and_what_fails_is_said() {
    let hash = Arc::new(HashModel(8));
    let config = SamplerConfig { logit_bias: [(5, f32::NEG_INFINITY)].into(), ..SamplerConfig::default() };
    let o = GenerateOptions { max_tokens: 60, stops: StopRules::default() };
    let run = |model: &dyn Fn() -> Broken, speculation: Option<Speculation>| {
        let mut s = Session::new(model(), Tokenizer::bytes(), sampler(config.clone(), 3));
        s.speculation = speculation;
        let reply = s.generate(&o, go);
        reply.map(|g| (g, s.position().clone()))
    };
    // The sampler never draws 5; noise drafts it, and the model fails on it.
    let bad = || Broken(hash.clone(), 5);
    let want = run(&bad, None).unwrap();
    assert_eq!(run(&bad, Some(Speculation::fixed(Noise(Rng::new(1), 8), 4))).unwrap(), want);
    // Where the text itself leads, the error is the model's.
    let worse = || Broken(hash.clone(), want.0.tokens[20]);
    let error = run(&worse, None).unwrap_err();
    assert_eq!(run(&worse, Some(Speculation::fixed(NgramDrafter::new(), 4))).unwrap_err(), error);
    // A draft model that fails ends the reply with what it said.
    let drafter = ModelDrafter::new(Broken(hash.clone(), want.0.tokens[3]), 8).unwrap();
    let error = run(&bad, Some(Speculation::fixed(drafter, 2))).unwrap_err();
    assert_eq!(error, Error::Draft("not finite".into()));
    assert!(error.to_string().starts_with("the draft model failed (not finite)"), "{error}");
}

/// A conversation with turns drawn again, taken back and forked says the same, and its states are the same.
#[test]
fn chats_are_the_same() {
    let model = HashModel(256);
    let talk = |speculation: Option<Speculation>| {
        let mut session = Session::new(&model, Tokenizer::bytes(), sampler(SamplerConfig::chat(), 2));
        session.speculation = speculation;
        let mut c = Chat::new(session, Template::builtin("world").unwrap());
        let mut o = c.options(40);
        // Short strings, so that they come up.
        o.stops.strings.extend(["a".into(), "Q".into(), "\n".into()]);
        let mut told = String::new();
        let mut say = |c: &mut Chat<&HashModel>, text: Option<&str>| {
            let reply = match text {
                Some(text) => c.say(text, &o, |_| ControlFlow::Continue(())),
                None => c.regenerate(&o, |_| ControlFlow::Continue(())),
            };
            told += &format!("{:?} {:?}\n", reply.unwrap(), c.session().position());
        };
        say(&mut c, Some("one"));
        say(&mut c, None);
        say(&mut c, Some("two"));
        let mut fork = c.clone();
        say(&mut fork, Some("elsewhere"));
        say(&mut c, None);
        c.rewind(1).unwrap();
        say(&mut c, Some("three"));
        c.reset();
        say(&mut c, Some("one"));
        told
    };
    let want = talk(None);
    for (name, speculation) in speculations(&model) {
        assert!(talk(Some(speculation)) == want, "{name}");
    }
}

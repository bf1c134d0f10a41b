//! The scheduler with models that hash what they read: each reply is compared with that of a sequence alone.

use super::*;
use crate::testing::{BatchHash, sampler};
use crate::tree::files::FileStore;
use crate::tree::tests::Number;
use crate::{
    Feed, GenerateOptions, Generation, LanguageModel, Sampled, SamplerConfig, Session, StopRules, Wanted,
};
use hawfinch_model::Rng;
use std::ops::ControlFlow;
use std::sync::mpsc::{Receiver, Sender, channel};

struct ToChannel {
    to: Sender<Event>,
    closed: Arc<AtomicBool>,
}

impl Sink for ToChannel {
    fn tell(&mut self, event: Event) {
        let _ = self.to.send(event);
    }
    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }
}

/// What came of one request.
#[derive(Debug, Default)]
struct Told {
    cached: usize,
    prompt: Vec<Sampled>,
    texts: Vec<String>,
    tokens: Vec<Vec<u32>>,
    stops: Vec<Option<StopReason>>,
    timings: Option<Timings>,
    failed: Option<Error>,
}

fn listen(events: &Receiver<Event>, choices: usize) -> Told {
    let mut t = Told {
        texts: vec![String::new(); choices],
        tokens: vec![Vec::new(); choices],
        stops: vec![None; choices],
        ..Told::default()
    };
    while let Ok(event) = events.recv_timeout(Duration::from_secs(60)) {
        match event {
            Event::Begun { cached, .. } => t.cached = cached,
            Event::Prompt(p) => t.prompt.extend(p),
            Event::Piece { choice, tokens, text, .. } => {
                t.tokens[choice].extend(tokens.iter().map(|s| s.id));
                t.texts[choice].push_str(&text);
            }
            Event::Done { choice, stop, stop_token, tokens } => {
                let by_token = matches!(stop, StopReason::StopToken(_) | StopReason::EndOfDocument);
                assert_eq!(stop_token.is_some(), by_token);
                assert_eq!(tokens, t.tokens[choice].len());
                assert!(t.stops[choice].replace(stop).is_none(), "a choice ends once");
            }
            Event::End(timings) => {
                t.timings = Some(timings);
                return t;
            }
            Event::Failed(e) => {
                t.failed = Some(e);
                return t;
            }
        }
    }
    panic!("no end came: {t:?}");
}

type Engine = Scheduler<BatchHash>;

fn base(root: &str, adapter: Option<u64>) -> Base<BatchHash> {
    Base { root: root.into(), state: None, adapter: adapter.map(Arc::new) }
}

fn request(prompt: &[u32], seed: u64, n: u64, max_tokens: usize) -> (Request<BatchHash>, Receiver<Event>) {
    let (to, events) = channel();
    let config = if seed.is_multiple_of(2) { SamplerConfig::default() } else { SamplerConfig::chat() };
    let strings = vec!["ab".into(), "Q!".into(), "e".into()];
    let request = Request {
        base: base("root", None),
        prompt: prompt.to_vec(),
        marks: Vec::new(),
        samplers: (0..n).map(|i| sampler(config.clone(), seed + i)).collect(),
        options: GenerateOptions { max_tokens, stops: StopRules { strings, tokens: vec![7] } },
        constrained: None,
        prompt_logprobs: None,
        client: "one".into(),
        user: "".into(),
        deadline: None,
        cached: true,
        sink: Box::new(ToChannel { to, closed: Arc::default() }),
    };
    (request, events)
}

fn start(model: &Arc<BatchHash>, cache: StateCache<u64>, limits: Limits) -> Engine {
    let turns = Turns::default();
    Scheduler::start(model.clone(), Tokenizer::bytes(), Arc::new(cache), limits, turns).unwrap()
}

fn engine(limits: Limits) -> (Arc<BatchHash>, Engine) {
    let model = Arc::new(BatchHash::default());
    let engine = start(&model, StateCache::in_memory(8, 1 << 20), limits);
    (model, engine)
}

/// The same choice by a sequence that knows nothing but its prompt.
fn alone(r: &Request<BatchHash>, choice: usize) -> Generation {
    let model = BatchHash::default();
    let mut s = Session::new(&model, Tokenizer::bytes(), r.samplers[choice].clone());
    s.feed_tokens(&r.prompt).unwrap();
    s.generate(&r.options, |_| ControlFlow::Continue(())).unwrap()
}

fn same(told: &Told, want: &[Generation]) -> std::result::Result<(), String> {
    for (i, g) in want.iter().enumerate() {
        if told.tokens[i] != g.tokens || told.texts[i] != g.text || told.stops[i].as_ref() != Some(&g.stop) {
            return Err(format!("choice {i}: {:?} {:?}, alone {g:?}", told.tokens[i], told.stops[i]));
        }
    }
    Ok(())
}

#[test]
fn each_says_what_it_says_alone_whatever_runs_beside() {
    let (model, engine) = engine(Limits { width: 7, queue: 100 });
    let mut all = Vec::new();
    for i in 0..40u64 {
        let prompt: Vec<u32> = (0..(i * 37) % 400).map(|t| (t * i % 256) as u32).collect();
        let (mut r, events) = request(&prompt, i, 1 + i % 4, (i as usize * 5) % 60);
        r.client = format!("client {}", i % 5).into();
        let want: Vec<_> = (0..r.samplers.len()).map(|c| alone(&r, c)).collect();
        engine.submit(r).unwrap();
        all.push((events, want));
    }
    for (events, want) in all {
        let told = listen(&events, want.len());
        same(&told, &want).unwrap();
        let tokens: usize = want.iter().map(|g| g.tokens.len()).sum();
        assert_eq!(told.timings.unwrap().tokens, tokens);
    }
    assert!(model.widest.load(Ordering::Relaxed) > 4);
    let stats = engine.stats();
    // Counted just after it is told.
    while stats.finished.load(Ordering::Relaxed) < 40 {
        std::thread::yield_now();
    }
    let read = stats.prompt_tokens.load(Ordering::Relaxed) + stats.reply_tokens.load(Ordering::Relaxed);
    assert_eq!(read as usize, model.fed.load(Ordering::Relaxed));
}

/// Random trees of edits, forks, evictions and restarts. With `wrong_keys` states are also put under texts that do not lead
/// to them.
fn conversations(seed: u64, wrong_keys: bool) -> std::result::Result<usize, String> {
    let folder = tempfile::tempdir().unwrap();
    let model = Arc::new(BatchHash::default());
    let open = || {
        let files = FileStore::open(folder.path(), Arc::new(Number), 40_000).unwrap();
        start(&model, StateCache::new(8, 20_000, Some(files), None, |e| panic!("{e}")), Limits::default())
    };
    let mut engine = open();
    let mut rng = Rng::new(seed);
    let mut below = |n: usize| (rng.next_u64() % n.max(1) as u64) as usize;
    let mut texts: Vec<Vec<u32>> = vec![Vec::new()];
    let mut cached = 0;
    for round in 0..60 {
        if round % 20 == 19 {
            if below(2) == 0 {
                engine.cache().save_all(Duration::from_secs(60));
            }
            engine = open();
        }
        let mut waiting = Vec::new();
        for _ in 0..1 + below(3) {
            let mut prompt = texts[below(texts.len())].clone();
            if below(2) == 0 {
                prompt.truncate(below(prompt.len() + 1));
            }
            (0..below(90)).for_each(|_| prompt.push(below(3) as u32));
            let (mut r, events) = request(&prompt, below(1 << 20) as u64, 1 + below(3) as u64, below(40));
            r.marks = (0..below(4)).map(|_| below(prompt.len() + 1)).collect();
            let adapter = (below(4) == 0).then_some(5);
            if let Some(adapter) = adapter {
                r.base = base("root and adapter", Some(adapter));
            }
            let want = match adapter {
                None => (0..r.samplers.len()).map(|c| alone(&r, c)).collect::<Vec<_>>(),
                Some(_) => Vec::new(),
            };
            let choices = r.samplers.len();
            if wrong_keys && prompt.len() > 10 {
                let mut state = model.new_state();
                let feed = Feed { tokens: &prompt[..9], state: &mut state, logits: Wanted::Nothing };
                LanguageModel::forward(&*model, &mut [feed]).unwrap();
                let snapshot = crate::tree::Snapshot { state, logits: Vec::new() };
                engine.cache().put(&"root".into(), &prompt[..10], Arc::new(snapshot));
            }
            engine.submit(r).map_err(|e| format!("{e:?}"))?;
            waiting.push((events, want, choices, prompt));
        }
        for (events, want, choices, prompt) in waiting {
            let told = listen(&events, choices);
            same(&told, &want)?;
            cached += told.cached;
            for tokens in &told.tokens {
                texts.push([&prompt[..], tokens].concat());
            }
        }
    }
    Ok(cached)
}

#[test]
fn edits_forks_evictions_and_restarts_change_nothing() {
    let mut cached = 0;
    for seed in 0..8 {
        cached += conversations(seed, false).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    }
    assert!(cached > 5_000, "{cached} tokens came from the tree");
    // Were keys wrong, this would show it.
    assert!((0..3).all(|seed| conversations(seed, true).is_err()));
}

#[test]
fn adapters_mix_in_a_batch_and_have_their_own_roots() {
    let (_, engine) = engine(Limits::default());
    let prompt: Vec<u32> = (0..100).collect();
    let of = |adapter: Option<u64>, cached| {
        let (mut r, events) = request(&prompt, 4, 1, 30);
        r.base = base(&format!("{adapter:?}"), adapter);
        r.cached = cached;
        engine.submit(r).unwrap();
        events
    };
    let kinds = [None, Some(3), Some(8)];
    let first: Vec<_> = kinds.map(|a| of(a, false)).into_iter().map(|e| listen(&e, 1).tokens).collect();
    assert!(first[0] != first[1] && first[1] != first[2]);
    for _ in 0..3 {
        let together = kinds.map(|a| of(a, true));
        let got: Vec<_> = together.into_iter().map(|e| listen(&e, 1).tokens).collect();
        assert_eq!(got, first);
    }
}

#[test]
fn only_new_tokens_are_computed() {
    let (model, engine) = engine(Limits::default());
    let mut prompt: Vec<u32> = (0..2000).map(|i| i * 7 % 251).collect();
    let (r, events) = request(&prompt, 3, 1, 20);
    let stop = StopRules { strings: vec![], tokens: vec![] };
    let options = GenerateOptions { max_tokens: 20, stops: stop };
    engine.submit(Request { options: options.clone(), ..r }).unwrap();
    let told = listen(&events, 1);
    assert_eq!((told.cached, model.fed.load(Ordering::Relaxed)), (0, 2019));
    prompt.extend(&told.tokens[0]);
    prompt.extend([1, 2, 3]);
    let (r, events) = request(&prompt, 3, 1, 1);
    engine.submit(Request { options: options.clone(), ..r }).unwrap();
    let told = listen(&events, 1);
    // The last token of the reply had not been read.
    assert_eq!((told.cached, told.timings.unwrap().prompt_tokens), (2019, 4));
    // Several choices read their prompt once; the same prompt again reads nothing.
    let fed = model.fed.load(Ordering::Relaxed);
    let (r, events) = request(&[9; 50], 3, 8, 1);
    engine.submit(Request { options: GenerateOptions { max_tokens: 1, ..options.clone() }, ..r }).unwrap();
    listen(&events, 8);
    assert_eq!(model.fed.load(Ordering::Relaxed) - fed, 50);
    let (r, events) = request(&[9; 50], 3, 8, 1);
    engine.submit(Request { options: GenerateOptions { max_tokens: 1, ..options }, ..r }).unwrap();
    assert_eq!((listen(&events, 8).cached, model.fed.load(Ordering::Relaxed) - fed), (50, 50));
}

#[test]
fn texts_that_part_start_where_they_parted() {
    let (_, engine) = engine(Limits::default());
    let cached = |end: u32| {
        let prompt: Vec<u32> = (0..200).chain([end; 30]).collect();
        let (r, events) = request(&prompt, 1, 1, 1);
        engine.submit(r).unwrap();
        listen(&events, 1).cached
    };
    assert_eq!([cached(1), cached(2), cached(3), cached(4)], [0, 0, 200, 200]);
}

/// Of texts that come at once and begin alike, the beginnings are read once.
#[test]
fn what_prompts_share_is_read_once_though_they_come_at_once() {
    let (model, engine) = engine(Limits::default());
    let alike: Vec<u32> = (0..200).map(|i| i * 7 % 251).collect();
    let more: Vec<u32> = (0..100).map(|i| i * 13 % 251).collect();
    let own = |i: u32| vec![100 + i; 30];
    // Two levels: all share 200 tokens, those from the fourth on 100 more; the last is the same as another.
    let mut prompts: Vec<Vec<u32>> = (0..9)
        .map(|i| {
            let more = if i < 3 { &[][..] } else { &more };
            [&alike, more, &own(i.min(7))].concat()
        })
        .collect();
    // One that others go on from: its last token is read for the logits.
    prompts.push(alike[..150].to_vec());
    let (mut requests, mut events): (Vec<_>, Vec<_>) =
        prompts.iter().zip(0..).map(|(p, seed)| request(p, seed, 2, 9)).unzip();
    // Likelihoods alone keep no end, and start where their positions allow.
    let (mut likelihood, told) = request(&[&alike[..], &own(8)].concat(), 1, 1, 0);
    likelihood.prompt_logprobs = Some(101);
    requests.push(likelihood);
    events.push(told);
    let want: Vec<Vec<_>> =
        requests.iter().map(|r| (0..r.samplers.len()).map(|c| alone(r, c)).collect()).collect();
    engine.submit_all(requests).unwrap();
    let told: Vec<Told> = events.iter().zip(&want).map(|(e, w)| listen(e, w.len())).collect();
    told.iter().zip(&want).for_each(|(told, want)| same(told, want).unwrap());
    let cached: Vec<usize> = told.iter().map(|t| t.cached).collect();
    assert_eq!(cached, [0, 200, 200, 200, 300, 300, 300, 300, 330, 149, 99]);
    // Who waited is counted where it started in the end.
    let counts = engine.cache().counts();
    assert_eq!([&counts.hits, &counts.misses].map(|c| c.load(Ordering::Relaxed)), [10, 1]);
    // What a request says it has read is what was computed.
    let read: usize = told.iter().map(|t| t.timings.unwrap().prompt_tokens).sum();
    assert_eq!(read, 200 + 100 + 8 * 30 + 1 + 131);
    let stats = engine.stats();
    assert_eq!(stats.prompt_tokens.load(Ordering::Relaxed), read as u64);
    let computed = model.fed.load(Ordering::Relaxed);
    assert_eq!(computed as u64, read as u64 + stats.reply_tokens.load(Ordering::Relaxed));
}

/// Leaves when it has begun.
struct Leaver(AtomicBool);

impl Sink for Leaver {
    fn tell(&mut self, _: Event) {
        self.0.store(true, Ordering::Relaxed);
    }
    fn is_closed(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Whoever waits for a reader that goes away, or for a state that is not kept, reads by itself.
#[test]
fn nobody_waits_for_who_is_gone() {
    let model = Arc::new(BatchHash::default());
    for (leaves, budget) in [(true, 1 << 20), (false, 0), (true, 0)] {
        let engine = start(&model, StateCache::in_memory(8, budget), Limits::default());
        let alike: Vec<u32> = (0..2000).map(|i| i * 7 % 251).collect();
        let of = |i: u32| request(&[&alike[..], &[i; 30]].concat(), u64::from(i), 1, 9);
        let (mut requests, events): (Vec<_>, Vec<_>) = (0..6).map(of).unzip();
        if leaves {
            requests[0].sink = Box::new(Leaver(AtomicBool::new(false)));
        }
        let want: Vec<_> = requests.iter().map(|r| [alone(r, 0)]).collect();
        engine.submit_all(requests).unwrap();
        for (events, want) in events.iter().zip(&want).skip(usize::from(leaves)) {
            same(&listen(events, 1), want).unwrap();
        }
    }
}

#[test]
fn the_prompt_s_probabilities_are_the_model_s_cached_or_not() {
    let (_, engine) = engine(Limits::default());
    let prompt: Vec<u32> = (0..300).map(|i| i * 11 % 256).collect();
    let model = BatchHash::default();
    let mut want = Vec::new();
    let mut state = 1;
    for pair in prompt.windows(2) {
        let mut logits = Vec::new();
        let feed = Feed { tokens: &pair[..1], state: &mut state, logits: Wanted::Last(&mut logits) };
        LanguageModel::forward(&model, &mut [feed]).unwrap();
        let max = logits.iter().copied().fold(f32::MIN, f32::max);
        let sum: f64 = logits.iter().map(|&l| f64::from(l - max).exp()).sum();
        want.push(f64::from(logits[pair[1] as usize] - max) - sum.ln());
    }
    // Only the ends of texts that somebody may go on from are kept, so a beginning is read before.
    let (r, events) = request(&prompt[..260], 1, 1, 0);
    engine.submit(r).unwrap();
    listen(&events, 1);
    for from in [1, 250, 1, 299, 300, 9000] {
        let (mut r, events) = request(&prompt, 1, 1, 3);
        let text = alone(&r, 0);
        r.prompt_logprobs = Some(from);
        r.samplers[0] = sampler(SamplerConfig { top_logprobs: 3, ..r.samplers[0].config().clone() }, 1);
        engine.submit(r).unwrap();
        let told = listen(&events, 1);
        assert_eq!(told.tokens[0], text.tokens);
        let got: Vec<u32> = told.prompt.iter().map(|s| s.id).collect();
        assert_eq!(got, prompt[from.min(300)..]);
        for (s, w) in told.prompt.iter().zip(&want[from.min(300) - 1..]) {
            assert!((f64::from(s.logprob) - w).abs() < 1e-4 && s.top.len() == 3);
        }
        assert_eq!(told.cached > 0, from > 250, "{from}");
    }
}

#[test]
fn grammars_force_tokens_and_hold_in_a_batch() {
    let (model, engine) = engine(Limits::default());
    let grammars = crate::Grammars::new(&Tokenizer::bytes(), 256).unwrap();
    let schema = serde_json::json!({"type": "object", "properties": {"the_only_colour": {"enum": ["red", "blue"]}},
        "required": ["the_only_colour"], "additionalProperties": false});
    let constraint = grammars.compile(&crate::Grammar::JsonSchema(schema), false).unwrap();
    let before = engine.stats().steps.load(Ordering::Relaxed);
    let mut all = Vec::new();
    for seed in 0..6 {
        let (mut r, events) = request(b"abc".map(u32::from).as_slice(), seed, 2, 100);
        r.options.stops = StopRules::none();
        let after = (seed == 5).then(|| "!".to_owned());
        if after.is_some() {
            r.options.max_tokens = 4000;
        }
        r.constrained = Some(Constrained { constraint: constraint.clone(), after });
        engine.submit(r).unwrap();
        all.push(events);
    }
    for (seed, events) in all.into_iter().enumerate() {
        let told = listen(&events, 2);
        for (text, stop) in told.texts.iter().zip(&told.stops) {
            let text = if seed == 5 { text.split_once('!').unwrap().1 } else { text };
            let value: serde_json::Value =
                serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
            assert!(["red", "blue"].contains(&value["the_only_colour"].as_str().unwrap()));
            assert_eq!(*stop, Some(StopReason::Complete));
        }
    }
    // 28 bytes each, of which few were a choice.
    let steps = engine.stats().steps.load(Ordering::Relaxed) - before;
    assert!(model.fed.load(Ordering::Relaxed) > 10 * 24 && steps < 4000);
}

#[test]
fn who_leaves_or_waits_too_long_harms_nobody() {
    let (_, engine) = engine(Limits { width: 2, queue: 4 });
    let endless = |seed| {
        let (mut r, events) = request(&[1, 2, 3], seed, 1, usize::MAX);
        r.options.stops = StopRules::none();
        let closed = Arc::new(AtomicBool::new(false));
        let (to, events) = {
            drop(events);
            channel()
        };
        r.sink = Box::new(ToChannel { to, closed: closed.clone() });
        (r, events, closed)
    };
    let (r, first, leave) = endless(1);
    engine.submit(r).unwrap();
    let (mut r, second, _) = endless(2);
    r.deadline = Some(Instant::now() + Duration::from_millis(300));
    engine.submit(r).unwrap();
    while engine.stats().active.load(Ordering::Relaxed) < 2 {
        std::thread::yield_now();
    }
    // The queue: one that would be computed, one whose time ends there, one that leaves.
    let (r, third) = request(&[5; 40], 4, 1, 20);
    let want = alone(&r, 0);
    engine.submit(r).unwrap();
    let (mut r, late) = request(&[6], 4, 1, 20);
    r.deadline = Some(Instant::now());
    engine.submit(r).unwrap();
    let (r, gone, left) = endless(5);
    left.store(true, Ordering::Relaxed);
    engine.submit(r).unwrap();
    let mut refused = 0;
    for _ in 0..4 {
        if let Err(Refused::Full(wait)) = engine.submit(request(&[1], 1, 1, 1).0) {
            assert!(wait >= Duration::from_secs(1));
            refused += 1;
        }
    }
    assert!(refused >= 1);
    assert_eq!(listen(&late, 1).failed, Some(Error::TimedOut));
    let told = listen(&second, 1);
    assert_eq!(told.stops[0], Some(StopReason::TimedOut));
    same(&listen(&third, 1), &[want]).unwrap();
    leave.store(true, Ordering::Relaxed);
    assert_eq!(listen(&first, 1).stops[0], Some(StopReason::Cancelled));
    assert!(gone.recv().is_err(), "nobody is told");
    // It goes on.
    let (r, events) = request(&[5; 10], 4, 1, 20);
    engine.submit(r).unwrap();
    listen(&events, 1);
    // A prompt that could not be read in time has no reply, not an empty one.
    let (mut r, unread) = request(&vec![1; 30_000_000], 2, 2, 20);
    r.deadline = Some(Instant::now() + Duration::from_millis(100));
    engine.submit(r).unwrap();
    let told = listen(&unread, 2);
    assert_eq!((told.failed, told.stops), (Some(Error::TimedOut), vec![None, None]));
}

#[test]
fn what_is_wrong_is_refused_and_closing_ends_what_runs() {
    let (_, engine) = engine(Limits::default());
    let mut r = request(&[256], 1, 1, 1).0;
    assert!(matches!(engine.submit(r), Err(Refused::Wrong(Error::TokenRange { .. }))));
    r = request(&[1], 1, 1, 1).0;
    r.options.stops.strings.push(String::new());
    assert!(matches!(engine.submit(r), Err(Refused::Wrong(Error::EmptyStop { .. }))));
    assert!(matches!(engine.submit(request(&[1], 1, 65, 1).0), Err(Refused::Wrong(Error::Setting { .. }))));
    let (mut r, events) = request(&[1, 2], 1, 2, usize::MAX);
    r.options.stops = StopRules::none();
    engine.submit(r).unwrap();
    engine.close(Duration::from_millis(50));
    let told = listen(&events, 2);
    assert_eq!(told.stops, [Some(StopReason::TimedOut), Some(StopReason::TimedOut)]);
    assert!(matches!(engine.submit(request(&[1], 1, 1, 1).0), Err(Refused::Closing)));
}

/// Breaks once it reads the token 13.
struct Breaking;

impl LanguageModel for Breaking {
    type State = u64;
    fn vocab(&self) -> usize {
        256
    }
    fn new_state(&self) -> u64 {
        1
    }
    fn forward(&self, feeds: &mut [Feed<'_, u64>]) -> crate::Result<()> {
        assert!(!feeds.iter().any(|f| f.tokens.contains(&13)), "a bug");
        crate::testing::HashModel(256).forward(feeds)
    }
}

impl BatchModel for Breaking {
    type Adapter = ();
    fn forward_adapted(&self, feeds: &mut [Feed<'_, u64>], _: &[Option<&()>]) -> crate::Result<()> {
        self.forward(feeds)
    }
}

#[test]
fn a_panic_ends_what_ran_and_nothing_else() {
    let cache = Arc::new(StateCache::in_memory(8, 1 << 20));
    let turns = Turns::default();
    let engine =
        Scheduler::start(Arc::new(Breaking), Tokenizer::bytes(), cache, Limits::default(), turns).unwrap();
    let ask = |token: u32| {
        let (r, events) = request(&[1, token], 1, 1, 5);
        let Request { prompt, marks, samplers, mut options, client, user, sink, .. } = r;
        options.stops = StopRules::none();
        let base = Base { root: "r".into(), state: None, adapter: None };
        let (constrained, prompt_logprobs, deadline, cached) = (None, None, None, true);
        let r = Request {
            base,
            prompt,
            marks,
            samplers,
            options,
            constrained,
            prompt_logprobs,
            client,
            user,
            deadline,
            cached,
            sink,
        };
        engine.submit(r).unwrap();
        listen(&events, 1)
    };
    for _ in 0..3 {
        assert!(ask(2).timings.is_some());
        assert_eq!(ask(13).failed, Some(Error::Broken));
    }
}

#[test]
fn several_are_taken_whole_or_not_at_all_and_leave_room_for_others() {
    let (_, engine) = engine(Limits { width: 1, queue: 8 });
    let (mut r, running) = request(&[1], 1, 1, usize::MAX);
    r.options.stops = StopRules::none();
    engine.submit(r).unwrap();
    while engine.stats().active.load(Ordering::Relaxed) == 0 {
        std::thread::yield_now();
    }
    let many = |n: usize, client: &str| {
        let requests = (0..n).map(|i| Request { client: client.into(), ..request(&[i as u32], 1, 1, 1).0 });
        engine.submit_all(requests.collect())
    };
    assert!(matches!(many(7, "a"), Err(Refused::Full(_))), "one client does not get all places");
    many(6, "a").unwrap();
    assert!(matches!(many(1, "a"), Err(Refused::Full(_))));
    many(2, "b").unwrap();
    assert!(matches!(many(1, "c"), Err(Refused::Full(_))));
    drop(running);
}

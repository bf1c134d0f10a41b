//! The sampler against an independent implementation that sorts everything and works in f64 throughout.

use super::*;

/// Logits that look like a model's: `spread` times a standard normal, by Box and Muller.
fn logits(n: usize, spread: f64, seed: u64) -> Vec<f32> {
    let mut rng = Rng::new(seed);
    (0..n)
        .map(|_| {
            let (u, v) = (1.0 - rng.next_f64(), rng.next_f64());
            (spread * (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
        })
        .collect()
}

fn sampler(config: SamplerConfig) -> Sampler {
    Sampler::new(SamplerConfig { seed: Some(42), ..config }, Uncounted::none()).unwrap()
}

/// The reference order in the plainest words: softmax, sort, cut, cut, power. Returns probabilities by id.
fn naive(config: &SamplerConfig, logits: &[f64]) -> Vec<(u32, f64)> {
    let max = logits.iter().cloned().fold(f64::NEG_INFINITY, f64::max);
    let exps: Vec<f64> = logits.iter().map(|x| (x - max).exp()).collect();
    let total: f64 = exps.iter().sum();
    let mut p: Vec<(u32, f64)> = exps.iter().enumerate().map(|(i, e)| (i as u32, e / total)).collect();
    p.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let mut sum = 0.0;
    if config.top_p < 1.0 {
        let cut = p.iter().find(|x| {
            sum += x.1;
            sum >= f64::from(config.top_p)
        });
        let cut = cut.map_or(0.0, |x| x.1);
        p.retain(|x| x.1 >= cut);
    }
    if config.top_k > 0 {
        p.truncate(config.top_k as usize);
    }
    let floor = p[0].1 * f64::from(config.min_p);
    p.retain(|x| x.1 >= floor);
    if config.typical_p < 1.0 {
        let mass: f64 = p.iter().map(|x| x.1).sum();
        let entropy: f64 = p.iter().map(|x| -(x.1 / mass) * (x.1 / mass).ln()).sum();
        let odd = |x: &(u32, f64)| (-(x.1 / mass).ln() - entropy).abs();
        p.sort_by(|a, b| odd(a).total_cmp(&odd(b)));
        let mut sum = 0.0;
        let n = p.iter().take_while(|x| {
            let go = sum < f64::from(config.typical_p);
            sum += x.1 / mass;
            go
        });
        let n = n.count();
        p.truncate(n);
    }
    for x in &mut p {
        x.1 = x.1.powf(1.0 / f64::from(config.temperature));
    }
    let total: f64 = p.iter().map(|x| x.1).sum();
    p.retain(|x| x.1 / total > 1e-30);
    p.iter_mut().for_each(|x| x.1 /= total);
    p.sort_by_key(|x| x.0);
    p
}

fn assert_same(got: &[(u32, f64)], want: &[(u32, f64)], what: &str) {
    let got: Vec<_> = got.iter().filter(|x| x.1 > 1e-30).collect();
    let ids = |v: &[&(u32, f64)]| v.iter().map(|x| x.0).collect::<Vec<_>>();
    let want: Vec<_> = want.iter().collect();
    assert_eq!(ids(&got), ids(&want), "candidates of {what}");
    for (g, w) in got.iter().zip(&want) {
        assert!((g.1 - w.1).abs() <= 1e-5 * w.1 + 1e-12, "{what}: token {}: {} for {}", g.0, g.1, w.1);
    }
}

#[test]
fn candidates_and_probabilities_equal_the_naive_ones() {
    let base = SamplerConfig::pure();
    let configs = [
        base.clone(),
        SamplerConfig { top_p: 0.85, ..base.clone() },
        SamplerConfig { top_p: 0.3, temperature: 0.7, ..base.clone() },
        SamplerConfig { top_p: 0.999, temperature: 2.5, ..base.clone() },
        SamplerConfig { top_k: 40, ..base.clone() },
        SamplerConfig { top_k: 2, top_p: 0.99, temperature: 1.3, ..base.clone() },
        SamplerConfig { top_k: 5000, top_p: 0.9, ..base.clone() },
        SamplerConfig { min_p: 0.05, ..base.clone() },
        SamplerConfig { min_p: 1.0, ..base.clone() },
        SamplerConfig { min_p: 0.02, top_p: 0.95, top_k: 100, temperature: 0.5, ..base.clone() },
        SamplerConfig { typical_p: 0.5, ..base.clone() },
        SamplerConfig { typical_p: 0.95, top_p: 0.9, temperature: 1.7, ..base.clone() },
        SamplerConfig { typical_p: 0.2, top_k: 50, min_p: 0.01, ..base.clone() },
    ];
    for n in [1, 2, 5, 97, 1000, 4099] {
        for spread in [0.01, 1.0, 3.0, 9.0] {
            let l = logits(n, spread, n as u64 + 1);
            let wide: Vec<f64> = l.iter().map(|&x| f64::from(x)).collect();
            for c in &configs {
                let what = format!("n {n}, spread {spread}, {c:?}");
                // Exactly equal probabilities under typical sampling are kept together; random logits have none.
                assert_same(&sampler(c.clone()).distribution(&l), &naive(c, &wide), &what);
            }
        }
    }
}

#[test]
fn penalties_follow_the_reference_step_by_step() {
    // An independent simulation with the reference's dictionary semantics.
    let texts: Vec<&[u8]> = vec![b"", b"a", b"12", b"21", b" ", b"  ", b"\t0", b"b"];
    let uncounted = Uncounted::from_texts(texts.len() + 1, |id| texts.get(id as usize).copied());
    assert_eq!(uncounted.ids(), [0, 2, 4, 6]);
    let config = SamplerConfig {
        seed: Some(5),
        presence_penalty: 0.3,
        frequency_penalty: 0.7,
        ..SamplerConfig::pure()
    };
    let mut s = Sampler::new(config, uncounted).unwrap();
    let l = logits(9, 1.0, 3);
    let mut counts: Vec<(usize, f64)> = Vec::new();
    for &id in &[1usize, 2, 2, 1, 7, 3, 2, 4, 1, 0, 8] {
        let mut want: Vec<f64> = l.iter().map(|&x| f64::from(x)).collect();
        for &(i, c) in &counts {
            want[i] -= f64::from(0.3f32) + c * f64::from(0.7f32);
        }
        assert_same(&s.distribution(&l), &naive(&SamplerConfig::pure(), &want), "penalties");
        s.accept(id as u32);
        counts.iter_mut().for_each(|c| c.1 *= f64::from(0.996f32));
        let add = if [0, 2, 4, 6].contains(&id) { 0.0 } else { 1.0 };
        match counts.iter_mut().find(|c| c.0 == id) {
            Some(c) => c.1 += add,
            None => counts.push((id, add)),
        }
    }
    // Token 2 ("12") was generated three times: presence penalty, no frequency penalty.
    assert_eq!(counts.iter().find(|c| c.0 == 2).unwrap().1, 0.0);
    s.reset_counts();
    let plain: Vec<f64> = l.iter().map(|&x| f64::from(x)).collect();
    assert_same(&s.distribution(&l), &naive(&SamplerConfig::pure(), &plain), "after reset");
}

#[test]
fn bias_bans_and_repetition() {
    let l = [2.0f32, 1.0, -1.0, 0.5];
    let config = SamplerConfig {
        repetition_penalty: 2.0,
        logit_bias: [(3, 0.25), (0, f32::NEG_INFINITY), (99, 5.0)].into(),
        ..SamplerConfig::pure()
    };
    let mut s = sampler(config.clone());
    s.observe(&[2, 2, 1, 70_000]);
    let want = [f64::NEG_INFINITY, 0.5, -2.0, 0.75];
    assert_same(&s.distribution(&l), &naive(&SamplerConfig::pure(), &want), "bias and repetition");
    // With a window of two only the last two tokens count, each once.
    let mut s = sampler(SamplerConfig { repetition_last_n: 2, ..config });
    s.observe(&[2, 3]);
    s.accept(1);
    s.accept(1);
    let want = [f64::NEG_INFINITY, 0.5, -1.0, 0.75];
    assert_same(&s.distribution(&l), &naive(&SamplerConfig::pure(), &want), "window");
}

#[test]
fn a_banned_giant_does_not_hide_the_rest() {
    // The best token is 300 logits ahead; without it the others must be seen again in full precision.
    let mut l = logits(50, 1.0, 4);
    l[7] = 300.0;
    let mut want: Vec<f64> = l.iter().map(|&x| f64::from(x)).collect();
    want[7] = f64::NEG_INFINITY;
    let bias = [(7, f32::NEG_INFINITY)].into();
    let mut s = sampler(SamplerConfig { logit_bias: bias, ..SamplerConfig::pure() });
    assert_same(&s.distribution(&l), &naive(&SamplerConfig::pure(), &want), "ban");
    // And a bias that lifts a token far above.
    let mut s = sampler(SamplerConfig { logit_bias: [(3, 500.0)].into(), ..SamplerConfig::default() });
    assert_eq!(s.sample(&l).unwrap().id, 3);
}

#[test]
fn greedy_settings_take_the_lowest_id_among_the_best() {
    let l = [0.0f32, 3.0, 1.0, 3.0];
    let greedy = [
        SamplerConfig::greedy(),
        SamplerConfig { top_k: 1, ..SamplerConfig::pure() },
        SamplerConfig { top_p: 0.0, ..SamplerConfig::pure() },
        SamplerConfig { temperature: 0.0, mirostat: Some(Mirostat::default()), ..SamplerConfig::pure() },
    ];
    for c in greedy {
        let mut s = sampler(c);
        let before = s.state().clone();
        for _ in 0..20 {
            assert_eq!(s.sample(&l).unwrap().id, 1);
        }
        assert_eq!(*s.state(), before, "no random number is used");
    }
    // Ties at the border: top-p keeps all of them, top-k the lowest ids.
    let flat = [1.0f32; 5];
    let ids = |c: SamplerConfig| sampler(c).distribution(&flat).iter().map(|x| x.0).collect::<Vec<_>>();
    assert_eq!(ids(SamplerConfig { top_p: 0.3, ..SamplerConfig::pure() }), [0, 1, 2, 3, 4]);
    assert_eq!(ids(SamplerConfig { top_k: 2, ..SamplerConfig::pure() }), [0, 1]);
    // Tiny temperatures do not break on 0/0.
    let mut s = sampler(SamplerConfig { temperature: 1e-40, ..SamplerConfig::pure() });
    assert_eq!(s.sample(&[0.0, 2.0, 1.0]).unwrap().id, 1);
}

#[test]
fn draws_follow_the_distribution() {
    // Chi-square against the naive probabilities; the bound is the 99.99 % quantile for the degrees of freedom.
    for (c, seed) in [
        (SamplerConfig::pure(), 1u64),
        (SamplerConfig { temperature: 1.8, top_p: 0.9, ..SamplerConfig::pure() }, 2),
        (SamplerConfig { temperature: 0.6, top_k: 12, ..SamplerConfig::pure() }, 3),
    ] {
        let l = logits(20, 1.0, seed + 70);
        let want = naive(&c, &l.iter().map(|&x| f64::from(x)).collect::<Vec<_>>());
        let mut s = Sampler::new(SamplerConfig { seed: Some(seed), ..c }, Uncounted::none()).unwrap();
        let n = 40_000;
        let mut seen = [0f64; 20];
        for _ in 0..n {
            seen[s.sample(&l).unwrap().id as usize] += 1.0;
        }
        let chi: f64 =
            want.iter().map(|&(id, p)| (seen[id as usize] - n as f64 * p).powi(2) / (n as f64 * p)).sum();
        let degrees = (want.len() - 1) as f64;
        assert!(chi < degrees + 3.72 * (2.0 * degrees).sqrt() + 10.0, "chi-square {chi} for {degrees}");
        let outside: f64 = (0..20).filter(|i| want.iter().all(|w| w.0 != *i)).map(|i| seen[i as usize]).sum();
        assert_eq!(outside, 0.0);
    }
}

#[test]
fn mirostat_holds_its_target_surprise() {
    let tau = 3.0f32;
    let mut s =
        sampler(SamplerConfig { mirostat: Some(Mirostat { tau, eta: 0.1 }), ..SamplerConfig::pure() });
    let (mut bits, n) = (0.0, 4000);
    for i in 0..n {
        let l = logits(2000, 3.0, i);
        s.sample(&l).unwrap();
        // The surprise is of the distribution among the candidates, which is what mirostat controls.
        let before = s.clone();
        let candidates = s.distribution(&l);
        assert!(!candidates.is_empty());
        let id = before.clone().sample(&l).unwrap().id;
        bits += -candidates.iter().find(|c| c.0 == id).unwrap().1.log2();
    }
    let mean = bits / n as f64;
    assert!((mean - f64::from(tau)).abs() < 0.1, "mean surprise {mean}");
    // A threshold below every surprise still leaves the best token.
    let mut s =
        sampler(SamplerConfig { mirostat: Some(Mirostat { tau: 0.0, eta: 1.0 }), ..SamplerConfig::pure() });
    for _ in 0..50 {
        s.sample(&[0.0, 0.1, 0.05]).unwrap();
    }
    assert_eq!(s.sample(&[0.0, 0.1, 0.05]).unwrap().id, 1);
}

#[test]
fn logprobs_are_of_the_raw_distribution() {
    let l = logits(300, 2.0, 8);
    let max = l.iter().cloned().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = l.iter().map(|x| f64::from(x - max).exp()).sum();
    let logprob = |id: u32| f64::from(l[id as usize] - max) - total.ln();
    let mut s = sampler(SamplerConfig { top_logprobs: 5, temperature: 2.0, ..SamplerConfig::chat() });
    let mut order: Vec<u32> = (0..300).collect();
    order.sort_by(|&a, &b| l[b as usize].total_cmp(&l[a as usize]));
    for _ in 0..30 {
        let got = s.sample(&l).unwrap();
        s.accept(got.id);
        assert!((f64::from(got.logprob) - logprob(got.id)).abs() < 1e-5);
        assert_eq!(got.top.iter().map(|t| t.0).collect::<Vec<_>>(), order[..5]);
        for (id, lp) in got.top {
            assert!((f64::from(lp) - logprob(id)).abs() < 1e-5);
        }
    }
    let mut s = sampler(SamplerConfig { top_logprobs: 9, ..SamplerConfig::pure() });
    let top = s.sample(&[1.0, 2.0, f32::NEG_INFINITY, 2.0]).unwrap().top;
    assert_eq!(top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 3, 0, 2]);
}

#[test]
fn the_same_seed_draws_the_same_ids_for_ever() {
    // Golden ids: a change here breaks every saved seed of every user.
    let mut s = sampler(SamplerConfig::default());
    // Made without the C library's functions, so that the logits too are the same everywhere.
    let mut rng = Rng::new(11);
    let l: Vec<f32> = (0..500).map(|_| (0..6).map(|_| rng.next_f64() as f32 * 3.0).sum()).collect();
    let ids: Vec<u32> = (0..12)
        .map(|_| {
            let id = s.sample(&l).unwrap().id;
            s.accept(id);
            id
        })
        .collect();
    assert_eq!(ids, GOLDEN);
    // A snapshot continues like the original; a fork does not disturb it; other seeds differ.
    let mut fork = s.clone();
    let saved = serde_json::to_string(s.state()).unwrap();
    let run = |s: &mut Sampler| (0..50).map(|_| s.sample(&l).unwrap().id).collect::<Vec<_>>();
    let a = run(&mut s);
    assert_eq!(run(&mut fork), a);
    let mut back = sampler(SamplerConfig::default());
    back.restore(serde_json::from_str(&saved).unwrap());
    assert_eq!(run(&mut back), a);
    let mut other =
        Sampler::new(SamplerConfig { seed: Some(43), ..SamplerConfig::default() }, Uncounted::none())
            .unwrap();
    assert_ne!(run(&mut other), a);
    // Without a seed each sampler has its own, and tells it.
    let mut unseeded = Sampler::new(SamplerConfig::default(), Uncounted::none()).unwrap();
    let first = run(&mut unseeded);
    let config = SamplerConfig { seed: Some(unseeded.seed()), ..SamplerConfig::default() };
    assert_eq!(run(&mut Sampler::new(config, Uncounted::none()).unwrap()), first);
}

const GOLDEN: [u32; 12] = [394, 33, 69, 129, 2, 429, 36, 397, 132, 291, 35, 239];

#[test]
fn hopeless_logits_are_refused() {
    let mut s = sampler(SamplerConfig::default());
    let said = s.sample(&[0.0, f32::NAN, 1.0]).unwrap_err();
    assert!(matches!(said, Error::BadLogit { id: 1, .. }), "{said}");
    assert!(matches!(s.sample(&[0.0, f32::INFINITY]), Err(Error::BadLogit { id: 1, .. })));
    assert!(matches!(s.sample(&[f32::NEG_INFINITY; 3]), Err(Error::NothingLeft { vocab: 3 })));
    assert!(matches!(s.sample(&[]), Err(Error::NothingLeft { vocab: 0 })));
    let bans = [(0, f32::NEG_INFINITY), (1, f32::NEG_INFINITY)].into();
    let mut s = sampler(SamplerConfig { logit_bias: bans, ..SamplerConfig::default() });
    assert_eq!(s.sample(&[1.0, 2.0]), Err(Error::NothingLeft { vocab: 2 }));
    assert_eq!(s.sample(&[1.0, 2.0, -50.0]).unwrap().id, 2);
    // Ids outside the vocabulary in a restored state or a window are passed over.
    s.accept(4_000_000);
    assert_eq!(s.sample(&[1.0, 2.0, -50.0]).unwrap().id, 2);
    assert!(
        Sampler::new(SamplerConfig { top_p: 2.0, ..SamplerConfig::default() }, Uncounted::none()).is_err()
    );
}

#[test]
fn reconfiguring_keeps_counts_and_random_numbers() {
    let l = logits(100, 1.0, 1);
    let mut s = sampler(SamplerConfig::default());
    s.accept(5);
    s.sample(&l).unwrap();
    let before = s.state().clone();
    s.reconfigure(SamplerConfig { temperature: 0.5, ..s.config().clone() }).unwrap();
    assert_eq!(*s.state(), before);
    s.reconfigure(SamplerConfig { seed: Some(1), ..s.config().clone() }).unwrap();
    assert_ne!(*s.state(), before);
    assert_eq!(s.seed(), 1);
    assert!(s.reconfigure(SamplerConfig { temperature: -1.0, ..SamplerConfig::default() }).is_err());
}

#[test]
fn settings_at_the_edge_of_their_range_damage_no_logit() {
    let base = SamplerConfig { penalty_decay: 1.0, ..SamplerConfig::pure() };
    for config in [
        SamplerConfig { repetition_penalty: 1e-38, ..base.clone() },
        SamplerConfig { repetition_penalty: 3e38, ..base.clone() },
        SamplerConfig { frequency_penalty: -3e38, presence_penalty: -3e38, ..base.clone() },
        SamplerConfig { frequency_penalty: 3e38, presence_penalty: 3e38, ..base.clone() },
        SamplerConfig { logit_bias: [(0, f32::MAX), (2, f32::MIN)].into(), ..base.clone() },
        SamplerConfig { logit_bias: [(0, f32::NEG_INFINITY)].into(), frequency_penalty: -3e38, ..base },
    ] {
        let mut s =
            Sampler::new(SamplerConfig { seed: Some(1), ..config.clone() }, Uncounted::none()).unwrap();
        for id in [0, 0, 0, 1] {
            s.accept(id);
        }
        for logits in [[20.0, -5.0, 3.0], [f32::MAX, 1.0, f32::MIN], [f32::NEG_INFINITY, 1.0, 2.0]] {
            let drawn = s.sample(&logits);
            assert!(drawn.as_ref().is_ok_and(|d| d.id < 3), "{config:?}: {drawn:?}");
        }
    }
}

/// Among the allowed tokens the draw is as if the others had never been, and what is told of it is the raw distribution.
#[test]
fn only_allowed_tokens_are_drawn() {
    let logits: Vec<f32> = (0..100).map(|i| ((i * 37) % 17) as f32 / 3.0).collect();
    let kept = [3u32, 31, 32, 64, 99];
    let mut allowed = [0u32; 4];
    kept.iter().for_each(|&id| allowed[id as usize / 32] |= 1 << (id % 32));
    let mut others = logits.clone();
    (0..100u32).filter(|id| !kept.contains(id)).for_each(|id| others[id as usize] = f32::NEG_INFINITY);
    for config in [SamplerConfig::greedy(), SamplerConfig::default(), SamplerConfig::pure()] {
        let mut a = sampler(config.clone());
        let mut b = sampler(config.clone());
        let mut raw = sampler(SamplerConfig::pure());
        for _ in 0..50 {
            let got = a.sample_within(&logits, Some(&allowed)).unwrap();
            assert!(kept.contains(&got.id));
            assert_eq!(got.id, b.sample(&others).unwrap().id);
            // Raw log-probability: that of an unrestricted sampler that happens to draw it.
            let told = std::iter::repeat_with(|| raw.sample(&logits).unwrap()).find(|s| s.id == got.id);
            assert_eq!(got.logprob, told.unwrap().logprob);
            a.accept(got.id);
            b.accept(got.id);
        }
    }
    let mut s = sampler(SamplerConfig::pure());
    assert!(matches!(s.sample_within(&logits, Some(&[0])), Err(Error::NothingLeft { .. })));
    // Ids beyond the mask are not allowed.
    assert_eq!(s.sample_within(&logits, Some(&[4])).unwrap().id, 2);
}

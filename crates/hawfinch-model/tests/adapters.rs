//! Adapters chosen by sequence: each sequence as a model opened with its LoRA alone would compute it, whatever runs beside.

use std::sync::Arc;

use hawfinch_kernels::{DType, Pool, Real};
use hawfinch_model::names::{self, Role};
use hawfinch_model::ops::Ops;
use hawfinch_model::synthetic::{self, Shape};
use hawfinch_model::{
    Adapter, Checkpoint, Config, Cpu, FileFormat, Lora, Model, OpenOptions, Output, Quant, Rng, Rows,
    STEP_TOKENS, Sequence, StoredTensor, Version,
};

const VERSIONS: [Version; 4] = [Version::V4, Version::V5_2, Version::V6, Version::V7];

fn config(version: Version) -> Config {
    Shape { version, layers: 2, width: 96, vocab: 64, head_size: 16 }.config()
}

fn base(version: Version) -> Checkpoint {
    synthetic::checkpoint(&config(version), DType::BF16, 1)
}

/// A LoRA of random numbers of the linear layers whose names end so.
fn lora(version: Version, seed: u64, (rank, dtype): (usize, DType), ends: &[&str]) -> Lora {
    let config = config(version);
    let mut file = Checkpoint::new("lora", FileFormat::Memory);
    let mut random = Rng::new(seed);
    for (name, param) in names::all_params(version, config.layers) {
        let module = name.strip_suffix(".weight").unwrap_or(&name);
        if param.role != Role::Matrix || module == "emb" || !ends.iter().any(|end| module.ends_with(end)) {
            continue;
        }
        let [out, input] = config.shape(param)[..] else { panic!("{name} is a matrix") };
        for (half, shape) in [("A", [rank, input]), ("B", [out, rank])] {
            let values: Vec<f32> = (0..shape[0] * shape[1]).map(|_| random.uniform(-0.2, 0.2)).collect();
            let tensor = StoredTensor::from_f32(&shape, &values).converted(dtype).unwrap();
            file.insert(format!("{module}.lora_{half}"), tensor).unwrap();
        }
    }
    Lora::from_checkpoint(file, Some(rank as f64 * 1.5)).unwrap()
}

/// Every linear layer; some of each block, so that fused and unfused products meet; the head and one more. In the number
/// types of files that there are, and one in blocks.
fn loras(version: Version) -> [Lora; 3] {
    [
        lora(version, 11, (4, DType::F32), &[""]),
        lora(version, 12, (32, DType::Q8_0), &["att.key", "att.output", "ffn.value"]),
        lora(version, 13, (7, DType::BF16), &["head", "ffn.key", "1.att.value"]),
    ]
}

fn open<F: Real>(version: Version, loras: &[&Lora], cpu: Cpu<F>) -> Model<Cpu<F>> {
    let loras = loras.iter().map(|lora| (*lora).clone()).collect();
    Model::from_checkpoint(base(version), OpenOptions { loras, ..OpenOptions::default() }, cpu).unwrap()
}

fn text(len: usize, seed: usize) -> Vec<u32> {
    (0..len).map(|i| ((i * i + 7 * i + 13 * seed) % 64) as u32).collect()
}

/// One sequence of the test, kept from step to step: which of the models it follows, and its states beside others and alone.
struct Follows<S> {
    which: usize,
    mixed: S,
    alone: S,
}

/// Steps of ragged batches, in which sequences take turns at every place: prefill of several steps, decoding, both. Sequence by
/// sequence `model` with an adapter (`None`: without) must give what the model beside it gives alone.
fn compare<O: Ops + 'static>(model: &Model<O>, pairs: &[(Option<&Adapter<O>>, &Model<O>)], what: &str) {
    // Neighbours that share an adapter and some that do not, when they are in this order.
    let state = || model.ops().state(&model.new_state());
    let mut sequences: Vec<_> = [0, 1, 1, 2, 0, 3, 2, 1]
        .into_iter()
        .filter(|which| *which < pairs.len())
        .map(|which| Follows { which, mixed: state(), alone: state() })
        .collect();
    let n = sequences.len();
    let long = 2 * STEP_TOKENS + 9;
    let steps = [&[3, 1, 40, 2][..], &[1], &[long, 1, 2], &[1, 1, long, 1, 1, 30], &[1]];
    let wants = [Rows::All, Rows::Last, Rows::Tail(3), Rows::None];
    for (number, lengths) in steps.iter().enumerate() {
        sequences.rotate_left(number * 3 % n);
        sequences.swap(0, n / 2);
        let texts: Vec<_> = (0..n).map(|i| text(lengths[i % lengths.len()], i + number)).collect();
        let wanted = |i: usize| (wants[(i + number) % 4], wants[(i + number + 1) % 4]);
        let adapters: Vec<_> = sequences.iter().map(|s| pairs[s.which].0).collect();
        let mut outputs = vec![Output::default(); n];
        let mut calls = Vec::new();
        for (i, (s, tokens)) in sequences.iter_mut().zip(&texts).enumerate() {
            let (logits, hidden) = wanted(i);
            calls.push(Sequence { tokens, state: &mut s.mixed, logits, hidden });
        }
        model.forward_adapted(&mut calls, &adapters, &mut outputs).unwrap();
        for (i, ((s, tokens), got)) in sequences.iter_mut().zip(&texts).zip(&outputs).enumerate() {
            let (logits, hidden) = wanted(i);
            let call = Sequence { tokens, state: &mut s.alone, logits, hidden };
            let want = pairs[s.which].1.forward(&mut [call]).unwrap().remove(0);
            let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            let at = format!("{what}: step {number}, sequence {i}, model {}", s.which);
            assert!(bits(&got.logits) == bits(&want.logits), "{at}: logits");
            assert!(bits(&got.hidden) == bits(&want.hidden), "{at}: hidden rows");
            let [mixed, alone] = [&s.mixed, &s.alone].map(|state| model.ops().read_state(state));
            assert!(mixed == alone && bits(mixed.data()) == bits(alone.data()), "{at}: state");
        }
    }
}

#[test]
fn every_sequence_as_if_its_model_were_opened_with_its_lora() {
    for version in VERSIONS {
        let loras = loras(version);
        for quant in [None, Some(Quant::Bf16), Some(Quant::Int8), Some(Quant::Int4)] {
            let cpu = |threads| Cpu::<f32>::new(threads).quantizing(quant);
            let model = open(version, &[], cpu(2));
            let plain = open(version, &[], cpu(1));
            let opened = loras.each_ref().map(|lora| open(version, &[lora], cpu(1)));
            let adapters = loras.each_ref().map(|lora| model.adapter(lora).unwrap());
            let with = adapters.iter().map(Some).zip(&opened);
            let pairs: Vec<_> = [(None, &plain)].into_iter().chain(with).collect();
            compare(&model, &pairs, &format!("{version} {quant:?}"));
            // Alone in its batch, every row is the adapter's.
            compare(&model, &[(Some(&adapters[0]), &opened[0])], &format!("{version} {quant:?} alone"));
        }
    }
}

/// What the comparison above holds: the LoRAs are not all the same and not without effect.
#[test]
fn adapters_change_what_is_computed() {
    for version in VERSIONS {
        let model = open(version, &[], Cpu::<f32>::new(1));
        let adapters = loras(version).map(|lora| model.adapter(&lora).unwrap());
        let mut of_each: Vec<Option<&Adapter>> = adapters.iter().map(Some).collect();
        of_each.push(None);
        let mut states = vec![model.new_state(); 4];
        let call = |state| Sequence { tokens: &[5, 6], state, logits: Rows::Last, hidden: Rows::None };
        let mut calls: Vec<_> = states.iter_mut().map(call).collect();
        let mut outputs = vec![Output::default(); 4];
        model.forward_adapted(&mut calls, &of_each, &mut outputs).unwrap();
        for i in 0..4 {
            for j in 0..i {
                assert_ne!(outputs[i].logits, outputs[j].logits, "{version}: {i} and {j}");
            }
        }
    }
}

/// LoRAs that a model was opened with, and more on top by sequence.
#[test]
fn fixed_loras_apply_first() {
    for version in VERSIONS {
        let [x, y, z] = &loras(version);
        let cpu = || Cpu::<f32>::new(1);
        let model = open(version, &[x], cpu());
        let [on_y, on_z] = [y, z].map(|lora| model.adapter(lora).unwrap());
        let (plain, with_y, with_z) =
            (open(version, &[x], cpu()), open(version, &[x, y], cpu()), open(version, &[x, z], cpu()));
        compare(
            &model,
            &[(None, &plain), (Some(&on_y), &with_y), (Some(&on_z), &with_z)],
            &format!("{version} on another"),
        );
        let identity = |model: &Model, adapter| model.identity_with(adapter, None).unwrap();
        assert_eq!(identity(&model, Some(&on_y)), with_y.identity(None).unwrap());
        assert_eq!(identity(&model, None), plain.identity(None).unwrap());
    }
}

#[test]
fn in_double_precision_too() {
    let loras = loras(Version::V7);
    let pool = Arc::new(Pool::new(1));
    let cpu = || Cpu::<f64>::with(pool.clone(), hawfinch_kernels::Isa::best());
    let model = open(Version::V7, &[], cpu());
    let plain = open(Version::V7, &[], cpu());
    let opened = open(Version::V7, &[&loras[1]], cpu());
    let adapter = model.adapter(&loras[1]).unwrap();
    compare(&model, &[(None, &plain), (Some(&adapter), &opened)], "f64");
}

/// They come and go while the model and sequences of others live on, on any thread.
#[test]
fn adapters_come_and_go() {
    fn is_shared<T: Send + Sync>() {}
    is_shared::<Adapter>();
    let [x, y, _] = &loras(Version::V7);
    let model = open(Version::V7, &[], Cpu::<f32>::new(1));
    let (with_x, with_y) =
        (open(Version::V7, &[x], Cpu::<f32>::new(1)), open(Version::V7, &[y], Cpu::<f32>::new(1)));
    let first = Arc::new(model.adapter(x).unwrap());
    let kept = first.clone();
    compare(&model, &[(Some(&first), &with_x)], "the first");
    // Floats lie in memory as in their file.
    assert_eq!(
        first.bytes(),
        x.modules.values().map(|(a, b)| (a.data.len() + b.data.len()) as u64).sum::<u64>()
    );
    drop(first);
    let second = std::thread::scope(|s| s.spawn(|| model.adapter(y).unwrap()).join().unwrap());
    compare(&model, &[(Some(&kept), &with_x), (Some(&second), &with_y)], "both");
    drop(kept);
    compare(&model, &[(Some(&second), &with_y)], "the second");
    // It is safe to keep one longer than its model.
    drop(model);
    assert_eq!(second.fingerprint(), y.fingerprint());
}

#[test]
fn an_identity_is_that_of_the_opened_model() {
    for version in VERSIONS {
        let model = open(version, &[], Cpu::<f32>::new(1));
        for lora in &loras(version) {
            let opened = open(version, &[lora], Cpu::<f32>::new(1));
            let adapter = model.adapter(lora).unwrap();
            let with = model.identity_with(Some(&adapter), None).unwrap();
            assert_eq!(with, opened.identity(None).unwrap());
            assert_ne!(with, model.identity(None).unwrap());
        }
    }
}

/// An adapter of a model with the same weights is another model's still, and is refused before anything changes.
#[test]
fn an_adapter_of_another_model_is_refused() {
    let x = &loras(Version::V6)[0];
    let [model, twin] = [1, 1].map(|threads| open(Version::V6, &[], Cpu::<f32>::new(threads)));
    let (own, foreign) = (model.adapter(x).unwrap(), twin.adapter(x).unwrap());
    let mut states = vec![model.new_state(); 2];
    let fresh = states.clone();
    let mut outputs = vec![Output { logits: vec![1.0], hidden: Vec::new() }; 2];
    let call = |state| Sequence { tokens: &[5, 6], state, logits: Rows::Last, hidden: Rows::None };
    let mut calls: Vec<_> = states.iter_mut().map(call).collect();
    let e = model.forward_adapted(&mut calls, &[Some(&own), Some(&foreign)], &mut outputs).unwrap_err();
    assert!(
        e.to_string().contains(x.fingerprint().as_str()) && e.to_string().contains("another model"),
        "{e}"
    );
    assert!(states == fresh && outputs[0].logits == [1.0]);
    assert!(model.identity_with(Some(&foreign), None).is_err());
}

#[test]
fn loras_that_cannot_be_adapters_are_refused() {
    let model = open(Version::V7, &[], Cpu::<f32>::new(1));
    let refused = |lora: &Lora| model.adapter(lora).err().unwrap().to_string();
    let mut whole = loras(Version::V7)[0].clone();
    let norm = "blocks.1.ln1.weight";
    whole.replacements.insert(norm.into(), model.checkpoint().get(norm).unwrap().clone());
    let e = refused(&whole);
    assert!(e.contains("replaces whole tensors") && e.contains(norm) && e.contains("--lora"), "{e}");
    // As when a model is opened with them.
    let e = refused(&lora(Version::V6, 1, (2, DType::F32), &["att.gate"]));
    assert!(e.contains("att.gate") && e.contains("another model"), "{e}");
    let mut elsewhere = loras(Version::V7)[0].clone();
    elsewhere.base = Some("sha256:1234".into());
    assert!(refused(&elsewhere).contains("trained beside another model"));
    // An embedding is looked up, not multiplied; rows of low-rank weights are not adapted either.
    for module in ["emb", "blocks.0.att.g1"] {
        let mut odd = loras(Version::V7)[0].clone();
        let pair = odd.modules["blocks.0.att.key"].clone();
        odd.modules.insert(module.into(), pair);
        assert!(refused(&odd).contains(module), "{module}");
    }
}

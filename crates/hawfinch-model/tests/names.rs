//! Files that other projects' converters made, against the official checkpoints they were made from.

mod common;

use common::data;
use hawfinch_kernels::DType;
use hawfinch_model::{Checkpoint, Config, FileFormat, format};

/// Every tensor of the official checkpoint stands in the other under its name, with the same numbers
/// (rounded to `dtype`, where the other format is narrower), and nothing else does.
fn same(official: &Checkpoint, other: &Checkpoint, dtype: Option<DType>) {
    for (name, want) in &official.tensors {
        let got = other.get(name).unwrap_or_else(|| panic!("{name} is missing"));
        assert_eq!(want.squeezed(), got.squeezed(), "{name}");
        let want = dtype.map_or(want.clone(), |d| want.converted(d).unwrap());
        assert_eq!(want.to_f32(), got.to_f32(), "{name}");
    }
    for name in other.tensors.keys() {
        assert!(official.get(name).is_some(), "{name} is not official");
    }
    assert_eq!(Config::infer(official).unwrap(), Config::infer(other).unwrap());
}

#[test]
fn web_rwkv_files_are_the_official_ones() {
    for v in ["v4", "v51", "v51-log", "v52", "v6", "v7", "v51-head", "v51-log-head", "v52-head"] {
        let official = format::open(&data(&format!("{v}.pth"))).unwrap();
        let other = format::open(&data(&format!("{v}.web-rwkv.st"))).unwrap();
        // v4's names and shapes are the official ones.
        let expected = if v == "v4" { FileFormat::Safetensors } else { FileFormat::WebRwkv };
        assert_eq!(other.format, expected, "{v}");
        same(&official, &other, Some(DType::F16));
    }
}

#[test]
fn a_web_rwkv_state_has_the_official_orientation() {
    let official = format::open(&data("state.pth")).unwrap();
    let other = format::open(&data("state.web-rwkv.st")).unwrap();
    assert_eq!(other.format, FileFormat::WebRwkv);
    assert_eq!(official.tensors.len(), 2);
    for (name, want) in &official.tensors {
        assert_eq!(want.shape, [2, 8, 8]);
        assert_eq!(want.converted(DType::F16).unwrap().to_f32(), other.get(name).unwrap().to_f32(), "{name}");
    }
}

/// `live.state` holds layer·1000 + row·20 + channel + 1/4 in [C 16, rows 10, L 2].
#[test]
fn a_live_ai00_state_is_head_value_key() {
    let state = format::open(&data("live.state")).unwrap();
    assert_eq!((state.tensors.len(), state.format), (6, FileFormat::WebRwkv));
    for layer in 0..2 {
        let base = layer as f32 * 1000.0 + 0.25;
        let shift = |row: usize| (0..16).map(|c| base + (row * 20 + c) as f32).collect::<Vec<_>>();
        let get = |name: &str| state.get(&format!("blocks.{layer}.{name}")).unwrap();
        assert_eq!(get("att.shift_state").to_f32(), shift(0));
        assert_eq!(get("ffn.shift_state").to_f32(), shift(9));
        let wkv = get("att.time_state");
        assert_eq!(wkv.shape, [2, 8, 8]);
        let values = wkv.to_f32();
        for (h, v, k) in [(0, 0, 0), (0, 1, 0), (0, 0, 1), (1, 3, 5), (1, 7, 7)] {
            assert_eq!(values[(h * 8 + v) * 8 + k], base + ((k + 1) * 20 + h * 8 + v) as f32);
        }
    }
}

#[test]
fn names_of_training_wrappers_are_unwrapped() {
    let dir = tempfile::tempdir().unwrap();
    let official = format::open(&data("v7.pth")).unwrap();
    let mut wrapped = Checkpoint::new("made", FileFormat::Memory);
    for (name, t) in &official.tensors {
        wrapped.insert(format!("_forward_module.model.{name}"), t.clone()).unwrap();
    }
    let path = dir.path().join("wrapped.pth");
    let options = format::SaveOptions {
        format: format::SaveFormat::Pth,
        dtype: None,
        vocabulary: None,
        progress: None,
    };
    format::save(&path, &wrapped, options).unwrap();
    same(&official, &format::open(&path).unwrap(), None);
}

#[test]
fn hugging_face_folders_are_the_official_files() {
    for (v, folder) in
        [("v4", "v4.hf"), ("v52", "v52.hf"), ("v6", "v6.hf"), ("v6", "v6.fla"), ("v7-wide", "v7-wide.fla")]
    {
        let official = format::open(&data(&format!("{v}.pth"))).unwrap();
        let other = format::open(&data(folder)).unwrap();
        assert_eq!(other.format, FileFormat::HuggingFace, "{folder}");
        assert_eq!(other.group_norm_eps, None, "{folder} has the official epsilon");
        same(&official, &other, None);
        // A single file of such a folder works too.
        let file = data(folder).join("model.safetensors");
        if file.exists() {
            same(&official, &format::open(&file).unwrap(), None);
        }
    }
}

/// Early versions of flash-linear-attention keep the six mixes of a layer in one tensor; and a
/// `norm_eps` of its own gives the group norm another epsilon.
#[test]
fn early_fla_folders_are_the_official_files_too() {
    let dir = tempfile::tempdir().unwrap();
    let raw = std::fs::read(data("v7-wide.fla/model.safetensors")).unwrap();
    let theirs = safetensors::SafeTensors::deserialize(&raw).unwrap();
    let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    for (name, view) in theirs.tensors() {
        if !name.contains(".attn.x_") {
            tensors.push((name, view.shape().to_vec(), view.data().to_vec()));
        }
    }
    for layer in 0..2 {
        let mixes = ["r", "w", "k", "v", "a", "g"];
        let mix = |l: &str| theirs.tensor(&format!("model.layers.{layer}.attn.x_{l}")).unwrap();
        let all = mixes.iter().flat_map(|l| mix(l).data().to_vec()).collect();
        tensors.push((format!("model.layers.{layer}.attn.x_x"), vec![6, 64], all));
    }
    let views = tensors.iter().map(|(name, shape, bytes)| {
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::BF16, shape.clone(), bytes);
        (name.clone(), view.unwrap())
    });
    safetensors::serialize_to_file(views, None, &dir.path().join("model.safetensors")).unwrap();
    let official = format::open(&data("v7-wide.pth")).unwrap();
    same(&official, &format::open(dir.path()).unwrap(), None);

    let config = std::fs::read_to_string(data("v7-wide.fla/config.json")).unwrap();
    assert!(config.contains("\"norm_eps\": 1e-05"));
    std::fs::write(dir.path().join("config.json"), config.replace("1e-05", "1e-06")).unwrap();
    let other = format::open(dir.path()).unwrap();
    assert_eq!(other.group_norm_eps, Some(6.4e-5));
    assert_eq!(Config::infer(&other).unwrap().group_norm_eps, 6.4e-5);
}

#[test]
fn folders_tell_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let error = |what: &str| {
        let e = format::open(dir.path()).unwrap_err().to_string();
        assert!(e.contains(what), "{e}");
    };
    error("holds no model file");
    std::fs::copy(data("v4.pth"), dir.path().join("one.pth")).unwrap();
    let official = format::open(&data("v4.pth")).unwrap();
    same(&official, &format::open(dir.path()).unwrap(), None);
    std::fs::copy(data("v4.web-rwkv.st"), dir.path().join("two.st")).unwrap();
    error("2 models; give one of them: one.pth, two.st");

    // Shards.
    for name in ["model.safetensors.index.json", "model-00001-of-00002.safetensors"] {
        std::fs::copy(data("v6.hf").join(name), dir.path().join(name)).unwrap();
    }
    error("the shard model-00002-of-00002.safetensors that its index lists is not there");
    let index = dir.path().join("model.safetensors.index.json");
    let text = std::fs::read_to_string(&index).unwrap();
    for bad in ["../model.safetensors", "/etc/passwd", "sub/model.safetensors", ".."] {
        std::fs::write(&index, text.replace("model-00002-of-00002.safetensors", bad)).unwrap();
        error("outside the folder");
    }
    std::fs::write(&index, text.replace("model-00002", "model-00001")).unwrap();
    error("which no shard holds");
    std::fs::write(&index, "{").unwrap();
    error("does not parse");
}

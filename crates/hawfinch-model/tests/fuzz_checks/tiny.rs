//! Models, states and LoRAs as small as can be, of every version, and files of them in every format: what
//! the fuzzer starts from.

use std::path::{Path, PathBuf};

use hawfinch_kernels::{DType, block};
use hawfinch_model::config::{GROUP_NORM_EPS, Ranks};
use hawfinch_model::format::{self, SaveFormat, SaveOptions};
use hawfinch_model::names::{self, Role};
use hawfinch_model::synthetic;
use hawfinch_model::{Checkpoint, Config, FileFormat, StoredTensor, Version};

pub const VERSIONS: [Version; 6] =
    [Version::V4, Version::V5_0, Version::V5_1, Version::V5_2, Version::V6, Version::V7];

/// Two layers of width 8, two heads of 4, five tokens, ranks of 2.
pub fn config(version: Version) -> Config {
    let (heads, head_size) = if version == Version::V4 { (1, 8) } else { (2, 4) };
    let ranks = match version {
        Version::V6 => Ranks { mix: 2, decay: 2, ..Ranks::default() },
        Version::V7 => Ranks { mix: 0, decay: 2, learn: 2, value: 2, gate: 2 },
        _ => Ranks::default(),
    };
    Config {
        version,
        layers: 2,
        width: 8,
        att_width: 8,
        ffn_width: 12,
        vocab: 5,
        heads,
        head_size,
        ranks,
        group_norm_eps: GROUP_NORM_EPS,
    }
}

/// A model of that size in f16.
pub fn checkpoint(version: Version) -> Checkpoint {
    synthetic::checkpoint(&config(version), DType::F16, 1)
}

fn saved(folder: &Path, ckpt: &Checkpoint, format: SaveFormat, dtype: Option<DType>) -> Vec<u8> {
    let path = folder.join("seed");
    let options = SaveOptions { format, dtype, progress: None, vocabulary: None };
    format::save(&path, ckpt, options).expect("a sound checkpoint is written");
    std::fs::read(path).expect("what was written")
}

/// (name, file) of every version in one format; the number types differ from version to version.
pub fn models(format: SaveFormat) -> Vec<(String, Vec<u8>)> {
    let folder = tempfile::tempdir().expect("a folder");
    let types = [DType::F16, DType::BF16, DType::F32];
    let mut out = Vec::new();
    for (i, version) in VERSIONS.into_iter().enumerate() {
        let small = Config { layers: 1 + i % 2, ..config(version) };
        let ckpt = synthetic::checkpoint(&small, types[i % 3], 1);
        out.push((format!("v{}", version.number()), saved(folder.path(), &ckpt, format, None)));
    }
    if matches!(format, SaveFormat::Gguf | SaveFormat::Packed) {
        // Rows of 32 numbers, for the block types.
        for dtype in [DType::Q8_0, DType::Q4_0, DType::Q5_1].into_iter().filter(|d| format.writes(*d)) {
            let wide = Config {
                layers: 1,
                width: 32,
                att_width: 32,
                ffn_width: 32,
                vocab: 3,
                heads: 2,
                head_size: 16,
                ..config(Version::V7)
            };
            let ckpt = synthetic::checkpoint(&wide, DType::F16, 1);
            out.push((format!("v7-{dtype}"), saved(folder.path(), &ckpt, format, Some(dtype))));
        }
    }
    out
}

/// rwkv.cpp's files, as its converter lays them out.
pub fn ggml_models() -> Vec<(String, Vec<u8>)> {
    let mut out: Vec<(String, Vec<u8>)> =
        VERSIONS.iter().map(|&v| (format!("v{}", v.number()), ggml_file(&config(v), DType::F32))).collect();
    let wide =
        Config { width: 32, att_width: 32, ffn_width: 32, heads: 2, head_size: 16, ..config(Version::V6) };
    out.push(("v6-q4_0".into(), ggml_file(&wide, DType::Q4_0)));
    out.push(("v6-q8_0".into(), ggml_file(&wide, DType::Q8_0)));
    out
}

fn ggml_file(config: &Config, dtype: DType) -> Vec<u8> {
    let code = |d| match d {
        DType::F16 => 1u32,
        DType::Q4_0 => 2,
        DType::Q8_0 => 9,
        _ => 0,
    };
    let mut out = Vec::new();
    let mut put = |numbers: &[u32], name: &str, data: &[u8]| {
        numbers.iter().for_each(|n| out.extend(n.to_le_bytes()));
        out.extend(name.bytes());
        out.extend(data);
    };
    let sizes = [config.vocab, config.width, config.layers].map(|n| n as u32);
    put(&[0x6767_6d66, 101, sizes[0], sizes[1], sizes[2], code(dtype)], "", &[]);
    let ckpt = synthetic::checkpoint(config, DType::F32, 1);
    let mut mixes: Vec<u8> = Vec::new();
    for (key, t) in &ckpt.tensors {
        let mut shape: Vec<u32> = t.shape.iter().map(|&d| d as u32).collect();
        if key.contains(".att.x_") {
            // v7's six mixes are one tensor.
            mixes.extend(&t.data);
            if mixes.len() == 6 * t.data.len() {
                let name = key.replace("x_g", "x_rwkvag");
                put(&[3, name.len() as u32, 0, config.width as u32, 1, 6], &name, &mixes);
                mixes.clear();
            }
            continue;
        }
        let (_, param) = names::find(config.version, key).expect("a key of the version");
        let mut numbers = t.data.to_vec();
        let mut of = DType::F32;
        match param.role {
            Role::LowRank => {
                let n = shape.len();
                shape.swap(n - 2, n - 1);
            }
            Role::Matrix if dtype != DType::F32 => {
                numbers.clear();
                assert!(block::encode(dtype, &t.to_f32(), &mut numbers));
                of = dtype;
            }
            _ => {
                shape.retain(|&d| d != 1);
                if key.contains("time_decay") || key.contains("time_faaaa") {
                    shape.push(1);
                }
            }
        }
        shape.reverse();
        let head = [&[shape.len() as u32, key.len() as u32, code(of)], &shape[..]].concat();
        put(&head, key, &numbers);
    }
    out
}

/// Files that other programs wrote, from this crate's fixtures, up to 40 kB.
pub fn fixtures(extension: &str) -> Vec<(String, Vec<u8>)> {
    let mut out = Vec::new();
    let mut folders = vec![PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data"))];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("the fixtures").flatten() {
            let path = entry.path();
            if path.is_dir() && !path.ends_with("fuzz") && !path.ends_with("parity") {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == extension)
                && let Ok(bytes) = std::fs::read(&path)
                && bytes.len() <= 40_000
            {
                out.push((path.file_stem().unwrap_or_default().to_string_lossy().into_owned(), bytes));
            }
        }
    }
    out.sort();
    out
}

/// Pickles of `.pth` files: ours, PyTorch's (from the fixtures) and one with every kind of value.
pub fn pickles() -> Vec<(String, Vec<u8>)> {
    let mut out = Vec::new();
    for (name, file) in models(SaveFormat::Pth).into_iter().chain(fixtures("pth")) {
        let zip = rawzip::ZipArchive::from_slice(&file[..]).expect("a zip archive");
        let mut entries = zip.entries();
        while let Some(entry) = entries.next_entry().expect("a sound directory") {
            if entry.file_path().as_ref().as_ref().ends_with(b"/data.pkl") {
                let record = zip.get_entry(entry.wayfinder()).expect("the record");
                let (start, end) = record.compressed_data_range();
                // The names repeat: one layer's are enough to start from.
                out.push((name.clone(), file[start as usize..end as usize].to_vec()));
            }
        }
    }
    out.push(("every-kind".into(), every_kind()));
    out
}

/// `OrderedDict` of an f32 tensor [2, 3], a transposed one, a parameter, and values of every other kind.
fn every_kind() -> Vec<u8> {
    let mut p: Vec<u8> = b"\x80\x02ccollections\nOrderedDict\nq\x00)Rq\x01(".to_vec();
    let storage = |p: &mut Vec<u8>| {
        p.extend(
            b"((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x10tQ",
        );
    };
    for (name, sizes) in
        [(b"w", b"K\x00K\x02K\x03\x86K\x03K\x01\x86"), (b"t", b"K\x00K\x03K\x02\x86K\x01K\x03\x86")]
    {
        p.extend(b"X\x01\x00\x00\x00");
        p.extend(name);
        p.extend(b"ctorch._utils\n_rebuild_tensor_v2\n");
        storage(&mut p);
        p.extend(sizes);
        p.extend(b"\x89h\x00)Rt\x52");
    }
    for (name, value) in [
        (b"a", &b"N"[..]),
        (b"b", b"\x88"),
        (b"c", b"K\x01"),
        (b"d", b"M\x01\x02"),
        (b"e", b"J\x01\x02\x03\x04"),
        (b"f", b"G@\x00\x00\x00\x00\x00\x00\x00"),
        (b"g", b"\x8a\x02\x01\x02"),
        (b"h", b"](K\x01K\x02e"),
        (b"i", b"}X\x01\x00\x00\x00xNs"),
        (b"j", b"K\x01K\x02K\x03\x87"),
        (b"k", b"ctorch\nfloat32\n"),
        (b"l", b"ctorch\ndevice\nX\x03\x00\x00\x00cpu\x85R"),
        (b"m", b"ctorch\nSize\n]K\x02a\x85R"),
    ] {
        p.extend(b"X\x01\x00\x00\x00");
        p.extend(name);
        p.extend(value);
    }
    p.extend(b"u}X\x09\x00\x00\x00_metadatah\x01sb.");
    p
}

/// States and LoRAs for the models of [`checkpoint`]: ours, tuned ones, pairs of matrices.
pub fn adapters() -> Vec<(String, Vec<u8>)> {
    let folder = tempfile::tempdir().expect("a folder");
    let mut out = Vec::new();
    let mut random = hawfinch_model::Rng::new(1);
    for version in [Version::V4, Version::V5_2, Version::V6, Version::V7] {
        let mut values = |shape: &[usize]| {
            let n: usize = shape.iter().product();
            let v: Vec<f32> = (0..n).map(|_| random.uniform(-1.0, 1.0)).collect();
            StoredTensor::from_f32(shape, &v)
        };
        let (mut ours, mut tuned, mut lora) = (memory(), memory(), memory());
        for l in 0..2 {
            let fields: &[(&str, &[usize])] = match version {
                Version::V4 => &[("att_x", &[8]), ("aa", &[8]), ("bb", &[8]), ("pp", &[8]), ("ffn_x", &[8])],
                _ => &[("att_x", &[8]), ("wkv", &[2, 4, 4]), ("ffn_x", &[8])],
            };
            for (name, shape) in fields {
                ours.tensors.insert(format!("state.{l}.{name}"), values(shape));
            }
            tuned.tensors.insert(format!("blocks.{l}.att.time_state"), values(&[2, 4, 4]));
            for module in ["att.key", "ffn.value"] {
                let inputs = if module == "att.key" { 8 } else { 12 };
                lora.tensors.insert(format!("blocks.{l}.{module}.lora_A"), values(&[2, inputs]));
                lora.tensors.insert(format!("blocks.{l}.{module}.lora_B"), values(&[8, 2]));
            }
        }
        lora.tensors.insert("blocks.0.ln1.weight".into(), values(&[8]));
        ours.metadata.insert("hawfinch.kind".into(), "state".into());
        ours.metadata.insert("hawfinch.version".into(), version.number().into());
        ours.metadata.insert("hawfinch.tokens".into(), "3".into());
        lora.metadata.insert("hawfinch.lora_alpha".into(), "4".into());
        for (what, ckpt) in [("state", &ours), ("tuned", &tuned), ("lora", &lora)] {
            for format in [SaveFormat::Pth, SaveFormat::Safetensors] {
                let name = format!("{what}-v{}-{format:?}", version.number());
                out.push((name, saved(folder.path(), ckpt, format, None)));
            }
        }
    }
    out.extend(fixtures("state"));
    out
}

fn memory() -> Checkpoint {
    Checkpoint::new("memory", FileFormat::Memory)
}

/// A packed file in the form that [`super::packed`] takes.
fn opened(file: &[u8]) -> Vec<u8> {
    let length = u64::from_le_bytes(*file.first_chunk().expect("a length")) as usize;
    let (header, body) = file[8..].split_at(length);
    let mut json: serde_json::Value = serde_json::from_slice(header).expect("a header");
    let metadata = json["__metadata__"].as_object_mut().expect("metadata");
    let list = metadata.remove(format::packed::TENSORS).expect("a list");
    metadata.remove(format::packed::SUM);
    let mut list: serde_json::Value = serde_json::from_str(list.as_str().expect("text")).expect("a list");
    for entry in list.as_array_mut().expect("a list") {
        let entry = entry.as_object_mut().expect("an entry");
        let sum = entry.remove("xxh64").expect("a checksum");
        let at = &json[entry["name"].as_str().expect("a name")]["data_offsets"];
        let at = [0, 1].map(|n| at[n].as_u64().expect("an offset") as usize);
        let sum_without = |fill| format!("{:016x}", format::packed::xxh64(&body[at[0]..at[1] - fill]));
        let fill = (0..64).find(|&fill| sum == sum_without(fill)).expect("the bytes of the checksum");
        if fill > 0 {
            entry.insert("fill".into(), fill.into());
        }
    }
    json[super::LIST] = list;
    [json.to_string().as_bytes(), b"\0", body].concat()
}

/// What a fuzz target starts from.
pub fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let any = || {
        let safetensors = models(SaveFormat::Safetensors).into_iter().chain(fixtures("st"));
        let gguf = models(SaveFormat::Gguf).into_iter().take(6);
        let pth = models(SaveFormat::Pth).into_iter().take(2);
        let other = fixtures("safetensors").into_iter().chain(ggml_models());
        let packed = models(SaveFormat::Packed);
        let all = safetensors.chain(gguf).chain(pth).chain(other).chain(packed).enumerate();
        all.map(|(i, (name, file))| (format!("{i:02}-{name}"), file)).collect::<Vec<_>>()
    };
    match target {
        "pth" => models(SaveFormat::Pth).into_iter().chain(fixtures("pth")).collect(),
        "pth_pickle" => pickles(),
        "safetensors" => {
            let whole = [models(SaveFormat::Safetensors), fixtures("st"), fixtures("safetensors")].concat();
            // Once more in the form for which the target makes up the length.
            let open = whole.iter().filter_map(|(name, file)| {
                let length = u64::from_le_bytes(*file.first_chunk()?) as usize;
                Some((format!("{name}-header"), [&file[8..8 + length], b"\0", &file[8 + length..]].concat()))
            });
            whole.iter().cloned().chain(open).collect()
        }
        "gguf" => models(SaveFormat::Gguf).into_iter().chain(fixtures("gguf")).collect(),
        "ggml" => ggml_models(),
        "packed" => {
            models(SaveFormat::Packed).into_iter().map(|(name, file)| (name, opened(&file))).collect()
        }
        "ai00" => fixtures("state"),
        "state_lora" => adapters(),
        "model_run" | "round_trip" => any(),
        _ => panic!("no target {target}"),
    }
}

//! What hawfinch writes: read back by itself and by the `safetensors` crate, bit for bit.
//!
//! With the environment variable INTEROP_OUT set to a folder, the files stay there for
//! `interop/check_ours.py`, which opens them with PyTorch and the safetensors package.

mod common;

use std::path::{Path, PathBuf};

use common::{compare, data, shared};
use hawfinch_kernels::DType;
use hawfinch_model::format::{self, SaveFormat, SaveOptions};
use hawfinch_model::{Checkpoint, Config, StoredTensor, metadata};

fn save(path: &Path, ckpt: &Checkpoint, format: SaveFormat, dtype: Option<DType>) {
    format::save(path, ckpt, SaveOptions { format, dtype, vocabulary: None, progress: None }).unwrap();
}

/// Every file of torch.save's at hand: the fixtures here, and the parity models where they are.
fn sources() -> Vec<(String, PathBuf)> {
    let mut out: Vec<_> = ["v4", "v51", "v51-log", "v52", "v6", "v7", "v7-wide", "state"]
        .iter()
        .map(|v| (v.to_string(), data(&format!("{v}.pth"))))
        .collect();
    if let Some(dir) = shared("parity") {
        for set in ["M", "A"] {
            for version in ["v4", "v50", "v51", "v52", "v6", "v7"] {
                for file in ["model", "model-bf16", "state", "lora"] {
                    let path = dir.join(set).join(version).join(format!("{file}.pth"));
                    if path.exists() {
                        out.push((format!("{set}-{version}-{file}"), path));
                    }
                }
            }
        }
        out.push(("views".into(), dir.join("pth-variants/views-and-dtypes.pth")));
    }
    out
}

/// The source as the `safetensors` crate would write it.
fn by_the_crate(ckpt: &Checkpoint, path: &Path) {
    let views: Vec<_> = ckpt
        .tensors
        .iter()
        .map(|(name, t)| {
            use safetensors::Dtype::*;
            let dtype = match t.dtype {
                DType::F64 => F64,
                DType::F32 => F32,
                DType::F16 => F16,
                DType::BF16 => BF16,
                DType::I64 => I64,
                other => panic!("{other}"),
            };
            (name.clone(), safetensors::tensor::TensorView::new(dtype, t.shape.clone(), &t.data).unwrap())
        })
        .collect();
    safetensors::serialize_to_file(views, None, path).unwrap();
}

#[test]
fn pth_and_safetensors_round_trips_are_exact() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = std::env::var_os("INTEROP_OUT").map_or(temporary.path().to_path_buf(), PathBuf::from);
    std::fs::create_dir_all(&dir).unwrap();
    for (name, path) in sources() {
        let source = format::open(&path).unwrap();
        let at = |ext: &str| dir.join(format!("{name}.{ext}"));
        by_the_crate(&source, &at("expected.safetensors"));
        save(&at("safetensors"), &source, SaveFormat::Safetensors, None);
        let middle = format::open(&at("safetensors")).unwrap();
        save(&at("pth"), &middle, SaveFormat::Pth, None);
        let back = format::open(&at("pth")).unwrap();
        let crate_made = format::open(&at("expected.safetensors")).unwrap();
        for other in [&middle, &back, &crate_made] {
            assert_eq!(other.tensors.len(), source.tensors.len(), "{name}");
            for key in source.tensors.keys() {
                compare(&source, key, other, key);
            }
        }
        // The safetensors crate accepts ours, and numbers lie where their size asks for.
        let bytes = std::fs::read(at("safetensors")).unwrap();
        let theirs = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        for (key, t) in &source.tensors {
            assert_eq!(theirs.tensor(key).unwrap().data(), &t.data[..], "{name} {key}");
            let offset = theirs.tensor(key).unwrap().data().as_ptr() as usize - bytes.as_ptr() as usize;
            assert_eq!(offset % t.dtype.block_bytes(), 0, "{name} {key}");
        }
        // Metadata and order survive.
        if let Ok(config) = Config::infer(&source) {
            assert_eq!(Config::infer(&back).unwrap(), config, "{name}");
            assert_eq!(back.metadata[metadata::VERSION], config.version.number());
            assert!(back.metadata.contains_key(metadata::DTYPE));
            let order: Vec<_> = back.tensors.keys().collect();
            save(&at("again.tmp"), &back, SaveFormat::Pth, None);
            assert_eq!(format::open(&at("again.tmp")).unwrap().tensors.keys().collect::<Vec<_>>(), order);
            assert_eq!(order[0], "emb.weight");
            std::fs::remove_file(at("again.tmp")).unwrap();
        }
    }
    let left: Vec<_> = std::fs::read_dir(&dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|n| n.ends_with(".part"))
        .collect();
    assert!(left.is_empty(), "temporary files are left: {left:?}");
}

/// Records of a `.pth` start at multiples of 64, so that torch can map them.
#[test]
fn pth_records_are_aligned_and_have_right_checksums() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.pth");
    save(&path, &format::open(&data("v6.pth")).unwrap(), SaveFormat::Pth, None);
    let bytes = std::fs::read(&path).unwrap();
    let zip = rawzip::ZipArchive::from_slice(&bytes).unwrap();
    let mut entries = zip.entries();
    let mut count = 0;
    while let Some(e) = entries.next_entry().unwrap() {
        let entry = zip.get_entry(e.wayfinder()).unwrap();
        assert_eq!(entry.compressed_data_range().0 % 64, 0);
        assert_eq!(rawzip::crc32(entry.data()), e.crc32());
        count += 1;
    }
    assert!(count > 60);
}

#[test]
fn other_formats_convert_to_the_official_file() {
    let dir = tempfile::tempdir().unwrap();
    for (from, official, dtype) in [
        ("v6.hf", "v6.pth", DType::F32),
        ("v6.fla", "v6.pth", DType::F32),
        ("v7-wide.fla", "v7-wide.pth", DType::BF16),
        ("v4.hf", "v4.pth", DType::F32),
        ("v7.web-rwkv.st", "v7.pth", DType::F16),
        ("v6.web-rwkv.st", "v6.pth", DType::F16),
        ("v51.web-rwkv.st", "v51.pth", DType::F16),
        ("v51-log.web-rwkv.st", "v51-log.pth", DType::F16),
        ("state.web-rwkv.st", "state.pth", DType::F16),
    ] {
        let want = dir.path().join("want.pth");
        save(&want, &format::open(&data(official)).unwrap(), SaveFormat::Pth, Some(dtype));
        let want = format::open(&want).unwrap();
        for format in [SaveFormat::Pth, SaveFormat::Safetensors] {
            let out = dir.path().join("out");
            save(&out, &format::open(&data(from)).unwrap(), format, None);
            let got = format::open(&out).unwrap();
            assert_eq!(got.tensors.len(), want.tensors.len(), "{from}");
            // compare() asks for official shapes with their unit axes, and plain order.
            want.tensors.keys().for_each(|k| compare(&want, k, &got, k));
        }
    }
}

#[test]
fn conversion_rounds_once_and_reports_progress() {
    let dir = tempfile::tempdir().unwrap();
    let source = format::open(&data("v6.pth")).unwrap();
    for dtype in [DType::F64, DType::F32, DType::F16, DType::BF16] {
        let path = dir.path().join("out.safetensors");
        let mut last = (0, 0);
        let mut tell = |done, total| {
            assert!(done >= last.0 && done <= total);
            last = (done, total);
        };
        let options = SaveOptions {
            format: SaveFormat::Safetensors,
            dtype: Some(dtype),
            vocabulary: None,
            progress: Some(&mut tell),
        };
        format::save(&path, &source, options).unwrap();
        assert!(last.0 == last.1 && last.0 > 0);
        let got = format::open(&path).unwrap();
        assert_eq!(got.metadata[metadata::DTYPE], dtype.name());
        for (name, t) in &source.tensors {
            let want = t.converted(dtype).unwrap();
            assert_eq!(got.get(name).unwrap().data, want.data, "{name}");
        }
    }
}

/// Quantised and scaled tensors come out as their values.
#[test]
fn blocks_and_scales_are_resolved() {
    let dir = tempfile::tempdir().unwrap();
    let mut ckpt = Checkpoint::new("made", hawfinch_model::FileFormat::Memory);
    let values: Vec<f32> = (0..128).map(|i| i as f32 / 7.0 - 9.0).collect();
    let plain = StoredTensor::from_f32(&[2, 64], &values);
    let blocks = plain.converted(DType::Q8_0).unwrap();
    let mut scaled = plain.clone();
    scaled.scale = 4.0;
    let mut swapped = plain.clone();
    swapped.shape = vec![64, 2];
    swapped.transposed = true;
    for (name, t) in [("blocks", &blocks), ("scaled", &scaled), ("swapped", &swapped)] {
        ckpt.insert(name, t.clone()).unwrap();
    }
    for format in [SaveFormat::Pth, SaveFormat::Safetensors] {
        let path = dir.path().join("out");
        save(&path, &ckpt, format, None);
        let got = format::open(&path).unwrap();
        assert_eq!(got.get("blocks").unwrap().data, blocks.converted(DType::F16).unwrap().data);
        assert_eq!(got.get("scaled").unwrap().to_f32(), scaled.to_f32());
        let swapped_back = got.get("swapped").unwrap();
        assert_eq!((&swapped_back.shape[..], swapped_back.transposed), (&[64, 2][..], false));
        assert_eq!(swapped_back.to_f32(), swapped.to_f32());
    }
}

#[test]
fn what_cannot_be_written_is_said_and_leaves_the_old_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.pth");
    std::fs::write(&path, "precious").unwrap();
    let mut ckpt = format::open(&data("v4.pth")).unwrap();
    let try_save = |c: &Checkpoint, dtype| {
        let options = SaveOptions { format: SaveFormat::Pth, dtype, vocabulary: None, progress: None };
        format::save(&path, c, options).unwrap_err().to_string()
    };
    assert!(try_save(&ckpt, Some(DType::Q4_K)).contains("not a number type of .pth"));
    ckpt.decay_form = hawfinch_model::DecayForm::Exponentiated;
    assert!(try_save(&ckpt, None).contains("converts only from the original model"));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    ckpt.decay_form = hawfinch_model::DecayForm::Raw;
    let missing = dir.path().join("no/such/folder.pth");
    let options = SaveOptions { format: SaveFormat::Pth, dtype: None, vocabulary: None, progress: None };
    assert!(format::save(&missing, &ckpt, options).is_err());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

/// Beyond 4 GiB the archive needs zip64. One tensor of 4.5 GiB of zeros (a hole on the disk), one small
/// one after it; opening takes no longer than for a small file. Run with `--ignored`: it computes a
/// checksum over all of it.
#[test]
#[ignore = "writes a sparse file of 4.5 GiB"]
fn a_pth_beyond_4_gib_opens_at_once() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = std::env::var_os("INTEROP_OUT").map_or(temporary.path().to_path_buf(), PathBuf::from);
    let path = dir.join("large.tmp");
    let made = |name: &str, shape: &[usize]| format::MadeTensor {
        name: name.into(),
        shape: shape.to_vec(),
        dtype: DType::BF16,
    };
    let tensors = [made("large", &[9 << 10, 256 << 10]), made("small", &[3])];
    let fill = |i: usize, out: &mut dyn std::io::Write| {
        if i == 1 {
            return out.write_all(&[0x80, 0x3f, 0, 0x40, 0x40, 0x40]); // 1, 2, 3
        }
        (0..9 << 10).try_for_each(|_| out.write_all(&vec![0; 512 << 10]))
    };
    format::save_made(&path, SaveFormat::Pth, &tensors, &Default::default(), &fill, true, None).unwrap();
    assert!(std::fs::metadata(&path).unwrap().len() > 9 << 29);
    let start = std::time::Instant::now();
    let got = format::open(&path).unwrap();
    assert!(start.elapsed().as_millis() < 100, "{:?}", start.elapsed());
    assert_eq!(got.get("small").unwrap().to_f32(), [1.0, 2.0, 3.0]);
    assert_eq!(got.get("large").unwrap().shape, [9 << 10, 256 << 10]);
}

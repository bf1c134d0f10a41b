//! Writing `.pth`: the archive that `torch.save` writes, so that `torch.load` (with `weights_only=True`
//! too, and with `mmap=True`) opens it. Storages are stored uncompressed at multiples of 64 bytes.

use std::collections::BTreeMap;
use std::io::{self, Write};

use rawzip::extra_fields::ExtraFieldId;
use rawzip::{CompressionMethod, Header, ZipArchiveWriter};

use super::encode::{Item, Progress};
use super::pth::{METADATA_RECORD, storage_class};

/// The archive's own name, the first part of every record's.
const PREFIX: &str = "archive";
/// Alignment of every record's bytes in the file.
const ALIGN: u64 = 64;

/// Writes a checkpoint as a plain dictionary of tensors.
pub(super) fn write(
    out: &mut dyn Write,
    items: &[Item],
    metadata: &BTreeMap<String, String>,
    progress: &mut Progress,
) -> io::Result<()> {
    let mut zip = ZipArchiveWriter::new(out);
    let small =
        |zip: &mut ZipArchiveWriter<_>, name: &str, bytes: &[u8]| record(zip, name, |w| w.write_all(bytes));
    small(&mut zip, "data.pkl", &pickle(items)?)?;
    small(&mut zip, "byteorder", b"little")?;
    for (i, item) in items.iter().enumerate() {
        record(&mut zip, &format!("data/{i}"), |w| item.write(w, progress))?;
    }
    small(&mut zip, "version", b"3\n")?;
    if !metadata.is_empty() {
        small(&mut zip, METADATA_RECORD, &serde_json::to_vec(metadata)?)?;
    }
    zip.finish().map_err(io::Error::other)?;
    Ok(())
}

/// One uncompressed record, its first byte at a multiple of [`ALIGN`].
fn record<W: Write>(
    zip: &mut ZipArchiveWriter<W>,
    name: &str,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let name = format!("{PREFIX}/{name}");
    // A local header is 30 bytes, the name, then extra fields; the padding is one, as PyTorch makes it:
    // identifier "FB", length, letters Z.
    let before = zip.stream_offset() + 30 + name.len() as u64 + 4;
    let padding = vec![b'Z'; (before.next_multiple_of(ALIGN) - before) as usize];
    let (mut entry, config) = zip
        .new_file(&name)
        .compression_method(CompressionMethod::STORE)
        .extra_field(ExtraFieldId::new(u16::from_le_bytes(*b"FB")), &padding, Header::LOCAL)
        .and_then(|b| b.start())
        .map_err(io::Error::other)?;
    let mut writer = config.wrap(&mut entry);
    fill(&mut writer)?;
    let (_, descriptor) = writer.finish().map_err(io::Error::other)?;
    entry.finish(descriptor).map_err(io::Error::other)?;
    Ok(())
}

/// The pickle, protocol 2: `{name: _rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict())}`.
///
/// Only instructions that `torch.load(weights_only=True)` allows, which has no POP: a global is
/// remembered where it is first used.
fn pickle(items: &[Item]) -> io::Result<Vec<u8>> {
    let mut p = vec![0x80, 2, b'}', b'('];
    let mut slots: BTreeMap<&str, u8> = BTreeMap::new();
    let mut global = |p: &mut Vec<u8>, module: &str, name: &'static str| match slots.get(name) {
        Some(&slot) => p.extend([b'h', slot]),
        None => {
            let slot = slots.len() as u8; // a dozen names at most
            slots.insert(name, slot);
            p.extend(format!("c{module}\n{name}\n").bytes());
            p.extend([b'q', slot]);
        }
    };
    for (i, item) in items.iter().enumerate() {
        let class = storage_class(item.dtype)
            .ok_or_else(|| io::Error::other(format!("a .pth file cannot hold {} tensors", item.dtype)))?;
        string(&mut p, &item.name);
        global(&mut p, "torch._utils", "_rebuild_tensor_v2");
        p.extend(b"((");
        string(&mut p, "storage");
        global(&mut p, "torch", class);
        string(&mut p, &i.to_string());
        string(&mut p, "cpu");
        int(&mut p, item.shape.iter().product());
        p.extend(b"tQ");
        int(&mut p, 0);
        p.push(b'(');
        item.shape.iter().for_each(|&d| int(&mut p, d));
        p.extend(b"t(");
        let mut strides = vec![1usize; item.shape.len()];
        for axis in (1..item.shape.len()).rev() {
            strides[axis - 1] = strides[axis] * item.shape[axis].max(1);
        }
        strides.iter().for_each(|&s| int(&mut p, s));
        p.extend([b't', 0x89]); // not requires_grad
        global(&mut p, "collections", "OrderedDict"); // no hooks
        p.extend(b")RtR");
    }
    p.extend(b"u.");
    Ok(p)
}

fn string(p: &mut Vec<u8>, s: &str) {
    p.push(b'X');
    p.extend((s.len() as u32).to_le_bytes());
    p.extend(s.as_bytes());
}

fn int(p: &mut Vec<u8>, v: usize) {
    match v {
        0..=0xff => p.extend([b'K', v as u8]),
        0x100..=0xffff => {
            p.push(b'M');
            p.extend((v as u16).to_le_bytes());
        }
        0x1_0000..=0x7fff_ffff => {
            p.push(b'J');
            p.extend((v as u32).to_le_bytes());
        }
        // LONG1 of eight bytes, two's complement: no tensor has 2^63 numbers.
        _ => {
            p.extend([0x8a, 8]);
            p.extend((v as u64).to_le_bytes());
        }
    }
}

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
fn pickle(items: &[Item]) -> io::Result<Vec<u8>> {
    let mut p = vec![0x80, 2];
    // Names that every tensor needs are pushed once, remembered (BINPUT) and dropped (POP).
    let classes: BTreeMap<&str, u8> = items
        .iter()
        .map(|i| {
            storage_class(i.dtype)
                .map(|c| (c, 0))
                .ok_or_else(|| io::Error::other(format!("a .pth file cannot hold {} tensors", i.dtype)))
        })
        .collect::<io::Result<_>>()?;
    let remember = |p: &mut Vec<u8>, slot: u8, module: &str, name: &str| {
        p.push(b'c');
        p.extend(format!("{module}\n{name}\n").bytes());
        p.extend([b'q', slot, b'0']);
    };
    const REBUILD: u8 = 0;
    const ORDERED_DICT: u8 = 1;
    remember(&mut p, REBUILD, "torch._utils", "_rebuild_tensor_v2");
    remember(&mut p, ORDERED_DICT, "collections", "OrderedDict");
    let mut class_slot = BTreeMap::new();
    for (slot, class) in (2..).zip(classes.keys()) {
        remember(&mut p, slot, "torch", class);
        class_slot.insert(*class, slot);
    }
    p.extend(b"}(");
    for (i, item) in items.iter().enumerate() {
        string(&mut p, &item.name);
        p.extend([b'h', REBUILD, b'(', b'(']);
        string(&mut p, "storage");
        p.extend([b'h', class_slot[storage_class(item.dtype).expect("checked above")]]);
        string(&mut p, &i.to_string());
        string(&mut p, "cpu");
        let count: usize = item.shape.iter().product();
        int(&mut p, count);
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
        p.extend([b't', 0x89, b'h', ORDERED_DICT, b')', b'R', b't', b'R']);
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

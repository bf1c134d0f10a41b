//! Parquet tables as lines of JSON: a row is a line, the columns that make a document are its fields. So rows are read,
//! divided among shards and told of in errors as lines are.

use std::fs::File;
use std::io::{self, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use parquet::schema::types::Type;
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::jsonl::FIELDS;

/// Bytes gathered before they are given out.
const ENOUGH: usize = 1 << 18;

/// The rows of a table on their way.
pub(crate) struct Rows {
    rows: RowIter<'static>,
    /// Rows taken, of so many.
    taken: u64,
    total: u64,
    /// Bytes of the file, and where what was read of it is counted.
    size: u64,
    read: Arc<AtomicU64>,
    counted: u64,
    line: Vec<u8>,
    given: usize,
}

impl Rows {
    /// Opens a table. Of its columns `field` is read, or `text`, or else all that may make a document.
    pub(crate) fn open(path: &Path, field: Option<&str>, read: Arc<AtomicU64>) -> Result<Rows> {
        let damaged = |e: String| {
            let what = format!("it cannot be read as Parquet ({e})");
            Error::read(path, io::Error::new(io::ErrorKind::InvalidData, what))
        };
        let file = File::open(path).map_err(|e| Error::read(path, e))?;
        let size = file.metadata().map_err(|e| Error::read(path, e))?.len();
        let reader = guarded(|| SerializedFileReader::new(file)).map_err(damaged)?;
        let total = reader.metadata().file_metadata().num_rows().max(0) as u64;
        let schema = reader.metadata().file_metadata().schema().clone();
        let names: Vec<&str> = schema.get_fields().iter().map(|f| f.name()).collect();
        let wanted = |name: &str| match field {
            Some(field) => name == field,
            None if names.contains(&"text") => name == "text",
            None => FIELDS.contains(&name),
        };
        let columns: Vec<_> = schema.get_fields().iter().filter(|f| wanted(f.name())).cloned().collect();
        if columns.is_empty() {
            let missing = field.unwrap_or("text");
            return Err(Error::request(format!(
                "{} has no column `{missing}`{}, but `{}`: name the one to read with --field",
                path.display(),
                if field.is_none() { ", `messages` or instruction columns" } else { "" },
                names.iter().take(12).copied().collect::<Vec<_>>().join("`, `")
            )));
        }
        let projection = Type::group_type_builder(schema.name()).with_fields(columns).build();
        let rows = projection
            .map_err(|e| e.to_string())
            .and_then(|p| guarded(|| RowIter::from_file_into(Box::new(reader)).project(Some(p))))
            .map_err(damaged)?;
        Ok(Rows { rows, taken: 0, total, size, read, counted: 0, line: Vec::new(), given: 0 })
    }

    /// Counts the file as read up to a share of its rows.
    fn count(&mut self) {
        let part = u128::from(self.size) * u128::from(self.taken) / u128::from(self.total.max(1));
        let now = (part as u64).min(self.size);
        self.read.fetch_add(now.saturating_sub(self.counted), Ordering::Relaxed);
        self.counted = self.counted.max(now);
    }

    /// Puts the next rows into `line`; none at the end.
    fn fill(&mut self) -> io::Result<()> {
        self.line.clear();
        self.given = 0;
        while self.line.len() < ENOUGH {
            let row = guarded(|| self.rows.next().transpose()).map_err(|e| {
                let what = format!("row {} cannot be read as Parquet ({e})", self.taken + 1);
                io::Error::new(io::ErrorKind::InvalidData, what)
            })?;
            let Some(row) = row else { break };
            self.taken += 1;
            serde_json::to_writer(&mut self.line, &object(&row))?;
            self.line.push(b'\n');
        }
        self.count();
        Ok(())
    }
}

impl Read for Rows {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.given == self.line.len() {
            self.fill()?;
        }
        let n = buffer.len().min(self.line.len() - self.given);
        buffer[..n].copy_from_slice(&self.line[self.given..self.given + n]);
        self.given += n;
        Ok(n)
    }
}

/// What the library answers; where a damaged file makes it panic, that is an error too.
fn guarded<T>(work: impl FnOnce() -> parquet::errors::Result<T>) -> std::result::Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(done) => done.map_err(|e| e.to_string()),
        Err(_) => Err("it is damaged".into()),
    }
}

fn object(row: &Row) -> Value {
    Value::Object(
        row.get_column_iter().map(|(name, field)| (name.clone(), value(field))).collect::<Map<_, _>>(),
    )
}

/// Text, lists and groups of it; what is neither makes no document, and is null.
fn value(field: &Field) -> Value {
    match field {
        Field::Str(text) => Value::String(text.clone()),
        Field::Bytes(bytes) => Value::String(String::from_utf8_lossy(bytes.data()).into_owned()),
        Field::Group(row) => object(row),
        Field::ListInternal(list) => list.elements().iter().map(value).collect(),
        _ => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parquet::basic::{Compression, GzipLevel, ZstdLevel};
    use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

    const TEXTS: &str = "message m { required int64 id; optional binary text (UTF8); }";
    const CHATS: &str =
        "message m { optional group messages (LIST) { repeated group list { optional group element {
        optional binary role (UTF8); optional binary content (UTF8); } } } }";

    /// A table of these columns: values with their levels of definition and repetition.
    fn write(
        schema: &str,
        groups: usize,
        compression: Compression,
        columns: &[(&[&str], &[i16], &[i16])],
    ) -> Vec<u8> {
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let properties = Arc::new(WriterProperties::builder().set_compression(compression).build());
        let mut out = Vec::new();
        let mut writer = SerializedFileWriter::new(&mut out, schema, properties).unwrap();
        for _ in 0..groups {
            let mut group = writer.next_row_group().unwrap();
            let mut columns = columns.iter();
            while let Some(mut column) = group.next_column().unwrap() {
                if let parquet::column::writer::ColumnWriter::Int64ColumnWriter(_) = column.untyped() {
                    column.typed::<Int64Type>().write_batch(&[1, 2, 3], None, None).unwrap();
                } else {
                    let (values, definition, repetition) = columns.next().unwrap();
                    let values: Vec<ByteArray> = values.iter().map(|v| ByteArray::from(*v)).collect();
                    let repetition = (!repetition.is_empty()).then_some(*repetition);
                    column
                        .typed::<ByteArrayType>()
                        .write_batch(&values, Some(definition), repetition)
                        .unwrap();
                }
                column.close().unwrap();
            }
            group.close().unwrap();
        }
        writer.close().unwrap();
        out
    }

    fn lines(file: &[u8], field: Option<&str>) -> std::result::Result<String, String> {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("x.parquet");
        std::fs::write(&path, file).unwrap();
        let read = Arc::new(AtomicU64::new(0));
        let mut out = String::new();
        let mut rows = Rows::open(&path, field, read.clone()).map_err(|e| e.to_string())?;
        rows.read_to_string(&mut out).map_err(|e| e.to_string())?;
        assert_eq!(read.load(Ordering::Relaxed), file.len() as u64);
        Ok(out)
    }

    #[test]
    fn rows_become_lines() {
        let texts: (&[&str], &[i16], &[i16]) = (&["one\n\"x\"", "три"], &[1, 0, 1], &[]);
        let once = "{\"text\":\"one\\n\\\"x\\\"\"}\n{\"text\":null}\n{\"text\":\"три\"}\n";
        for compression in [
            Compression::UNCOMPRESSED,
            Compression::SNAPPY,
            Compression::GZIP(GzipLevel::default()),
            Compression::ZSTD(ZstdLevel::default()),
        ] {
            let file = write(TEXTS, 2, compression, &[texts]);
            assert_eq!(lines(&file, None).unwrap(), once.repeat(2), "{compression:?}");
        }
        let file = write(TEXTS, 1, Compression::SNAPPY, &[texts]);
        assert_eq!(lines(&file, Some("id")).unwrap(), "{\"id\":null}\n".repeat(3));
        let said = lines(&file, Some("body")).unwrap_err();
        assert!(said.contains("no column `body`, but `id`, `text`"), "{said}");
    }

    #[test]
    fn conversations_are_lists_of_groups() {
        // Two rows: two messages, then one.
        let (definition, repetition): (&[i16], &[i16]) = (&[4, 4, 4], &[0, 1, 0]);
        let file = write(
            CHATS,
            1,
            Compression::SNAPPY,
            &[
                (&["user", "assistant", "user"], definition, repetition),
                (&["q", "a", "p"], definition, repetition),
            ],
        );
        let lines = lines(&file, None).unwrap();
        let world = hawfinch_tokenizer::chat::Format::named("world").unwrap();
        let texts: Vec<_> = (lines.lines())
            .map(|l| match crate::jsonl::line(l, None, world) {
                crate::jsonl::Line::Chat(written) => written.text,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(texts, ["User: q\n\nAssistant: a", "User: p"]);
    }

    #[test]
    fn damage_is_an_error() {
        let file = write(TEXTS, 1, Compression::SNAPPY, &[(&["one", "two"], &[1, 0, 1], &[])]);
        for n in 0..file.len() {
            assert!(lines(&file[..n], None).is_err(), "{n} bytes");
        }
        for at in 0..file.len() {
            let mut changed = file.clone();
            changed[at] ^= 0x55;
            let place = tempfile::tempdir().unwrap();
            let path = place.path().join("x.parquet");
            std::fs::write(&path, changed).unwrap();
            // Whatever it says, it says it.
            if let Ok(rows) = Rows::open(&path, None, Arc::default()) {
                let _ = rows.take(1 << 20).read_to_end(&mut Vec::new());
            }
        }
    }
}

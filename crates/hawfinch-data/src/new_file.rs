//! A file that gets its name when it is complete.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Bytes gathered before the system is asked to write.
const BUFFER: usize = 1 << 18;

/// A file under a temporary name beside its place; dropped before [`NewFile::complete`], it is deleted.
pub(crate) struct NewFile {
    path: PathBuf,
    beside: PathBuf,
    out: BufWriter<File>,
    done: bool,
}

impl NewFile {
    /// Begins the file. The temporary name is this process's own, so two runs do not meet.
    pub(crate) fn create(path: &Path) -> Result<NewFile> {
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        name.push(format!(".{}.part", std::process::id()));
        let beside = path.with_file_name(name);
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&beside);
        let file = open.map_err(|e| Error::write(path, e))?;
        Ok(NewFile { path: path.into(), beside, out: BufWriter::with_capacity(BUFFER, file), done: false })
    }

    /// Appends bytes.
    pub(crate) fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(|e| Error::write(&self.path, e))
    }

    /// Replaces bytes that were written, then goes back to the end.
    pub(crate) fn replace(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        let mut go = || {
            self.out.seek(SeekFrom::Start(at))?;
            self.out.write_all(bytes)?;
            self.out.seek(SeekFrom::End(0)).map(drop)
        };
        go().map_err(|e| Error::write(&self.path, e))
    }

    /// A second view of what was written, from `at` on. It has a position of its own.
    pub(crate) fn read_back(&mut self, at: u64) -> Result<impl Read + use<>> {
        let mut go = || {
            self.out.flush()?;
            let mut file = File::open(&self.beside)?;
            file.seek(SeekFrom::Start(at))?;
            Ok(std::io::BufReader::with_capacity(BUFFER, file))
        };
        go().map_err(|e| Error::write(&self.path, e))
    }

    /// Writes what is buffered; the file is whole, but under its temporary name.
    pub(crate) fn flush(&mut self) -> Result<()> {
        self.out.flush().map_err(|e| Error::write(&self.path, e))
    }

    /// Ends the file and gives it its name.
    pub(crate) fn complete(mut self) -> Result<()> {
        self.flush()?;
        std::fs::rename(&self.beside, &self.path).map_err(|e| Error::write(&self.path, e))?;
        self.done = true;
        Ok(())
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.done {
            // Nothing more can be done if this fails.
            let _ = std::fs::remove_file(&self.beside);
        }
    }
}

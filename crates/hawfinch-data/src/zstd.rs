//! Zstandard files: their frames one after the other, skippable ones left out, checksums compared.

use std::io::{self, BufRead, Chain, Cursor, Read};

use ruzstd::decoding::{FrameDecoder, StreamingDecoder};

/// Largest window that is unpacked, in bytes: what the `zstd` program itself accepts without being asked for more.
const MAX_WINDOW: u64 = 128 << 20;

/// The magic number in front of the rest of the file: it decides what kind of frame it is.
type Rest<R> = Chain<Cursor<[u8; 4]>, R>;

/// Reads what a Zstandard file holds.
pub(crate) enum Frames<R: BufRead> {
    /// Before a frame.
    Between(R, Box<FrameDecoder>),
    /// In a frame.
    Within(Box<StreamingDecoder<Rest<R>, FrameDecoder>>),
    /// After the last, or after a failure that was told.
    Ended,
}

impl<R: BufRead> Frames<R> {
    /// Of this file.
    pub(crate) fn new(file: R) -> Self {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(MAX_WINDOW);
        Frames::Between(file, Box::new(decoder))
    }

    /// Goes to the next frame that holds data.
    fn begin(mut file: R, decoder: FrameDecoder) -> io::Result<Self> {
        loop {
            if file.fill_buf()?.is_empty() {
                return Ok(Frames::Ended);
            }
            let mut magic = [0; 4];
            file.read_exact(&mut magic)?;
            if magic[0] & 0xf0 == 0x50 && magic[1..] == [0x2a, 0x4d, 0x18] {
                let mut length = [0; 4];
                file.read_exact(&mut length)?;
                let length = u64::from(u32::from_le_bytes(length));
                if io::copy(&mut file.by_ref().take(length), &mut io::sink())? < length {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                continue;
            }
            let rest = Cursor::new(magic).chain(file);
            let frame = StreamingDecoder::new_with_decoder(rest, decoder).map_err(damaged)?;
            return Ok(Frames::Within(Box::new(frame)));
        }
    }
}

impl<R: BufRead> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match std::mem::replace(self, Frames::Ended) {
                Frames::Ended => return Ok(0),
                Frames::Between(file, decoder) => *self = Frames::begin(file, *decoder)?,
                Frames::Within(mut frame) => {
                    let n = frame.read(buffer).map_err(damaged)?;
                    if n > 0 || buffer.is_empty() {
                        *self = Frames::Within(frame);
                        return Ok(n);
                    }
                    let (rest, decoder) = frame.into_parts();
                    let (said, is) = (decoder.get_checksum_from_data(), decoder.get_calculated_checksum());
                    if said.is_some() && said != is {
                        return Err(damaged("its checksum is wrong"));
                    }
                    *self = Frames::Between(rest.into_inner().1, Box::new(decoder));
                }
            }
        }
    }
}

fn damaged(what: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("it cannot be unpacked as Zstandard ({what})"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    fn frame(text: &[u8]) -> Vec<u8> {
        compress_to_vec(text, CompressionLevel::Fastest)
    }

    fn all(file: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        Frames::new(file).read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn frames_are_joined_and_skippable_ones_left_out() {
        let long = b"a line of text\n".repeat(100_000);
        let skipped = [&[0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
        let file = [skipped.clone(), frame(&long), skipped, frame(b""), frame(b"end")].concat();
        assert!(all(&file).unwrap() == [&long[..], b"end"].concat());
        assert_eq!(all(b"").unwrap(), b"");
    }

    #[test]
    fn damage_is_an_error() {
        let file = frame(&b"one, two, three, four\n".repeat(50));
        for n in 1..file.len() {
            assert!(all(&file[..n]).is_err(), "{n} of {} bytes", file.len());
        }
        let mut flipped = file.clone();
        let last = flipped.len() - 1;
        flipped[last] ^= 1;
        assert!(all(&flipped).unwrap_err().to_string().contains("checksum"));
        assert!(all(&[&file[..], b"rest"].concat()).is_err());
    }
}

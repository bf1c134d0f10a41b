//! Which tokens of a data set are to be learned: `NAME.mask.bin` and `.idx` beside `NAME.bin` and `.idx`, in the same
//! format, a byte for each token: 1 if a model is to learn to foretell it, else 0. Without them all tokens are.

use std::ffi::OsString;
use std::ops::Range;
use std::path::{Path, PathBuf};

use hawfinch_tokenizer::Tokenizer;

use crate::binidx::{self, Dtype, Reader, Writer};
use crate::error::{Error, Result};

/// The name of the mask of a data set.
pub fn mask_name(name: &Path) -> PathBuf {
    let (bin, _) = binidx::paths(name);
    let mut name: OsString = bin.with_extension("").into();
    name.push(".mask");
    name.into()
}

/// Tokens counted at a time.
const CHUNK: u64 = 1 << 20;

/// The mask of a data set, read where it lies.
pub struct Mask {
    reader: Reader,
}

impl Mask {
    /// The mask beside a data set, if there is one.
    ///
    /// # Errors
    /// One of its two files is missing or no data set; it is not of bytes, or of other documents.
    pub fn open(data: &Reader) -> Result<Option<Mask>> {
        let name = mask_name(data.path());
        let (bin, idx) = binidx::paths(&name);
        // What cannot be looked at, or leads nowhere, must not pass for a data set without a mask.
        let absent =
            |path: &Path| path.symlink_metadata().is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound);
        if absent(&bin) && absent(&idx) {
            return Ok(None);
        }
        let reader = Reader::open(&name)?;
        let not = |what: String| Err(Error::NotMask { path: idx.clone(), what });
        let shape = |r: &Reader| format!("{} documents of {} tokens", r.documents(), r.tokens());
        let of = data.path().display();
        if reader.dtype() != Dtype::U8 {
            return not(format!(
                "it is of {}, and a mask has a byte (u8) for each token",
                reader.dtype().name()
            ));
        }
        if (reader.documents(), reader.tokens()) != (data.documents(), data.tokens()) {
            return not(format!("it is a mask of {}, and {of} has {}", shape(&reader), shape(data)));
        }
        for document in 0..data.documents() {
            let (mask, tokens) = (reader.span(document)?, data.span(document)?);
            if mask != tokens {
                let ((_, mask), (_, tokens)) = (mask, tokens);
                return not(format!(
                    "its document {document} has {mask} tokens, and that of {of} has {tokens}"
                ));
            }
        }
        Ok(Some(Mask { reader }))
    }

    /// Appends to `learned` whether each of `len` tokens from `start` on is to be learned.
    ///
    /// # Errors
    /// There are not so many tokens; a byte is neither 0 nor 1.
    pub fn read(&self, start: u64, len: u64, learned: &mut Vec<bool>) -> Result<()> {
        let mut bytes = Vec::new();
        self.reader.read(start, len, &mut bytes)?;
        for (at, byte) in (start..).zip(bytes) {
            learned.push(match byte {
                0 => false,
                1 => true,
                _ => {
                    let (path, what) =
                        (self.reader.path().into(), format!("token {at} is {byte}, neither 0 nor 1"));
                    return Err(Error::NotMask { path, what });
                }
            });
        }
        Ok(())
    }

    /// How many tokens are to be learned; reads all of it.
    ///
    /// # Errors
    /// A byte is neither 0 nor 1.
    pub fn count(&self) -> Result<u64> {
        let (mut all, mut learned) = (0, Vec::new());
        for start in (0..self.reader.tokens()).step_by(CHUNK as usize) {
            learned.clear();
            self.read(start, CHUNK.min(self.reader.tokens() - start), &mut learned)?;
            all += learned.iter().filter(|l| **l).count() as u64;
        }
        Ok(all)
    }

    /// The `.mask.bin`.
    pub fn path(&self) -> &Path {
        self.reader.path()
    }
}

/// Writes the mask of a data set, document by document as the data set is.
pub struct MaskWriter(Writer);

impl MaskWriter {
    /// Begins the mask of the data set `name`.
    ///
    /// # Errors
    /// The files cannot be created.
    pub fn create(name: &Path) -> Result<MaskWriter> {
        Ok(MaskWriter(Writer::of(&mask_name(name), Dtype::U8)?))
    }

    /// Appends a document: for each token, its end token included, 1 if it is to be learned, else 0.
    ///
    /// # Errors
    /// The files cannot be written; a byte is neither 0 nor 1.
    pub fn push(&mut self, learned: &[u8]) -> Result<()> {
        match learned.iter().find(|b| **b > 1) {
            Some(byte) => {
                Err(Error::request(format!("{byte} is neither 0 nor 1, and a mask holds no other")))
            }
            None => self.0.push_bytes(learned),
        }
    }

    /// Puts both files in their places: before those of the data set, so that these are never there without them.
    ///
    /// # Errors
    /// The files cannot be written.
    pub fn finish(self) -> Result<()> {
        self.0.finish()
    }
}

/// The tokens, from and to, that begin within one of some ranges of a text's bytes; `ids` are the text's tokens, and one
/// more behind the last byte ends the document. A token that begins before a range and reaches into it is not among them,
/// one that begins in it and reaches beyond it is.
pub(crate) fn tokens_within(
    tokenizer: &Tokenizer,
    text: &str,
    ids: &[u32],
    ranges: &[Range<usize>],
) -> Vec<[u32; 2]> {
    let bytes =
        |ids: &[u32]| ids.iter().map(|&id| tokenizer.token_bytes(id).map_or(0, <[u8]>::len)).sum::<usize>();
    let whole = bytes(ids);
    // A tokenizer may change the text (NeoX composes characters): then places are counted in what it made of it. The
    // borders of turns are letters and line breaks, which change with nothing beside them.
    let place = |at: usize| match text.get(..at) {
        Some(before) if whole != text.len() => bytes(&tokenizer.encode(before.as_bytes())).min(whole),
        Some(_) => at,
        // Behind the end.
        None => whole + 1,
    };
    let mut out: Vec<[u32; 2]> = Vec::new();
    let (mut token, mut at) = (0, 0);
    for range in ranges {
        let (from, to) = (place(range.start), place(range.end));
        let mut begin = None;
        while token <= ids.len() && at < to {
            if at >= from {
                begin.get_or_insert(token as u32);
            }
            // The last one is the document's end.
            at += ids.get(token).map_or(1, |id| bytes(&[*id]).max(1));
            token += 1;
        }
        match (begin, out.last_mut()) {
            (Some(begin), Some(last)) if last[1] == begin => last[1] = token as u32,
            (Some(begin), _) => out.push([begin, token as u32]),
            (None, _) => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use hawfinch_tokenizer::chat::{Format, Role, Turn};

    /// The learned and other parts of a conversation as texts; the end of the document is ∎. `shift` moves the mask, to
    /// see that what is checked depends on where it lies.
    fn parts(format: &str, turns: &[(Role, &str)], shift: i64) -> Vec<(bool, String)> {
        let world = Tokenizer::world();
        let turns: Vec<Turn<'_>> = turns.iter().map(|(role, said)| Turn::new(*role, *said)).collect();
        let written = Format::named(format).unwrap().write(&turns);
        let ids = world.encode(written.text.as_bytes());
        let spans = tokens_within(&world, &written.text, &ids, &written.replies);
        let learned =
            |n: usize| spans.iter().any(|s| (s[0].into()..s[1].into()).contains(&(n as i64 - shift)));
        let mut parts: Vec<(bool, Vec<u8>)> = Vec::new();
        for n in 0..=ids.len() {
            let bytes = ids.get(n).map_or("∎".as_bytes(), |id| world.token_bytes(*id).unwrap());
            match parts.last_mut() {
                Some((of, part)) if *of == learned(n) => part.extend(bytes),
                _ => parts.push((learned(n), bytes.to_vec())),
            }
        }
        parts
            .into_iter()
            .map(|(learned, bytes)| (learned, String::from_utf8_lossy(&bytes).into_owned()))
            .collect()
    }

    /// The parts alternate, beginning with what is not learned.
    fn alternating(parts: &[&str]) -> Vec<(bool, String)> {
        parts.iter().enumerate().map(|(n, part)| (n % 2 == 1, (*part).to_owned())).collect()
    }

    #[test]
    fn what_is_learned_is_what_the_assistant_says() {
        use Role::{Assistant, System, Tool, User};
        let talk = [
            (System, "Sei kurz."),
            (User, "天空为什么是蓝色的?"),
            (Assistant, "因为散射。🦜"),
            (User, "🦜👩‍👩‍👧"),
            (Assistant, "\u{1F468}\u{200D}\u{1F469}!"),
            (Tool, "{}"),
            (Assistant, "\"Yes\""),
        ];
        let want = alternating(&[
            "System: Sei kurz.\n\nUser: 天空为什么是蓝色的?\n\nAssistant:",
            " 因为散射。🦜\n\n",
            "User: 🦜👩‍👩‍👧\n\nAssistant:",
            " \u{1F468}\u{200D}\u{1F469}!\n\n",
            "User: Function output:\n{}\n\nAssistant:",
            " \"Yes\"∎",
        ]);
        assert_eq!(parts("world", &talk, 0), want);
        // A mask that lies elsewhere is seen.
        assert!(parts("world", &talk, 1) != want && parts("world", &talk, -1) != want);
        let said = alternating(&["User: a\n\nAssistant:", " b\n\n", "User: c∎"]);
        assert_eq!(parts("world", &[(User, "a"), (Assistant, "b"), (User, "c")], 0), said);
        let first = alternating(&["Assistant:", " b\n\n", "Assistant:", " c∎"]);
        assert_eq!(parts("world", &[(Assistant, "b"), (Assistant, "c")], 0), first);
        let g1 = alternating(&["User: a\n\nAssistant: <think>\n</think", ">\nb∎"]);
        assert_eq!(parts("g1", &[(User, "a"), (Assistant, "b")], 0), g1);
        assert_eq!(parts("world", &[(User, "a")], 0), alternating(&["User: a∎"]));
    }

    /// By hand: of the 7 tokens `User` `:` ` a` `\n\n` `Ass` `istant` `:` none, of ` b` and the end both.
    #[test]
    fn counted_by_hand() {
        let world = Tokenizer::world();
        let text = "User: a\n\nAssistant: b";
        let ids = world.encode(text.as_bytes());
        let tokens: Vec<_> =
            ids.iter().map(|id| std::str::from_utf8(world.token_bytes(*id).unwrap()).unwrap()).collect();
        assert_eq!(tokens, ["User", ":", " a", "\n\n", "Ass", "istant", ":", " b"]);
        assert_eq!(tokens_within(&world, text, &ids, std::slice::from_ref(&(19..22))), [[7, 9]]);
        assert_eq!(tokens_within(&world, text, &ids, &[0..9, 19..21]), [[0, 4], [7, 8]]);
        assert_eq!(tokens_within(&world, text, &ids, &[0..9, 9..22]), [[0, 9]]);
        assert_eq!(tokens_within(&world, "", &[], std::slice::from_ref(&(0..1))), [[0, 1]]);
        assert_eq!(tokens_within(&world, "", &[], &[]), [[0; 2]; 0]);
    }

    /// `:"` begins before the reply, `:)` within it.
    #[test]
    fn tokens_across_a_border_belong_to_where_they_begin() {
        use Role::{Assistant, User};
        let talk = [(User, "He said:"), (Assistant, "\"so\" and:"), (User, ") then")];
        assert_eq!(parts("completion", &talk, 0), alternating(&["He said:\"", "so\" and:)", " then∎"]));
        let bytes = Tokenizer::bytes();
        let ids = bytes.encode("a:\"b".as_bytes());
        assert_eq!(tokens_within(&bytes, "a:\"b", &ids, std::slice::from_ref(&(2..5))), [[2, 5]]);
    }

    /// NeoX's tokenizer composes characters, so that places in the text are none in the tokens.
    #[test]
    fn a_tokenizer_that_changes_the_text_moves_no_border() {
        let file = include_bytes!("../../hawfinch-tokenizer/tests/data/small_tokenizer.json");
        let bpe = Tokenizer::from_bytes(file).unwrap().unwrap();
        let said = |role, said: &'static str| Turn::new(role, said);
        let turns = [
            said(Role::User, "cafe\u{301} e\u{301}"),
            said(Role::Assistant, "e\u{301}!"),
            said(Role::User, "o\u{308}"),
            said(Role::Assistant, "u\u{308} ok"),
        ];
        let written = Format::named("world").unwrap().write(&turns);
        let ids = bpe.encode(written.text.as_bytes());
        assert_ne!(bpe.decode(&ids).unwrap(), written.text.as_bytes());
        let spans = tokens_within(&bpe, &written.text, &ids, &written.replies);
        let text = |s: &[u32; 2]| bpe.decode_lossy(&ids[s[0] as usize..ids.len().min(s[1] as usize)]);
        assert_eq!(spans.iter().map(text).collect::<Vec<_>>(), [" \u{e9}!\n\n", " \u{fc} ok"]);
        assert_eq!(spans[1][1] as usize, ids.len() + 1, "the end of the document is learned");
    }

    fn written(place: &Path, data: &[&[u16]], mask: &[&[u8]]) -> Result<Option<u64>> {
        let name = place.join("x");
        let mut writer = Writer::create(&name).unwrap();
        data.iter().for_each(|d| writer.push(d).unwrap());
        writer.finish().unwrap();
        let mut writer = MaskWriter::create(&name).unwrap();
        mask.iter().for_each(|d| writer.push(d).unwrap());
        writer.finish().unwrap();
        let mask = Mask::open(&Reader::open(&name).unwrap())?;
        mask.map(|m| m.count()).transpose()
    }

    #[test]
    fn a_mask_of_other_data_is_told() {
        let place = tempfile::tempdir().unwrap();
        let place = place.path();
        let data: [&[u16]; 2] = [&[5, 6, 0], &[7, 0]];
        assert_eq!(written(place, &data, &[&[0, 1, 1], &[0, 0]]).unwrap(), Some(2));
        let fails = |mask: &[&[u8]], word: &str| {
            let said = written(place, &data, mask).unwrap_err().to_string();
            assert!(said.contains("x.mask.idx") && said.contains(word), "{said}");
        };
        fails(&[&[0, 1, 1], &[0]], "2 documents of 4 tokens");
        fails(&[&[0, 1], &[1, 0, 0]], "document 0 has 2 tokens");
        fails(&[&[0, 1, 1, 0, 0]], "1 documents");
        // A data set of ids is no mask, a byte that is neither is told with its place.
        let mut writer = Writer::create(&place.join("x.mask")).unwrap();
        data.iter().for_each(|d| writer.push(d).unwrap());
        writer.finish().unwrap();
        let data = Reader::open(&place.join("x")).unwrap();
        assert!(Mask::open(&data).err().unwrap().to_string().contains("it is of u16"));
        let mut writer = Writer::of(&place.join("x.mask"), Dtype::U8).unwrap();
        [&[0, 1, 7][..], &[1, 1]].iter().for_each(|d| writer.push_bytes(d).unwrap());
        writer.finish().unwrap();
        let said = Mask::open(&data).unwrap().unwrap().count().unwrap_err().to_string();
        assert!(said.contains("token 2 is 7"), "{said}");
        assert!(MaskWriter::create(&place.join("y")).unwrap().push(&[2]).is_err());
        std::fs::remove_file(place.join("x.mask.bin")).unwrap();
        assert!(Mask::open(&data).err().unwrap().to_string().contains("x.mask.bin"));
        std::fs::remove_file(place.join("x.mask.idx")).unwrap();
        assert!(Mask::open(&data).unwrap().is_none());
    }
}

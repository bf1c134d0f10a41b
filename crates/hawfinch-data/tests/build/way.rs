//! Ways to build, corpora to build from, and looks at what was built.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use hawfinch_data::binidx::{self, Reader};
use hawfinch_data::{
    Control, Error, HeldOut, Inputs, Mixing, Plan, Policy, Reading, Shard, Source, Summary, build,
    held_out_name, mask_name,
};
use hawfinch_tokenizer::Tokenizer;
use tempfile::TempDir;

/// A way to build a data set.
#[derive(Clone)]
pub struct Way {
    pub reading: Reading,
    pub mixing: Mixing,
    pub policy: Policy,
    pub threads: usize,
}

impl Default for Way {
    fn default() -> Self {
        Way { reading: Reading::default(), mixing: Mixing::default(), policy: Policy::default(), threads: 2 }
    }
}

impl Way {
    pub fn plan(&self, sources: &[String]) -> Result<Plan, Error> {
        let sources: Vec<Source> = sources.iter().map(|s| Source::parse(s).unwrap()).collect();
        let inputs = Inputs::find(&sources, None)?;
        Plan::new(inputs, &Tokenizer::world(), self.reading.clone(), self.mixing.clone())
    }

    pub fn build(&self, sources: &[String], out: &Path) -> Result<Summary, Error> {
        let plan = self.plan(sources)?;
        let control = Control::quiet(self.threads);
        let world = Tokenizer::world();
        build::tokenise_shard(&plan, out, Shard::WHOLE, self.policy, false, &world, control)?;
        build::finish(&plan, out, control)
    }
}

/// All bytes of a data set, of the held-out one beside it, and of their masks.
pub fn bytes(out: &Path) -> Vec<Vec<u8>> {
    let data = [out.to_path_buf(), held_out_name(out)];
    let names = [data.clone(), data.map(|name| mask_name(&name))].concat();
    let files = names.iter().flat_map(|n| <[PathBuf; 2]>::from(binidx::paths(n)));
    files.filter(|f| f.exists()).map(|f| std::fs::read(f).unwrap()).collect()
}

pub fn texts(out: &Path) -> Vec<String> {
    let (read, world) = (Reader::open(out).unwrap(), Tokenizer::world());
    (0..read.documents())
        .map(|i| {
            let ids = read.document(i).unwrap();
            assert_eq!(ids.last(), Some(&0));
            String::from_utf8(world.decode(&ids[..ids.len() - 1]).unwrap()).unwrap()
        })
        .collect()
}

/// Numbers that are the same in every run.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % n
    }

    pub fn text(&mut self) -> String {
        const WORDS: [&str; 9] = ["one ", "two", "\n", "\n\n", "деревья", " 你好", "🦜", "\r\n", "  "];
        let most = if self.below(20) == 0 { 400 } else { 12 };
        let words = 1 + self.below(most);
        (0..words).map(|_| WORDS[self.below(9) as usize]).collect()
    }
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

/// A corpus of every form: JSONL plain, gzip of two members, Zstandard; text. With equal documents among them.
pub fn corpus() -> (TempDir, Vec<String>) {
    let place = tempfile::tempdir().unwrap();
    let mut random = Random(1);
    let mut lines = |n: usize| {
        let mut out = String::new();
        for i in 0..n {
            let text = if random.below(10) == 0 { "again".into() } else { random.text() };
            out += &serde_json::json!({"id": i, "text": text}).to_string();
            out += if i % 7 == 0 { "\r\n\n" } else { "\n" };
        }
        out
    };
    let write = |name: &str, bytes: &[u8]| std::fs::write(place.path().join(name), bytes).unwrap();
    write("en.jsonl", lines(400).as_bytes());
    write("ru.jsonl.gz", &[gzip(lines(200).as_bytes()), gzip(lines(100).as_bytes())].concat());
    // The name does not say what it is.
    write("zh.jsonl", &zstd(lines(300).trim_end().as_bytes()));
    for i in 0..5 {
        write(&format!("note-{i}.txt"), Random(i).text().repeat(i as usize).as_bytes());
    }
    let path = |name: &str| place.path().join(name).display().to_string();
    let sources =
        vec![path("en.jsonl"), path("ru.jsonl.gz"), format!("notes={}", path("*.txt")), path("zh.jsonl")];
    (place, sources)
}

/// Every decision at once.
pub fn everything() -> Way {
    let mixing =
        Mixing { dedup: true, held_out: Some(HeldOut::Share(0.1)), tokens: Some(30_000), shuffle: Some(7) };
    let reading = Reading { min_tokens: 3, max_tokens: Some(500), ..Reading::default() };
    Way { mixing, reading, ..Way::default() }
}

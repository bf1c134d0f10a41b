//! The sizes in which RWKV models are published: for models made up to be measured, and for what would fit a
//! machine.

use hawfinch_model::Version;
use hawfinch_model::synthetic::Shape;

/// A published size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// Name of the version as its authors call it, a dash, the size: `goose-1.5b`.
    pub name: &'static str,
    /// Its sizes.
    pub shape: Shape,
}

impl Published {
    /// The size alone, as it is written in names of files: `1.5B`.
    pub fn size(&self) -> String {
        self.name.rsplit('-').next().unwrap_or_default().to_uppercase()
    }
}

/// Vocabularies: World, and that of GPT-NeoX 20B, with which the Pile and Raven models were trained.
const WORLD: usize = 65536;
const PILE: usize = 50277;

const fn of(name: &'static str, version: Version, layers: usize, width: usize) -> Published {
    let vocab = if matches!(version, Version::V4) { PILE } else { WORLD };
    Published { name, shape: Shape { version, layers, width, vocab, head_size: 64 } }
}

/// All of them, newest version first, then by size.
pub const PUBLISHED: &[Published] = &[
    of("goose-0.1b", Version::V7, 12, 768),
    of("goose-0.4b", Version::V7, 24, 1024),
    of("goose-1.5b", Version::V7, 24, 2048),
    of("goose-2.9b", Version::V7, 32, 2560),
    of("goose-7.2b", Version::V7, 32, 4096),
    of("finch-1.6b", Version::V6, 24, 2048),
    of("finch-3b", Version::V6, 32, 2560),
    of("finch-7b", Version::V6, 32, 4096),
    of("eagle-0.4b", Version::V5_2, 24, 1024),
    of("eagle-1.5b", Version::V5_2, 24, 2048),
    of("eagle-3b", Version::V5_2, 32, 2560),
    of("eagle-7b", Version::V5_2, 32, 4096),
    of("raven-0.1b", Version::V4, 12, 768),
    of("raven-0.4b", Version::V4, 24, 1024),
    of("raven-1.5b", Version::V4, 24, 2048),
    of("raven-3b", Version::V4, 32, 2560),
    of("raven-7b", Version::V4, 32, 4096),
    of("raven-14b", Version::V4, 40, 5120),
];

/// The published size of that name, in any letter case; the 7.2B may be called 7b, as its authors do.
pub fn find(name: &str) -> Option<Published> {
    let name = match &*name.to_lowercase() {
        "goose-7b" => "goose-7.2b".to_owned(),
        other => other.to_owned(),
    };
    PUBLISHED.iter().copied().find(|p| p.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_find_the_sizes_that_were_published() {
        // Parameters by the files: half of their bytes, which are bf16, less some kilobytes of names.
        for (name, bytes) in [
            ("goose-0.1b", 382_195_690u64),
            ("goose-0.4b", 901_794_466),
            ("goose-1.5b", 3_055_062_345),
            ("goose-2.9b", 5_895_796_446),
            ("Goose-7B", 14_400_007_869),
            ("finch-1.6b", 3_199_845_663),
            ("finch-3b", 6_199_859_158),
            ("finch-7b", 15_271_627_549),
            ("eagle-0.4b", 923_523_954),
            ("eagle-1.5b", 3_155_590_194),
            ("eagle-3b", 6_126_106_674),
            ("eagle-7b", 15_036_197_526),
            ("raven-1.5b", 3_030_279_730),
            ("raven-3b", 5_969_345_074),
            ("raven-7b", 14_785_389_618),
            ("raven-14b", 28_297_309_490),
        ] {
            let config = find(name).unwrap().shape.config();
            let made = 2.0 * config.parameters(true) as f64;
            assert!((made / bytes as f64 - 1.0).abs() < 2e-3, "{name}: {made} for {bytes}");
        }
        assert_eq!(find("goose-13b"), None);
        assert_eq!(find("raven-14b").unwrap().size(), "14B");
    }
}

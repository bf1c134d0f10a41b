//! The GPT-2 split of a text into words:
//! `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`, written out.

use std::sync::OnceLock;

use unicode_properties::{GeneralCategoryGroup, UnicodeGeneralCategory};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
enum Class {
    Letter,
    Number,
    Space,
    Other,
}

fn look_up(c: char) -> Class {
    if c.is_whitespace() {
        return Class::Space;
    }
    match c.general_category_group() {
        GeneralCategoryGroup::Letter => Class::Letter,
        GeneralCategoryGroup::Number => Class::Number,
        _ => Class::Other,
    }
}

/// Classes of the characters below U+10000; above, the category table is asked each time.
fn classes() -> &'static [Class] {
    static CLASSES: OnceLock<Vec<Class>> = OnceLock::new();
    // Surrogates are not characters and never asked for.
    CLASSES.get_or_init(|| (0..0x1_0000).map(|c| char::from_u32(c).map_or(Class::Other, look_up)).collect())
}

/// The words of `text`, in order, without gaps.
pub(super) fn words(text: &str) -> impl Iterator<Item = &str> {
    let classes = classes();
    let mut rest = text;
    std::iter::from_fn(move || {
        let len = word_len(rest, classes)?;
        let (word, after) = rest.split_at(len);
        rest = after;
        Some(word)
    })
}

/// Length in bytes of the first word; `None` at the end.
fn word_len(text: &str, classes: &[Class]) -> Option<usize> {
    let class = |c: char| classes.get(c as usize).copied().unwrap_or_else(|| look_up(c));
    let run = |text: &str, of: Class| text.find(|c| class(c) != of).unwrap_or(text.len());
    let first = text.chars().next()?;
    if first == '\'' {
        const ENDINGS: [&str; 7] = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d"];
        if let Some(ending) = ENDINGS.iter().find(|ending| text.starts_with(**ending)) {
            return Some(ending.len());
        }
    }
    // A word takes one blank before it along.
    let blank = usize::from(first == ' ');
    if let Some(next) = text[blank..].chars().next()
        && class(next) != Class::Space
    {
        return Some(blank + run(&text[blank..], class(next)));
    }
    // White space: all of it at the end of the text, else all but the last, which is left to the word after it.
    let spaces = run(text, Class::Space);
    if spaces == text.len() {
        return Some(spaces);
    }
    let last = text[..spaces].chars().next_back().map_or(0, char::len_utf8);
    Some(if spaces > last { spaces - last } else { spaces })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits() {
        let cases: &[(&str, &[&str])] = &[
            ("", &[]),
            ("Hello world", &["Hello", " world"]),
            ("it's we'll I'VE 's '", &["it", "'s", " we", "'ll", " I", "'", "VE", " '", "s", " '"]),
            ("a  b", &["a", " ", " b"]),
            ("a \n b", &["a", " \n", " b"]),
            ("a\n\nb", &["a", "\n", "\n", "b"]),
            ("a\u{3000}b", &["a", "\u{3000}", "b"]),
            ("a \u{a0}\u{3000}b", &["a", " \u{a0}", "\u{3000}", "b"]),
            ("a   ", &["a", "   "]),
            ("x12³Ⅷ y", &["x", "12³Ⅷ", " y"]),
            ("wait!?'s 3.14", &["wait", "!?'", "s", " 3", ".", "14"]),
            ("नमस्ते 𝔘😀", &["नमस", "\u{94d}", "त", "\u{947}", " 𝔘", "😀"]),
            ("\t\tx", &["\t", "\t", "x"]),
        ];
        for (text, expected) in cases {
            assert_eq!(words(text).collect::<Vec<_>>(), *expected, "{text:?}");
        }
    }

    #[test]
    fn classes_agree_with_the_standard_library_where_it_has_an_opinion() {
        for c in (0..=0x10_FFFF).filter_map(char::from_u32) {
            let class = classes().get(c as usize).copied().unwrap_or_else(|| look_up(c));
            assert_eq!(class, look_up(c));
            // Tables of different Unicode versions may differ in what the older does not know.
            if c.is_ascii() {
                assert_eq!(class == Class::Letter, c.is_alphabetic());
                assert_eq!(class == Class::Number, c.is_numeric());
            }
            assert_eq!(class == Class::Space, c.is_whitespace());
        }
    }
}

//! Where the lines of a chat come from: an editor on a terminal, or whatever is piped in. Both know messages
//! of several lines.

use std::borrow::Cow;
use std::io::{self, BufRead, IsTerminal};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use rustyline::completion::{Completer, FilenameCompleter, Pair};
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::DefaultHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Cmd, Config, Context, Editor, Helper, KeyCode, KeyEvent, Modifiers};

use super::commands;
use crate::output::{colors, note};

/// The quotes around a message of many lines.
const QUOTES: &str = "\"\"\"";
/// Longest line that is read from a pipe, in bytes.
const MAX_LINE: usize = 64 << 20;

/// True when more lines belong to the message.
fn unfinished(text: &str) -> bool {
    match text.trim_start().strip_prefix(QUOTES) {
        Some(inner) => !inner.trim_end().ends_with(QUOTES),
        None => text.ends_with('\\'),
    }
}

/// The message without the marks that joined its lines.
fn joined(text: &str) -> Cow<'_, str> {
    let inner = text.trim_start().strip_prefix(QUOTES).and_then(|t| t.trim_end().strip_suffix(QUOTES));
    match inner {
        Some(inner) => inner.trim_matches('\n').into(),
        None if text.contains("\\\n") => text.replace("\\\n", "\n").into(),
        None => text.into(),
    }
}

/// Lines of a person or of a pipe.
pub enum Lines {
    /// A terminal.
    Editor(Box<Terminal>),
    /// Anything else.
    Pipe(io::StdinLock<'static>),
}

/// The editor, and what it remembers of Ctrl-C.
pub struct Terminal {
    editor: Editor<Assistant, DefaultHistory>,
    line_is_empty: Arc<AtomicBool>,
    interrupted_before: bool,
}

impl Lines {
    /// Of standard input.
    pub fn open() -> anyhow::Result<Lines> {
        let stdin = io::stdin();
        if !stdin.is_terminal() || !io::stdout().is_terminal() {
            return Ok(Lines::Pipe(stdin.lock()));
        }
        let config = Config::builder().auto_add_history(true).max_history_size(1000)?.build();
        let mut editor = Editor::with_config(config).context("cannot read from this terminal")?;
        let line_is_empty = Arc::new(AtomicBool::new(true));
        let empty = line_is_empty.clone();
        editor.set_helper(Some(Assistant { files: FilenameCompleter::new(), empty }));
        for key in [KeyEvent(KeyCode::Enter, Modifiers::ALT), KeyEvent(KeyCode::Char('j'), Modifiers::CTRL)] {
            editor.bind_sequence(key, Cmd::Newline);
        }
        Ok(Lines::Editor(Box::new(Terminal { editor, line_is_empty, interrupted_before: false })))
    }

    /// True when a person sits there.
    pub fn is_terminal(&self) -> bool {
        matches!(self, Lines::Editor(_))
    }

    /// The next message or command; `None` at the end (Ctrl-D, or Ctrl-C twice at an empty line).
    pub fn next(&mut self, branch: &str) -> anyhow::Result<Option<String>> {
        match self {
            Lines::Editor(terminal) => terminal.next(branch),
            Lines::Pipe(stdin) => from_pipe(stdin),
        }
    }
}

impl Terminal {
    fn next(&mut self, branch: &str) -> anyhow::Result<Option<String>> {
        let plain = if branch.is_empty() { "> ".to_string() } else { format!("{branch}> ") };
        let prompt = if colors() { format!("\x1b[1;36m{plain}\x1b[0m") } else { plain.clone() };
        loop {
            self.line_is_empty.store(true, Ordering::Relaxed);
            match self.editor.readline(&(plain.as_str(), prompt.as_str())) {
                Ok(line) => {
                    self.interrupted_before = false;
                    return Ok(Some(joined(&line).into_owned()));
                }
                Err(ReadlineError::Eof) => return Ok(None),
                Err(ReadlineError::Interrupted) => {
                    // With text on the line Ctrl-C only drops that.
                    if !self.line_is_empty.load(Ordering::Relaxed) {
                        self.interrupted_before = false;
                        continue;
                    }
                    if std::mem::replace(&mut self.interrupted_before, true) {
                        return Ok(None);
                    }
                    note("(Ctrl-C once more, or Ctrl-D, ends the chat)");
                }
                Err(ReadlineError::Io(e)) => return Err(e).context("cannot read from the terminal"),
                Err(e) => return Err(e).context("cannot read from the terminal"),
            }
        }
    }
}

/// Lines of a pipe until they make a message. Bytes that are not UTF-8 become U+FFFD, as on a terminal.
fn from_pipe(stdin: &mut impl BufRead) -> anyhow::Result<Option<String>> {
    let mut text = String::new();
    loop {
        let mut line = Vec::new();
        let mut limited = io::Read::take(&mut *stdin, MAX_LINE as u64);
        let n = limited.read_until(b'\n', &mut line).context("cannot read standard input")?;
        if n == 0 {
            return Ok((!text.is_empty()).then(|| joined(&text).into_owned()));
        }
        if line.len() >= MAX_LINE {
            anyhow::bail!("a line of standard input is longer than {} MiB", MAX_LINE >> 20);
        }
        if line.ends_with(b"\n") {
            line.pop();
        }
        if line.ends_with(b"\r") {
            line.pop();
        }
        text += &String::from_utf8_lossy(&line);
        if !unfinished(&text) {
            return Ok(Some(joined(&text).into_owned()));
        }
        text.push('\n');
    }
}

/// Helps the editor: when a message is finished, how commands and file names go on.
struct Assistant {
    files: FilenameCompleter,
    empty: Arc<AtomicBool>,
}

impl Helper for Assistant {}
impl Highlighter for Assistant {}

impl Validator for Assistant {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        let open = unfinished(context.input());
        Ok(if open { ValidationResult::Incomplete } else { ValidationResult::Valid(None) })
    }
}

impl Hinter for Assistant {
    type Hint = String;
    /// Gives no hints; it is asked after every change, which tells whether the line is empty.
    fn hint(&self, line: &str, _: usize, _: &Context<'_>) -> Option<String> {
        self.empty.store(line.is_empty(), Ordering::Relaxed);
        None
    }
}

impl Completer for Assistant {
    type Candidate = Pair;
    fn complete(
        &self,
        line: &str,
        at: usize,
        context: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<Pair>)> {
        let before = line.get(..at).unwrap_or_default();
        if before.starts_with("/save ") || before.starts_with("/load ") {
            return self.files.complete(line, at, context);
        }
        if !before.starts_with('/') || before.contains(char::is_whitespace) {
            return Ok((at, Vec::new()));
        }
        let pair = |name: &str| Pair { display: name.into(), replacement: format!("{name} ") };
        Ok((0, commands::beginning_with(before).map(pair).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &str) -> Vec<String> {
        let mut input = text.as_bytes();
        std::iter::from_fn(|| from_pipe(&mut input).unwrap()).collect()
    }

    #[test]
    fn messages_of_several_lines() {
        assert_eq!(all("one\ntwo\r\n\nthree"), ["one", "two", "", "three"]);
        assert_eq!(all("a\\\nb\\\nc\nd\n"), ["a\nb\nc", "d"]);
        assert_eq!(all("\"\"\"\nx\n\ny \\\n\"\"\"\nz\n"), ["x\n\ny \\", "z"]);
        assert_eq!(all("\"\"\"x\"\"\"\n"), ["x"]);
        // What is left open ends with the input.
        assert_eq!(all("\"\"\"x\ny"), ["\"\"\"x\ny\n"]);
        assert_eq!(all("a\\"), ["a\n"]);
    }

    #[test]
    fn bytes_that_are_not_text_are_replaced() {
        let mut input = &b"a\xffb\n"[..];
        assert_eq!(from_pipe(&mut input).unwrap().unwrap(), "a\u{fffd}b");
    }
}

//! The slash commands: one table for parsing, completion and `/help`.

/// A command of the chat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // the table below says what they do
pub enum Command {
    Help,
    Reset,
    System,
    Regen,
    Undo,
    History,
    Save,
    Load,
    Fork,
    Branch,
    Set,
    Stats,
    Quit,
}

/// (names, what follows, what it does); the first name is the one shown.
const TABLE: &[(Command, &[&str], &str, &str)] = &[
    (Command::Reset, &["/reset", "/new"], "", "forget the conversation (a system text stays)"),
    (
        Command::System,
        &["/system"],
        "TEXT",
        "set the system text and start over; without TEXT show it, `-` removes it",
    ),
    (Command::Regen, &["/regen", "/retry"], "", "drop the last reply and draw another"),
    (Command::Undo, &["/undo"], "", "drop the last question and its reply"),
    (Command::History, &["/history"], "", "show the conversation"),
    (Command::Save, &["/save"], "FILE", "save the conversation and the model's state"),
    (Command::Load, &["/load"], "FILE", "go on from a saved conversation, or begin at a tuned state"),
    (Command::Fork, &["/fork"], "[NAME]", "go on in a copy; the conversation so far stays as it is"),
    (Command::Branch, &["/branch", "/branches"], "[NAME]", "go to another copy; without NAME list them"),
    (
        Command::Set,
        &["/set"],
        "[NAME VALUE]",
        "change a setting: temperature, top-p, max-tokens, seed …; without NAME show all",
    ),
    (Command::Stats, &["/stats"], "", "tokens and speed of the last reply, size of the state"),
    (Command::Help, &["/help", "/?"], "", "show this"),
    (Command::Quit, &["/quit", "/exit", "/q"], "", "end (as does Ctrl-D)"),
];

/// What a line asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Line<'l> {
    /// Say this to the model.
    Say(&'l str),
    /// Do this; the rest of the line follows.
    Do(Command, &'l str),
    /// No such command.
    Unknown(&'l str),
}

/// Tells a message from a command. A message that begins with `/` is written with two.
pub fn parse(line: &str) -> Line<'_> {
    let trimmed = line.trim();
    if let Some(message) = trimmed.strip_prefix("//") {
        return Line::Say(&trimmed[trimmed.len() - message.len() - 1..]);
    }
    if !trimmed.starts_with('/') {
        return Line::Say(trimmed);
    }
    let (name, rest) = trimmed.split_once(char::is_whitespace).unwrap_or((trimmed, ""));
    match TABLE.iter().find(|(_, names, _, _)| names.contains(&name)) {
        Some((command, ..)) => Line::Do(*command, rest.trim()),
        None => Line::Unknown(name),
    }
}

/// The names that begin so, for completion.
pub fn beginning_with(start: &str) -> impl Iterator<Item = &'static str> {
    TABLE.iter().map(|(_, names, _, _)| names[0]).filter(move |name| name.starts_with(start))
}

/// What `/help` prints.
pub fn help() -> String {
    let mut out = String::new();
    for (_, names, after, what) in TABLE {
        let form = format!("{} {after}", names[0]);
        out += &format!("  {form:<20} {what}\n");
    }
    out + "\n  A line that ends in \\ goes on in the next; so does everything between \"\"\" and \"\"\", and text\n  \
           pasted. Alt-Enter begins a new line. A message that begins with / is written with //.\n  \
           Ctrl-C stops a reply; what was said so far stays.\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_messages() {
        assert_eq!(parse(" hello / you "), Line::Say("hello / you"));
        assert_eq!(parse("/save  a file.st "), Line::Do(Command::Save, "a file.st"));
        assert_eq!(parse("/retry"), Line::Do(Command::Regen, ""));
        assert_eq!(parse("/system\nBe\nbrief"), Line::Do(Command::System, "Be\nbrief"));
        assert_eq!(parse("/nope x"), Line::Unknown("/nope"));
        assert_eq!(parse("//etc/passwd"), Line::Say("/etc/passwd"));
        assert_eq!(parse("//"), Line::Say("/"));
    }

    #[test]
    fn help_names_every_command() {
        let help = help();
        for (_, names, ..) in TABLE {
            assert!(help.contains(names[0]));
            assert!(names.iter().all(|n| matches!(parse(n), Line::Do(..))));
        }
        assert_eq!(beginning_with("/re").collect::<Vec<_>>(), ["/reset", "/regen"]);
    }
}

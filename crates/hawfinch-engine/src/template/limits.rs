//! The filters and methods of minijinja that take a count and make as much as it says, with a bound on the
//! count: a template's steps are limited, but one step may ask for anything.

use minijinja::value::{Kwargs, Rest, StringInput, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, Value, filters};

/// Largest count; templates indent by 4 and batch by a handful.
const MOST: usize = 1000;

/// Puts the bounded filters in place of the original ones.
pub(super) fn add(environment: &mut Environment<'static>) {
    environment.add_filter("slice", |state: &State, value: Value, count: usize, fill: Option<Value>| {
        filters::slice(state, value, bounded("slice", count)?, fill)
    });
    environment.add_filter("batch", |state: &State, value: Value, count: usize, fill: Option<Value>| {
        filters::batch(state, value, bounded("batch", count)?, fill)
    });
    environment.add_filter("indent", indent);
    environment.add_filter("format", |state: &mut State, text: &Value, args: Rest<ValueOrKwargs>| {
        bounded_format(text)?;
        filters::format(state, text, args)
    });
    environment.set_unknown_method_callback(|state, value, method, args| {
        if method == "format" {
            bounded_format(value)?;
        }
        minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
    });
}

/// Widths and precisions of a format string: at most three digits each, none from the arguments.
fn bounded_format(text: &Value) -> Result<(), Error> {
    let Some(text) = text.as_str() else { return Ok(()) };
    let from_arguments = text.split('%').skip(1).any(|directive| {
        let end = directive.find(|c: char| !matches!(c, '#' | '0'..='9' | '-' | ' ' | '+' | '.'));
        end.is_some_and(|end| directive[end..].starts_with('*'))
    });
    // `{:{}}` nests a field in another.
    let nested = text.split('{').skip(1).any(|field| !field.contains('}') && field.contains(':'));
    if from_arguments || nested || text.split(|c: char| !c.is_ascii_digit()).any(|number| number.len() > 3) {
        let words = "the widths in a format string may have three digits at most";
        return Err(Error::new(ErrorKind::InvalidOperation, words));
    }
    Ok(())
}

fn indent(
    text: StringInput<'_>,
    width: Option<usize>,
    first: Option<bool>,
    blank: Option<bool>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let width = match width {
        Some(width) => Some(width),
        None => kwargs.get::<Option<usize>>("width")?,
    };
    width.map(|w| bounded("indent", w)).transpose()?;
    filters::indent(text, width, first, blank, kwargs)
}

fn bounded(filter: &str, count: usize) -> Result<usize, Error> {
    if count > MOST {
        let words = format!("{filter} with {count} is more than a template may ask for ({MOST})");
        return Err(Error::new(ErrorKind::InvalidOperation, words));
    }
    Ok(count)
}

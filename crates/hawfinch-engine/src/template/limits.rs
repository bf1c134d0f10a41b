//! The filters of minijinja that take a count and make as much as it says, with a bound on the count: a
//! template's steps are limited, but one step may ask for anything.

use minijinja::value::{Kwargs, StringInput};
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

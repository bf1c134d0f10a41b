//! Files of expected values in JSON, read so that what is missing or of another kind is said with its place.

use std::fmt::Display;
use std::path::Path;

use hawfinch_model::Error as ModelError;
use hawfinch_model::verify::Report;
use serde_json::Value;

use crate::Result;

/// A value of a file and where it stands (`/cases/3/lr`).
#[derive(Clone)]
pub(super) struct At<'a> {
    path: &'a Path,
    pub(super) place: String,
    pub(super) value: &'a Value,
}

impl<'a> At<'a> {
    /// The whole of a file.
    pub(super) fn whole(path: &'a Path, value: &'a Value) -> Self {
        At { path, place: String::new(), value }
    }

    /// An error that names the file and this place.
    pub(super) fn wrong<T>(&self, what: &str) -> Result<T> {
        let place = if self.place.is_empty() { "its top" } else { &self.place };
        Err(ModelError::damaged(self.path, format!("at {place} there is {what}")).into())
    }

    fn inside(&self, key: &str, value: &'a Value) -> Self {
        At { path: self.path, place: format!("{}/{key}", self.place), value }
    }

    /// What stands under a key, if anything does.
    pub(super) fn maybe(&self, key: &str) -> Option<Self> {
        self.value.get(key).filter(|v| !v.is_null()).map(|v| self.inside(key, v))
    }

    /// What stands under a key.
    pub(super) fn get(&self, key: &str) -> Result<Self> {
        match self.maybe(key) {
            Some(at) => Ok(at),
            None => self.wrong(&format!("no `{key}`")),
        }
    }

    /// It as a number.
    pub(super) fn number(&self) -> Result<f64> {
        self.value.as_f64().map_or_else(|| self.wrong("no number"), Ok)
    }

    /// It as a whole number from 0 up.
    pub(super) fn count(&self) -> Result<u64> {
        self.value.as_u64().map_or_else(|| self.wrong("no whole number from 0 up"), Ok)
    }

    /// It as text.
    pub(super) fn text(&self) -> Result<&'a str> {
        self.value.as_str().map_or_else(|| self.wrong("no text"), Ok)
    }

    /// It as true or false.
    pub(super) fn flag(&self) -> Result<bool> {
        self.value.as_bool().map_or_else(|| self.wrong("neither true nor false"), Ok)
    }

    /// Its members, at least one.
    pub(super) fn list(&self) -> Result<Vec<Self>> {
        match self.value.as_array() {
            Some(list) if !list.is_empty() => {
                Ok(list.iter().enumerate().map(|(i, v)| self.inside(&i.to_string(), v)).collect())
            }
            _ => self.wrong("no list, or an empty one"),
        }
    }

    /// Its members by name, at least one.
    pub(super) fn entries(&self) -> Result<Vec<(&'a str, Self)>> {
        match self.value.as_object() {
            Some(map) if !map.is_empty() => {
                Ok(map.iter().map(|(k, v)| (k.as_str(), self.inside(k, v))).collect())
            }
            _ => self.wrong("no object, or an empty one"),
        }
    }

    /// Its members as numbers.
    pub(super) fn numbers(&self) -> Result<Vec<f64>> {
        self.list()?.iter().map(At::number).collect()
    }

    /// Its members as whole numbers.
    pub(super) fn counts(&self) -> Result<Vec<u64>> {
        self.list()?.iter().map(At::count).collect()
    }
}

/// Values compared: how many, how far the worst is off (or how many differ), and which is the worst (or the first).
#[derive(Default, Debug)]
pub(super) struct Compared {
    pub(super) values: usize,
    pub(super) error: f64,
    pub(super) place: Option<String>,
}

impl Compared {
    /// Counts a value that must be the expected one.
    pub(super) fn same<T: PartialEq + Display>(&mut self, place: impl FnOnce() -> String, got: T, want: T) {
        self.values += 1;
        if got != want {
            self.error += 1.0;
            self.place.get_or_insert_with(|| format!("first {}: expected {want}, got {got}", place()));
        }
    }

    /// Measures how far a value is from the expected one, in units of `scale`.
    pub(super) fn near(&mut self, place: impl FnOnce() -> String, got: f64, want: f64, scale: f64) {
        self.values += 1;
        let error = if got == want { 0.0 } else { (got - want).abs() / scale };
        if error > self.error || (error.is_nan() && !self.error.is_nan()) {
            self.error = error;
            self.place = Some(format!("worst {}: expected {want}, got {got}", place()));
        }
    }

    /// Adds it to a report; where nothing was compared, as absent.
    pub(super) fn report(self, report: &mut Report, what: &str, tolerance: f64) {
        match (self.values, self.place) {
            (0, _) => report.absent.push(what.into()),
            (n, None) => report.add(what, self.error, tolerance, format!("{n} values")),
            (n, Some(place)) => report.add(what, self.error, tolerance, format!("{n} values, {place}")),
        }
    }
}

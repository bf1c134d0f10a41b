//! Texts longer than memory: computed segment by segment, with the state at each border kept and gradients carried back
//! through it.
//!
//! The way there runs all segments without recording and keeps the states between them (66 d numbers a layer each); the way
//! back runs each again, from the last to the first, and hands the gradient with respect to its first state to the one
//! before it. Nothing is left out: the gradients are those of the whole text at once, in the memory of one segment, at four
//! thirds of the work. Source: the training spec, section 9; the state's gradients: architectures, section 11.

use hawfinch_kernels::Real;
use hawfinch_kernels::cross_entropy::Targets;
use hawfinch_model::State;

use crate::learner::Borders;
use crate::tape::Losses;
use crate::{Error, Learned, Learner, Lesson, Result};

/// How a lesson is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segments {
    /// Tokens that are computed at a time, whatever sequences they are of.
    pub tokens: usize,
    /// No gradient goes back over a border: an approximation.
    pub truncated: bool,
}

/// Rows of a lesson that are computed at a time.
struct Segment {
    from: usize,
    to: usize,
    /// Tokens of its sequences.
    lengths: Vec<usize>,
    /// Whether its first sequence began in the segment before.
    goes_on: bool,
}

impl Segment {
    /// Its rows of a lesson.
    fn lesson<'a, F: Real>(&'a self, of: &Lesson<'a, F>) -> Lesson<'a, F> {
        let rows = self.from..self.to;
        let targets = Targets {
            ids: &of.targets.ids[rows.clone()],
            weights: &of.targets.weights[rows.clone()],
            l2wrap: of.targets.l2wrap,
        };
        Lesson { lengths: &self.lengths, tokens: &of.tokens[rows], targets, initial: None, d_last: None }
    }
}

/// Rows `0..` of sequences of these lengths, so many at a time.
fn divide(lengths: &[usize], tokens: usize) -> Vec<Segment> {
    let mut segments: Vec<Segment> = Vec::new();
    let mut at = 0;
    for &length in lengths {
        let end = at + length;
        let mut began = false;
        while at < end {
            let full = segments.last().is_none_or(|s| s.to - s.from == tokens);
            if full {
                segments.push(Segment { from: at, to: at, lengths: Vec::new(), goes_on: began });
            }
            let segment = segments.last_mut().expect("one with room");
            let take = (end - at).min(tokens - (segment.to - segment.from));
            segment.lengths.push(take);
            segment.to += take;
            at += take;
            began = true;
        }
    }
    segments
}

impl<F: Real> Learner<F> {
    /// As [`Learner::learn`], in segments. The last states are that of the last sequence alone.
    ///
    /// # Errors
    /// As [`Learner::learn`]; states or gradients of states given from outside; a model without a state.
    pub fn learn_in_segments(&self, lesson: &Lesson<'_, F>, how: Segments) -> Result<Learned<F>> {
        if how.tokens == 0 || lesson.tokens.len() <= how.tokens {
            return self.learn(lesson);
        }
        self.check(lesson)?;
        self.config().version.needs_state(&self.model().checkpoint().path)?;
        if lesson.initial.is_some() || lesson.d_last.is_some() {
            return Err(Error::request("states of a lesson in segments are its own"));
        }
        let segments = divide(lesson.lengths, how.tokens);
        let mut losses =
            Losses { each: Vec::with_capacity(lesson.tokens.len()), sum: 0.0, right: Vec::new() };
        if how.truncated {
            let mut last: Option<State<F>> = None;
            for segment in &segments {
                let carried = last.as_ref().filter(|_| segment.goes_on);
                let between = Borders { carried, d_carried: None };
                let (mut learned, _) = self.learn_between(&segment.lesson(lesson), between);
                losses.each.append(&mut learned.losses.each);
                losses.sum += learned.losses.sum;
                last = learned.last.pop();
            }
            return Ok(Learned { losses, last: last.into_iter().collect(), d_initial: Vec::new() });
        }
        // The state that goes on into each segment but the first.
        let mut borders: Vec<Option<State<F>>> = vec![None];
        for (segment, next) in segments.iter().zip(&segments[1..]) {
            let carried = borders.last().and_then(Option::as_ref).filter(|_| segment.lengths.len() == 1);
            // Only the sequence that goes on.
            let length = *segment.lengths.last().expect("a sequence");
            let of =
                Segment { from: segment.to - length, to: segment.to, lengths: vec![length], goes_on: true };
            borders.push(next.goes_on.then(|| self.last_state(&of.lesson(lesson), carried)));
        }
        losses.each.resize(lesson.tokens.len(), 0.0);
        let mut last = Vec::new();
        let mut d_carried: Option<State<F>> = None;
        for (segment, carried) in segments.iter().zip(&borders).rev() {
            let between = Borders { carried: carried.as_ref(), d_carried: d_carried.as_ref() };
            let (mut learned, d) = self.learn_between(&segment.lesson(lesson), between);
            losses.each[segment.from..segment.to].copy_from_slice(&learned.losses.each);
            losses.sum += learned.losses.sum;
            if last.is_empty() {
                last.extend(learned.last.pop());
            }
            d_carried = d;
        }
        Ok(Learned { losses, last, d_initial: Vec::new() })
    }

    /// As [`Learner::evaluate`], in segments. The last states are that of the last sequence alone.
    ///
    /// # Errors
    /// As [`Learner::learn_in_segments`].
    pub fn evaluate_in_segments(&self, lesson: &Lesson<'_, F>, how: Segments) -> Result<Learned<F>> {
        if how.tokens == 0 || lesson.tokens.len() <= how.tokens || !self.config().version.has_state() {
            return self.evaluate(lesson);
        }
        self.check(lesson)?;
        let mut all = Learned {
            losses: Losses { each: Vec::new(), sum: 0.0, right: Vec::new() },
            last: Vec::new(),
            d_initial: Vec::new(),
        };
        for segment in divide(lesson.lengths, how.tokens) {
            let carried = all.last.pop().filter(|_| segment.goes_on);
            let mut part = self.evaluate_between(&segment.lesson(lesson), carried.as_ref());
            all.losses.each.append(&mut part.losses.each);
            all.losses.right.append(&mut part.losses.right);
            all.losses.sum += part.losses.sum;
            all.last.extend(part.last.pop());
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_divided_whatever_sequences_they_are_of() {
        let shown = |lengths: &[usize], tokens| -> Vec<(usize, usize, Vec<usize>, bool)> {
            let all = divide(lengths, tokens).into_iter();
            all.map(|s| (s.from, s.to, s.lengths, s.goes_on)).collect()
        };
        assert_eq!(shown(&[7], 3), [(0, 3, vec![3], false), (3, 6, vec![3], true), (6, 7, vec![1], true)]);
        assert_eq!(
            shown(&[2, 4, 3, 1], 3),
            [
                (0, 3, vec![2, 1], false),
                (3, 6, vec![3], true),
                (6, 9, vec![3], false),
                (9, 10, vec![1], false)
            ]
        );
    }
}

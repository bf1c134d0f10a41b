//! Texts longer than memory: computed segment by segment, with the state at each border kept and gradients carried back
//! through it.
//!
//! The way there runs all segments without recording and keeps the states between them (66 d numbers a layer each); the way
//! back runs each again, from the last to the first, and hands the gradient with respect to its first state to the one
//! before it. Nothing is left out: the gradients are those of the whole text at once, in the memory of one segment, at four
//! thirds of the work. Source: the training spec, section 9; the state's gradients: architectures, section 11.

use std::ops::Range;

use hawfinch_kernels::Real;
use hawfinch_kernels::cross_entropy::Targets;
use hawfinch_model::State;

use crate::collective::{Collective, even};
use crate::learner::Borders;
use crate::tape::{Losses, Part};
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

/// Ranks that share the segments of a lesson: those of neighbouring ranks are neighbours in the text. States go from rank to
/// rank on the way there, their gradients on the way back.
#[derive(Clone, Copy)]
pub(crate) struct Along<'a> {
    pub c: &'a dyn Collective,
    /// This one's place along the text, and of how many.
    pub place: usize,
    pub of: usize,
}

impl Along<'_> {
    /// The segments of this rank; the first ranks have one more where they do not come out even.
    fn own(&self, segments: usize) -> Range<usize> {
        let counts = even(segments, self.of);
        let from = counts[..self.place].iter().sum();
        from..from + counts[self.place]
    }

    fn beside(&self, by: isize) -> usize {
        self.c.rank().checked_add_signed(by).expect("a rank on that side")
    }

    fn send<F: Real>(&self, state: &State<F>, by: isize) -> Result<()> {
        let mut numbers: Vec<f64> = state.data().iter().map(|x| x.to_f64()).collect();
        numbers.push(state.tokens as f64);
        self.c.send(bytemuck::cast_slice(&numbers), self.beside(by))
    }

    fn receive<F: Real>(&self, learner: &Learner<F>, by: isize) -> Result<State<F>> {
        let mut state = State::new(learner.model().state_layout().clone());
        let mut numbers = vec![0f64; state.data().len() + 1];
        self.c.receive(bytemuck::cast_slice_mut(&mut numbers), self.beside(by))?;
        state.tokens = numbers.pop().expect("one more") as _;
        state.data_mut().iter_mut().zip(numbers).for_each(|(to, x)| *to = F::from_f64(x));
        Ok(state)
    }
}

/// A lesson on its way: this rank's segments, and the state that goes on into each.
pub(crate) struct Way<F: Real> {
    segments: Vec<Segment>,
    own: Range<usize>,
    borders: Vec<Option<State<F>>>,
}

impl<F: Real> Learner<F> {
    /// As [`Learner::learn`], in segments. The last states are that of the last sequence alone.
    ///
    /// # Errors
    /// As [`Learner::learn`]; states or gradients of states given from outside; a model without a state.
    pub fn learn_in_segments(&self, lesson: &Lesson<'_, F>, how: Segments) -> Result<Learned<F>> {
        self.learn_in_segments_telling(lesson, how, &mut |_| {})
    }

    /// The same; `finished` is told of the head and of each block when nothing more is added to their gradients.
    pub(crate) fn learn_in_segments_telling(
        &self,
        lesson: &Lesson<'_, F>,
        how: Segments,
        finished: &mut dyn FnMut(Part),
    ) -> Result<Learned<F>> {
        self.check(lesson)?;
        if how.tokens == 0 || lesson.tokens.len() <= how.tokens {
            return Ok(self.learn_between(lesson, Borders::default(), finished).0);
        }
        self.config().version.needs_state(&self.model().checkpoint().path)?;
        if lesson.initial.is_some() || lesson.d_last.is_some() {
            return Err(Error::request("states of a lesson in segments are its own"));
        }
        if how.truncated {
            let segments = divide(lesson.lengths, how.tokens);
            let mut losses =
                Losses { each: Vec::with_capacity(lesson.tokens.len()), sum: 0.0, right: Vec::new() };
            let mut none = |_: Part| {};
            let count = segments.len();
            let mut last: Option<State<F>> = None;
            for (n, segment) in segments.iter().enumerate() {
                let tell: &mut dyn FnMut(Part) = if n + 1 == count { &mut *finished } else { &mut none };
                let carried = last.as_ref().filter(|_| segment.goes_on);
                let between = Borders { carried, d_carried: None };
                let (mut learned, _) = self.learn_between(&segment.lesson(lesson), between, tell);
                losses.each.append(&mut learned.losses.each);
                losses.sum += learned.losses.sum;
                last = learned.last.pop();
            }
            return Ok(Learned { losses, last: last.into_iter().collect(), d_initial: Vec::new() });
        }
        let way = self.way_there(lesson, how, None)?;
        self.way_back(lesson, way, None, finished)
    }

    /// The way there of a lesson in segments, or of those that are this rank's: the states at their borders.
    ///
    /// # Errors
    /// As [`Learner::learn_in_segments`]; the other ranks cannot be reached.
    pub(crate) fn way_there(
        &self,
        lesson: &Lesson<'_, F>,
        how: Segments,
        along: Option<Along<'_>>,
    ) -> Result<Way<F>> {
        self.check(lesson)?;
        self.config().version.needs_state(&self.model().checkpoint().path)?;
        let segments = divide(lesson.lengths, how.tokens);
        let own = along.map_or(0..segments.len(), |a| a.own(segments.len()));
        // The state that goes on into each segment of these.
        let mut borders: Vec<Option<State<F>>> = Vec::new();
        if let Some(first) = segments.get(own.start).filter(|_| !own.is_empty()) {
            let from = along.filter(|_| first.goes_on).map(|a| a.receive(self, -1)).transpose()?;
            borders.push(from);
        }
        for n in own.clone() {
            let (segment, Some(next)) = (&segments[n], segments.get(n + 1)) else { break };
            if next.goes_on {
                let carried = borders.last().and_then(Option::as_ref).filter(|_| segment.lengths.len() == 1);
                // Only the sequence that goes on.
                let length = *segment.lengths.last().expect("a sequence");
                let of = Segment {
                    from: segment.to - length,
                    to: segment.to,
                    lengths: vec![length],
                    goes_on: true,
                };
                let state = self.last_state(&of.lesson(lesson), carried);
                match along.filter(|_| n + 1 == own.end) {
                    Some(along) => along.send(&state, 1)?,
                    None => borders.push(Some(state)),
                }
            } else if n + 1 < own.end {
                borders.push(None);
            }
        }
        Ok(Way { segments, own, borders })
    }

    /// The way back: gradients, of this rank's segments.
    ///
    /// # Errors
    /// The other ranks cannot be reached.
    pub(crate) fn way_back(
        &self,
        lesson: &Lesson<'_, F>,
        way: Way<F>,
        along: Option<Along<'_>>,
        finished: &mut dyn FnMut(Part),
    ) -> Result<Learned<F>> {
        let Way { segments, own, borders } = way;
        let each = vec![0.0; lesson.tokens.len()];
        let mut losses = Losses { each, sum: 0.0, right: Vec::new() };
        let mut none = |_: Part| {};
        let mut last = Vec::new();
        let goes_on = |n: usize| !own.is_empty() && segments.get(n).is_some_and(|s| s.goes_on);
        let mut d_carried: Option<State<F>> =
            along.filter(|_| goes_on(own.end)).map(|a| a.receive(self, 1)).transpose()?;
        for (n, carried) in own.clone().zip(&borders).rev() {
            let segment = &segments[n];
            let tell: &mut dyn FnMut(Part) = if n == own.start { &mut *finished } else { &mut none };
            let between = Borders { carried: carried.as_ref(), d_carried: d_carried.as_ref() };
            let (mut learned, d) = self.learn_between(&segment.lesson(lesson), between, tell);
            losses.each[segment.from..segment.to].copy_from_slice(&learned.losses.each);
            losses.sum += learned.losses.sum;
            if last.is_empty() {
                last.extend(learned.last.pop());
            }
            d_carried = d;
        }
        if let (Some(along), Some(d)) = (along.filter(|_| goes_on(own.start)), &d_carried) {
            along.send(d, -1)?;
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

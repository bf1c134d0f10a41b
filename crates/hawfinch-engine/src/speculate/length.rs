//! How many drafts to ask for.

use std::time::Duration;

/// Old experience counts this much less with every step that had drafts.
const FADE: f64 = 0.9;
/// Weight of a new time.
const NEW: f64 = 0.2;
/// What a further token of a step costs in steps of one token, before it is known.
const FURTHER: f64 = 0.2;
/// Drafts are never taken for more reliable than this: there are always some that are wrong.
const SUREST: f64 = 0.98;
/// Drafts must promise to be faster by this factor: what is measured is never exact.
const WORTH: f64 = 1.03;
/// Steps without drafts after it was found that none pay; doubled each time, up to the second number.
const REST: (u32, u32) = (4, 64);
/// Drafts of a try after a rest: at most so many, and at most as many as cost so many steps.
const TRY: (usize, f64) = (4, 1.0);
/// More tokens than these waiting to be read are read by a step without drafts: each further step with a wrong draft
/// would read them once more. (Of 1 to 17, this number gave the most tokens a second for drafts right in 50 to 90%.)
const WAITING: usize = 4;

/// Decides how many drafts a step verifies: as many as promise the most tokens a second.
///
/// A step of n tokens takes `plain + (n - 1) · further`, a draft `draft`; each draft is right with probability p if
/// those before it were. All four are measured while decoding. Tokens that were right in a step whose drafts were not
/// all right are read again in the next, as are those before them: part of the price.
#[derive(Debug, Clone)]
pub(crate) struct Length {
    most: usize,
    fixed: bool,
    /// Drafts that were right, of those that came to be judged; both fade.
    right: f64,
    judged: f64,
    /// Seconds of a step of one token, of each further one, of a draft; `None` before the first.
    plain: Option<f64>,
    further: Option<f64>,
    draft: Option<f64>,
    /// How long the last rest was (0: drafts pay), what is left of it, and whether drafts are due after it.
    rest: u32,
    left: u32,
    due: bool,
}

impl Length {
    /// From 0 to `most`, as it pays.
    pub fn adaptive(most: usize) -> Self {
        Length {
            most,
            fixed: false,
            // A little faith to begin with.
            right: 1.4,
            judged: 2.0,
            plain: None,
            further: None,
            draft: None,
            rest: 0,
            left: 0,
            due: false,
        }
    }

    /// Always `most`, unless too much waits to be read.
    pub fn fixed(most: usize) -> Self {
        Length { fixed: true, ..Self::adaptive(most) }
    }

    /// How many drafts to ask for behind so many tokens that the step reads anyway (at least one).
    pub fn choose(&mut self, pending: usize) -> usize {
        if pending > WAITING {
            return 0;
        }
        if self.fixed {
            return self.most;
        }
        if self.most == 0 || self.plain.is_none() {
            return 0;
        }
        if self.left > 0 {
            self.left -= 1;
            return 0;
        }
        if self.due {
            let [plain, further, draft] = self.costs();
            let afford = (TRY.1 * plain / (further + draft)).max(1.0) as usize;
            return afford.min(TRY.0).min(self.most);
        }
        let best = self.best(pending);
        if best > 0 {
            self.rest = 0;
            return best;
        }
        self.rest = (self.rest * 2).clamp(REST.0, REST.1);
        self.left = self.rest - 1;
        self.due = true;
        0
    }

    /// Seconds of a step of one token, of each further one, of a draft.
    fn costs(&self) -> [f64; 3] {
        let plain = self.plain.unwrap_or(1.0);
        [plain, self.further.unwrap_or(FURTHER * plain), self.draft.unwrap_or(0.0)]
    }

    /// The number of drafts that promises the most tokens a second; 0 when none promises clearly more than none.
    fn best(&self, pending: usize) -> usize {
        let [plain, further, draft] = self.costs();
        let p = (self.right / self.judged).min(SUREST);
        let read = plain + further * (pending as f64 - 1.0);
        let (mut best, mut best_rate) = (0, WORTH / read);
        // When k drafts are asked for: tokens to expect from the step, and those that will be read again.
        let (mut tokens, mut again, mut reach) = (1.0, 0.0, 1.0);
        for k in 1..=self.most {
            // With probability reach · (1 - p) the k-th draft is the first that is wrong: what was pending and the
            // k - 1 that were right are read again.
            again += reach * (1.0 - p) * (pending + k - 1) as f64;
            reach *= p;
            tokens += reach;
            let rate = tokens / (read + (further + draft) * k as f64 + further * again);
            if rate > best_rate {
                (best, best_rate) = (k, rate);
            }
        }
        best
    }

    /// The last step had so many drafts, of which the first `accepted` were right.
    pub fn tell(&mut self, drafts: usize, accepted: usize) {
        if drafts > 0 {
            self.right = self.right * FADE + accepted as f64;
            self.judged = self.judged * FADE + drafts.min(accepted + 1) as f64;
            self.due = false;
        }
    }

    /// A step of so many tokens took this long.
    pub fn stepped(&mut self, tokens: usize, time: Duration) {
        let time = time.as_secs_f64();
        match self.plain {
            Some(plain) if tokens > 1 => {
                blend(&mut self.further, ((time - plain) / (tokens as f64 - 1.0)).max(0.0));
            }
            _ if tokens == 1 => blend(&mut self.plain, time),
            _ => {}
        }
    }

    /// So many drafts took this long.
    pub fn drafted(&mut self, drafts: usize, time: Duration) {
        if drafts > 0 {
            blend(&mut self.draft, time.as_secs_f64() / drafts as f64);
        }
    }
}

/// Moves an average towards a new value.
fn blend(average: &mut Option<f64>, value: f64) {
    *average = Some(average.map_or(value, |a| a + NEW * (value - a)));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `steps` steps on a machine where a token costs `plain`, a further one `further` and a draft `draft`
    /// seconds, and every draft is right with probability `p`; tokens and seconds of all, and how many had drafts.
    fn run(length: &mut Length, p: f64, cost: [f64; 3], steps: usize) -> (f64, f64, usize) {
        let mut rng = crate::Rng::new(7);
        let [plain, further, draft] = cost;
        let (mut tokens, mut seconds, mut with, mut pending) = (0.0, 0.0, 0, 1);
        for _ in 0..steps {
            let k = length.choose(pending);
            length.drafted(k, Duration::from_secs_f64(draft * k as f64));
            let time = plain + further * (pending + k - 1) as f64;
            length.stepped(pending + k, Duration::from_secs_f64(time));
            seconds += time + draft * k as f64;
            let mut accepted = 0;
            while accepted < k && rng.next_f64() < p {
                accepted += 1;
            }
            length.tell(k, accepted);
            tokens += 1.0 + accepted as f64;
            with += usize::from(k > 0);
            pending = if k == 0 || accepted == k { 1 } else { pending + accepted + 1 };
        }
        (tokens, seconds, with)
    }

    #[test]
    fn it_is_never_notably_slower_than_without() {
        for most in [1, 2, 8, 64] {
            for p in [0.0, 0.05, 0.3, 0.6, 0.9, 1.0] {
                for cost in
                    [[1.0, 0.15, 0.0], [1.0, 0.35, 0.0], [1.0, 1.0, 0.0], [1.0, 0.15, 0.3], [1.0, 0.15, 1.0]]
                {
                    let mut length = Length::adaptive(most);
                    let (tokens, seconds, _) = run(&mut length, p, cost, 3000);
                    assert!(tokens / seconds > 0.95, "most {most} p {p} {cost:?}: {}", tokens / seconds);
                }
            }
        }
    }

    #[test]
    fn it_is_faster_where_drafts_are_right_and_steps_cheap() {
        for (p, cost, least) in [
            (1.0, [1.0, 0.15, 0.0], 4.0),
            (0.9, [1.0, 0.15, 0.0], 2.0),
            (0.7, [1.0, 0.15, 0.0], 1.4),
            (0.8, [1.0, 0.15, 0.1], 1.4),
        ] {
            let (tokens, seconds, _) = run(&mut Length::adaptive(16), p, cost, 3000);
            assert!(tokens / seconds > least, "p {p} {cost:?}: {}", tokens / seconds);
        }
    }

    #[test]
    fn it_rests_where_drafts_are_wrong_and_returns_where_they_are_right() {
        let mut length = Length::adaptive(8);
        let cost = [1.0, 0.15, 0.0];
        let (_, _, with) = run(&mut length, 0.0, cost, 2000);
        assert!(with < 2000 / 30, "{with}");
        // A text that repeats itself from here on: after one rest at most, most steps have drafts.
        let (_, _, with) = run(&mut length, 1.0, cost, 200);
        assert!(with > 120, "{with}");
    }

    #[test]
    fn fixed_is_fixed() {
        let mut length = Length::fixed(3);
        let (_, _, with) = run(&mut length, 0.0, [1.0, 1.0, 1.0], 50);
        // Wrong drafts leave more and more to be read, which a step without drafts does.
        assert_eq!((with, length.choose(4), length.choose(5)), (40, 3, 0));
        assert_eq!(run(&mut Length::adaptive(0), 1.0, [1.0, 0.0, 0.0], 50).2, 0);
    }
}

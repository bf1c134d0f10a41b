//! Learning rates and weight decays beside those of a `schedule.json`.

use hawfinch_model::verify::Report;

use super::given::{At, Compared};
use crate::Result;
use crate::schedule::{Length, Schedule, Shape};

/// In units of the value, or of a thousandth of the largest that the case can have: the rounding of f64, with room for a
/// cosine that nears zero.
const TOLERANCE: f64 = 1e-12;

pub(super) fn check(report: &mut Report, file: &At) -> Result<()> {
    let [progress, lr, weight_decay, steps] = compare(file)?;
    steps.report(report, "steps of a resumed run", 0.0);
    progress.report(report, "schedules: progress", TOLERANCE);
    lr.report(report, "schedules: learning rate", TOLERANCE);
    weight_decay.report(report, "schedules: weight decay", TOLERANCE);
    Ok(())
}

/// Progress, learning rate, weight decay, and the step of the run that each value says it is of.
fn compare(file: &At) -> Result<[Compared; 4]> {
    let [mut progress, mut lr, mut weight_decay, mut steps] = <[Compared; 4]>::default();
    for case in file.get("cases")?.list()? {
        let number = |key: &str| case.get(key)?.number();
        let count = |key: &str| case.get(key)?.count();
        let schedule = schedule(&case)?;
        let Some(exit) = case.get("exit_tokens")?.value.as_i64() else {
            return case.get("exit_tokens")?.wrong("no whole number");
        };
        let epoch = count("epoch_steps")?;
        let length = Length {
            tokens_per_step: count("ctx_len")?.saturating_mul(count("global_bsz")?),
            steps: epoch.saturating_mul(count("epoch_count")?),
            tokens: exit.unsigned_abs(),
        };
        let before = epoch.saturating_mul(case.maybe("epoch_begin").map_or(Ok(0), |v| v.count())?);
        let (full, decay) = (number("lr_init")?, number("weight_decay")?);
        for value in case.get("values")?.list()? {
            let since_start = value.get("step")?.count()?;
            let step = value.get("real_step")?.count()?;
            steps.same(|| value.place.clone() + "/real_step", since_start.saturating_add(before), step);
            let got = schedule.at(&length, step, since_start);
            for (compared, key, got, full) in [
                (&mut progress, "progress", got.progress, 1.0),
                (&mut lr, "lr", got.lr, full),
                (&mut weight_decay, "weight_decay", got.weight_decay, decay),
            ] {
                let want = value.get(key)?;
                let (place, want) = (want.place.clone(), want.number()?);
                compared.near(|| place, got, want, want.abs().max(1e-3 * full));
            }
        }
    }
    Ok([progress, lr, weight_decay, steps])
}

/// The schedule of a case: the references', which warm up again.
fn schedule(case: &At) -> Result<Schedule> {
    let number = |key: &str| case.get(key)?.number();
    let name = case.get("schedule")?;
    let shape = match name.text()? {
        // (With an explanation after it.)
        s if s.starts_with("cosine") => Shape::Cosine,
        // The references' `linear` is what `exponential` becomes where it cannot be.
        "exponential" => Shape::Exponential,
        "linear" if number("lr_final")? == 0.0 => Shape::Exponential,
        "linear" => Shape::Linear,
        "mixed" => Shape::Mixed,
        _ => return name.wrong("a schedule that is not known (cosine, exponential, linear, mixed)"),
    };
    Ok(Schedule {
        shape,
        lr_init: number("lr_init")?,
        lr_final: number("lr_final")?,
        warmup_steps: case.get("warmup_steps")?.count()?,
        warmup_start: number("warmup_start")?,
        warmup_again: true,
        weight_decay: number("weight_decay")?,
        weight_decay_final: Some(number("weight_decay_final")?).filter(|&w| w > 0.0),
        ..Schedule::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Change, changed};

    fn worst(change: Change) -> f64 {
        let (path, value) = changed("schedule.json", change);
        let compared = compare(&At::whole(&path, &value)).unwrap();
        assert!(compared[..3].iter().map(|c| c.values).sum::<usize>() > 300);
        compared.iter().map(|c| c.error).fold(0.0, f64::max)
    }

    #[test]
    fn every_value_agrees() {
        // Rounding of the last places of f64: a cosine at p = 1 loses a few.
        let worst = worst(&|_| ());
        assert!(worst < 1e-14, "{worst:e}");
    }

    #[test]
    fn what_is_wrong_is_seen() {
        fn every(key: &str, new: &dyn Fn(&serde_json::Value) -> serde_json::Value) -> f64 {
            worst(&|file| {
                for case in file["cases"].as_array_mut().unwrap() {
                    case[key] = new(&case[key]);
                }
            })
        }
        let more = |v: &serde_json::Value| (v.as_u64().unwrap() + 1).into();
        assert!(every("warmup_start", &|_| 0.01.into()) > 1e-6, "the newer warm-up in v4neo");
        assert!(every("weight_decay_final", &|_| (-1).into()) > 1e-6, "weight decay that stays");
        assert!(every("warmup_steps", &more) > 1e-6);
        assert!(every("epoch_begin", &more) > 1e-6);
        let cosine = |v: &serde_json::Value| if v == "mixed" { "cosine".into() } else { v.clone() };
        assert!(every("schedule", &cosine) > 1e-6);
        for (key, at) in [("real_step", 20), ("step", 1), ("lr", 13), ("progress", 13), ("weight_decay", 13)]
        {
            let worst = worst(&|file| {
                let value = &mut file["cases"][0]["values"][at][key];
                *value = match value.as_u64() {
                    Some(n) => (n + 1).into(),
                    None => (value.as_f64().unwrap() * (1.0 + 1e-9)).into(),
                };
            });
            assert!(worst > TOLERANCE, "{key}");
        }
    }
}

//! Orders of samples beside those of a `sampler.json`.

use hawfinch_data::sampler::{Sampler, magic_factor, magic_prime, magic_slot, sample_number};
use hawfinch_model::verify::Report;

use super::given::{At, Compared};
use crate::Result;

pub(super) fn check(report: &mut Report, file: &At) -> Result<()> {
    let Found { primes, slots, ranks } = compare(file)?;
    primes.report(report, "sampler: primes, factors, which data is long enough", 0.0);
    slots.report(report, "sampler: slots", 0.0);
    ranks.report(report, "sampler: numbers, slots and tokens of several ranks", 0.0);
    Ok(())
}

#[derive(Default)]
struct Found {
    primes: Compared,
    slots: Compared,
    ranks: Compared,
}

fn compare(file: &At) -> Result<Found> {
    let Found { mut primes, mut slots, mut ranks } = Found::default();
    for case in file.get("cases")?.list()? {
        let (tokens, ctx) = (case.get("tokens")?.count()?, case.get("ctx")?.count()?);
        let place = |key: &str| format!("{}/{key}", case.place);
        // No prime is written as null, and here as 0.
        let prime = magic_prime(tokens, ctx).unwrap_or(0);
        let want = |key: &str| case.maybe(key).map_or(Ok(0), |v| v.count());
        primes.same(|| place("P"), prime, want("P")?);
        if let Some(n) = case.maybe("slots") {
            primes.same(|| place("slots"), tokens.checked_div(ctx).unwrap_or(0), n.count()?);
        }
        let factor = magic_factor(prime);
        primes.same(|| place("F"), factor, want("F")?);
        let key = "valid_for_reference_loader";
        let sampler = Sampler::magic_prime(tokens, ctx);
        primes.same(|| place(key), sampler.is_ok(), case.get(key)?.flag()?);
        let printed = if u128::from(tokens) < 3 * u128::from(ctx) { 0 } else { prime };
        primes.same(|| place("make_data_prints"), printed, want("make_data_prints")?);
        if prime == 0 {
            continue;
        }
        // Of data that the reference refuses the formula alone.
        let slot = |n: u64| sampler.as_ref().map_or_else(|_| magic_slot(n, prime, factor), |s| s.slot(n));
        for (n, want) in case.get("slots_at_ii")?.entries()? {
            let Ok(n) = n.parse() else { return want.wrong("a key that is no number") };
            slots.same(|| want.place.clone(), slot(n), want.count()?);
        }
        if let Some(all) = case.maybe("full_permutation_ii_1_to_P") {
            let all = all.counts()?;
            primes.same(|| place("full_permutation_ii_1_to_P (its length)"), prime, all.len() as u64);
            for (n, want) in (1..).zip(all) {
                slots.same(|| place(&format!("full_permutation_ii_1_to_P/{}", n - 1)), slot(n), want);
            }
        }
    }
    if let Some(several) = file.maybe("multi_rank") {
        let count = |key: &str| several.get(key)?.count();
        let sampler = Sampler::magic_prime(count("tokens")?, count("ctx")?)?;
        let world = match count("world_size")? {
            n if n >> 20 == 0 => n,
            _ => return several.wrong("a `world_size` beyond any machine"),
        };
        for value in several.get("values")?.list()? {
            let count = |key: &str| match value.get(key)?.count()? {
                n if n >> 40 == 0 => Ok(n),
                _ => value.wrong(&format!("a `{key}` beyond any data set")),
            };
            let number = sample_number(count("epoch")?, count("idx")?, world, count("rank")?);
            for (key, got) in
                [("ii", number), ("slot", sampler.slot(number)), ("token_offset", sampler.start(number))]
            {
                ranks.same(|| format!("{}/{key}", value.place), got, count(key)?);
            }
        }
    }
    Ok(Found { primes, slots, ranks })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Change, changed};

    fn wrong(change: Change) -> [f64; 3] {
        let (path, value) = changed("sampler.json", change);
        let found = compare(&At::whole(&path, &value)).unwrap();
        let Found { primes, slots, ranks } = found;
        assert!(primes.values > 50 && slots.values > 600 && ranks.values > 80);
        [primes.error, slots.error, ranks.error]
    }

    #[test]
    fn every_value_agrees() {
        assert_eq!(wrong(&|_| ()), [0.0; 3]);
    }

    #[test]
    fn what_is_wrong_is_seen() {
        for (place, want) in [
            ("/cases/3/P", [1.0, 0.0, 0.0]),
            ("/cases/3/F", [1.0, 0.0, 0.0]),
            ("/cases/0/slots_at_ii/12345", [0.0, 1.0, 0.0]),
            ("/cases/6/slots_at_ii/3", [0.0, 1.0, 0.0]),
            ("/cases/9/full_permutation_ii_1_to_P/300", [0.0, 1.0, 0.0]),
            ("/multi_rank/values/7/ii", [0.0, 0.0, 1.0]),
            ("/multi_rank/values/8/slot", [0.0, 0.0, 1.0]),
            ("/multi_rank/values/29/token_offset", [0.0, 0.0, 1.0]),
        ] {
            let got = wrong(&|file| {
                let value = file.pointer_mut(place).unwrap();
                *value = (value.as_u64().unwrap() + 1).into();
            });
            assert_eq!(got, want, "{place}");
        }
        let got = wrong(&|file| file["cases"][6]["valid_for_reference_loader"] = true.into());
        assert_eq!(got, [1.0, 0.0, 0.0]);
        // Another number of ranks: other samples.
        assert!(wrong(&|file| file["multi_rank"]["world_size"] = 2.into())[2] > 20.0);
    }
}

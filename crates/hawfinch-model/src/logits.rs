//! What logits say: probabilities of the next token.

/// log Σ e^x of a row of logits, in f64 whatever their size: the largest is taken out before, so nothing overflows, and
/// small terms are not lost. -∞ for an empty row and one of -∞ alone; NaN if one of them is NaN or +∞.
///
/// ```
/// use hawfinch_model::log_sum_exp;
///
/// let row = [1000.0, 1000.0];
/// assert_eq!(log_sum_exp(&row), 1000.0 + std::f64::consts::LN_2);
/// ```
pub fn log_sum_exp(row: &[f32]) -> f64 {
    let most = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    if most == f64::NEG_INFINITY && !row.iter().any(|v| v.is_nan()) {
        return most;
    }
    most + row.iter().map(|&v| (f64::from(v) - most).exp()).sum::<f64>().ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_what_the_definition_says_and_nothing_overflows() {
        let mut random = crate::Rng::new(1);
        let row: Vec<f32> = (0..1000).map(|_| random.normals()[0] as f32 * 3.0).collect();
        let by_definition = row.iter().map(|&v| f64::from(v).exp()).sum::<f64>().ln();
        assert!((log_sum_exp(&row) - by_definition).abs() < 1e-12);
        // Moved far up or down (by what f32 can add to them without rounding) it moves with them.
        let whole: Vec<f32> = row.iter().map(|v| v.round()).collect();
        for by in [1e6, -1e6] {
            let moved: Vec<f32> = whole.iter().map(|v| v + by).collect();
            assert!((log_sum_exp(&moved) - log_sum_exp(&whole) - f64::from(by)).abs() < 1e-8, "{by}");
        }
        // In f32, 1 + 2^-30 would be 1: each of these terms would be lost.
        let few = [vec![0.0], vec![-30.0 * std::f32::consts::LN_2; 1 << 16]].concat();
        assert!((log_sum_exp(&few) / 2f64.powi(-14) - 1.0).abs() < 1e-4, "{}", log_sum_exp(&few));
    }

    #[test]
    fn what_is_not_finite_is_not_hidden() {
        assert_eq!(log_sum_exp(&[]), f64::NEG_INFINITY);
        assert_eq!(log_sum_exp(&[f32::NEG_INFINITY; 2]), f64::NEG_INFINITY);
        assert_eq!(log_sum_exp(&[f32::NEG_INFINITY, 2.0]), 2.0);
        for bad in [f32::NAN, f32::INFINITY] {
            assert!(log_sum_exp(&[1.0, bad, 2.0]).is_nan() && log_sum_exp(&[bad]).is_nan(), "{bad}");
        }
    }
}

//! Gradients against central differences, for tests.

/// Compares gradients with central differences in f64.
///
/// * `xs`: operands
/// * `forward`: what the operation gives
/// * `backward`: from the operands and the gradient of what it gives to those of the operands
pub fn check_gradients(
    name: &str,
    xs: &[Vec<f64>],
    forward: impl Fn(&[Vec<f64>]) -> Vec<f64>,
    backward: impl Fn(&[Vec<f64>], &[f64]) -> Vec<Vec<f64>>,
) {
    let y = forward(xs);
    let d_y: Vec<f64> = (0..y.len()).map(|j| ((j * 7 + 3) as f64 * 0.61).sin()).collect();
    let objective = |xs: &[Vec<f64>]| forward(xs).iter().zip(&d_y).map(|(y, d)| y * d).sum::<f64>();
    let got = backward(xs, &d_y);
    assert_eq!(got.len(), xs.len(), "{name}: a gradient an operand");
    for (which, (x, d)) in xs.iter().zip(&got).enumerate() {
        assert_eq!(x.len(), d.len(), "{name}: operand {which}");
        let largest = d.iter().fold(1e-3, |m: f64, d| m.max(d.abs()));
        for j in 0..x.len() {
            let h = 1e-5;
            let moved = |by: f64| {
                let mut xs = xs.to_vec();
                xs[which][j] += by;
                objective(&xs)
            };
            let want = (moved(h) - moved(-h)) / (2.0 * h);
            assert!(
                (d[j] - want).abs() < 1e-7 * largest,
                "{name}: operand {which}, number {j}: {} for {want}",
                d[j]
            );
        }
    }
}

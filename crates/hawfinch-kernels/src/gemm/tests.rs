use super::*;
use crate::testing::values;

/// Operands in one of the ways in which they may lie.
struct Operand {
    data: Vec<f32>,
    rows: usize,
    columns: usize,
    form: Form,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    Rows,
    Strided,
    Columns,
    StridedColumns,
}

const FORMS: [Form; 4] = [Form::Rows, Form::Strided, Form::Columns, Form::StridedColumns];

impl Operand {
    fn new(rows: usize, columns: usize, form: Form, seed: u32) -> Self {
        let stride = match form {
            Form::Rows => columns,
            Form::Strided => columns + 5,
            Form::Columns => rows,
            Form::StridedColumns => rows + 3,
        };
        let lines = if matches!(form, Form::Rows | Form::Strided) { rows } else { columns };
        Operand { data: values(lines * stride, seed), rows, columns, form }
    }

    fn view<'a, F: Real>(&self, data: &'a [F]) -> View<'a, F> {
        let Operand { rows, columns, .. } = *self;
        match self.form {
            Form::Rows => View::new(data, rows, columns),
            Form::Strided => View::strided(data, rows, columns, columns + 5),
            Form::Columns => View::new(data, columns, rows).transposed(),
            Form::StridedColumns => View::strided(data, columns, rows, rows + 3).transposed(),
        }
    }
}

/// Sizes around those of panels and blocks: `[m, k, n]`.
const SIZES: [[usize; 3]; 12] = [
    [1, 1, 1],
    [1, 300, 70],
    [70, 5, 1],
    [6, 16, 8],
    [14, 256, 32],
    [15, 257, 33],
    [13, 31, 31],
    [29, 520, 47],
    [64, 33, 64],
    [100, 260, 16],
    [16, 700, 100],
    [257, 40, 129],
];

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// The scalar version against sums in f64, within the error of a sum in f32.
#[test]
fn the_meaning_is_the_product() {
    for [m, k, n] in SIZES {
        for (fa, fb) in [(Form::Rows, Form::Columns), (Form::StridedColumns, Form::Strided)] {
            let (a, b) = (Operand::new(m, k, fa, 1), Operand::new(k, n, fb, 2));
            for into in [Into::Overwrite, Into::Add] {
                let old = values(m * n, 3);
                let mut c = old.clone();
                let (va, vb) = (a.view(&a.data), b.view(&b.data));
                gemm(Isa::SCALAR, &Pool::new(2), Precision::Full, &mut c, into, va, vb);
                for (at, c) in c.iter().enumerate() {
                    let products =
                        || (0..k).map(|k| f64::from(va.at(at / n, k)) * f64::from(vb.at(k, at % n)));
                    let old = if into == Into::Add { f64::from(old[at]) } else { 0.0 };
                    let size = products().map(f64::abs).sum::<f64>() + old.abs();
                    let error = (f64::from(*c) - products().sum::<f64>() - old).abs();
                    assert!(error <= (k + 1) as f64 * 2f64.powi(-24) * size, "[{m} {k} {n}] {at}: {error}");
                }
            }
        }
    }
}

/// Every instruction set, number of threads and way to lie gives the scalar bits.
#[test]
fn full_precision_is_the_same_everywhere() {
    for [m, k, n] in SIZES {
        for (fa, fb) in FORMS.into_iter().flat_map(|a| FORMS.map(|b| (a, b))) {
            let (a, b) = (Operand::new(m, k, fa, 1), Operand::new(k, n, fb, 2));
            for (into, c_row) in [(Into::Overwrite, n), (Into::Add, n + 7)] {
                let run = |isa: Isa, threads: usize| {
                    let mut c = values(m * c_row, 3);
                    let (a, b) = (a.view(&a.data), b.view(&b.data));
                    gemm_strided(isa, &Pool::new(threads), Precision::Full, &mut c, c_row, into, a, b);
                    c
                };
                let want = run(Isa::SCALAR, 1);
                for (isa, threads) in Isa::available().into_iter().flat_map(|i| [1, 3].map(|t| (i, t))) {
                    let got = run(isa, threads);
                    assert!(
                        bits(&got) == bits(&want),
                        "{isa} {threads} {fa:?} {fb:?} {into:?} [{m} {k} {n}]"
                    );
                }
            }
        }
    }
}

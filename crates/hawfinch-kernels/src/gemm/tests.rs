use super::*;
use crate::testing::values;

/// One operand in one of the ways in which it may lie.
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

    fn view(&self) -> View<'_, f32> {
        self.view_of(&self.data)
    }

    fn view_of<'a, F: Real>(&self, data: &'a [F]) -> View<'a, F> {
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
    [8, 256, 48],
    [15, 257, 33],
    [13, 31, 31],
    [29, 520, 47],
    [64, 33, 64],
    [100, 260, 16],
    [16, 700, 100],
    [257, 40, 129],
];

/// So little at a time that small matrices are divided in all directions.
const SMALL: Limits = Limits { side: 64, packed: 40 << 10, near: 20 << 10 };

/// The bits; those of whatever is no number are one.
fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| if v.is_nan() { u32::MAX } else { v.to_bits() }).collect()
}

/// What multiplies in panels, and on what: numbers, or what may sum in another order. Sets with the same loops once.
fn ways(ordered: bool) -> Vec<(Isa, Way)> {
    let levels = [Level::Scalar, Level::Neon, Level::Avx2, Level::Avx512];
    let sets: Vec<Isa> = levels.into_iter().filter_map(Isa::new).collect();
    if ordered {
        let both = [false, true].map(|rounded| Way::Numbers { rounded });
        return sets.into_iter().flat_map(|isa| both.map(|way| (isa, way))).collect();
    }
    // Packed by portable code, and by that for AVX512-BF16.
    let emulated =
        [Isa::SCALAR, Isa::new(Level::Avx512).unwrap_or(Isa::SCALAR)].map(Isa::with_emulated_tiles);
    let pairs = sets.iter().filter(|isa| isa.has_pairs()).map(|isa| (*isa, Way::Pairs));
    let tiles = Isa::new(Level::Amx).into_iter().chain(emulated);
    pairs.chain(tiles.map(|isa| (isa, Way::Tiles))).collect()
}

/// The product, on top of some numbers that are the same for the same sizes.
fn product(
    (isa, way): (Isa, Way),
    threads: usize,
    limits: &Limits,
    (c_row, into): (usize, Into),
    a: View<'_, f32>,
    b: View<'_, f32>,
) -> Vec<f32> {
    let mut c = values(a.rows * c_row, 3);
    way.run(isa, &Pool::new(threads), Operands { c: &mut c, c_row, into, a, b }, limits);
    c
}

/// Sums in f64, and how far sums in f32 may be from them: of k products, in whatever order, by no more than k units of
/// what their sizes add up to. What lies between the rows may not change.
struct Wanted(Vec<[f64; 2]>);

impl Wanted {
    fn new((c_row, into): (usize, Into), a: View<'_, f32>, b: View<'_, f32>, rounds: bool) -> Self {
        let number = |x: f32| f64::from(if rounds { rounded(x) } else { x });
        let unit = (a.columns + 1) as f64 * 2f64.powi(-24);
        let wanted = values(a.rows * c_row, 3).into_iter().enumerate().map(|(at, before)| {
            let (r, c) = (at / c_row, at % c_row);
            let before = f64::from(before);
            if c >= b.columns {
                return [before, 0.0];
            }
            let before = if into == Into::Add { before } else { 0.0 };
            let (mut sum, mut size) = (before, before.abs());
            for k in 0..a.columns {
                let product = number(a.at(r, k)) * number(b.at(k, c));
                (sum, size) = (sum + product, size + product.abs());
            }
            [sum, unit * size]
        });
        Wanted(wanted.collect())
    }

    fn compare(&self, name: &str, got: &[f32]) {
        assert_eq!(self.0.len(), got.len());
        for (at, ([want, error], got)) in self.0.iter().zip(got).enumerate() {
            assert!((f64::from(*got) - want).abs() <= *error, "{name}: {got} for {want} at {at}");
        }
    }
}

/// Every way in which operands and results may lie; all of them with each other where matrices are small.
fn each_case(mut check: impl FnMut(&str, (usize, Into), View<'_, f32>, View<'_, f32>)) {
    for [m, k, n] in SIZES {
        for (x, y) in (0..4).flat_map(|x| (0..4).map(move |y| (x, y))) {
            if x != 3 - y && m * k * n > 20_000 {
                continue;
            }
            let (a, b) = (Operand::new(m, k, FORMS[x], 1), Operand::new(k, n, FORMS[y], 2));
            for to in [(n, Into::Overwrite), (n + 7, Into::Add)] {
                check(&format!("[{m} {k} {n}] {:?} {:?} {to:?}", FORMS[x], FORMS[y]), to, a.view(), b.view());
            }
        }
    }
}

#[test]
fn the_meaning_is_the_product() {
    each_case(|name, to, a, b| {
        for rounded in [false, true] {
            let got = product((Isa::SCALAR, Way::Scalar { rounded }), 2, &LIMITS, to, a, b);
            Wanted::new(to, a, b, rounded).compare(name, &got);
        }
    });
}

#[test]
fn numbers_give_the_scalar_bits_everywhere() {
    each_case(|name, to, a, b| {
        let want = [false, true]
            .map(|rounded| bits(&product((Isa::SCALAR, Way::Scalar { rounded }), 1, &LIMITS, to, a, b)));
        for way in ways(true) {
            let want = &want[usize::from(way.1 == Way::Numbers { rounded: true })];
            for (threads, limits) in [(1, &LIMITS), (2, &SMALL)] {
                let got = product(way, threads, limits, to, a, b);
                assert!(bits(&got) == *want, "{name} {way:?} {threads} threads, {limits:?}");
            }
        }
    });
}

#[test]
fn pairs_and_tiles_err_as_sums_in_f32_do() {
    each_case(|name, to, a, b| {
        let wanted = Wanted::new(to, a, b, true);
        for way in ways(false) {
            for (threads, limits) in [(1, &LIMITS), (2, &SMALL)] {
                let got = product(way, threads, limits, to, a, b);
                wanted.compare(&format!("{name} {way:?}"), &got);
            }
        }
    });
}

/// Whatever the number of threads, and however much is done at a time.
#[test]
fn threads_change_nothing() {
    let cases = [
        (2, LIMITS),
        (3, LIMITS),
        (5, LIMITS),
        (1, SMALL),
        (2, SMALL),
        (5, SMALL),
        (3, Limits { near: 1, ..SMALL }),
        (2, Limits { packed: 1, ..SMALL }),
    ];
    for ([m, k, n], (fa, fb)) in [
        ([70, 1030, 60], (Form::Rows, Form::Columns)),
        ([300, 550, 12], (Form::Columns, Form::Rows)),
        ([9, 530, 500], (Form::Rows, Form::Rows)),
    ] {
        let (a, b) = (Operand::new(m, k, fa, 1), Operand::new(k, n, fb, 2));
        for way in ways(true).into_iter().chain(ways(false)) {
            let to = (n, Into::Add);
            let want = bits(&product(way, 1, &LIMITS, to, a.view(), b.view()));
            for (threads, limits) in cases {
                let got = product(way, threads, &limits, to, a.view(), b.view());
                assert!(bits(&got) == want, "{way:?} [{m} {k} {n}] {threads} threads, {limits:?}");
            }
        }
    }
}

/// What the public call does on every instruction set.
#[test]
fn the_call_takes_a_way_that_the_machine_has() {
    let (a, b) = (Operand::new(37, 90, Form::Rows, 1), Operand::new(90, 50, Form::Columns, 2));
    let sets = Isa::available().into_iter().flat_map(|isa| [isa, isa.with_emulated_tiles()]);
    for isa in sets {
        for (precision, into) in [(Precision::Full, Into::Overwrite), (Precision::Bf16, Into::Add)] {
            let mut c = values(37 * 50, 3);
            gemm(isa, &Pool::new(2), precision, &mut c, into, a.view(), b.view());
            let name = format!("{isa} {precision:?}");
            Wanted::new((50, into), a.view(), b.view(), precision == Precision::Bf16).compare(&name, &c);
        }
    }
}

/// In f64, and rounded operands summed in f64.
#[test]
fn doubles_are_multiplied_too() {
    let (a, b) = (Operand::new(70, 300, Form::Columns, 1), Operand::new(300, 41, Form::Strided, 2));
    let wide = |x: &Operand| x.data.iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
    let (wide_a, wide_b) = (wide(&a), wide(&b));
    let (a, b) = (a.view_of(&wide_a), b.view_of(&wide_b));
    for isa in Isa::available() {
        for (precision, into) in [(Precision::Full, Into::Overwrite), (Precision::Bf16, Into::Add)] {
            let mut c = vec![0.25; 70 * 41];
            gemm(isa, &Pool::new(2), precision, &mut c, into, a, b);
            let number = |x: f64| if precision == Precision::Bf16 { rounded(x) } else { x };
            for (at, c) in c.iter().enumerate() {
                let products = (0..300).map(|k| number(a.at(at / 41, k)) * number(b.at(k, at % 41)));
                let want = products.sum::<f64>() + if into == Into::Add { 0.25 } else { 0.0 };
                assert!((c - want).abs() < 1e-12, "{isa} {precision:?} {at}");
            }
        }
    }
}

/// Rounding to bf16 is to the nearest, ties to even; infinity and NaN go through, and what is overwritten does not.
#[test]
fn extremes_are_what_they_should_be() {
    let some = |at: usize| match at {
        0 => (f32::INFINITY, f32::INFINITY),
        1 => (f32::from_bits(0x7f80_0001), f32::NAN),
        2 => (-f32::from_bits(0x7fff_ffff), f32::NAN),
        3 => (f32::MAX, f32::INFINITY),
        4 => (1.0 + 0.5 / 128.0, 1.0),
        5 => (1.0 + 1.5 / 128.0, 1.0 + 2.0 / 128.0),
        6 => (-1.0 - 0.51 / 128.0, -1.0 - 1.0 / 128.0),
        _ => (0.5, 0.5),
    };
    let (column, want): (Vec<f32>, Vec<f32>) = (0..40).map(some).unzip();
    for (isa, way) in ways(true).into_iter().chain(ways(false)) {
        if way == (Way::Numbers { rounded: false }) {
            continue;
        }
        // Down the rows, across the columns, and along the inner dimension with zeros but for one.
        let rows = |a: View<'_, f32>, b: View<'_, f32>| {
            let mut c = vec![f32::NAN; a.rows * b.columns];
            let operands = Operands { c_row: b.columns, c: &mut c, into: Into::Overwrite, a, b };
            way.run(isa, &Pool::new(1), operands, &LIMITS);
            bits(&c)
        };
        let one = View::new(&[1.0], 1, 1);
        let x = View::new(&column, 40, 1);
        assert!(rows(x, one) == bits(&want), "{isa} {way:?}");
        assert!(rows(one, x.transposed()) == bits(&want), "{isa} {way:?}");
        let wide: Vec<f32> = column.iter().flat_map(|&x| [[x; 1].as_slice(), &[0.0; 34]].concat()).collect();
        let ones = vec![1.0; 35];
        assert!(rows(View::new(&wide, 40, 35), View::new(&ones, 35, 1)) == bits(&want), "{isa} {way:?}");
        let turned = View::new(&wide, 40, 35).transposed();
        assert!(rows(View::new(&ones, 1, 35), turned) == bits(&want), "{isa} {way:?}");
    }
}

#[test]
fn nothing_to_add_up() {
    for (m, k, n) in [(0, 3, 4), (3, 0, 4), (3, 4, 0)] {
        for (into, want) in [(Into::Overwrite, 0.0), (Into::Add, 7.0)] {
            let (a, b, mut c) = (vec![1.0f32; m * k], vec![1.0; k * n], vec![7.0; m * n]);
            let (a, b) = (View::new(&a, m, k), View::new(&b, k, n));
            gemm(Isa::best(), &Pool::new(1), Precision::Full, &mut c, into, a, b);
            assert_eq!(c, vec![want; m * n]);
        }
    }
}

#[test]
fn views_are_parts_of_matrices() {
    let data: Vec<f32> = (0..12).map(|n| n as f32).collect();
    let x = View::new(&data, 3, 4);
    assert_eq!((x.shape(), x.at(1, 2)), ([3, 4], 6.0));
    let part = x.columns(1..3).rows(1..3);
    assert_eq!((part.shape(), part.at(0, 0), part.at(1, 1)), ([2, 2], 5.0, 10.0));
    assert_eq!((part.transposed().shape(), part.transposed().at(1, 0)), ([2, 2], 6.0));
    assert_eq!((x.rows(3..3).shape(), x.columns(4..4).shape()), ([0, 4], [3, 0]));
    assert_eq!(View::strided(&data[..11], 3, 3, 4).at(2, 2), 10.0);
    for bad in [
        || View::new(&[1f32; 5], 2, 3),
        || View::strided(&[1f32; 9], 3, 3, 4),
        || View::strided(&[1f32; 9], 3, 3, 2),
        || View::new(&[1f32; 6], 2, 3).rows(1..3),
    ] {
        assert!(std::panic::catch_unwind(bad).is_err());
    }
}

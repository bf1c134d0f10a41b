use super::*;
use crate::testing::values;
use crate::tiles::{Beside, SIDE, Tile, Tiles, Totals, emulated::Emulated};

/// Rows of bf16.
fn rows(o: usize, i: usize, seed: u32) -> Vec<u8> {
    values(o * i, seed).iter().flat_map(|&v| half::bf16::from_f32(v).to_le_bytes()).collect()
}

/// Every way of this machine, and tiles by portable code.
fn ways() -> Vec<(Isa, Way)> {
    let mut ways = vec![(Isa::SCALAR, Way::Scalar), (Isa::SCALAR.with_emulated_tiles(), Way::Tiles)];
    for isa in Isa::available() {
        ways.extend((isa.level() != Level::Scalar).then_some((isa, Way::Numbers)));
        ways.extend(isa.has_pairs().then_some((isa, Way::Pairs)));
        ways.extend(isa.has_tiles().then_some((isa, Way::Tiles)));
    }
    ways
}

fn run(isa: Isa, way: Way, pool: &Pool, x: &[f32], w: &Panels) -> Vec<f32> {
    let mut y = vec![f32::NAN; x.len() / w.inputs * w.outputs];
    let mut a = Tokens::default();
    pool.run_all(&[a.of_way(isa, way, x, w.inputs)]);
    pool.run_all(&[product_by(way, isa, &mut y, w, &a, Then::Nothing)]);
    y
}

const SHAPES: [(usize, usize, usize); 9] = [
    (1, 200, 256),
    (2, 37, 100),
    (3, 64, 4100),
    (5, 96, 33),
    (12, 1, 1),
    (16, 130, 512),
    (17, 65, 700),
    (40, 20, 2080),
    (131, 70, 64),
];

/// Whatever multiplies gives the bits of the scalar meaning; tiles those of their own.
#[test]
fn ways_agree_to_the_bit() {
    let pools = [Pool::new(1), Pool::new(3)];
    for (t, o, i) in SHAPES {
        let x = values(t * i, 3);
        let w = Panels::pack(&pools[1], &rows(o, i, 2), o, i, 0.5);
        let want = run(Isa::SCALAR, Way::Scalar, &pools[0], &x, &w);
        let of_tiles = run(Isa::SCALAR.with_emulated_tiles(), Way::Tiles, &pools[0], &x, &w);
        for (isa, way) in ways() {
            let want = if way == Way::Tiles { &of_tiles } else { &want };
            for pool in &pools {
                assert_eq!(run(isa, way, pool, &x, &w), *want, "{isa} {way:?} {t} {o} {i}");
            }
            for (s, x) in x.chunks_exact(i).enumerate() {
                let alone = run(isa, way, &pools[0], x, &w);
                assert_eq!(alone, want[s * o..(s + 1) * o], "{isa} {way:?} token {s} of {t}");
            }
        }
    }
}

/// As many tokens as a group can have and some more, each a loop of its own.
#[test]
fn every_number_of_tokens() {
    let (o, i, pool) = (70, 320, Pool::new(1));
    let w = Panels::pack(&pool, &rows(o, i, 5), o, i, 1.0);
    for t in 1..=20 {
        let x = values(t * i, 3);
        let want = run(Isa::SCALAR, Way::Scalar, &pool, &x, &w);
        for (isa, way) in ways().into_iter().filter(|(_, way)| *way != Way::Tiles) {
            assert_eq!(run(isa, way, &pool, &x, &w), want, "{isa} {way:?} {t}");
        }
    }
}

/// Plain sums in f64 of rounded numbers, and what follows.
#[test]
fn near_the_plain_sum() {
    let pool = Pool::new(2);
    let rounded = |x: f32| f64::from(half::bf16::from_f32(x).to_f32());
    for (t, o, i) in SHAPES {
        let (x, bytes, add) = (values(t * i, 3), rows(o, i, 2), values(t * o, 9));
        let (w, numbers) = (Panels::pack(&pool, &bytes, o, i, 0.5), values(o * i, 2));
        for isa in Isa::available() {
            let mut a = Tokens::default();
            let mut y = [vec![f32::NAN; t * o], vec![f32::NAN; t * o], vec![f32::NAN; t * o]];
            linear(isa, &pool, &mut y[0], &x, &w, &mut a);
            for (y, then) in y[1..].iter_mut().zip([Then::Add(&add), Then::ReluSquared]) {
                pool.run_all(&[product(isa, y, &w, &a, then)]);
            }
            for (n, y0) in y[0].iter().enumerate() {
                let (x, w) = (&x[n / o * i..][..i], &numbers[n % o * i..][..i]);
                let want = 0.5 * x.iter().zip(w).map(|(&x, &w)| rounded(x) * rounded(w)).sum::<f64>();
                assert!((f64::from(*y0) - want).abs() < 1e-6 * i as f64 + 1e-6, "{isa} {t} {o} {i}");
                assert_eq!(y[1][n], y0 + add[n]);
                assert_eq!(y[2][n], y0.max(0.0) * y0.max(0.0));
            }
        }
    }
}

/// What is packed is what comes back; bytes made before are taken, too few are not.
#[test]
fn packed_and_unpacked() {
    let pool = Pool::new(1);
    for (o, i) in [(1, 1), (33, 31), (64, 100), (5, 64), (0, 7), (7, 0)] {
        let rows = rows(o, i, 4);
        let w = Panels::pack(&pool, &rows, o, i, 1.0);
        assert_eq!(w.unpack(), rows);
        assert_eq!(w.bytes(), bytes_for(o, i).unwrap());
        let bytes = w.store().bytes()[..w.bytes()].to_vec();
        let lent = |bytes: Vec<u8>| Panels::packed(Arc::new(Store::lent(bytes)), o, i, 1.0);
        assert_eq!(lent(bytes.clone()).unwrap().unpack(), rows);
        if let Some(fewer) = bytes.len().checked_sub(1) {
            assert!(lent(bytes[..fewer].to_vec()).is_none());
        }
    }
    assert_eq!(bytes_for(usize::MAX, 64), None);
    // Nothing to multiply: zeros.
    let mut y = [1.0; 3];
    let w = Panels::pack(&pool, &[], 3, 0, 1.0);
    assert!(product(Isa::SCALAR, &mut y, &w, &Tokens::default(), Then::Nothing).is_none());
    assert_eq!(y, [0.0; 3]);
    // No tokens are no work.
    let w = Panels::pack(&pool, &rows(40, 8, 1), 40, 8, 1.0);
    for (isa, way) in ways() {
        assert!(run(isa, way, &pool, &[], &w).is_empty());
    }
}

/// Lent bytes that begin anywhere and are more than enough; activations in room that was used before, for more tokens and
/// another way.
#[test]
fn lent_bytes_and_used_room() {
    let pool = Pool::new(1);
    let (o, i, t) = (40, 100, 5);
    let (x, own) = (values(t * i, 3), Panels::pack(&pool, &rows(o, i, 4), o, i, 1.0));
    let mut bytes = vec![7; 3];
    bytes.extend(&own.store().bytes()[..own.bytes()]);
    bytes.extend([9; 5]);
    struct Later(Vec<u8>);
    impl AsRef<[u8]> for Later {
        fn as_ref(&self) -> &[u8] {
            &self.0[3..]
        }
    }
    let lent = Store::lent(Later(bytes));
    let lent = Panels::packed(Arc::new(lent), o, i, 1.0).unwrap();
    let mut a = Tokens::default();
    for (isa, way) in ways().into_iter().chain(ways().into_iter().rev()) {
        pool.run_all(&[a.of_way(isa, way, &values(37 * 300, 8), 300)]);
        pool.run_all(&[a.of_way(isa, way, &x, i)]);
        let mut y = vec![f32::NAN; t * o];
        pool.run_all(&[product_by(way, isa, &mut y, &lent, &a, Then::Nothing)]);
        assert_eq!(y, run(isa, way, &pool, &x, &own), "{isa} {way:?}");
    }
    // What fills up the last block is looked for.
    let bytes = own.store().bytes()[..own.bytes()].to_vec();
    assert!(is_filled_with_zeros(&bytes, i));
    for (k, pair) in [(100, 50), (101, 50), (127, 63)] {
        let mut bytes = bytes.clone();
        bytes[pair / 16 * BLOCK_BYTES + place(39 % ROWS, pair % 16) + k % 2 * 2] = 1;
        assert!(!is_filled_with_zeros(&bytes, i), "{k}");
        assert!(is_filled_with_zeros(&bytes, k + 1), "{k}");
    }
}

/// NaN and infinity show; what becomes of a number is its own output's affair.
#[test]
fn damage_shows() {
    let pool = Pool::new(1);
    let (o, i) = (40, 64);
    let w = Panels::pack(&pool, &rows(o, i, 4), o, i, 1.0);
    for (isa, way) in ways() {
        let mut x = values(3 * i, 3);
        (x[5], x[i + 5]) = (f32::NAN, f32::INFINITY);
        let y = run(isa, way, &pool, &x, &w);
        assert!(y[..o].iter().all(|y| y.is_nan()), "{isa} {way:?}");
        assert!(y[o..2 * o].iter().all(|y| !y.is_finite()), "{isa} {way:?}");
        assert_eq!(y[2 * o..], run(isa, way, &pool, &x[2 * i..], &w), "{isa} {way:?}");
    }
}

/// Tiles beside each other are the tiles of two runs.
#[test]
fn tiles_beside_each_other() {
    let tile = |seed: u32| -> Tile {
        let numbers = values(512, seed).into_iter().flat_map(|v| half::bf16::from_f32(v).to_le_bytes());
        let bytes: Vec<u8> = numbers.collect();
        Tile(std::array::from_fn(|r| std::array::from_fn(|c| bytes[64 * r + c])))
    };
    let run = |from: u32| (from..from + 3).map(tile).collect::<Vec<_>>();
    let (x, w) = ([run(0), run(10)], [run(20), run(30)]);
    let beside = |a: &Tile, b: &Tile| -> Beside { std::array::from_fn(|r| [a.0[r], b.0[r]]) };
    let both: Vec<_> = w[0].iter().zip(&w[1]).map(|(a, b)| beside(a, b)).collect();
    let (mut each, mut once) = ([[Totals([[1.0; SIDE]; SIDE]); 2]; 2], [[Totals([[1.0; SIDE]; SIDE]); 2]; 2]);
    let x = [&x[0][..], &x[1]];
    Emulated.bf16(&mut each, x, [&w[0], &w[1]], 1);
    Emulated.bf16_beside(&mut once, x, &both);
    assert!(each.as_flattened().iter().zip(once.as_flattened()).all(|(a, b)| a.0 == b.0));
    #[cfg(target_arch = "x86_64")]
    if let Some(isa) = Isa::new(Level::Amx) {
        let mut machine = [[Totals([[1.0; SIDE]; SIDE]); 2]; 2];
        crate::tiles::amx::Configured::new(isa).bf16_beside(&mut machine, x, &both);
        assert!(each.as_flattened().iter().zip(machine.as_flattened()).all(|(a, b)| a.0 == b.0));
    }
}

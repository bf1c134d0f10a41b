//! The tree against a plain list of what was put into it, and its records against damage.

use super::files::FileStore;
use super::store::{StateCodec, Store, name};
use super::*;
use hawfinch_model::Rng;

/// States that are numbers.
pub(crate) struct Number;

impl StateCodec<u64> for Number {
    fn encode(&self, state: &u64) -> Vec<u8> {
        state.to_le_bytes().to_vec()
    }
    fn decode(&self, bytes: &[u8]) -> Option<u64> {
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    }
}

fn snapshot(state: u64, logits: usize) -> Arc<Snapshot<u64>> {
    Arc::new(Snapshot { state, logits: vec![state as f32; logits] })
}

/// What the tree must find: the longest of the list that the text begins with.
fn longest(list: &[(Vec<u32>, u64, bool)], text: &[u32]) -> Option<(usize, u64)> {
    let fits = |t: &Vec<u32>, logits: bool| text.starts_with(t) && (logits || t.len() < text.len());
    list.iter().filter(|(t, _, logits)| fits(t, *logits)).map(|(t, s, _)| (t.len(), *s)).max()
}

#[test]
fn it_finds_what_a_plain_list_finds() {
    let root: Arc<str> = "root".into();
    for seed in 0..40 {
        let mut rng = Rng::new(seed);
        let mut tree = StateTree::new(8, usize::MAX, false);
        let mut list: Vec<(Vec<u32>, u64, bool)> = Vec::new();
        let text = |rng: &mut Rng, list: &[(Vec<u32>, u64, bool)]| {
            // Often the beginning of a known one.
            let mut text = match list.len() {
                0 => Vec::new(),
                n => list[(rng.next_u64() % n as u64) as usize].0.clone(),
            };
            text.truncate((rng.next_u64() % 12) as usize);
            (0..rng.next_u64() % 6).for_each(|_| text.push((rng.next_u64() % 3) as u32));
            text
        };
        for state in 0..120 {
            let t = text(&mut rng, &list);
            match rng.next_u64() % 4 {
                0 if !list.is_empty() => {
                    let at = (rng.next_u64() % list.len() as u64) as usize;
                    let (t, ..) = list.swap_remove(at);
                    tree.remove(&root, &t);
                }
                1 | 2 => {
                    let logits = rng.next_u64().is_multiple_of(2);
                    match list.iter_mut().find(|(u, ..)| *u == t) {
                        // Replaced only by one that has logits, where it has none.
                        Some((_, _, there)) if *there || !logits => {}
                        Some(entry) => *entry = (t.clone(), state, true),
                        None => list.push((t.clone(), state, logits)),
                    }
                    tree.insert(&root, &t, snapshot(state, usize::from(logits)));
                }
                _ => {}
            }
            let asked = text(&mut rng, &list);
            let got = tree.find(&root, &asked);
            let found = match &got.found {
                Found::Memory(s) => Some((got.at, s.state)),
                _ => None,
            };
            assert_eq!(found, longest(&list, &asked), "seed {seed}, {asked:?} in {list:?}");
            assert!(matches!(tree.find("another root", &asked).found, Found::Nothing));
            assert!(got.known >= got.at);
        }
        list.drain(..).for_each(|(t, ..)| tree.remove(&root, &t));
        assert_eq!((tree.bytes(), tree.len(), tree.free.len()), (0, [0, 0], tree.nodes.len()), "seed {seed}");
    }
}

#[test]
fn memory_stays_within_the_budget_and_the_oldest_leaves() {
    let root: Arc<str> = "root".into();
    let mut tree = StateTree::new(100, 350, true);
    let text = |n: u32| vec![1, 2, n];
    for n in 0..3 {
        assert!(tree.insert(&root, &text(n), snapshot(u64::from(n), 0)).is_empty());
    }
    tree.find(&root, &[1, 2, 0, 9]);
    let evicted = tree.insert(&root, &text(3), snapshot(3, 0));
    assert_eq!((evicted.len(), &evicted[0].tokens), (1, &text(1)), "0 was used since");
    assert!(tree.bytes() <= 350);
    assert!(matches!(tree.find(&root, &[1, 2, 1, 9]).found, Found::Stored));
    // What was written already need not be written again.
    tree.insert(&root, &text(1), snapshot(1, 0));
    let unsaved: Vec<u32> = std::iter::from_fn(|| tree.next_unsaved(|_| true)).map(|e| e.tokens[2]).collect();
    assert_eq!(unsaved, [3, 0]);
    assert!(tree.insert(&root, &text(7), snapshot(7, 0)).is_empty());
    assert_eq!(tree.len(), [3, 2]);
}

#[test]
fn files_come_back_and_damaged_ones_do_not() {
    let folder = tempfile::tempdir().unwrap();
    let open = || FileStore::open(folder.path(), Arc::new(Number), 1 << 20).unwrap();
    let texts: Vec<Vec<u32>> = (0..5).map(|n| (0..=n * 7).collect()).collect();
    {
        let (store, found) = open();
        assert!(found.is_empty());
        for (i, t) in texts.iter().enumerate() {
            store.put("root", t, &snapshot(i as u64, i)).unwrap();
        }
    }
    std::fs::write(folder.path().join("half.part"), b"hawfinch").unwrap();
    std::fs::write(folder.path().join("other.state"), b"hawfinch-state-1 and nothing else").unwrap();
    let (store, found) = open();
    assert_eq!(found.len(), 5);
    assert!(!folder.path().join("half.part").exists());
    for (i, t) in texts.iter().enumerate() {
        assert_eq!(store.get("root", t).unwrap().unwrap(), *snapshot(i as u64, i));
        assert_eq!(store.get("another", t).unwrap(), None);
    }
    assert_eq!(store.longest("root", &(0..20).collect::<Vec<_>>(), 2).unwrap(), Some(15));
    // Every byte counts; a record under another's name is none.
    let names: Vec<String> = texts.iter().map(|t| name("root", t)).collect();
    let file = |n: &str| folder.path().join(n).with_extension("state");
    let whole = std::fs::read(file(&names[2])).unwrap();
    for at in 0..whole.len() {
        let mut bad = whole.clone();
        bad[at] ^= 1;
        std::fs::write(file(&names[2]), &bad).unwrap();
        let (store, _) = open();
        assert_eq!(store.get("root", &texts[2]).unwrap(), None, "byte {at}");
    }
    std::fs::write(file(&names[2]), std::fs::read(file(&names[3])).unwrap()).unwrap();
    let (store, found) = open();
    assert_eq!((found.len(), store.get("root", &texts[2]).unwrap()), (4, None));
    std::fs::write(file(&names[2]), &whole[..whole.len() - 1]).unwrap();
    assert_eq!(open().1.len(), 4);
}

#[test]
fn a_folder_stays_within_its_budget() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = FileStore::open(folder.path(), Arc::new(Number), 500).unwrap();
    for n in 0..20u32 {
        store.put("root", &[n, 1, 2], &snapshot(u64::from(n), 0)).unwrap();
        assert!(store.get("root", &[0, 1, 2]).unwrap().is_some(), "it is used all the time");
    }
    assert!(store.bytes() <= 500 && store.get("root", &[19, 1, 2]).unwrap().is_some());
    assert!(store.get("root", &[2, 1, 2]).unwrap().is_none());
    let there: u64 =
        std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
    assert_eq!(there, store.bytes());
}

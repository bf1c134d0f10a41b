//! The store that several servers share, with a real Redis where there is one (Debian: `apt-get install redis-server`).
#![cfg(feature = "redis")]

use hawfinch_engine::tree::Snapshot;
use hawfinch_engine::tree::store::{StateCodec, Store};
use hawfinch_server::redis_store::RedisStore;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

struct Number;

impl StateCodec<u64> for Number {
    fn encode(&self, state: &u64) -> Vec<u8> {
        state.to_le_bytes().to_vec()
    }
    fn decode(&self, bytes: &[u8]) -> Option<u64> {
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    }
}

struct Redis(Child);

impl Redis {
    fn start(port: u16, folder: &std::path::Path) -> Option<Self> {
        let mut command = Command::new("redis-server");
        command.args([
            "--port",
            &port.to_string(),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--requirepass",
            "secret",
        ]);
        let child = command.current_dir(folder).stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()?;
        let until = Instant::now() + Duration::from_secs(10);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < until, "redis-server did not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(Redis(child))
    }

    fn signal(&self, name: &str) {
        assert!(Command::new("kill").args([name, &self.0.id().to_string()]).status().unwrap().success());
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(15);
    while !done() {
        assert!(Instant::now() < end, "{what} did not come");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn what_one_keeps_the_other_finds_also_after_redis_was_gone_or_frozen() {
    let folder = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let Some(redis) = Redis::start(port, folder.path()) else {
        eprintln!("skipped: there is no redis-server here");
        return;
    };
    let url = format!("redis://:secret@127.0.0.1:{port}/2");
    let open = || RedisStore::open(&url, Arc::new(Number)).unwrap();
    let (one, other) = (open(), open());
    assert!(one.is_up() && other.is_up());
    let text: Vec<u32> = (0..3000).collect();
    let snapshot = Snapshot { state: 77, logits: vec![0.5; 10] };
    assert_eq!(other.longest("root", &text, 0), Ok(None));
    one.put("root", &text[..1200], &snapshot).unwrap();
    one.put("root", &text[..40], &snapshot).unwrap();
    assert_eq!(other.longest("root", &text, 0), Ok(Some(1200)));
    assert_eq!(other.longest("root", &text, 1200), Ok(None));
    assert_eq!(other.longest("root", &text[..1000], 3), Ok(Some(40)));
    assert_eq!(other.longest("another", &text, 0), Ok(None));
    assert_eq!(other.get("root", &text[..1200]), Ok(Some(snapshot.clone())));
    assert_eq!(other.get("root", &text[..1201]), Ok(None));
    // Frozen: nobody waits for long, and it is told once.
    redis.signal("-STOP");
    let began = Instant::now();
    assert!(other.longest("root", &text, 0).unwrap_err().contains("cannot be used"));
    for _ in 0..100 {
        assert_eq!(other.longest("root", &text, 0), Ok(None));
    }
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    redis.signal("-CONT");
    until("the connection", || other.longest("root", &text, 0) == Ok(Some(1200)));
    // Gone and back, empty.
    drop(redis);
    let _ = one.put("root", &text[..9], &snapshot);
    assert_eq!(one.put("root", &text[..9], &snapshot).map(|g| g.len()), Ok(0));
    let _redis = Redis::start(port, folder.path()).unwrap();
    until("the connection", || one.is_up());
    until("the state", || {
        one.put("root", &text[..9], &snapshot).unwrap_or_default();
        other.longest("root", &text, 0) == Ok(Some(9))
    });
    assert!(RedisStore::<u64>::open("http://x", Arc::new(Number)).is_err());
}

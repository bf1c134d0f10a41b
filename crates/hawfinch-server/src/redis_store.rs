//! States in Redis, for servers that share their conversations: whichever of them is asked goes on where another stopped.
//!
//! A record is what the state tree's folder has too, under the hash of its root and tokens; who reads it compares both. While
//! Redis cannot be reached, nothing is found there and nothing is kept; it is tried again some seconds later.

use hawfinch_engine::tree::Snapshot;
use hawfinch_engine::tree::store::{Label, StateCodec, Store, name, names, read, record};
use redis::{Client, Connection, IntoConnectionInfo, RedisResult};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

/// How long Redis keeps a state that nobody asks for.
const KEPT: u64 = 7 * 24 * 3600;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(1);
/// When it is tried again.
const AGAIN: Duration = Duration::from_secs(2);
/// How long the first connection is waited for when a server starts.
const FIRST: Duration = Duration::from_secs(2);
/// Lengths of a text that are asked for at once, the longest first.
const AT_ONCE: usize = 512;
/// Lengths that are asked for in all: a text is found again by what was added to it last.
const LENGTHS: usize = 8192;
/// The number of the first key that is there; 0 when none is. One answer, which one wait is enough for.
const FIND: &str =
    "for i, key in ipairs(KEYS) do if redis.call('EXISTS', key) == 1 then return i end end return 0";

/// Connections: one for those who ask before they compute, one for the thread that writes, so that neither waits for the other.
#[derive(Default)]
struct Links {
    asking: Mutex<Option<Connection>>,
    writing: Mutex<Option<Connection>>,
    /// Both work. While not, a thread of its own tries again; nobody else waits for what may never come.
    up: AtomicBool,
}

/// A Redis server.
pub struct RedisStore<S> {
    codec: Arc<dyn StateCodec<S>>,
    links: Arc<Links>,
}

impl<S> std::fmt::Debug for RedisStore<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisStore").finish_non_exhaustive()
    }
}

fn key(name: &str) -> String {
    format!("hawfinch:state:{name}")
}

fn put_in(link: &Mutex<Option<Connection>>, connection: Connection) {
    *link.lock().unwrap_or_else(PoisonError::into_inner) = Some(connection);
}

/// Connects whenever there is no connection, until nobody has the store any more.
fn keep_up(client: &Client, links: &Weak<Links>) {
    let connect = || -> RedisResult<Connection> {
        let connection = client.get_connection_with_timeout(PATIENCE)?;
        connection.set_read_timeout(Some(PATIENCE))?;
        connection.set_write_timeout(Some(PATIENCE))?;
        Ok(connection)
    };
    while let Some(links) = links.upgrade() {
        if !links.up.load(Ordering::Acquire)
            && let (Ok(asking), Ok(writing)) = (connect(), connect())
        {
            put_in(&links.asking, asking);
            put_in(&links.writing, writing);
            links.up.store(true, Ordering::Release);
        }
        drop(links);
        std::thread::sleep(AGAIN);
    }
}

impl<S> RedisStore<S> {
    /// At `redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE]`. It need not be there yet.
    ///
    /// # Errors
    /// The address is none.
    pub fn open(url: &str, codec: Arc<dyn StateCodec<S>>) -> Result<Self, String> {
        // The words of the parser might repeat a password.
        let wrong = |_| "the address must be redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE]".to_owned();
        let info = url.into_connection_info().map_err(wrong)?;
        let settings = info.redis_settings().clone().set_skip_set_lib_name();
        let client = Client::open(info.set_redis_settings(settings)).map_err(wrong)?;
        let links: Arc<Links> = Arc::default();
        let weak = Arc::downgrade(&links);
        let thread = std::thread::Builder::new().name("redis".into());
        thread
            .spawn(move || keep_up(&client, &weak))
            .map_err(|e| format!("there is no thread for it: {e}"))?;
        let until = Instant::now() + FIRST;
        while !links.up.load(Ordering::Acquire) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(Self { codec, links })
    }

    /// Whether it can be reached now.
    pub fn is_up(&self) -> bool {
        self.links.up.load(Ordering::Acquire)
    }

    /// Does something with a connection; `None` while there is none.
    fn with<T>(
        &self,
        link: &Mutex<Option<Connection>>,
        work: impl FnOnce(&mut Connection) -> RedisResult<T>,
    ) -> Result<Option<T>, String> {
        if !self.is_up() {
            return Ok(None);
        }
        let mut link = link.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(mut connection) = link.take().filter(|_| self.is_up()) else { return Ok(None) };
        match work(&mut connection) {
            Ok(done) => {
                *link = Some(connection);
                Ok(Some(done))
            }
            Err(e) => {
                // Told once; the connection, on which an answer may still come, is dropped.
                match self.links.up.swap(false, Ordering::AcqRel) {
                    true => Err(format!("the shared store of states cannot be used: {e}")),
                    false => Ok(None),
                }
            }
        }
    }
}

impl<S> Store<S> for RedisStore<S> {
    fn put(&self, root: &str, tokens: &[u32], snapshot: &Snapshot<S>) -> Result<Vec<Label>, String> {
        let bytes = record(&*self.codec, root, tokens, snapshot);
        let key = key(&name(root, tokens));
        self.with(&self.links.writing, |c| redis::cmd("SET").arg(key).arg(bytes).arg("EX").arg(KEPT).exec(c))
            .map(|_| Vec::new())
    }

    fn get(&self, root: &str, tokens: &[u32]) -> Result<Option<Snapshot<S>>, String> {
        let key = key(&name(root, tokens));
        let bytes = self.with(&self.links.asking, |c| {
            // Asked for, it is kept on.
            redis::cmd("GETEX").arg(key).arg("EX").arg(KEPT).query::<Option<Vec<u8>>>(c)
        })?;
        Ok(bytes.flatten().and_then(|bytes| read(&*self.codec, &bytes, root, tokens)))
    }

    fn longest(&self, root: &str, tokens: &[u32], above: usize) -> Result<Option<usize>, String> {
        let names = names(root, tokens, above.max(tokens.len().saturating_sub(LENGTHS)));
        for part in names.chunks(AT_ONCE) {
            let mut find = redis::cmd("EVAL");
            find.arg(FIND).arg(part.len());
            part.iter().for_each(|(_, name)| {
                find.arg(key(name));
            });
            match self.with(&self.links.asking, |c| find.query::<usize>(c))? {
                None => return Ok(None),
                Some(0) => {}
                Some(n) => return Ok(part.get(n - 1).map(|(len, _)| *len)),
            }
        }
        Ok(None)
    }
}

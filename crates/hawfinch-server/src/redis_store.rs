//! States in Redis, for servers that share their conversations: whichever of them is asked goes on where another stopped.
//!
//! A record is what the state tree's folder has too, under the hash of its root and tokens; who reads it compares both. While
//! Redis cannot be reached, nothing is found there and nothing is kept; it is tried again some seconds later.

use hawfinch_engine::tree::Snapshot;
use hawfinch_engine::tree::store::{Label, StateCodec, Store, name, names, read, record};
use redis::{Client, Connection, ConnectionLike, RedisResult};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long Redis keeps a state that nobody asks for.
const KEPT: u64 = 7 * 24 * 3600;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// When it is tried again.
const AGAIN: Duration = Duration::from_secs(3);
/// Lengths of a text that are asked for at once, the longest first.
const AT_ONCE: usize = 512;
/// Lengths that are asked for in all: a text is found again by what was added to it last.
const LENGTHS: usize = 8192;

/// The connection, or since when there is none.
#[derive(Default)]
struct Link {
    connection: Option<Connection>,
    failed: Option<Instant>,
}

/// A Redis server.
pub struct RedisStore<S> {
    client: Client,
    codec: Arc<dyn StateCodec<S>>,
    link: Mutex<Link>,
}

impl<S> std::fmt::Debug for RedisStore<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Its address may hold a password.
        f.debug_struct("RedisStore").finish_non_exhaustive()
    }
}

fn key(name: &str) -> String {
    format!("hawfinch:state:{name}")
}

impl<S> RedisStore<S> {
    /// At `redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE]`. It need not be there yet.
    ///
    /// # Errors
    /// The address is none.
    pub fn open(url: &str, codec: Arc<dyn StateCodec<S>>) -> Result<Self, String> {
        // The words of the parser might repeat a password.
        let wrong = |_| "the address must be redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE]".to_owned();
        let client = Client::open(url).map_err(wrong)?;
        Ok(Self { client, codec, link: Mutex::default() })
    }

    /// Does something with the connection; `None` while there is none.
    fn with<T>(&self, work: impl FnOnce(&mut Connection) -> RedisResult<T>) -> Result<Option<T>, String> {
        let mut link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        if link.failed.is_some_and(|since| since.elapsed() < AGAIN) {
            return Ok(None);
        }
        let was_gone = link.failed.is_some();
        let connect = || -> RedisResult<Connection> {
            let connection = self.client.get_connection_with_timeout(PATIENCE)?;
            connection.set_read_timeout(Some(PATIENCE))?;
            connection.set_write_timeout(Some(PATIENCE))?;
            Ok(connection)
        };
        let result = match link.connection.take() {
            Some(connection) => Ok(connection),
            None => connect(),
        };
        let result = result.and_then(|mut connection| {
            let done = work(&mut connection);
            Ok((connection, done?))
        });
        match result {
            Ok((connection, done)) => {
                link.failed = None;
                link.connection = Some(connection).filter(ConnectionLike::is_open);
                Ok(Some(done))
            }
            Err(e) => {
                link.failed = Some(Instant::now());
                // Once is enough to be told.
                if was_gone {
                    Ok(None)
                } else {
                    Err(format!("the shared store of states cannot be used: {e}"))
                }
            }
        }
    }
}

impl<S> Store<S> for RedisStore<S> {
    fn put(&self, root: &str, tokens: &[u32], snapshot: &Snapshot<S>) -> Result<Vec<Label>, String> {
        let bytes = record(&*self.codec, root, tokens, snapshot);
        let key = key(&name(root, tokens));
        self.with(|c| redis::cmd("SET").arg(key).arg(bytes).arg("EX").arg(KEPT).exec(c)).map(|_| Vec::new())
    }

    fn get(&self, root: &str, tokens: &[u32]) -> Result<Option<Snapshot<S>>, String> {
        let key = key(&name(root, tokens));
        let bytes = self.with(|c| {
            // Asked for, it is kept on.
            redis::cmd("GETEX").arg(key).arg("EX").arg(KEPT).query::<Option<Vec<u8>>>(c)
        })?;
        Ok(bytes.flatten().and_then(|bytes| read(&*self.codec, &bytes, root, tokens)))
    }

    fn longest(&self, root: &str, tokens: &[u32], above: usize) -> Result<Option<usize>, String> {
        let names = names(root, tokens, above.max(tokens.len().saturating_sub(LENGTHS)));
        for part in names.chunks(AT_ONCE) {
            let mut pipe = redis::pipe();
            part.iter().for_each(|(_, name)| {
                pipe.exists(key(name));
            });
            let Some(there) = self.with(|c| pipe.query::<Vec<bool>>(c))? else { return Ok(None) };
            if let Some(at) = there.iter().position(|t| *t) {
                return Ok(Some(part[at].0));
            }
        }
        Ok(None)
    }
}

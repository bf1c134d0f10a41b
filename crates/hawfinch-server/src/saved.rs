//! States that somebody saved under an id: each a state file of hawfinch's own form, which every command opens, with the
//! tokens that led to it in its metadata.

use crate::error::{ApiError, ApiResult};
use crate::hosted::now;
use axum::http::StatusCode;
use hawfinch_model::{Adapter, Model, Rng, State, format};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Metadata keys of our own.
const TOKENS: &str = "hawfinch.saved.tokens";
const NAME: &str = "hawfinch.saved.name";
const CREATED: &str = "hawfinch.saved.created";
const BASE: &str = "hawfinch.saved.model";
const COMPUTED: &str = "hawfinch.saved.computed";

/// What is told of a saved state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SavedState {
    /// How requests call it.
    pub id: String,
    /// Always `state`.
    pub object: String,
    /// The model, or model and adapter, that it belongs to.
    pub model: String,
    /// A name for people.
    pub name: Option<String>,
    /// Tokens that led to it.
    pub tokens: u64,
    /// Bytes of its file.
    pub bytes: u64,
    /// When it was saved, in seconds since 1970.
    pub created: u64,
}

/// A saved state, read.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// What is told of it.
    pub about: SavedState,
    /// The state.
    pub state: Arc<State>,
    /// The tokens that led to it, where they are known and lead to it here, too: not if it came from elsewhere, or was computed
    /// otherwise than by what asks for it (with weights of other precision).
    pub tokens: Option<Vec<u32>>,
}

/// What a state belongs to.
#[derive(Debug, Clone, Copy)]
pub struct Owner<'a> {
    /// What it is called.
    pub model: &'a str,
    /// Its identity, which state files name.
    pub identity: &'a str,
    /// The root of its texts in the state tree: its identity, and how it is computed.
    pub root: &'a str,
}

/// A folder of saved states of one model. What lies there is looked at each time: several servers may share it.
#[derive(Debug)]
pub struct SavedStates {
    folder: Option<PathBuf>,
    /// Bytes that all of them may take.
    limit: u64,
}

/// An id that may be a file's name; nothing else reaches the folder.
fn checked(id: &str) -> ApiResult<&str> {
    let rest = id.strip_prefix("state-").unwrap_or_default();
    if rest.len() == 16 && rest.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(id);
    }
    Err(none(id))
}

fn none(id: &str) -> ApiError {
    let shown: String = id.chars().take(60).collect();
    ApiError::missing(format!("there is no saved state `{}`", shown.escape_debug()), "state_not_found")
}

impl SavedStates {
    /// None, and nowhere to save any.
    pub fn nowhere() -> Self {
        Self { folder: None, limit: 0 }
    }

    /// Those of a folder, made if need be, which may take `limit` bytes together. What was half taken in when a server ended is
    /// removed.
    ///
    /// # Errors
    /// The folder cannot be made or read.
    pub fn open(folder: &Path, limit: u64) -> std::io::Result<Self> {
        fs::create_dir_all(folder)?;
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "part") {
                let _ = fs::remove_file(path);
            }
        }
        Ok(Self { folder: Some(folder.into()), limit })
    }

    fn folder(&self) -> ApiResult<&Path> {
        let message = "this server keeps no states: start it with --state-dir FOLDER";
        self.folder.as_deref().ok_or_else(|| ApiError::new(StatusCode::NOT_IMPLEMENTED, message))
    }

    /// Whether there is room for one more: else 507. (Two that are saved in the same moment may both find the last place.)
    fn check_room(&self, state: &State) -> ApiResult<()> {
        let files = fs::read_dir(self.folder()?).into_iter().flatten().flatten();
        // Not what is just being taken in: it becomes the one that is asked about.
        let saved = files.filter(|f| f.path().extension().is_some_and(|e| e == "safetensors"));
        let used: u64 = saved.filter_map(|f| Some(f.metadata().ok()?.len())).sum();
        let own = size_of_val(state.data()) as u64;
        if used + own <= self.limit {
            return Ok(());
        }
        let mb = |bytes: u64| bytes.div_ceil(1 << 20);
        Err(no_room(&format_args!(
            "saved states take {} of the {} MB that they may take (--saved-disk), and this one needs {}: delete some",
            mb(used),
            mb(self.limit),
            mb(own)
        )))
    }

    fn path(&self, id: &str) -> ApiResult<PathBuf> {
        Ok(self.folder()?.join(checked(id)?).with_extension("safetensors"))
    }

    /// All of them, the newest first. Files that are no saved states are not among them.
    pub fn list(&self) -> Vec<SavedState> {
        let Some(folder) = &self.folder else { return Vec::new() };
        let files = fs::read_dir(folder).into_iter().flatten().flatten();
        let ids = files.filter_map(|f| {
            let path = f.path();
            let stem = path.file_stem()?.to_str()?.to_owned();
            (path.extension()? == "safetensors" && checked(&stem).is_ok()).then_some(stem)
        });
        let mut all: Vec<SavedState> = ids.filter_map(|id| self.get(&id).ok()).collect();
        all.sort_by(|a, b| b.created.cmp(&a.created).then(a.id.cmp(&b.id)));
        all
    }

    /// What is told of one.
    ///
    /// # Errors
    /// 404.
    pub fn get(&self, id: &str) -> ApiResult<SavedState> {
        checked(id)?;
        let path = self.path(id).map_err(|_| none(id))?;
        read_about(&path, id).ok_or_else(|| none(id))
    }

    /// Saves a state; when this returns it is on the disk.
    ///
    /// # Errors
    /// No folder; no room; what the system says.
    pub fn save(
        &self,
        hosted: &Model,
        of: Owner<'_>,
        name: Option<&str>,
        state: &State,
        tokens: Option<&[u32]>,
    ) -> ApiResult<SavedState> {
        let id = format!("state-{:016x}", Rng::new(Rng::fresh_seed()).next_u64());
        let path = self.path(&id)?;
        self.check_room(state)?;
        let created = now();
        let mut more = vec![(CREATED, created.to_string()), (BASE, of.model.to_owned())];
        if let Some(name) = name {
            more.push((NAME, name.to_owned()));
        }
        if let Some(tokens) = tokens {
            let list: Vec<String> = tokens.iter().map(u32::to_string).collect();
            more.push((TOKENS, list.join(" ")));
            more.push((COMPUTED, of.root.to_owned()));
        }
        let failed = |e: &dyn std::fmt::Display| no_room(e);
        state.save_with(&path, hosted.config().version, of.identity, None, &more).map_err(|e| failed(&e))?;
        // The name is in the folder for good, too.
        let synced = fs::File::open(&path).and_then(|f| f.sync_all());
        let synced = synced.and_then(|()| {
            fs::File::open(self.folder().unwrap_or(Path::new("."))).and_then(|f| f.sync_all())
        });
        if let Err(e) = synced {
            let _ = fs::remove_file(&path);
            return Err(failed(&e));
        }
        read_about(&path, &id).ok_or_else(|| failed(&"it cannot be read back"))
    }

    /// Reads one.
    ///
    /// # Errors
    /// 404; a damaged file; a state of another model.
    pub fn load(&self, model: &Model, adapter: Option<&Adapter>, root: &str, id: &str) -> ApiResult<Loaded> {
        let about = self.get(id)?;
        let path = self.path(id)?;
        let file = format::open_state(&path).map_err(|e| ApiError::internal(e.to_string()))?;
        let state = model.state_with(&file, adapter).map_err(|e| ApiError {
            code: Some("wrong_model"),
            ..ApiError::field("state", format!("the saved state does not fit this model: {e}"))
        })?;
        let same = file.metadata.get(COMPUTED).is_some_and(|r| r == root);
        let tokens = file.metadata.get(TOKENS).filter(|_| same).map(|list| numbers(list)).transpose()?;
        Ok(Loaded { about, state: Arc::new(state), tokens })
    }

    /// Whether states can be saved at all.
    ///
    /// # Errors
    /// 501.
    pub fn check(&self) -> ApiResult<()> {
        self.folder().map(|_| ())
    }

    /// The file of one.
    ///
    /// # Errors
    /// 404; what the system says.
    pub fn export(&self, id: &str) -> ApiResult<Vec<u8>> {
        self.get(id)?;
        fs::read(self.path(id)?).map_err(|e| ApiError::internal(format!("the state cannot be read: {e}")))
    }

    /// Takes in a state file of any kind that hawfinch reads.
    ///
    /// # Errors
    /// 400: no state, a state of another model.
    pub fn import(
        &self,
        hosted: &Model,
        adapter: Option<&Adapter>,
        of: Owner<'_>,
        name: Option<&str>,
        bytes: &[u8],
    ) -> ApiResult<SavedState> {
        let incoming = self.folder()?.join(format!("incoming-{:016x}.part", Rng::fresh_seed()));
        let taken = || -> ApiResult<SavedState> {
            fs::write(&incoming, bytes).map_err(|e| no_room(&e))?;
            // Its path is ours: what is wrong is told without it.
            let shown = incoming.display().to_string();
            let wrong = |e: String| ApiError::bad(e.replace(&shown, "the file"));
            let file = format::open_state(&incoming).map_err(|e| wrong(e.to_string()))?;
            let state = hosted.state_with(&file, adapter).map_err(|e| wrong(e.to_string()))?;
            // Which tokens led to it is what its sender says: it begins texts of its own, and is never taken for another's.
            self.save(hosted, of, name, &state, None)
        };
        let result = taken();
        let _ = fs::remove_file(&incoming);
        result
    }

    /// Deletes one.
    ///
    /// # Errors
    /// 404; what the system says.
    pub fn delete(&self, id: &str) -> ApiResult<()> {
        self.get(id)?;
        match fs::remove_file(self.path(id)?) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(ApiError::internal(format!("the state cannot be deleted: {e}")))
            }
            _ => Ok(()),
        }
    }
}

/// 507: it cannot be written.
fn no_room(e: &dyn std::fmt::Display) -> ApiError {
    let message = format!("the state could not be saved: {e}");
    ApiError { code: Some("storage_error"), ..ApiError::new(StatusCode::INSUFFICIENT_STORAGE, message) }
}

fn numbers(list: &str) -> ApiResult<Vec<u32>> {
    let parse = |n: &str| n.parse().map_err(|_| ApiError::bad("the file's list of tokens is damaged"));
    list.split_ascii_whitespace().map(parse).collect()
}

fn read_about(path: &Path, id: &str) -> Option<SavedState> {
    let file = format::open_state(path).ok()?;
    let meta = |key: &str| file.metadata.get(key);
    Some(SavedState {
        id: id.into(),
        object: "state".into(),
        model: meta(BASE)?.clone(),
        name: meta(NAME).cloned(),
        tokens: meta(hawfinch_model::metadata::TOKENS)?.parse().ok()?,
        bytes: fs::metadata(path).ok()?.len(),
        created: meta(CREATED)?.parse().ok()?,
    })
}

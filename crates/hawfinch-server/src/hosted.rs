//! The models that a server has, each with its scheduler, state tree, adapters, tuned states and saved states.

use crate::error::{ApiError, ApiResult};
use crate::saved::SavedStates;
use hawfinch_engine::schedule::{Base, Limits, Scheduler, Turns};
use hawfinch_engine::tree::cache::StateCache;
use hawfinch_engine::{Grammars, Template, Uncounted};
use hawfinch_model::{Adapter, Lora, Model, Output, Rows, Sequence, State, format};
use hawfinch_tokenizer::Tokenizer;
use indexmap::IndexMap;
use std::path::Path;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

/// A model as it is handed to the server.
pub struct Opened {
    /// What requests call it.
    pub name: String,
    /// It.
    pub model: Arc<Model>,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Its chat template.
    pub template: Template,
    /// Where its states are kept.
    pub cache: StateCache<State>,
    /// Its saved states.
    pub saved: SavedStates,
}

/// Opens a model for [`Models::load`]: from a path or name, with the name that requests shall call it by.
pub type Opener = dyn Fn(&Path, Option<&str>) -> Result<Opened, String> + Send + Sync;

/// What a name beside a model's own stands for.
#[derive(Clone)]
pub enum Variant {
    /// The model with a LoRA.
    Adapter(Arc<Adapter>),
    /// The model beginning at a tuned state.
    State(Arc<State>),
}

/// A model that runs.
pub struct Hosted {
    /// What requests call it.
    pub name: String,
    /// It.
    pub model: Arc<Model>,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Its chat template.
    pub template: Template,
    /// When it was loaded, in seconds since 1970.
    pub created: u64,
    /// Its scheduler.
    pub scheduler: Scheduler<Model>,
    /// Its saved states.
    pub saved: SavedStates,
    /// Tokens that penalties do not count.
    pub uncounted: Uncounted,
    /// Names all that results of the plain model depend on.
    pub root: Arc<str>,
    grammars: OnceLock<Result<Grammars, hawfinch_engine::Error>>,
    variants: RwLock<IndexMap<String, (Variant, Base<Model>)>>,
}

/// A model with what a request chose beside it.
#[derive(Clone)]
pub struct Chosen {
    /// The model.
    pub hosted: Arc<Hosted>,
    /// The whole name.
    pub id: String,
    /// Where texts begin.
    pub base: Base<Model>,
}

impl Hosted {
    /// Compiles grammars for it; made at the first use.
    pub fn grammars(&self) -> ApiResult<&Grammars> {
        let made = self.grammars.get_or_init(|| Grammars::new(&self.tokenizer, self.model.config().vocab));
        made.as_ref().map_err(|e| e.clone().into())
    }

    /// The base of the plain model.
    fn base(&self) -> Base<Model> {
        Base { root: self.root.clone(), state: None, adapter: None }
    }

    /// Names and kinds of its variants.
    pub fn variants(&self) -> Vec<(String, Variant)> {
        let variants = self.variants.read().unwrap_or_else(PoisonError::into_inner);
        variants.iter().map(|(name, (v, _))| (name.clone(), v.clone())).collect()
    }

    /// Adds a LoRA or a tuned state under `name`.
    ///
    /// # Errors
    /// In words: neither of these, made for another model, a name that is taken or cannot be one.
    pub fn add_variant(&self, name: &str, path: &Path) -> Result<(), String> {
        valid_name(name)?;
        let file = format::open(path).map_err(|e| e.to_string())?;
        let is_lora = file.tensors.keys().any(|k| k.contains(".lora_A"));
        let variant = if is_lora {
            let lora = Lora::from_checkpoint(file, None).map_err(|e| e.to_string())?;
            Variant::Adapter(Arc::new(self.model.adapter(&lora).map_err(|e| e.to_string())?))
        } else {
            let file = format::open_state(path).map_err(|e| e.to_string())?;
            Variant::State(Arc::new(self.model.state_from(&file).map_err(|e| e.to_string())?))
        };
        let base = match &variant {
            Variant::Adapter(adapter) => {
                let root = root_of(&self.model, Some(adapter))?;
                Base { root: root.into(), state: None, adapter: Some(adapter.clone()) }
            }
            Variant::State(state) => {
                Base { root: state_root(&self.root, state).into(), state: Some(state.clone()), adapter: None }
            }
        };
        let mut variants = self.variants.write().unwrap_or_else(PoisonError::into_inner);
        if variants.contains_key(name) {
            return Err(format!("{} has an adapter or state called `{name}` already", self.name));
        }
        variants.insert(name.into(), (variant, base));
        Ok(())
    }

    /// Takes a variant away; requests that run with it go on.
    pub fn remove_variant(&self, name: &str) -> bool {
        let mut variants = self.variants.write().unwrap_or_else(PoisonError::into_inner);
        variants.shift_remove(name).is_some()
    }
}

/// Tokens whose results tell computations apart.
const PROBE: u32 = 24;

/// The root of a model's texts: its identity, and a fingerprint of what it makes of some tokens. The identity is that of the
/// weights before they were quantised; how they are computed with shows in the results.
fn root_of(model: &Model, adapter: Option<&Adapter>) -> Result<String, String> {
    let identity = model.identity_with(adapter, None).map_err(|e| e.to_string())?;
    let vocab = model.config().vocab as u32;
    let tokens: Vec<u32> = (0..PROBE).map(|i| (i * 7919 + 1) % vocab).collect();
    let mut state = model.new_state();
    let mut outputs = [Output::default()];
    let call = Sequence { tokens: &tokens, state: &mut state, logits: Rows::Last, hidden: Rows::None };
    model.forward_adapted(&mut [call], &[adapter], &mut outputs).map_err(|e| e.to_string())?;
    // FNV-1a over the logits' bits: of the head, which the state does not show.
    let hash = |h: u64, v: &f32| (h ^ u64::from(v.to_bits())).wrapping_mul(0x0000_0100_0000_01b3);
    let logits = outputs[0].logits.iter().fold(0xcbf2_9ce4_8422_2325, hash);
    Ok(format!("{identity}+computed:{:.16}{logits:016x}", state.fingerprint()))
}

/// The root of texts that begin at a state of their own.
pub fn state_root(root: &str, state: &State) -> String {
    format!("{root}+state:{}", state.fingerprint())
}

/// A name that requests can say.
fn valid_name(name: &str) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "._-:/@".contains(c);
    if name.is_empty() || name.len() > 200 || !name.chars().all(fits) {
        return Err(format!(
            "`{}` cannot be a name: use letters, digits and . _ - : / @",
            name.escape_debug()
        ));
    }
    Ok(())
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// How long states may be written when a model goes.
const SAVING: std::time::Duration = std::time::Duration::from_secs(15);

/// All models of a server.
pub struct Models {
    models: RwLock<IndexMap<String, Arc<Hosted>>>,
    turns: Turns,
    limits: Limits,
    opener: Box<Opener>,
}

impl Models {
    /// None yet. `opener` is asked when one is loaded while the server runs.
    pub fn new(limits: Limits, opener: Box<Opener>) -> Self {
        Self { models: RwLock::default(), turns: Turns::default(), limits, opener }
    }

    /// The right to compute, which all models share.
    pub fn turns(&self) -> &Turns {
        &self.turns
    }

    /// Limits of each scheduler.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Takes a model in.
    ///
    /// # Errors
    /// In words: its name is taken or cannot be one; it has no state; the system gives no thread.
    pub fn add(&self, opened: Opened) -> Result<Arc<Hosted>, String> {
        let Opened { name, model, tokenizer, template, cache, saved } = opened;
        valid_name(&name)?;
        if self.all().iter().any(|h| h.name == name) {
            return Err(format!("there is a model called `{name}` already: give it another name"));
        }
        let root: Arc<str> = root_of(&model, None)?.into();
        let scheduler = Scheduler::start(
            model.clone(),
            tokenizer.clone(),
            Arc::new(cache),
            self.limits,
            self.turns.clone(),
        );
        let vocab = tokenizer.vocab_size();
        let hosted = Arc::new(Hosted {
            uncounted: Uncounted::from_texts(vocab, |id| tokenizer.token_bytes(id)),
            scheduler: scheduler.map_err(|e| format!("no thread for its scheduler: {e}"))?,
            created: now(),
            grammars: OnceLock::new(),
            variants: RwLock::default(),
            name: name.clone(),
            model,
            tokenizer,
            template: template.keeping_replies(),
            saved,
            root,
        });
        let mut models = self.models.write().unwrap_or_else(PoisonError::into_inner);
        if models.contains_key(&name) {
            return Err(format!("there is a model called `{name}` already: give it another name"));
        }
        models.insert(name, hosted.clone());
        Ok(hosted)
    }

    /// Opens a model and takes it in.
    ///
    /// # Errors
    /// What the opener or [`Models::add`] says.
    pub fn load(&self, path: &Path, name: Option<&str>) -> Result<Arc<Hosted>, String> {
        self.add((self.opener)(path, name)?)
    }

    /// Takes a model away; what runs on it is given a moment to end.
    pub fn unload(&self, name: &str) -> bool {
        let removed = {
            let mut models = self.models.write().unwrap_or_else(PoisonError::into_inner);
            models.shift_remove(name)
        };
        let Some(hosted) = removed else { return false };
        hosted.scheduler.close(std::time::Duration::from_secs(5));
        hosted.scheduler.cache().save_all(SAVING);
        true
    }

    /// All models, in the order they came.
    pub fn all(&self) -> Vec<Arc<Hosted>> {
        self.models.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// The model, or the first where none is named.
    ///
    /// # Errors
    /// 404.
    pub fn or_first(&self, id: Option<&str>) -> ApiResult<Chosen> {
        match id {
            Some(id) => self.find(id),
            None => {
                let first = self.all().into_iter().next();
                let hosted =
                    first.ok_or_else(|| ApiError::missing("no model is loaded", "model_not_found"))?;
                Ok(Chosen { id: hosted.name.clone(), base: hosted.base(), hosted })
            }
        }
    }

    /// The model, or model and adapter, of that name.
    ///
    /// # Errors
    /// 404.
    pub fn find(&self, id: &str) -> ApiResult<Chosen> {
        let models = self.models.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(hosted) = models.get(id) {
            return Ok(Chosen { id: id.into(), base: hosted.base(), hosted: hosted.clone() });
        }
        if let Some((model, variant)) = id.split_once('+')
            && let Some(hosted) = models.get(model)
        {
            let variants = hosted.variants.read().unwrap_or_else(PoisonError::into_inner);
            if let Some((_, base)) = variants.get(variant) {
                return Ok(Chosen { id: id.into(), base: base.clone(), hosted: hosted.clone() });
            }
        }
        let known: Vec<&str> = models.keys().map(String::as_str).collect();
        let shown: String = id.chars().take(100).collect();
        Err(ApiError {
            param: Some("model".into()),
            ..ApiError::missing(
                format!("there is no model `{}`: this server has {}", shown.escape_debug(), known.join(", ")),
                "model_not_found",
            )
        })
    }

    /// Stops all schedulers after `grace`, and writes what the state trees hold to their folders.
    pub fn close(&self, grace: std::time::Duration) {
        let all = self.all();
        // All are told at once: else the last would go on after the time of the others.
        std::thread::scope(|scope| {
            for hosted in &all {
                scope.spawn(|| hosted.scheduler.close(grace));
            }
        });
        all.iter().for_each(|hosted| hosted.scheduler.cache().save_all(SAVING));
    }
}

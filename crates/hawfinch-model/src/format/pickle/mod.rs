//! A machine for the few pickle instructions that `torch.save` writes for tensors. It builds numbers,
//! strings, tuples, lists, dictionaries and descriptions of tensors, and nothing else: it has no way to
//! call anything. Every other instruction or global name is refused by name.
//!
//! Values live in arenas and refer to each other by index, so hostile nesting costs no stack and each
//! byte of the pickle makes at most one small value.

mod machine;

use hawfinch_kernels::DType;
use machine::Machine;

/// Why a pickle was not read.
#[derive(Debug, PartialEq)]
pub(super) enum Stop {
    /// Breaks the pickle format.
    Damaged(String),
    /// Sound, but asks for something tensors never need.
    Refused(String),
}

type Result<T> = std::result::Result<T, Stop>;

fn damaged<T>(what: impl Into<String>) -> Result<T> {
    Err(Stop::Damaged(what.into()))
}

/// Longest pickle that is read: real ones take about 200 bytes a tensor.
pub(super) const MAX_PICKLE: usize = 4 << 20;

/// A value; compound ones are indices into the arenas of [`Pickle`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float,
    /// Start and length in the pickle.
    Str(u32, u32),
    Global(Global),
    Tuple(u32),
    List(u32),
    Dict(u32),
    Storage(u32),
    Tensor(u32),
    /// An object without meaning here (a device, a layout).
    Opaque,
}

/// The names a pickle may refer to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Global {
    RebuildTensor,
    RebuildTensorV3,
    RebuildParameter,
    RebuildFromType,
    OrderedDict,
    Size,
    /// A storage class; `None` for untyped storages.
    Storage(Option<DType>),
    /// `torch.float32` and its like.
    DType(DType),
    /// `torch.device`
    Device,
    /// `torch.Tensor`, `torch.nn.parameter.Parameter` as the type argument of a rebuild.
    TensorType,
}

fn global(module: &str, name: &str) -> Option<Global> {
    use DType::*;
    Some(match (module, name) {
        ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Global::RebuildTensor,
        ("torch._utils", "_rebuild_tensor_v3") => Global::RebuildTensorV3,
        ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => Global::RebuildParameter,
        ("torch._tensor", "_rebuild_from_type_v2") => Global::RebuildFromType,
        ("collections", "OrderedDict") => Global::OrderedDict,
        ("torch", "Size") => Global::Size,
        ("torch", "device") => Global::Device,
        ("torch", "Tensor") | ("torch.nn.parameter", "Parameter") => Global::TensorType,
        ("torch", "float64" | "double") => Global::DType(F64),
        ("torch", "float32" | "float") => Global::DType(F32),
        ("torch", "float16" | "half") => Global::DType(F16),
        ("torch", "bfloat16") => Global::DType(BF16),
        ("torch", "int64" | "long") => Global::DType(I64),
        ("torch", "int32" | "int") => Global::DType(I32),
        ("torch", "int16" | "short") => Global::DType(I16),
        ("torch", "int8") => Global::DType(I8),
        ("torch", "uint8") => Global::DType(U8),
        ("torch", "bool") => Global::DType(Bool),
        ("torch" | "torch.cuda" | "torch.storage", name) => Global::Storage(match name {
            "DoubleStorage" => Some(F64),
            "FloatStorage" => Some(F32),
            "HalfStorage" => Some(F16),
            "BFloat16Storage" => Some(BF16),
            "LongStorage" => Some(I64),
            "IntStorage" => Some(I32),
            "ShortStorage" => Some(I16),
            "CharStorage" => Some(I8),
            "ByteStorage" => Some(U8),
            "BoolStorage" => Some(Bool),
            "UntypedStorage" => None,
            _ => return None,
        }),
        _ => return None,
    })
}

/// A storage as a persistent id names it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Storage {
    /// `None` for untyped storages, whose `numel` counts bytes.
    pub dtype: Option<DType>,
    /// Name of the record, as a [`Value::Str`].
    pub key: (u32, u32),
    /// Elements.
    pub numel: u64,
}

/// A tensor as a view of a storage; sizes and strides not yet compared with the storage.
#[derive(Clone, Debug)]
pub(super) struct Tensor {
    pub storage: Storage,
    pub dtype: DType,
    pub offset: u64,
    pub shape: Vec<u64>,
    pub strides: Vec<u64>,
}

/// Most axes a tensor may have.
const MAX_AXES: usize = 16;

/// What a pickle held.
pub(super) struct Pickle<'a> {
    bytes: &'a [u8],
    tuples: Vec<Vec<Value>>,
    lists: Vec<Vec<Value>>,
    dicts: Vec<Vec<(Value, Value)>>,
    storages: Vec<Storage>,
    tensors: Vec<Tensor>,
    /// The object that the pickle returns.
    pub root: Value,
}

impl<'a> Pickle<'a> {
    /// Runs the pickle to its end.
    pub fn load(bytes: &'a [u8]) -> Result<Self> {
        if bytes.len() > MAX_PICKLE {
            return Err(Stop::Refused(format!(
                "its description of tensors takes {} bytes, far beyond any checkpoint (limit {MAX_PICKLE})",
                bytes.len()
            )));
        }
        let pickle = Pickle {
            bytes,
            tuples: vec![],
            lists: vec![],
            dicts: vec![],
            storages: vec![],
            tensors: vec![],
            root: Value::None,
        };
        Machine::new(pickle).run()
    }

    /// The text of a string value; `None` when it is not a string or not UTF-8.
    pub fn str(&self, v: Value) -> Option<&'a str> {
        match v {
            Value::Str(start, len) => {
                std::str::from_utf8(self.bytes.get(start as usize..start as usize + len as usize)?).ok()
            }
            _ => None,
        }
    }

    /// The pairs of a dictionary, in order.
    pub fn dict(&self, v: Value) -> Option<&[(Value, Value)]> {
        match v {
            Value::Dict(i) => self.dicts.get(i as usize).map(Vec::as_slice),
            _ => None,
        }
    }

    /// A tensor's description.
    pub fn tensor(&self, v: Value) -> Option<&Tensor> {
        match v {
            Value::Tensor(i) => self.tensors.get(i as usize),
            _ => None,
        }
    }

    fn tuple(&self, v: Value) -> Option<&[Value]> {
        match v {
            Value::Tuple(i) => self.tuples.get(i as usize).map(Vec::as_slice),
            _ => None,
        }
    }

    /// A tuple or list of non-negative integers.
    fn sizes(&self, v: Value) -> Option<Vec<u64>> {
        let items = match v {
            Value::List(i) => self.lists.get(i as usize)?.as_slice(),
            v => self.tuple(v)?,
        };
        if items.len() > MAX_AXES {
            return None;
        }
        items.iter().map(|&i| uint(i)).collect()
    }
}

fn uint(v: Value) -> Option<u64> {
    match v {
        Value::Int(i) => u64::try_from(i).ok(),
        _ => None,
    }
}

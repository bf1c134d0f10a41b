//! The instructions of the pickle machine. Values and what they mean are in the module above.

use std::collections::HashMap;

use hawfinch_kernels::DType;

use super::{Global, MAX_AXES, Pickle, Result, Stop, Storage, Tensor, Value, damaged, global, uint};

pub(super) struct Machine<'a> {
    pickle: Pickle<'a>,
    pos: usize,
    stack: Vec<Value>,
    /// Stack heights at each MARK.
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
}

/// Opcode → its name in Python's `pickletools`, for those that are refused.
fn opcode_name(op: u8) -> &'static str {
    match op {
        b'i' => "INST",
        b'o' => "OBJ",
        0x81 => "NEWOBJ",
        0x92 => "NEWOBJ_EX",
        b'P' => "PERSID",
        0x82..=0x84 => "EXT",
        0x8f => "EMPTY_SET",
        0x90 => "ADDITEMS",
        0x91 => "FROZENSET",
        0x96 => "BYTEARRAY8",
        0x97 => "NEXT_BUFFER",
        0x98 => "READONLY_BUFFER",
        b'I' => "INT",
        b'L' => "LONG",
        b'F' => "FLOAT",
        b'S' => "STRING",
        b'V' => "UNICODE",
        b'p' => "PUT",
        b'g' => "GET",
        b'd' => "DICT",
        b'l' => "LIST",
        b'2' => "DUP",
        _ => "unknown",
    }
}

impl<'a> Machine<'a> {
    pub fn new(pickle: Pickle<'a>) -> Self {
        Machine { pickle, pos: 0, stack: vec![], marks: vec![], memo: HashMap::new() }
    }

    /// Runs to the STOP instruction.
    pub fn run(mut self) -> Result<Pickle<'a>> {
        loop {
            let at = self.pos;
            let op = self.take(1)?[0];
            match op {
                0x80 => {
                    let version = self.u8()?;
                    if !(2..=5).contains(&version) {
                        return Err(Stop::Refused(format!(
                            "it is a pickle of protocol {version}, not 2 to 5"
                        )));
                    }
                }
                0x95 => drop(self.take(8)?), // FRAME
                b'.' => {
                    self.pickle.root = self.pop()?;
                    return Ok(self.pickle);
                }
                b'N' => self.push(Value::None),
                0x88 => self.push(Value::Bool(true)),
                0x89 => self.push(Value::Bool(false)),
                b'K' => {
                    let v = self.u8()?;
                    self.push(Value::Int(v.into()));
                }
                b'M' => {
                    let v = u16::from_le_bytes(self.array()?);
                    self.push(Value::Int(v.into()));
                }
                b'J' => {
                    let v = i32::from_le_bytes(self.array()?);
                    self.push(Value::Int(v.into()));
                }
                0x8a => {
                    let n = self.u8()?.into();
                    self.long(n)?;
                }
                0x8b => {
                    let n = self.len4()?;
                    self.long(n)?;
                }
                b'G' => {
                    self.take(8)?;
                    self.push(Value::Float);
                }
                b'X' | b'T' | b'B' => {
                    let n = self.len4()?;
                    self.string(n)?;
                }
                0x8c | b'U' | b'C' => {
                    let n = self.u8()?.into();
                    self.string(n)?;
                }
                0x8d | 0x8e => {
                    let n = u64::from_le_bytes(self.array()?);
                    self.string(usize::try_from(n).unwrap_or(usize::MAX))?;
                }
                b'}' => self.new_dict(),
                b']' => {
                    self.pickle.lists.push(vec![]);
                    self.push(Value::List(self.pickle.lists.len() as u32 - 1));
                }
                b')' => self.new_tuple(vec![]),
                b'(' => self.marks.push(self.stack.len()),
                b'0' => drop(self.pop()?),
                b'1' => drop(self.pop_mark()?),
                b't' => {
                    let items = self.pop_mark()?;
                    self.new_tuple(items);
                }
                0x85..=0x87 => {
                    let n = usize::from(op - 0x84);
                    let from = self.floor_checked(n)?;
                    let items = self.stack.split_off(from);
                    self.new_tuple(items);
                }
                b'a' => {
                    let item = self.pop()?;
                    self.extend_list(vec![item])?;
                }
                b'e' => {
                    let items = self.pop_mark()?;
                    self.extend_list(items)?;
                }
                b's' => {
                    let from = self.floor_checked(2)?;
                    let items = self.stack.split_off(from);
                    self.extend_dict(&items)?;
                }
                b'u' => {
                    let items = self.pop_mark()?;
                    self.extend_dict(&items)?;
                }
                b'q' => {
                    let i = self.u8()?;
                    self.put(i.into())?;
                }
                b'r' => {
                    let i = u32::from_le_bytes(self.array()?);
                    self.put(i)?;
                }
                0x94 => self.put(self.memo.len() as u32)?,
                b'h' => {
                    let i = self.u8()?;
                    self.get(i.into())?;
                }
                b'j' => {
                    let i = u32::from_le_bytes(self.array()?);
                    self.get(i)?;
                }
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.global(module, name)?;
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    match (self.pickle.str(module), self.pickle.str(name)) {
                        (Some(m), Some(n)) => self.global(m, n)?,
                        _ => {
                            return damaged(format!("byte {at} of its pickle names a global without a name"));
                        }
                    }
                }
                b'Q' => self.persistent_id(at)?,
                b'R' => self.reduce(at)?,
                b'b' => self.build(at)?,
                op => {
                    return Err(Stop::Refused(format!(
                        "its pickle uses the instruction {} (0x{op:02x}) at byte {at}, which tensors never \
                         need; hawfinch runs nothing that a file asks for",
                        opcode_name(op)
                    )));
                }
            }
        }
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        match self.pos.checked_add(n).and_then(|end| self.pickle.bytes.get(self.pos..end)) {
            Some(b) => {
                self.pos += n;
                Ok(b)
            }
            None => damaged(format!("its pickle ends in the middle of an instruction, at byte {}", self.pos)),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn u8(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }

    fn len4(&mut self) -> Result<usize> {
        Ok(u32::from_le_bytes(self.array()?) as usize)
    }

    /// A text line, without its end.
    fn line(&mut self) -> Result<&'a str> {
        let rest = &self.pickle.bytes[self.pos..];
        let Some(n) = rest.iter().take(512).position(|&b| b == b'\n') else {
            return damaged(format!("its pickle has an endless name at byte {}", self.pos));
        };
        self.pos += n + 1;
        match std::str::from_utf8(&rest[..n]) {
            Ok(s) => Ok(s),
            Err(_) => damaged(format!("its pickle has a name that is not text at byte {}", self.pos)),
        }
    }

    fn push(&mut self, v: Value) {
        self.stack.push(v);
    }

    /// Lowest stack height that may be popped to: values under a MARK belong to an outer one.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    /// The stack height after popping `n` values.
    fn floor_checked(&self, n: usize) -> Result<usize> {
        match self.stack.len().checked_sub(n) {
            Some(h) if h >= self.floor() => Ok(h),
            _ => damaged(format!("its pickle takes a value that is not there, at byte {}", self.pos)),
        }
    }

    fn pop(&mut self) -> Result<Value> {
        let h = self.floor_checked(1)?;
        let v = self.stack[h];
        self.stack.truncate(h);
        Ok(v)
    }

    fn pop_mark(&mut self) -> Result<Vec<Value>> {
        match self.marks.pop() {
            Some(h) if h <= self.stack.len() => Ok(self.stack.split_off(h)),
            _ => damaged(format!("its pickle closes a group that it never opened, at byte {}", self.pos)),
        }
    }

    fn long(&mut self, n: usize) -> Result<()> {
        let b = self.take(n)?;
        if n > 8 {
            // Beyond i64 nothing here has a meaning; optimiser states hold such numbers rarely.
            self.push(Value::Opaque);
            return Ok(());
        }
        let negative = b.last().is_some_and(|&b| b & 0x80 != 0);
        let mut raw = if negative { [0xff; 8] } else { [0; 8] };
        raw[..n].copy_from_slice(b);
        self.push(Value::Int(i64::from_le_bytes(raw)));
        Ok(())
    }

    fn string(&mut self, n: usize) -> Result<()> {
        let start = self.pos;
        self.take(n)?;
        // Both fit: the pickle is at most MAX_PICKLE long.
        self.push(Value::Str(start as u32, n as u32));
        Ok(())
    }

    fn new_dict(&mut self) {
        self.pickle.dicts.push(vec![]);
        self.push(Value::Dict(self.pickle.dicts.len() as u32 - 1));
    }

    fn new_tuple(&mut self, items: Vec<Value>) {
        self.pickle.tuples.push(items);
        self.push(Value::Tuple(self.pickle.tuples.len() as u32 - 1));
    }

    fn extend_list(&mut self, items: Vec<Value>) -> Result<()> {
        let top = self.floor_checked(1)?;
        match self.stack[top] {
            Value::List(i) => {
                self.pickle.lists[i as usize].extend(items);
                Ok(())
            }
            _ => damaged(format!("its pickle appends to what is no list, at byte {}", self.pos)),
        }
    }

    fn extend_dict(&mut self, items: &[Value]) -> Result<()> {
        let top = self.floor_checked(1)?;
        match self.stack[top] {
            Value::Dict(i) if items.len().is_multiple_of(2) => {
                self.pickle.dicts[i as usize].extend(items.chunks_exact(2).map(|p| (p[0], p[1])));
                Ok(())
            }
            _ => damaged(format!("its pickle sets a key of what is no dictionary, at byte {}", self.pos)),
        }
    }

    fn put(&mut self, i: u32) -> Result<()> {
        let top = self.floor_checked(1)?;
        self.memo.insert(i, self.stack[top]);
        Ok(())
    }

    fn get(&mut self, i: u32) -> Result<()> {
        match self.memo.get(&i) {
            Some(&v) => {
                self.push(v);
                Ok(())
            }
            None => damaged(format!("its pickle recalls entry {i}, which it never stored")),
        }
    }

    fn global(&mut self, module: &str, name: &str) -> Result<()> {
        match global(module, name) {
            Some(g) => {
                self.push(Value::Global(g));
                Ok(())
            }
            None => {
                let shown: String =
                    format!("{module}.{name}").chars().take(120).flat_map(char::escape_debug).collect();
                Err(Stop::Refused(format!(
                    "its pickle asks for `{shown}`, which is not part of a tensor; hawfinch runs no code from \
                     a file (if you trust it, load it with torch and save its state_dict again)"
                )))
            }
        }
    }

    /// `('storage', class, key, location, numel)`
    fn persistent_id(&mut self, at: usize) -> Result<()> {
        let id = self.pop()?;
        let storage = match self.pickle.tuple(id) {
            Some(&[tag, Value::Global(Global::Storage(dtype)), Value::Str(key, len), _, numel, ..])
                if self.pickle.str(tag) == Some("storage") =>
            {
                uint(numel).map(|numel| Storage { dtype, key: (key, len), numel })
            }
            _ => None,
        };
        let Some(storage) = storage else {
            return damaged(format!("byte {at} of its pickle refers to a storage in an unknown way"));
        };
        self.pickle.storages.push(storage);
        self.push(Value::Storage(self.pickle.storages.len() as u32 - 1));
        Ok(())
    }

    /// Calls one of the known functions, each of which only describes a value.
    fn reduce(&mut self, at: usize) -> Result<()> {
        let (args, callee) = (self.pop()?, self.pop()?);
        let (Value::Global(g), Some(args)) = (callee, self.pickle.tuple(args)) else {
            return Err(Stop::Refused(format!(
                "its pickle calls a value that is no tensor constructor, at byte {at}; hawfinch runs no code \
                 from a file"
            )));
        };
        let args: Vec<Value> = args.iter().copied().take(10).collect();
        let v = self.call(g, &args, at)?;
        self.push(v);
        Ok(())
    }

    fn call(&mut self, g: Global, args: &[Value], at: usize) -> Result<Value> {
        match (g, args) {
            (Global::OrderedDict, []) => {
                self.pickle.dicts.push(vec![]);
                Ok(Value::Dict(self.pickle.dicts.len() as u32 - 1))
            }
            (Global::Size, &[sizes @ (Value::Tuple(_) | Value::List(_))]) => Ok(sizes),
            (Global::Device, _) => Ok(Value::Opaque),
            (Global::RebuildTensor, &[storage, offset, shape, strides, ..]) => {
                self.tensor(storage, offset, shape, strides, None, at)
            }
            (
                Global::RebuildTensorV3,
                &[storage, offset, shape, strides, _, _, Value::Global(Global::DType(d)), ..],
            ) => self.tensor(storage, offset, shape, strides, Some(d), at),
            (Global::RebuildParameter, &[t @ Value::Tensor(_), ..]) => Ok(t),
            // (function, type, its arguments, state): the function must be one that makes a tensor, so
            // this goes one level deep.
            (
                Global::RebuildFromType,
                &[
                    Value::Global(
                        f @ (Global::RebuildTensor | Global::RebuildTensorV3 | Global::RebuildParameter),
                    ),
                    _,
                    inner,
                    ..,
                ],
            ) => match self.pickle.tuple(inner) {
                Some(inner) => {
                    let inner: Vec<Value> = inner.iter().copied().take(10).collect();
                    self.call(f, &inner, at)
                }
                None => damaged(format!("its pickle rebuilds a tensor from nothing, at byte {at}")),
            },
            (g, _) => Err(Stop::Refused(format!(
                "its pickle calls {g:?} with arguments that no tensor is made from, at byte {at}"
            ))),
        }
    }

    fn tensor(
        &mut self,
        storage: Value,
        offset: Value,
        shape: Value,
        strides: Value,
        dtype: Option<DType>,
        at: usize,
    ) -> Result<Value> {
        let storage = match storage {
            Value::Storage(i) => self.pickle.storages.get(i as usize).copied(),
            _ => None,
        };
        let (shape, strides) = (self.pickle.sizes(shape), self.pickle.sizes(strides));
        let (Some(storage), Some(offset), Some(shape), Some(strides)) =
            (storage, uint(offset), shape, strides)
        else {
            return damaged(format!(
                "the tensor at byte {at} of its pickle has a shape, stride or offset that is not a list of up \
                 to {MAX_AXES} non-negative numbers"
            ));
        };
        let Some(dtype) = storage.dtype.or(dtype) else {
            return damaged(format!("the tensor at byte {at} of its pickle has no number type"));
        };
        if shape.len() != strides.len() {
            return damaged(format!(
                "the tensor at byte {at} of its pickle has {} axes but {} strides",
                shape.len(),
                strides.len()
            ));
        }
        self.pickle.tensors.push(Tensor { storage, dtype, offset, shape, strides });
        Ok(Value::Tensor(self.pickle.tensors.len() as u32 - 1))
    }

    /// Attributes of an OrderedDict (`_metadata`) carry nothing for us; any other object is refused.
    fn build(&mut self, at: usize) -> Result<()> {
        self.pop()?;
        let top = self.floor_checked(1)?;
        match self.stack[top] {
            Value::Dict(_) | Value::Tensor(_) => Ok(()),
            _ => Err(Stop::Refused(format!(
                "its pickle sets the attributes of an unknown object at byte {at}; hawfinch reads tensors only"
            ))),
        }
    }
}

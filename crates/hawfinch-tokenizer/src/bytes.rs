//! Raw bytes as tokens, for byte-level models (vocabulary 256).

use crate::error::Result;

/// The tokenizer whose ids are the bytes themselves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bytes;

/// All single bytes, so that a token can be lent out.
static ALL: [u8; 256] = {
    let mut all = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        all[byte] = byte as u8;
        byte += 1;
    }
    all
};

impl Bytes {
    /// `bytes`.
    pub fn name(&self) -> &'static str {
        "bytes"
    }

    /// 256.
    pub fn vocab_size(&self) -> usize {
        256
    }

    /// One id a byte.
    pub fn encode(&self, text: &[u8]) -> Vec<u32> {
        text.iter().map(|&b| u32::from(b)).collect()
    }

    /// Appends one id a byte.
    pub fn encode_into(&self, text: &[u8], ids: &mut Vec<u32>) {
        ids.extend(text.iter().map(|&b| u32::from(b)));
    }

    /// The byte; `None` above 255.
    pub fn token_bytes(&self, id: u32) -> Option<&'static [u8]> {
        ALL.get(id as usize).map(std::slice::from_ref)
    }

    /// The bytes of a text's ids.
    ///
    /// # Errors
    /// [`crate::Error::UndefinedId`] for an id above 255.
    pub fn decode(&self, ids: &[u32]) -> Result<Vec<u8>> {
        crate::decode_with(ids, self.name(), 256, |id| self.token_bytes(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_bytes() {
        let all: Vec<u8> = (0..=255).collect();
        let ids: Vec<u32> = (0..256).collect();
        assert_eq!(Bytes.encode(&all), ids);
        assert_eq!(Bytes.decode(&ids).unwrap(), all);
        assert_eq!(Bytes.token_bytes(255), Some(&[255][..]));
        assert!(Bytes.decode(&[65, 256]).is_err());
    }
}

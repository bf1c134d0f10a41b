//! Made-up texts: the same seed gives the same words.

use crate::http::{Client, Server};
use serde_json::{Map, Value, json};

const WORDS: &str = "the of and to in is that for it as was with be by on not he his but at are this have from or had an they \
which one you were all her she there would their we him been has when who will no more if out so up said what its about than \
into them can only other time new some could these two may first then do any like my now over such our man me even most made \
after also well house river water light night mother world school family country state work life still never under place \
small great year day hand part child eye woman case week company system program question government number point home room";

/// A generator of random numbers (splitmix64); none of them matters much.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From `low` to `high`, both possible.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.number() % (high - low + 1)
    }

    /// So many words with spaces between.
    pub fn words(&mut self, n: u64) -> String {
        let all: Vec<&str> = WORDS.split_ascii_whitespace().collect();
        let words: Vec<&str> = (0..n).map(|_| all[self.number() as usize % all.len()]).collect();
        words.join(" ")
    }
}

/// A bias that leaves a model with random weights nothing but whole words to say. Its noise would be divided into other
/// tokens when it is sent back, and no state of it found again; a trained model writes tokens as texts are divided.
pub async fn only_words(server: &Server, model: &str) -> Result<Value, String> {
    let mut client = Client::new(server.clone());
    let mut bias = Map::new();
    for word in WORDS.split_ascii_whitespace() {
        let request = json!({"model": model, "prompt": format!(" {word}")});
        let answer = client.json("POST", "/tokenize", Some(&request)).await?;
        if let [id] = &answer["tokens"].as_array().map(Vec::as_slice).unwrap_or_default() {
            bias.insert(id.to_string(), json!(100));
        }
    }
    if bias.len() < 16 {
        return Err("--words: the model's vocabulary has too few of the words as tokens".into());
    }
    Ok(Value::Object(bias))
}

/// The name of the server's first model.
pub async fn first_model(server: &Server) -> Result<String, String> {
    let list = Client::new(server.clone()).json("GET", "/v1/models", None).await?;
    let name = list["data"][0]["id"].as_str();
    name.map(str::to_owned).ok_or_else(|| "the server has no model".into())
}

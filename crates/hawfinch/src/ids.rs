//! Token ids as people and programs write them: `1,2,3`, `1 2 3`, `[1, 2, 3]` or `{"ids": [1, 2, 3]}`.

use anyhow::{Context, bail};

/// Reads ids from a text in any of these forms.
pub fn parse(text: &str) -> anyhow::Result<Vec<u32>> {
    let trimmed = text.trim();
    if trimmed.starts_with(['{', '[']) {
        let json: serde_json::Value = serde_json::from_str(trimmed).context("the ids are not valid JSON")?;
        let list = match &json {
            serde_json::Value::Object(o) => o.get("ids").or_else(|| o.get("tokens")),
            other => Some(other),
        };
        let list = list.and_then(|l| l.as_array()).context("JSON of ids is a list or {\"ids\": [...]}")?;
        return list
            .iter()
            .map(|v| {
                v.as_u64().and_then(|v| u32::try_from(v).ok()).with_context(|| not_an_id(&v.to_string()))
            })
            .collect();
    }
    let parts = trimmed.split(|c: char| c == ',' || c.is_whitespace()).filter(|p| !p.is_empty());
    parts.map(|p| p.parse::<u32>().map_err(|_| anyhow::anyhow!(not_an_id(p)))).collect()
}

fn not_an_id(part: &str) -> String {
    format!("`{}` is not a token id: ids are whole numbers from 0 on", short(part))
}

/// What is wrong in a text, as a sentence can hold it.
fn short(part: &str) -> String {
    part.chars().take(40).flat_map(char::escape_debug).collect()
}

/// Lengths of pieces, as in `--split 3,1,4`: each at least 1, in all `total`.
pub fn parse_split(text: &str, total: usize) -> anyhow::Result<Vec<usize>> {
    let mut out = Vec::new();
    for part in text.split(',') {
        match part.trim().parse::<usize>() {
            Ok(n) if n > 0 => out.push(n),
            _ => bail!("--split takes lengths of at least 1, as in 3,1,4; `{}` is none", short(part.trim())),
        }
    }
    let sum = out.iter().try_fold(0usize, |a, &b| a.checked_add(b));
    match sum {
        Some(sum) if sum < total => out.push(total - sum),
        Some(sum) if sum == total => {}
        _ => bail!("the pieces of --split add up to more than the {total} ids given"),
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_reads_the_same() {
        for text in ["1,2,30", " 1 2\n30\n", "[1, 2, 30]", "{\"ids\": [1,2,30]}", "{\"tokens\":[1,2,30]}"] {
            assert_eq!(parse(text).unwrap(), [1, 2, 30], "{text}");
        }
        assert_eq!(parse("").unwrap(), Vec::<u32>::new());
        for text in ["1,x", "-1", "4294967296", "[1.5]", "[\"1\"]", "{\"id\": []}", "[1", "{}"] {
            parse(text).unwrap_err();
        }
    }

    #[test]
    fn splits_add_up() {
        assert_eq!(parse_split("3,1,4", 8).unwrap(), [3, 1, 4]);
        assert_eq!(parse_split("3,1", 8).unwrap(), [3, 1, 4]);
        for text in ["0,8", "8,", "a", "9", "18446744073709551615,9"] {
            parse_split(text, 8).unwrap_err();
        }
    }
}

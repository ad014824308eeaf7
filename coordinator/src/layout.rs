//! The keys of a run, relative to `runs/<run>/`, and how they are read back from a listing.

use crate::error::{Error, Result};

pub(crate) const CONFIG: &str = "config.toml";
pub(crate) const DATASET_DIGEST: &str = "dataset.digest";
pub(crate) const GENERATIONS: &str = "gen";
pub(crate) const CHECKPOINTS: &str = "ckpt";
const MANIFEST: &str = "MANIFEST.json";

/// `gen/<n>.json`.
pub(crate) fn generation(number: u64) -> String {
    format!("{GENERATIONS}/{number}.json")
}

/// The generation of a `gen/<n>.json` key; `None` for anything else.
pub(crate) fn parse_generation(key: &str) -> Option<u64> {
    number(key.strip_prefix(GENERATIONS)?.strip_prefix('/')?.strip_suffix(".json")?)
}

/// `ckpt/step-<n>`, the prefix of everything of one step.
pub(crate) fn step(step: u64) -> String {
    format!("{CHECKPOINTS}/step-{step}")
}

/// `ckpt/step-<n>/MANIFEST.json`.
pub(crate) fn manifest(of: u64) -> String {
    format!("{}/{MANIFEST}", step(of))
}

/// `ckpt/step-<n>/<attempt>/<name>`.
pub(crate) fn object(of: u64, attempt: &str, name: &str) -> String {
    format!("{}/{attempt}/{name}", step(of))
}

/// A key below `ckpt/`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum CheckpointKey<'a> {
    Manifest { step: u64 },
    Object { step: u64, attempt: &'a str },
}

/// Reads a key below `ckpt/`; `None` for anything this layout does not write.
pub(crate) fn parse_checkpoint(key: &str) -> Option<CheckpointKey<'_>> {
    let mut parts = key.split('/');
    let (CHECKPOINTS, folder) = (parts.next()?, parts.next()?) else { return None };
    let step = number(folder.strip_prefix("step-")?)?;
    match (parts.next()?, parts.next(), parts.next()) {
        (MANIFEST, None, None) => Some(CheckpointKey::Manifest { step }),
        (attempt, Some(_), None) => Some(CheckpointKey::Object { step, attempt }),
        _ => None,
    }
}

/// Refuses names that are not one plain path segment: letters, digits, `.`, `_` and `-`, not starting with a dot.
pub(crate) fn plain_name<'a>(what: &str, name: &'a str) -> Result<&'a str> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if !name.is_empty() && name.len() <= 100 && !name.starts_with('.') && name.chars().all(allowed) {
        return Ok(name);
    }
    Err(Error::input(
        format!("{name:?} cannot be the name of {what}"),
        "Use up to 100 letters, digits, dots, underscores and hyphens, and do not start with a dot",
    ))
}

/// A decimal number in its only spelling: `007` and `+7` are not keys that this layout writes.
fn number(text: &str) -> Option<u64> {
    let value: u64 = text.parse().ok()?;
    (value.to_string() == text).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_back_as_written() {
        assert_eq!(parse_generation(&generation(12)), Some(12));
        assert_eq!(parse_checkpoint(&manifest(300)), Some(CheckpointKey::Manifest { step: 300 }));
        let object = object(u64::MAX, "a1", "state.safetensors");
        assert_eq!(parse_checkpoint(&object), Some(CheckpointKey::Object { step: u64::MAX, attempt: "a1" }));
    }

    #[test]
    fn foreign_keys_are_ignored() {
        for key in
            ["ckpt/step-007/MANIFEST.json", "ckpt/step-+7/MANIFEST.json", "ckpt/step-7", "ckpt/notes.txt"]
        {
            assert_eq!(parse_checkpoint(key), None, "{key}");
        }
        for key in ["gen/01.json", "gen/1.json.bak", "gen/x.json"] {
            assert_eq!(parse_generation(key), None, "{key}");
        }
    }

    #[test]
    fn names_are_one_plain_segment() {
        assert!(plain_name("a run", "jrs-gan_a.1").is_ok());
        let long = "x".repeat(101);
        for name in ["", ".", "..", ".hidden", "a/b", "a\\b", "a b", "ä", "a#1", long.as_str()] {
            assert!(plain_name("a run", name).is_err(), "{name:?}");
        }
    }
}

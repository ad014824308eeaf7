//! Starting and continuing a run: a run keeps one config and one dataset for its whole life.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::error::{Error, Result};
use crate::layout::{CONFIG, DATASET_DIGEST};
use crate::objects::Created;
use crate::store::RunStore;

/// What the user asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// A new run; refuse a name that is taken.
    New,
    /// Continue; refuse if there is no such run.
    Resume,
    /// Continue if the run exists, else begin it: for a job that a scheduler may restart at any time.
    ResumeOrNew,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Started {
    /// The run did not exist before.
    New,
    /// The run existed, with this config and dataset.
    Resumed,
}

impl RunStore {
    /// Begins or continues the run. `config_toml` is the resolved config; comments and layout do not count when
    /// it is compared with the stored one. `dataset_digest` names the dataset's content.
    ///
    /// # Errors
    /// [`Error::RunExists`], [`Error::NoRun`], or [`Error::RunDiffers`] with every key that differs.
    pub fn start_run(&self, config_toml: &str, dataset_digest: &str, start: Start) -> Result<Started> {
        let given = Settings::new(config_toml, dataset_digest)?;
        let exists = self.objects.size(DATASET_DIGEST)?.is_some();
        match (start, exists) {
            (Start::New, true) => Err(self.taken()?),
            (Start::Resume, false) => Err(Error::NoRun { location: self.location().to_owned() }),
            (Start::Resume | Start::ResumeOrNew, true) => self.compare(&given).map(|()| Started::Resumed),
            (Start::New | Start::ResumeOrNew, false) => {
                self.begin(config_toml, dataset_digest, &given, start)
            }
        }
    }

    /// The config the run was started with, or `None` if it was not.
    ///
    /// # Errors
    /// If the store fails or the object is not text.
    pub fn config(&self) -> Result<Option<String>> {
        self.text(CONFIG)
    }

    /// The digest of the dataset the run was started with, or `None` if it was not.
    ///
    /// # Errors
    /// If the store fails or the object is not text.
    pub fn dataset_digest(&self) -> Result<Option<String>> {
        Ok(self.text(DATASET_DIGEST)?.map(|text| text.trim_end().to_owned()))
    }

    /// Both objects are create-only, so of two starters at most one writes each; a config without a digest is
    /// what a start that was interrupted leaves behind, and is completed if it is the same config.
    fn begin(&self, config: &str, digest: &str, given: &Settings, start: Start) -> Result<Started> {
        if self.objects.create(CONFIG, Bytes::from(config.to_owned()))? == Created::Exists {
            self.compare(given)?;
        }
        let created = self.objects.create(DATASET_DIGEST, Bytes::from(format!("{digest}\n")))?;
        self.compare(given)?;
        match (created, start) {
            (Created::Yes, _) => Ok(Started::New),
            (Created::Exists, Start::New) => Err(self.taken()?),
            (Created::Exists, _) => Ok(Started::Resumed),
        }
    }

    fn taken(&self) -> Result<Error> {
        let newest_step = self.checkpoint_steps()?.last().copied();
        Ok(Error::RunExists { location: self.location().to_owned(), newest_step })
    }

    fn compare(&self, given: &Settings) -> Result<()> {
        let config = self.config()?.unwrap_or_default();
        let stored =
            Settings::new(&config, &self.dataset_digest()?.unwrap_or_else(|| given.dataset.clone()))?;
        let differences = stored.differences(given);
        if differences.is_empty() {
            return Ok(());
        }
        Err(Error::RunDiffers { location: self.location().to_owned(), differences })
    }

    fn text(&self, key: &str) -> Result<Option<String>> {
        let Some(bytes) = self.objects.read(key)? else { return Ok(None) };
        String::from_utf8(bytes.to_vec()).map(Some).map_err(|_| {
            Error::location(
                format!("{}/{key}", self.location()),
                "this object is not text, so it is damaged",
                "Restore it from a backup, or start a new run under another name",
            )
        })
    }
}

/// A config as flat keys (`train.seed`) with their values in TOML.
struct Settings {
    keys: BTreeMap<String, String>,
    dataset: String,
}

impl Settings {
    fn new(config: &str, dataset: &str) -> Result<Self> {
        let table: toml::Table = config.parse().map_err(|source: toml::de::Error| {
            Error::input(
                format!("the run's config is not TOML: {}", source.message().trim_end()),
                "Correct its syntax",
            )
        })?;
        let mut keys = BTreeMap::new();
        flatten("", &toml::Value::Table(table), &mut keys);
        Ok(Self { keys, dataset: dataset.trim_end().to_owned() })
    }

    fn differences(&self, given: &Self) -> Vec<String> {
        let all: BTreeMap<&String, ()> =
            self.keys.keys().chain(given.keys.keys()).map(|key| (key, ())).collect();
        let mut differences: Vec<String> = all
            .into_keys()
            .filter_map(|key| describe(key, self.keys.get(key), given.keys.get(key)))
            .collect();
        differences.extend(describe("dataset digest", Some(&self.dataset), Some(&given.dataset)));
        differences
    }
}

fn describe(key: &str, stored: Option<&String>, given: Option<&String>) -> Option<String> {
    match (stored, given) {
        (Some(stored), Some(given)) if stored == given => None,
        (Some(stored), Some(given)) => Some(format!("{key} was {stored} and is now {given}")),
        (Some(stored), None) => Some(format!("{key} was {stored} and is now absent")),
        (None, Some(given)) => Some(format!("{key} was absent and is now {given}")),
        (None, None) => None,
    }
}

fn flatten(prefix: &str, value: &toml::Value, keys: &mut BTreeMap<String, String>) {
    let toml::Value::Table(table) = value else {
        keys.insert(prefix.to_owned(), value.to_string());
        return;
    };
    for (key, value) in table {
        let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        flatten(&path, value, keys);
    }
}

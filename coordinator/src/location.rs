//! From what the user wrote (a folder, a `file://` URL or a bucket URL) to a store and a prefix in it.

use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreScheme};
use url::Url;

use crate::cloud::{self, Kind};
use crate::error::{Error, Result};

/// A store that can be used, and where in it the runs are.
pub(crate) struct Location {
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) prefix: Path,
    /// The folder on this machine, if it is one.
    pub(crate) folder: Option<PathBuf>,
    /// How messages call it: an absolute path or the URL.
    pub(crate) name: String,
    /// Where its credentials come from, for messages; empty if it needs none.
    pub(crate) credentials: &'static str,
}

impl Location {
    /// Opens `text`: a folder (absolute or relative to the working directory) or a URL. A folder is made if
    /// `create` is set and must exist otherwise.
    pub(crate) fn parse(text: &str, create: bool) -> Result<Self> {
        let Some(url) = as_url(text)? else { return Self::folder(text, FilePath::new(text), create) };
        if url.scheme() == "file" {
            let path = url.to_file_path().map_err(|()| {
                Error::location(
                    text,
                    "this file URL does not name a folder on this machine",
                    "Write three slashes and an absolute path, as in file:///data/runs, or the plain path",
                )
            })?;
            return Self::folder(text, &path, create);
        }
        Self::remote(text, &url)
    }

    fn folder(text: &str, path: &FilePath, create: bool) -> Result<Self> {
        let unusable = |source: std::io::Error| {
            let action = if create { "created" } else { "opened" };
            Error::location(
                text,
                format!("the folder cannot be {action}: {source}"),
                "Name a folder that you may write to, or change its permissions",
            )
        };
        let path = std::path::absolute(path).map_err(unusable)?;
        if create {
            std::fs::create_dir_all(&path).map_err(unusable)?;
        }
        if !std::fs::metadata(&path).map_err(unusable)?.is_dir() {
            return Err(Error::location(text, "this is a file, not a folder", "Name a folder"));
        }
        // Without fsync a checkpoint survives the death of the process but not of the machine.
        let store = LocalFileSystem::new_with_prefix(&path)
            .map_err(|source| {
                Error::location(text, source.to_string(), "Name a folder that you may write to")
            })?
            .with_fsync(true);
        let name = path.display().to_string();
        Ok(Self { store: Arc::new(store), prefix: Path::ROOT, folder: Some(path), name, credentials: "" })
    }

    fn remote(text: &str, url: &Url) -> Result<Self> {
        let (scheme, prefix) = ObjectStoreScheme::parse(url).map_err(|source| {
            Error::location(
                text,
                format!("this URL is not understood: {source}"),
                "Use a folder, file:///folder, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix",
            )
        })?;
        let Some(Kind { variables, credentials, feature, built }) = cloud::kind(&scheme) else {
            return Err(Error::location(
                text,
                format!("a store of the kind {scheme:?} cannot hold runs"),
                "Use a folder, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix",
            ));
        };
        if !built {
            return Err(Error::location(
                text,
                format!("this program was built without the feature {feature:?}"),
                format!("Build it again with --features {feature}, or use a folder"),
            ));
        }
        let store = cloud::open(&scheme, url).map_err(|source| {
            Error::location(
                text,
                format!("the store cannot be opened: {source}"),
                format!("Check the URL and the environment variables that start with {variables}"),
            )
        })?;
        let name = text.trim_end_matches('/').to_owned();
        Ok(Self { store, prefix, folder: None, name, credentials })
    }
}

/// The URL in `text`, or `None` if it is a plain path (a Windows drive letter is no scheme).
fn as_url(text: &str) -> Result<Option<Url>> {
    if text.is_empty() {
        return Err(Error::input("the location of the runs is empty", "Name a folder or a bucket URL"));
    }
    let Some((scheme, rest)) = text.split_once(':') else { return Ok(None) };
    let is_scheme = scheme.len() > 1 && scheme.chars().all(|c| c.is_ascii_alphanumeric() || c == '+');
    if !is_scheme || !rest.starts_with('/') {
        return Ok(None);
    }
    Url::parse(text).map(Some).map_err(|source| {
        Error::location(text, format!("this is not a URL: {source}"), "Write it as in s3://bucket/prefix")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder_of(text: &str) -> PathBuf {
        Location::parse(text, true).unwrap().folder.unwrap()
    }

    #[test]
    fn paths_and_file_urls_name_the_same_folder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a b/runs");
        let url = Url::from_file_path(&path).unwrap();
        assert_eq!(folder_of(path.to_str().unwrap()), path);
        assert_eq!(folder_of(url.as_str()), path);
        assert!(path.is_dir());
    }

    #[test]
    fn relative_paths_are_made_absolute() {
        let here = std::env::current_dir().unwrap();
        assert_eq!(Location::parse("src", false).unwrap().folder.unwrap(), here.join("src"));
        assert_eq!(Location::parse("./src", false).unwrap().folder.unwrap(), here.join("src"));
    }

    #[test]
    fn what_cannot_hold_runs_is_refused_with_the_fix() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let cases = [
            ("", "Name a folder"),
            ("ftp://host/x", "s3://bucket"),
            ("http://host/x", "s3://bucket"),
            ("file://host/x", "three slashes"),
            (file.path().to_str().unwrap(), "Name a folder"),
        ];
        for (text, fix) in cases {
            let error = Location::parse(text, true).err().expect(text).to_string();
            assert!(error.contains(fix), "{text}: {error}");
        }
    }

    #[test]
    #[cfg(not(feature = "aws"))]
    fn a_store_that_was_not_built_in_is_named() {
        let error = Location::parse("s3://bucket/prefix", true).err().unwrap().to_string();
        assert!(error.contains("--features aws"), "{error}");
    }
}

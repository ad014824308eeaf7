//! Where the files of a prepared cache come from: a folder, or a store far away with a bounded folder before it.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use libjrs::{Error, Result};

use crate::cache::{sha256_hex, write_whole};

/// Reads whole files of one prepared cache.
pub trait Source: Debug + Send + Sync {
    /// The content of file `name`.
    ///
    /// # Errors
    /// If it cannot be read.
    fn read(&self, name: &str) -> Result<Vec<u8>>;
    /// Its length in bytes.
    ///
    /// # Errors
    /// If it is not there.
    fn length(&self, name: &str) -> Result<u64>;
    /// How messages call it.
    fn place(&self, name: &str) -> PathBuf;
}

/// A folder on this machine.
#[derive(Debug)]
pub struct Folder(pub PathBuf);

impl Source for Folder {
    fn read(&self, name: &str) -> Result<Vec<u8>> {
        let path = self.place(name);
        fs::read(&path).map_err(|e| Error::io(&path, e, UNFINISHED))
    }

    fn length(&self, name: &str) -> Result<u64> {
        let path = self.place(name);
        Ok(fs::metadata(&path).map_err(|e| Error::io(&path, e, UNFINISHED))?.len())
    }

    fn place(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

const UNFINISHED: &str = "give a folder that `jrs prepare` finished (the index is written last); it makes anew \
                          what is missing or damaged";

/// Copies of a remote source's files, in a folder that is kept below a size by removing what was not used for longest.
#[derive(Debug)]
pub struct Nearby<S> {
    remote: S,
    folder: PathBuf,
    limit: u64,
    /// Names and lengths of the files here, the last used at the end.
    held: Mutex<VecDeque<(String, u64)>>,
}

impl<S: Source> Nearby<S> {
    /// Keeps copies in `folder`, which is made if missing, up to `limit` bytes. What an earlier process left there counts.
    ///
    /// # Errors
    /// If the folder cannot be used.
    pub fn new(remote: S, folder: &Path, limit: u64) -> Result<Self> {
        let unusable = |e| Error::io(folder, e, "give a folder on this machine that can be written");
        fs::create_dir_all(folder).map_err(unusable)?;
        let mut found = Vec::new();
        for entry in fs::read_dir(folder).map_err(unusable)? {
            let entry = entry.map_err(unusable)?;
            let (Ok(meta), Ok(name)) = (entry.metadata(), entry.file_name().into_string()) else { continue };
            if meta.is_file() && name.ends_with(".safetensors") {
                found.push((meta.modified().map_err(unusable)?, name, meta.len()));
            }
        }
        found.sort();
        let held = found.into_iter().map(|(_, name, length)| (name, length)).collect();
        Ok(Self { remote, folder: folder.to_owned(), limit, held: Mutex::new(held) })
    }

    /// File `name` with this hash: the copy here if it is that, else the remote one, of which a copy is kept.
    fn fetch(&self, name: &str, sha256: &str) -> Result<Vec<u8>> {
        let path = self.folder.join(name);
        if let Ok(bytes) = fs::read(&path)
            && sha256_hex(&bytes) == sha256
        {
            self.hold(name, bytes.len() as u64);
            return Ok(bytes);
        }
        let bytes = self.remote.read(name)?;
        if bytes.len() as u64 <= self.limit {
            self.hold(name, bytes.len() as u64);
            write_whole(&path, &bytes)?;
        }
        Ok(bytes)
    }

    /// `name` is the newest in use; the oldest go until it fits.
    fn hold(&self, name: &str, length: u64) {
        let mut held = self.held.lock().expect("no panic while held");
        held.retain(|(other, _)| other != name);
        while held.iter().map(|(_, length)| length).sum::<u64>() + length > self.limit {
            let Some((oldest, _)) = held.pop_front() else { break };
            let _ = fs::remove_file(self.folder.join(oldest)); // another worker may have removed it
        }
        held.push_back((name.to_owned(), length));
    }
}

/// A source whose files may be copies, so that the wanted content has to be named.
pub(crate) trait Verified: Debug + Send + Sync {
    fn fetch(&self, name: &str, sha256: &str) -> Result<Vec<u8>>;
    fn source(&self) -> &dyn Source;
}

impl<S: Source> Verified for Nearby<S> {
    fn fetch(&self, name: &str, sha256: &str) -> Result<Vec<u8>> {
        Self::fetch(self, name, sha256)
    }

    fn source(&self) -> &dyn Source {
        &self.remote
    }
}

impl Verified for Folder {
    fn fetch(&self, name: &str, _: &str) -> Result<Vec<u8>> {
        self.read(name)
    }

    fn source(&self) -> &dyn Source {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Files `a`, `b`, ... of 10 bytes each, and how often one was read.
    #[derive(Debug, Default)]
    struct Remote(AtomicUsize);

    impl Source for Remote {
        fn read(&self, name: &str) -> Result<Vec<u8>> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Ok(content(name))
        }

        fn length(&self, _: &str) -> Result<u64> {
            Ok(10)
        }

        fn place(&self, name: &str) -> PathBuf {
            name.into()
        }
    }

    fn content(name: &str) -> Vec<u8> {
        name.bytes().cycle().take(10).collect()
    }

    fn get(nearby: &Nearby<Remote>, name: &str) -> usize {
        let before = nearby.remote.0.load(Ordering::Relaxed);
        assert_eq!(nearby.fetch(name, &sha256_hex(&content(name))).unwrap(), content(name));
        nearby.remote.0.load(Ordering::Relaxed) - before
    }

    #[test]
    fn copies_are_used_and_the_oldest_go() {
        let folder = tempfile::tempdir().unwrap();
        let nearby = Nearby::new(Remote::default(), folder.path(), 25).unwrap();
        let [a, b, c] = ["a.safetensors", "b.safetensors", "c.safetensors"];
        assert_eq!([a, b, a, b].map(|name| get(&nearby, name)), [1, 1, 0, 0]);
        // a is used last, so that c takes the place of b.
        assert_eq!([a, c, a, b].map(|name| get(&nearby, name)), [0, 1, 0, 1]);
        let size: u64 =
            fs::read_dir(folder.path()).unwrap().map(|f| f.unwrap().metadata().unwrap().len()).sum();
        assert!(size <= 25, "{size} bytes are kept");

        // A process that comes later finds what is there; damage is fetched anew.
        let again = Nearby::new(Remote::default(), folder.path(), 25).unwrap();
        assert_eq!(get(&again, b), 0);
        fs::write(folder.path().join(b), "damaged").unwrap();
        assert_eq!([get(&again, b), get(&again, b)], [1, 0]);
    }

    #[test]
    fn what_is_larger_than_all_is_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let nearby = Nearby::new(Remote::default(), folder.path(), 5).unwrap();
        assert_eq!([get(&nearby, "a.safetensors"), get(&nearby, "a.safetensors")], [1, 1]);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}

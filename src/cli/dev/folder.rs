//! The folder in which `tenure dev` keeps the kubeconfig and the logs, for one process at a time.

use std::{
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

/// The folder, held by this process.
#[derive(Debug)]
pub(super) struct StateFolder {
    path: PathBuf,
    /// Held for as long as this process lives: a second one would write over the kubeconfig of the first.
    _lock: File,
}

/// The folder cannot be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum FolderError {
    #[error("there is no home folder to keep state in; name a folder with --state-dir")]
    NoHome,
    #[error("--state-dir {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("another `tenure dev` uses {}; end it, or name another folder with --state-dir", .0.display())]
    InUse(PathBuf),
}

impl StateFolder {
    pub(super) fn open(given: Option<PathBuf>) -> Result<Self, FolderError> {
        let path = given.or_else(default_path).ok_or(FolderError::NoHome)?;
        let failed = |source| FolderError::Io { path: path.clone(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(failed)?;
        let path = fs::canonicalize(&path).map_err(failed)?;
        let failed = |source| FolderError::Io { path: path.clone(), source };
        let lock = File::create(path.join("lock")).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path, _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(FolderError::InUse(path)),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The kubeconfig of the client `name`, or of the person at the keyboard.
    pub(super) fn kubeconfig(&self, name: Option<&str>) -> PathBuf {
        self.path.join(name.map_or_else(|| "kubeconfig".to_owned(), |name| format!("{name}.kubeconfig")))
    }

    /// The process id of a replica, while it runs.
    pub(super) fn pid(&self, name: &str) -> PathBuf {
        self.path.join(format!("{name}.pid"))
    }

    pub(super) fn log(&self, name: &str) -> PathBuf {
        self.path.join(format!("{name}.log"))
    }
}

fn default_path() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = folder("XDG_STATE_HOME").or_else(|| folder("HOME").map(|home| home.join(".local/state")))?;
    Some(state.join("tenure/dev"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_belongs_to_one_process_at_a_time() {
        let parent = tempfile::tempdir().expect("a temporary folder");
        let path = parent.path().join("state");
        let held = StateFolder::open(Some(path.clone())).expect("nobody has it");
        let error = StateFolder::open(Some(path.clone())).expect_err("it is held").to_string();
        assert!(error.starts_with("another `tenure dev` uses ") && error.ends_with("with --state-dir"), "{error}");
        drop(held);
        StateFolder::open(Some(path)).expect("it was given up");
    }
}

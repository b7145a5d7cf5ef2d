//! A place in which one process at a time takes part in an election: a pod, whose container may be restarted.
//!
//! A container that is restarted in its pod finds its predecessor's term in the Lease. The predecessor is certainly dead,
//! and there is no reason to wait for the end of its lease. What proves it is a lock on a file in the pod's own `emptyDir`:
//! the kernel frees it when the process that holds it has died, not when it is frozen. Only a process that holds the lock
//! writes the place into the Lease, so a second replica that somebody starts by `kubectl exec` in the same container neither
//! takes over in this way nor is taken for dead. Counts of restarts would not do: the downward API has none, and the pod's
//! status lags behind.
//!
//! The directory must be local to the pod's node (an `emptyDir` is): a lock on a shared file system is worth what that file
//! system makes of it.

use std::{
    fs::{File, TryLockError},
    io,
    path::{Path, PathBuf},
};

/// The name of the file that is locked.
const LOCK_FILE: &str = "elector.lock";

/// A place that this process has to itself, until it ends.
#[derive(Debug)]
pub struct Place {
    name: String,
    /// The lock lives as long as the file is open. It is not inherited by programs that this process starts.
    _lock: File,
}

/// A place cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// Another process in this place takes part in the election.
    #[error("{} is locked by another process: this one takes part in the election as a replica of its own", .0.display())]
    Taken(PathBuf),
    /// The file cannot be used.
    #[error("the lock file {} cannot be used: {source}; expected a writable directory, such as an emptyDir", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        source: io::Error,
    },
}

impl Place {
    /// Takes the place `name`, which no other pod has: the pod's UID. `directory` is one of the pod's own.
    ///
    /// # Errors
    /// [`PlaceError::Taken`] while another process has it.
    pub fn take(name: &str, directory: &Path) -> Result<Self, PlaceError> {
        let path = directory.join(LOCK_FILE);
        let failed = |source| PlaceError::Io { path: path.clone(), source };
        let lock = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { name: name.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(PlaceError::Taken(path)),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_taken_by_one_at_a_time_and_free_again_after_it() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let first = Place::take("uid", directory.path()).expect("it is free");
        assert_eq!(first.name(), "uid");
        let message = Place::take("uid", directory.path()).expect_err("it is taken").to_string();
        assert!(message.contains("elector.lock is locked by another process"), "{message}");
        drop(first);
        Place::take("uid", directory.path()).expect("it is free again");
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let message = Place::take("uid", Path::new("/nowhere")).expect_err("no such directory").to_string();
        assert!(message.starts_with("the lock file /nowhere/elector.lock cannot be used: "), "{message}");
    }
}

//! A place in which one process at a time takes part in an election: a container of a pod, which may be restarted.
//!
//! A container that is restarted in its pod finds its predecessor's term in the Lease. The predecessor is certainly dead,
//! and there is no reason to wait for the end of its lease. What proves it is a lock on a file in the pod's own `emptyDir`:
//! the kernel frees it when the process that holds it has died, not when it is frozen. Only a process that holds the lock
//! writes the place into the Lease, so a second replica that somebody starts by `kubectl exec` in the same container neither
//! takes over in this way nor is taken for dead. Counts of restarts would not do: the downward API has none, and the pod's
//! status lags behind.
//!
//! The name of a place has three parts. The pod's UID, which no other pod has. A random word that is written into the lock
//! file: two containers of one pod, or two folders of one container, are two places. And the boot of the kernel, since times
//! of its clock are compared: an `emptyDir` outlives a reboot of its node.
//!
//! A process that leaves office alive gives its place another word before it lets anybody else in
//! ([`Place::leave_office`]): so a record that names the place was left by a process that died in office, and an old one that
//! somebody puts back is not taken for that.
//!
//! The directory must be local to the pod's node (an `emptyDir` is): a lock on a shared file system is worth what that file
//! system makes of it.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Read},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use crate::entropy::{SharedEntropy, SystemEntropy};

/// The name of the file that is locked.
const LOCK_FILE: &str = "elector.lock";

/// Where the kernel gives its boot a name.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The digits of the word in the lock file.
const WORD_DIGITS: usize = 16;

/// A place that this process has to itself, until it ends.
#[derive(Debug)]
pub struct Place {
    name: String,
    pod: String,
    boot: String,
    path: PathBuf,
    entropy: SharedEntropy,
    /// The lock lives as long as the file is open. It is not inherited by programs that this process starts.
    lock: File,
}

/// A place cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
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
    /// Takes the place of the pod `uid` that `directory`, one of the pod's own, stands for.
    ///
    /// # Errors
    /// [`PlaceError::Taken`] while another process has it.
    pub fn take(uid: &str, directory: &Path) -> Result<Self, PlaceError> {
        let entropy = SystemEntropy::shared();
        let path = directory.join(LOCK_FILE);
        let failed = |source| PlaceError::Io { path: path.clone(), source };
        let mut lock =
            File::options().create(true).truncate(false).read(true).write(true).open(&path).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(PlaceError::Taken(path)),
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        let mut content = Vec::new();
        lock.by_ref().take(WORD_DIGITS as u64).read_to_end(&mut content).map_err(failed)?;
        // A kernel that does not name its boots gets a name that nobody else finds again: nothing is proven by it.
        let boot = fs::read_to_string(BOOT_ID).map_or_else(|_| entropy.nonce(), |text| text.trim().to_owned());
        let mut place = Self { name: String::new(), pod: uid.to_owned(), boot, path: path.clone(), entropy, lock };
        match String::from_utf8(content) {
            Ok(word) if word.len() == WORD_DIGITS && word.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
                place.called(&word);
            }
            _ => place.rename().map_err(failed)?,
        }
        Ok(place)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Gives the place another name, which the next process in it finds: the one that it had stands for a term that this
    /// process has left alive.
    ///
    /// # Errors
    /// [`PlaceError::Io`] if it cannot be written; the place then has the name that it had.
    pub fn leave_office(&mut self) -> Result<(), PlaceError> {
        self.rename().map_err(|source| PlaceError::Io { path: self.path.clone(), source })
    }

    fn rename(&mut self) -> io::Result<()> {
        let word = self.entropy.nonce();
        // As long as the one before it: it needs no room on a disk that is full.
        self.lock.write_all_at(word.as_bytes(), 0)?;
        self.called(&word);
        Ok(())
    }

    fn called(&mut self, word: &str) {
        self.name = format!("{}/{word}/{}", self.pod, self.boot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_taken_by_one_at_a_time_and_free_again_after_it() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let first = Place::take("uid", directory.path()).expect("it is free");
        let name = first.name().to_owned();
        assert!(name.starts_with("uid/"), "{name}");
        let message = Place::take("uid", directory.path()).expect_err("it is taken").to_string();
        assert!(message.contains("elector.lock is locked by another process"), "{message}");
        drop(first);
        assert_eq!(Place::take("uid", directory.path()).expect("it is free again").name(), name);
    }

    #[test]
    fn two_directories_of_one_pod_are_two_places() {
        let directories = [(); 2].map(|()| tempfile::tempdir().expect("a temporary directory"));
        let [one, other] = directories.each_ref().map(|directory| Place::take("uid", directory.path()).expect("free"));
        assert_ne!(one.name(), other.name());
    }

    #[test]
    fn a_place_that_was_left_alive_has_another_name_for_its_next_process() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut first = Place::take("uid", directory.path()).expect("it is free");
        let before = first.name().to_owned();
        first.leave_office().expect("it can be written");
        let after = first.name().to_owned();
        assert_ne!(before, after);
        drop(first);
        assert_eq!(Place::take("uid", directory.path()).expect("it is free").name(), after);
    }

    #[test]
    fn a_lock_file_that_holds_something_else_is_written_over() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(directory.path().join(LOCK_FILE), "no word").expect("writable");
        let first = Place::take("uid", directory.path()).expect("it is free");
        let name = first.name().to_owned();
        drop(first);
        assert_eq!(Place::take("uid", directory.path()).expect("it is free").name(), name);
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let message = Place::take("uid", Path::new("/nowhere")).expect_err("no such directory").to_string();
        assert!(message.starts_with("the lock file /nowhere/elector.lock cannot be used: "), "{message}");
    }
}

//! What the harness did and when, one line each, in a file.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
    sync::{Mutex, PoisonError},
};

use serde::Serialize;

use crate::clock::{At, Timeline};

/// A log file whose lines begin with both clocks.
#[derive(Debug)]
pub struct Journal {
    file: Mutex<File>,
    timeline: Timeline,
    begun: At,
}

impl Journal {
    /// Creates the file, and its directory where it is missing.
    pub fn create(path: &Path, timeline: Timeline) -> io::Result<Self> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        Ok(Self { file: Mutex::new(File::create(path)?), timeline, begun: At::now() })
    }

    /// Notes what happened at that instant. A line that cannot be written is reported and does not stop a trial.
    pub fn note(&self, at: At, what: &str) {
        let elapsed = at.since(self.begun).as_secs_f64();
        let line = format!("{:.6} {elapsed:12.6} {what}\n", self.timeline.wall(at));
        let written = self.file.lock().unwrap_or_else(PoisonError::into_inner).write_all(line.as_bytes());
        if let Err(error) = written {
            tracing::error!(%error, "cannot write the journal");
        }
    }
}

/// Writes values as JSON, one a line.
pub fn write_lines<T: Serialize>(path: &Path, values: impl IntoIterator<Item = T>) -> io::Result<()> {
    let mut file = io::BufWriter::new(File::create(path)?);
    for value in values {
        serde_json::to_writer(&mut file, &value)?;
        file.write_all(b"\n")?;
    }
    file.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_both_clocks_and_the_text() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("made/for/it/trials.log");
        let journal = Journal::create(&path, Timeline::new()).unwrap();
        journal.note(At::now(), "STOP replica-1");
        let text = fs::read_to_string(path).unwrap();
        assert!(text.ends_with(" STOP replica-1\n") && text.contains('T'), "{text}");
    }
}

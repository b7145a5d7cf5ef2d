//! What the ledger keeps, and the fence (pure).

use std::{collections::BTreeMap, net::IpAddr};

use http::HeaderMap;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::clock::At;

/// What one request said of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The run: `Idempotency-Key`.
    pub run_id: String,
    /// The job's name: `Tenure-Job`, without its namespace.
    pub job: String,
    /// The slot: `Tenure-Slot`.
    pub slot: Option<Timestamp>,
    /// The attempt: `Tenure-Attempt`.
    pub attempt: u32,
    /// The fencing token: `Tenure-Token`.
    pub token: u64,
}

/// What the fence said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// The effect happened.
    Accepted,
    /// A higher token had been seen before.
    Refused,
}

/// One request as the ledger saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When its first byte could be read.
    pub first_byte: At,
    /// The address that names the replica: the one it dialled, or the one it came from.
    pub replica: IpAddr,
    /// The path, which is what the fence is kept by.
    pub path: String,
    /// What it said of itself.
    #[serde(flatten)]
    pub request: Request,
    /// What the fence said.
    pub verdict: Verdict,
    /// When the answer was handed to the connection; nothing if the sender went away first.
    pub answered: Option<At>,
}

/// All requests of one ledger in the order in which they were taken.
#[derive(Debug, Clone, Default)]
pub struct Log {
    entries: Vec<Entry>,
    highest: BTreeMap<String, u64>,
    malformed: Vec<String>,
}

impl Request {
    /// Reads the headers of the action contract.
    ///
    /// # Errors
    ///
    /// The name of the header that is missing or not what the contract says.
    pub fn from_headers(headers: &HeaderMap) -> Result<Self, String> {
        let text = |name: &str| {
            headers
                .get(name)
                .ok_or_else(|| format!("header {name} is missing"))?
                .to_str()
                .map_err(|_| format!("header {name} is not text"))
        };
        let number = |name: &str| {
            let text = text(name)?;
            text.parse::<u64>().map_err(|_| format!("header {name} is not a number: {text:?}"))
        };
        let slot = text("Tenure-Slot")?;
        let job = text("Tenure-Job")?;
        Ok(Self {
            run_id: text("Idempotency-Key")?.to_owned(),
            job: job.rsplit('/').next().unwrap_or(job).to_owned(),
            slot: Some(slot.parse().map_err(|_| format!("header Tenure-Slot is not a time: {slot:?}"))?),
            attempt: u32::try_from(number("Tenure-Attempt")?).map_err(|_| "header Tenure-Attempt is too large")?,
            token: number("Tenure-Token")?,
        })
    }
}

impl Log {
    /// Takes a request: decides by the fence, keeps it, and returns its place and the verdict.
    pub fn take(&mut self, first_byte: At, replica: IpAddr, path: &str, request: Request) -> (usize, Verdict) {
        let highest = self.highest.entry(path.to_owned()).or_default();
        let verdict = if request.token < *highest { Verdict::Refused } else { Verdict::Accepted };
        *highest = request.token.max(*highest);
        self.entries.push(Entry { first_byte, replica, path: path.to_owned(), request, verdict, answered: None });
        (self.entries.len() - 1, verdict)
    }

    /// Notes that a request has been answered.
    pub fn answered(&mut self, place: usize, at: At) {
        if let Some(entry) = self.entries.get_mut(place) {
            entry.answered = Some(at);
        }
    }

    /// Notes a request that does not keep to the action contract.
    pub fn malformed(&mut self, reason: String) {
        self.malformed.push(reason);
    }

    /// The requests, in the order in which they were taken.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// What was wrong with requests that did not keep to the action contract.
    pub fn malformed_requests(&self) -> &[String] {
        &self.malformed
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn request(token: u64) -> Request {
        Request { run_id: "r".into(), job: "j".into(), slot: None, attempt: 1, token }
    }

    fn take(log: &mut Log, path: &str, token: u64) -> Verdict {
        log.take(At::from_millis(1), Ipv4Addr::LOCALHOST.into(), path, request(token)).1
    }

    #[test]
    fn a_token_lower_than_one_seen_is_refused_and_an_equal_one_is_not() {
        let mut log = Log::default();
        assert_eq!(take(&mut log, "/a", 7), Verdict::Accepted);
        assert_eq!(take(&mut log, "/a", 7), Verdict::Accepted);
        assert_eq!(take(&mut log, "/a", 9), Verdict::Accepted);
        assert_eq!(take(&mut log, "/a", 8), Verdict::Refused);
        assert_eq!(take(&mut log, "/a", 9), Verdict::Accepted);
    }

    #[test]
    fn the_fence_is_kept_for_each_path() {
        let mut log = Log::default();
        assert_eq!(take(&mut log, "/a", 9), Verdict::Accepted);
        assert_eq!(take(&mut log, "/b", 7), Verdict::Accepted);
    }

    #[test]
    fn a_header_that_is_missing_or_malformed_is_named() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("idempotency-key", "r1"),
            ("tenure-job", "default/fast"),
            ("tenure-slot", "2026-03-01T00:00:00.200Z"),
            ("tenure-attempt", "2"),
        ] {
            headers.insert(name, value.parse().unwrap());
        }
        assert_eq!(Request::from_headers(&headers).unwrap_err(), "header Tenure-Token is missing");
        headers.insert("tenure-token", "12x".parse().unwrap());
        assert_eq!(Request::from_headers(&headers).unwrap_err(), "header Tenure-Token is not a number: \"12x\"");
        headers.insert("tenure-token", "12".parse().unwrap());
        let request = Request::from_headers(&headers).unwrap();
        assert_eq!((request.job.as_str(), request.attempt, request.token), ("fast", 2, 12));
        assert_eq!(request.slot.unwrap().as_millisecond() % 1000, 200);
    }
}

//! Times and durations as they are written in objects.
//!
//! [`Instant`] exists because Kubernetes' own `Time` drops the fraction of a second when it is written: a job with an
//! interval of 200 ms whose mark lost its fraction would run up to four slots again. An [`Instant`] is a whole number of
//! milliseconds, is always written with exactly three digits of fraction, and therefore reads back as itself.

use std::{borrow::Cow, fmt, str::FromStr};

use jiff::Timestamp;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::duration::{format_duration, parse_duration};

/// A point in time, in whole milliseconds, written as RFC 3339 with three digits of fraction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Instant(Timestamp);

/// A length of time, written as Kubernetes writes durations (GEP-2257): `500ms`, `30s`, `1h30m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Duration(pub std::time::Duration);

/// A text is not a time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TimeError {
    /// Not a time as RFC 3339 writes it.
    #[error("expected a time such as 2026-01-31T10:00:00.200Z, found {0:?}")]
    Instant(String),
}

/// The longest duration text: four units of five digits with a unit of at most two letters each. The CEL cost estimate
/// of a rule on a duration grows with it.
const DURATION_TEXT_MAX: u32 = 28;

impl Instant {
    /// `at`, with what is below a millisecond cut off: never later than `at`.
    #[must_use]
    pub fn new(at: Timestamp) -> Self {
        let millis = at.as_nanosecond().div_euclid(1_000_000);
        let floored = i64::try_from(millis).ok().and_then(|millis| Timestamp::from_millisecond(millis).ok());
        Self(floored.unwrap_or(at))
    }

    /// The point in time.
    #[must_use]
    pub const fn timestamp(self) -> Timestamp {
        self.0
    }

    /// The point `by` later, or the last one that can be written.
    #[must_use]
    pub fn plus(self, by: std::time::Duration) -> Self {
        let later = jiff::SignedDuration::try_from(by).ok().and_then(|by| self.0.checked_add(by).ok());
        later.map_or(Self(Timestamp::MAX), Self::new)
    }

    /// The time from `earlier` to this point, zero if `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> std::time::Duration {
        std::time::Duration::try_from(self.0.duration_since(earlier.0)).unwrap_or_default()
    }
}

impl From<Timestamp> for Instant {
    fn from(at: Timestamp) -> Self {
        Self::new(at)
    }
}

impl fmt::Display for Instant {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:.3}", self.0)
    }
}

impl FromStr for Instant {
    type Err = TimeError;

    fn from_str(text: &str) -> Result<Self, TimeError> {
        text.parse().map(Self::new).map_err(|_| TimeError::Instant(text.to_owned()))
    }
}

impl Serialize for Instant {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Instant {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for Instant {
    fn schema_name() -> Cow<'static, str> {
        "Instant".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "date-time" })
    }
}

impl Duration {
    /// The length of time.
    #[must_use]
    pub const fn get(self) -> std::time::Duration {
        self.0
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&format_duration(self.0))
    }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        parse_duration(&text).map(Self).map_err(de::Error::custom)
    }
}

impl JsonSchema for Duration {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "maxLength": DURATION_TEXT_MAX,
            "pattern": "^([0-9]{1,5}(h|m|s|ms)){1,4}$",
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_instant_reads_back_as_itself(nanos in -62_000_000_000_000_000_000_i128..250_000_000_000_000_000_000_i128) {
            let at = Instant::new(Timestamp::from_nanosecond(nanos).expect("within the range of timestamps"));
            let written = serde_json::to_string(&at).expect("a string");
            prop_assert_eq!(serde_json::from_str::<Instant>(&written).expect("a time"), at);
            prop_assert!(at.timestamp().as_nanosecond() <= nanos);
            prop_assert!(nanos - at.timestamp().as_nanosecond() < 1_000_000);
        }
    }

    #[test]
    fn an_instant_always_shows_its_milliseconds() {
        let at: Instant = "2026-03-29T01:00:00Z".parse().expect("a time");
        assert_eq!(at.to_string(), "2026-03-29T01:00:00.000Z");
        assert_eq!(at.plus(std::time::Duration::from_millis(200)).to_string(), "2026-03-29T01:00:00.200Z");
    }

    #[test]
    fn what_is_not_a_time_is_refused_with_an_example() {
        let refused = "tomorrow".parse::<Instant>().expect_err("not a time").to_string();
        assert_eq!(refused, "expected a time such as 2026-01-31T10:00:00.200Z, found \"tomorrow\"");
    }
}

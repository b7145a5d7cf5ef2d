//! Durations as they are written in manifests: GEP-2257 strings such as `500ms`, `30s` and `1h30m`.
//!
//! The format is a small subset of Go's, so that a Go program reads the same value from the same text: one to four
//! parts, each of one to five digits and one of the units `h`, `m`, `s`, `ms`; no sign, no fraction, no bare number.
//! Whatever [`parse_duration`] accepts, [`format_duration`] writes in its canonical form, and that parses to the same
//! value. Written by hand because the crates for durations accept far more than the schema of a custom resource does
//! (`1 week`, `1.5h`), and what the schema refuses must be refused here as well.

use std::time::Duration;

/// The pattern that a duration matches, for the schema of a custom resource: GEP-2257's own.
pub const DURATION_PATTERN: &str = "^([0-9]{1,5}(h|m|s|ms)){1,4}$";

/// How many parts a duration may have; GEP-2257's bound, one for each unit.
const MAX_PARTS: usize = 4;

/// How many digits a part may have; GEP-2257's bound, which keeps every sum far below what 64 bits hold.
const MAX_DIGITS: usize = 5;

/// The longest duration that the format can write.
pub const MAX_DURATION: Duration = Duration::from_millis(((99_999 * 60 + 59) * 60 + 59) * 1_000 + 999);

/// The units with their length in milliseconds, the largest first. `ms` stands before `m`, of which it is the longer.
const UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("ms", 1), ("m", 60_000), ("s", 1_000)];

/// Why a text is not a duration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// The text is empty.
    #[error("a duration must not be empty: write it as 500ms, 30s or 1h30m")]
    Empty,
    /// A part has no digits: a sign, a space, a fraction or a unit that stands alone.
    #[error("a duration is made of whole numbers with units, as in 500ms, 30s or 1h30m, without signs, spaces or dots")]
    NotANumber,
    /// A part has more than five digits.
    #[error("a part of a duration has at most {MAX_DIGITS} digits: use a larger unit, as in 36h for 129600s")]
    TooManyDigits,
    /// A number has no unit, or one that is not known.
    #[error("every number of a duration needs one of the units h, m, s, ms, as in 500ms, 30s or 1h30m")]
    UnknownUnit,
    /// The text has more than four parts.
    #[error("a duration has at most {MAX_PARTS} parts, as in 1h30m15s500ms")]
    TooManyParts,
    /// The sum of the parts is more than the canonical form can write.
    #[error("a duration is at most {}", format_duration(MAX_DURATION))]
    TooLong,
}

/// Reads a duration such as `500ms`, `30s` or `1h30m`.
///
/// # Errors
/// [`DurationError`], whose text says what is expected, if the text does not follow GEP-2257.
pub fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    if text.is_empty() {
        return Err(DurationError::Empty);
    }
    let mut rest = text;
    let mut millis: u64 = 0;
    let mut parts = 0;
    while !rest.is_empty() {
        parts += 1;
        if parts > MAX_PARTS {
            return Err(DurationError::TooManyParts);
        }
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        if digits > MAX_DIGITS {
            return Err(DurationError::TooManyDigits);
        }
        let (number, unit_and_more) = rest.split_at(digits);
        let number: u64 = number.parse().map_err(|_| DurationError::NotANumber)?;
        let (unit, length) =
            UNITS.iter().find(|(unit, _)| unit_and_more.starts_with(unit)).ok_or(DurationError::UnknownUnit)?;
        // At most four parts of at most 99,999 hours: the sum stays below 2^41.
        millis += number * length;
        rest = &unit_and_more[unit.len()..];
    }
    let duration = Duration::from_millis(millis);
    if duration > MAX_DURATION { Err(DurationError::TooLong) } else { Ok(duration) }
}

/// Writes a duration in its canonical form, the largest unit first and no unit that is zero: `1h30m`, `500ms`, `0s`.
///
/// What is finer than a millisecond is cut off, and what is longer than [`MAX_DURATION`] is written as that: the format
/// has no place for either.
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    let millis = duration.min(MAX_DURATION).as_millis();
    let parts =
        [(millis / 3_600_000, "h"), (millis / 60_000 % 60, "m"), (millis / 1_000 % 60, "s"), (millis % 1_000, "ms")];
    let mut text = String::new();
    for (number, unit) in parts.into_iter().filter(|(number, _)| *number > 0) {
        text.push_str(&number.to_string());
        text.push_str(unit);
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("0s", 0)]
    #[case("0h", 0)]
    #[case("1ms", 1)]
    #[case("500ms", 500)]
    #[case("30s", 30_000)]
    #[case("5m", 300_000)]
    #[case("1h30m", 5_400_000)]
    #[case("30m1h", 5_400_000)]
    #[case("1h1h", 7_200_000)]
    #[case("00010s", 10_000)]
    #[case("1h2m3s4ms", 3_723_004)]
    #[case("99999h", 359_996_400_000)]
    #[case("99999h59m59s999ms", 359_999_999_999)]
    fn a_duration_is_read_as_go_reads_it(#[case] text: &str, #[case] millis: u64) {
        assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)));
    }

    #[rstest]
    #[case("", DurationError::Empty)]
    #[case("0", DurationError::UnknownUnit)]
    #[case("30", DurationError::UnknownUnit)]
    #[case("30 s", DurationError::UnknownUnit)]
    #[case("1d", DurationError::UnknownUnit)]
    #[case("1us", DurationError::UnknownUnit)]
    #[case("1.5h", DurationError::UnknownUnit)]
    #[case("1H", DurationError::UnknownUnit)]
    #[case("-1s", DurationError::NotANumber)]
    #[case("+1s", DurationError::NotANumber)]
    #[case(" 1s", DurationError::NotANumber)]
    #[case("1s ", DurationError::NotANumber)]
    #[case("s", DurationError::NotANumber)]
    #[case("100000s", DurationError::TooManyDigits)]
    #[case("1h1m1s1ms1s", DurationError::TooManyParts)]
    #[case("99999h60m", DurationError::TooLong)]
    #[case("99999h99999h", DurationError::TooLong)]
    #[case("١s", DurationError::NotANumber)]
    fn what_the_format_does_not_have_is_refused(#[case] text: &str, #[case] error: DurationError) {
        assert_eq!(parse_duration(text), Err(error));
    }

    #[rstest]
    #[case(0, "0s")]
    #[case(1, "1ms")]
    #[case(1_500, "1s500ms")]
    #[case(90_000, "1m30s")]
    #[case(3_600_000, "1h")]
    #[case(172_800_000, "48h")]
    fn the_canonical_form_has_the_largest_unit_first(#[case] millis: u64, #[case] text: &str) {
        assert_eq!(format_duration(Duration::from_millis(millis)), text);
    }

    #[test]
    fn what_the_format_cannot_write_is_cut_to_what_it_can() {
        assert_eq!(format_duration(Duration::from_micros(1_999)), "1ms");
        assert_eq!(format_duration(Duration::MAX), "99999h59m59s999ms");
    }

    proptest! {
        #[test]
        fn the_canonical_form_parses_to_the_same_value(millis in 0..=359_999_999_999_u64) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }

        #[test]
        fn any_text_is_read_or_refused_without_a_panic(text in "([0-9]{0,6}[hmsd.µ -]{0,2}){0,6}") {
            if let Ok(duration) = parse_duration(&text) {
                prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
            }
        }
    }
}

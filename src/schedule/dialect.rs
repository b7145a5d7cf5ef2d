//! The cron dialect: what people may write, brought into one canonical form.
//!
//! Five fields, or six with seconds first; numbers, names, lists, ranges and steps; `?` for `*`; `L`, `W` and `#` for
//! days; `@hourly` and its kin. All that a Kubernetes CronJob takes is taken and means the same. What goes beyond it:
//! seconds, `L`, `W`, `#`, 7 for Sunday, and ranges that wrap (`22-2`, `FRI-MON`).
//!
//! This module checks every field, so that an error names the field and what belongs there, and writes the canonical
//! text that croner reads: numbers only, ranges and steps spelled out. croner alone would refuse `5/15`, `@midnight` and
//! wrapping ranges, would take names in any field, and words its errors in terms of positions and bits.

use std::fmt::Write as _;

/// The longest expression that is read. Six fields that list every value take 530 characters; nobody writes more.
pub(super) const MAX_EXPRESSION_CHARS: usize = 600;

/// The days of a week. Sunday is 0 and 7, so the highest value that may be written says less than the size does.
const DAYS_OF_WEEK: u32 = 7;

/// How many times a day of the week can occur in a month.
const MAX_OCCURRENCES: u32 = 5;

/// An expression in canonical form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Expression {
    /// Six fields, as croner reads them.
    pub(super) canonical: String,
    /// How the expression meets a change of daylight saving time.
    pub(super) pace: Pace,
}

/// How an expression meets a change of the zone's offset. The rule is Vixie cron's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// Times of day: second, minute and hour are all named. Each is run once on its day, whatever the clock does.
    Fixed,
    /// A `*` among second, minute and hour: the expression goes with the clock, through every pass of it.
    Wildcard,
}

/// Why a text is not a cron expression.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DialectError {
    /// The text is empty.
    #[error("the expression is empty: write five fields, as in \"*/5 * * * *\"")]
    Empty,
    /// The text is longer than any expression needs to be.
    #[error("the expression has {0} characters, more than the {MAX_EXPRESSION_CHARS} that are read")]
    TooLong(usize),
    /// There are not five or six fields.
    #[error(
        "found {0} fields, expected 5 (minute, hour, day of month, month, day of week), or 6 with seconds before them"
    )]
    FieldCount(usize),
    /// The expression starts with a time zone.
    #[error("a time zone does not belong into the expression: write timeZone: {zone} beside schedule: \"{rest}\"")]
    ZoneInside {
        /// The zone that was written.
        zone: String,
        /// The expression without it.
        rest: String,
    },
    /// The expression is an interval.
    #[error("\"@every\" is written as an interval: remove schedule and set interval: {0}")]
    Every(String),
    /// An `@` word that is not known.
    #[error(
        "\"{0}\" is not known: use @hourly, @daily, @midnight, @weekly, @monthly, @yearly, @annually or five fields"
    )]
    UnknownNickname(String),
    /// A part of a field is not what belongs there.
    #[error("the {field} field has \"{part}\", expected {expected}")]
    Field {
        /// The field, as people call it.
        field: &'static str,
        /// The part of the field that is wrong.
        part: String,
        /// What may stand there.
        expected: String,
    },
}

/// What a field may hold.
struct Field {
    name: &'static str,
    min: u32,
    /// The highest value that may be written.
    max: u32,
    /// How many different values there are.
    size: u32,
    names: &'static [&'static str],
    marks: Marks,
}

/// Which marks beyond numbers a field knows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Marks {
    None,
    DayOfMonth,
    DayOfWeek,
}

/// What has been read of a field.
#[derive(Default)]
struct Content {
    /// A `*` or `?` that stands for every value.
    every: bool,
    /// A `*` or `?` was written, with or without a step.
    star: bool,
    values: u64,
    marks: Vec<String>,
}

const MONTHS: [&str; 12] = ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"];
const WEEKDAYS: [&str; 7] = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"];

/// The fields, in the order in which they are written.
const FIELDS: [Field; 6] = [
    Field { name: "second", min: 0, max: 59, size: 60, names: &[], marks: Marks::None },
    Field { name: "minute", min: 0, max: 59, size: 60, names: &[], marks: Marks::None },
    Field { name: "hour", min: 0, max: 23, size: 24, names: &[], marks: Marks::None },
    Field { name: "day of month", min: 1, max: 31, size: 31, names: &[], marks: Marks::DayOfMonth },
    Field { name: "month", min: 1, max: 12, size: 12, names: &MONTHS, marks: Marks::None },
    Field { name: "day of week", min: 0, max: 7, size: DAYS_OF_WEEK, names: &WEEKDAYS, marks: Marks::DayOfWeek },
];

/// How many of [`FIELDS`] are a time of day.
const TIME_FIELDS: usize = 3;

/// Reads an expression.
pub(super) fn parse(text: &str) -> Result<Expression, DialectError> {
    let length = text.chars().count();
    if length > MAX_EXPRESSION_CHARS {
        return Err(DialectError::TooLong(length));
    }
    let upper = text.trim().to_ascii_uppercase();
    if upper.is_empty() {
        return Err(DialectError::Empty);
    }
    if upper.starts_with("TZ=") || upper.starts_with("CRON_TZ=") {
        let (zone, rest) = text.trim().split_once(char::is_whitespace).unwrap_or((text.trim(), ""));
        let zone = zone.split_once('=').map_or("", |(_, zone)| zone);
        return Err(DialectError::ZoneInside { zone: zone.to_owned(), rest: rest.trim().to_owned() });
    }
    let written = if upper.starts_with('@') { nickname(&upper, text.trim())? } else { &upper };

    let mut parts: Vec<&str> = written.split_whitespace().collect();
    match parts.len() {
        5 => parts.insert(0, "0"),
        6 => {}
        found => return Err(DialectError::FieldCount(found)),
    }
    let contents =
        FIELDS.iter().zip(parts).map(|(field, part)| field.parse(part)).collect::<Result<Vec<Content>, _>>()?;
    let pace = if contents.iter().take(TIME_FIELDS).any(|content| content.star) { Pace::Wildcard } else { Pace::Fixed };
    let canonical = contents.iter().map(Content::canonical).collect::<Vec<_>>().join(" ");
    Ok(Expression { canonical, pace })
}

/// The fields that an `@` word stands for.
fn nickname(upper: &str, written: &str) -> Result<&'static str, DialectError> {
    match upper {
        "@HOURLY" => Ok("0 * * * *"),
        "@DAILY" | "@MIDNIGHT" => Ok("0 0 * * *"),
        "@WEEKLY" => Ok("0 0 * * 0"),
        "@MONTHLY" => Ok("0 0 1 * *"),
        "@YEARLY" | "@ANNUALLY" => Ok("0 0 1 1 *"),
        _ => match upper.strip_prefix("@EVERY") {
            Some(_) => Err(DialectError::Every(written["@EVERY".len()..].trim().to_owned())),
            None => Err(DialectError::UnknownNickname(written.to_owned())),
        },
    }
}

impl Content {
    /// The field as croner reads it.
    fn canonical(&self) -> String {
        if self.every {
            return "*".to_owned();
        }
        let mut text = String::new();
        for value in (0..u64::BITS).filter(|value| self.values & (1 << value) != 0) {
            if !text.is_empty() {
                text.push(',');
            }
            text.push_str(&value.to_string());
        }
        for mark in &self.marks {
            if !text.is_empty() {
                text.push(',');
            }
            text.push_str(mark);
        }
        text
    }
}

impl Field {
    fn parse(&self, text: &str) -> Result<Content, DialectError> {
        let mut content = Content::default();
        for part in text.split(',') {
            self.parse_part(part, &mut content)?;
        }
        // croner keeps one flag for both, and would forget the L.
        if ["L", "LW"].iter().all(|mark| content.marks.iter().any(|seen| seen == mark)) {
            return Err(self.error(text, "either L or LW, not both in one list"));
        }
        Ok(content)
    }

    fn parse_part(&self, part: &str, content: &mut Content) -> Result<(), DialectError> {
        let (base, step) = match part.split_once('/') {
            Some((base, step)) => (base, Some(self.step(part, step)?)),
            None => (part, None),
        };
        if base == "*" || base == "?" {
            content.star = true;
            content.every |= step.is_none_or(|step| step == 1);
            self.add(content, self.min, self.size - 1, step.unwrap_or(1));
        } else if let Some((first, last)) = base.split_once('-') {
            let (first, last) = (self.value(part, first)?, self.value(part, last)?);
            let length = if first <= last { last - first } else { last + self.size - first };
            self.add(content, first, length, step.unwrap_or(1));
        } else if let Some(step) = step {
            // From the value to the end of the field, as CronJob reads it.
            let first = self.value(part, base)?;
            let length = (self.min + self.size - 1).saturating_sub(first);
            self.add(content, first, length, step);
        } else if let Some(mark) = self.mark(part)? {
            content.marks.push(mark);
        } else {
            let value = self.value(part, base)?;
            self.add(content, value, 0, 1);
        }
        Ok(())
    }

    /// Adds every `step`th value from `first` to the one `length` after it, going round at the end of the field.
    fn add(&self, content: &mut Content, first: u32, length: u32, step: u32) {
        let mut gone = 0;
        while gone <= length {
            content.values |= 1 << (self.min + (first - self.min + gone) % self.size);
            gone = gone.saturating_add(step);
        }
    }

    fn step(&self, part: &str, step: &str) -> Result<u32, DialectError> {
        match number(step) {
            Some(step) if step > 0 => Ok(step),
            _ => Err(self.error(part, "a step of 1 or more after the slash, as in */5")),
        }
    }

    fn value(&self, part: &str, text: &str) -> Result<u32, DialectError> {
        let named = self.names.iter().position(|name| *name == text).and_then(|index| u32::try_from(index).ok());
        named
            .map(|index| index + self.min)
            .or_else(|| number(text).filter(|value| (self.min..=self.max).contains(value)))
            .ok_or_else(|| self.error(part, &self.expected()))
    }

    /// The part as a mark of croner's, if it is one.
    fn mark(&self, part: &str) -> Result<Option<String>, DialectError> {
        match self.marks {
            Marks::None => Ok(None),
            Marks::DayOfMonth => match part.strip_suffix('W') {
                _ if part == "L" || part == "LW" => Ok(Some(part.to_owned())),
                Some(day) => Ok(Some(format!("{}W", self.value(part, day)?))),
                None => Ok(None),
            },
            Marks::DayOfWeek => match part.split_once('#') {
                Some((day, "L")) => Ok(Some(format!("{}L", self.weekday(part, day)?))),
                Some((day, nth)) => {
                    let nth = number(nth).filter(|nth| (1..=MAX_OCCURRENCES).contains(nth)).ok_or_else(|| {
                        self.error(part, "1 to 5 or L after the #, as in 5#2 for the second Friday of a month")
                    })?;
                    Ok(Some(format!("{}#{nth}", self.weekday(part, day)?)))
                }
                None if part == "L" => {
                    Err(self.error(part, "a day before the L, as in 5L for the last Friday of a month"))
                }
                None => match part.strip_suffix('L') {
                    Some(day) => Ok(Some(format!("{}L", self.weekday(part, day)?))),
                    None => Ok(None),
                },
            },
        }
    }

    fn weekday(&self, part: &str, text: &str) -> Result<u32, DialectError> {
        Ok(self.value(part, text)? % DAYS_OF_WEEK)
    }

    /// What a value of this field looks like.
    fn expected(&self) -> String {
        let mut text = format!("{} to {}", self.min, self.max);
        if let [first, .., last] = self.names {
            // Writing to a String cannot fail.
            write!(text, ", {first} to {last}").unwrap_or_default();
        }
        text.push_str(match self.marks {
            Marks::None => "",
            Marks::DayOfMonth => ", L, LW or 15W",
            Marks::DayOfWeek => ", 5L or 5#2",
        });
        text.push_str(", *, or a list, range or step of these");
        text
    }

    fn error(&self, part: &str, expected: &str) -> DialectError {
        DialectError::Field { field: self.name, part: part.to_owned(), expected: expected.to_owned() }
    }
}

/// A number without sign, as digits only: `parse` alone would take a plus.
fn number(text: &str) -> Option<u32> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

//! One field of a schedule: lists of ranges with steps, as the set of numbers that they name.

use crate::ScheduleError;

/// The numbers that a field names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Field {
    /// Bit n stands for the number n.
    numbers: u64,
    /// Whether the field names everything: a star, without a step.
    pub(crate) is_star: bool,
}

/// What the numbers of a field may be.
pub(crate) struct Bounds {
    pub(crate) min: u32,
    pub(crate) max: u32,
    /// English names, from the number at which they begin.
    names: &'static [&'static str],
    names_from: u32,
}

pub(crate) const MINUTES: Bounds = Bounds { min: 0, max: 59, names: &[], names_from: 0 };
pub(crate) const HOURS: Bounds = Bounds { min: 0, max: 23, names: &[], names_from: 0 };
pub(crate) const DAYS: Bounds = Bounds { min: 1, max: 31, names: &[], names_from: 0 };
pub(crate) const MONTHS: Bounds = Bounds {
    min: 1,
    max: 12,
    names: &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
    names_from: 1,
};
pub(crate) const WEEKDAYS: Bounds =
    Bounds { min: 0, max: 6, names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"], names_from: 0 };

impl Field {
    /// Whether the field names a number.
    pub fn has(self, number: i8) -> bool {
        u32::try_from(number).is_ok_and(|number| number < 64 && self.numbers >> number & 1 == 1)
    }

    /// Every number within bounds.
    pub(crate) fn all(bounds: &Bounds) -> Self {
        let numbers = (bounds.min..=bounds.max).fold(0, |set, number| set | 1 << number);
        Self { numbers, is_star: true }
    }

    /// One number.
    pub(crate) fn one(number: u32) -> Self {
        Self { numbers: 1 << number, is_star: false }
    }

    /// Reads a list such as `1,5-9/2,*/15`.
    pub(crate) fn parse(text: &str, bounds: &Bounds) -> Result<Self, ScheduleError> {
        let mut field = Self { numbers: 0, is_star: false };
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let range = range(part, bounds)?;
            field.numbers |= range.numbers;
            field.is_star |= range.is_star;
        }
        Ok(field)
    }
}

/// Reads one range.
fn range(text: &str, bounds: &Bounds) -> Result<Field, ScheduleError> {
    let wrong = |what: &str| Err(ScheduleError::new(format!("{what}: {text}")));
    let (ends, step) = match text.split_once('/') {
        Some((_, step)) if step.contains('/') => return wrong("too many slashes"),
        Some((ends, step)) => (ends, Some(step)),
        None => (text, None),
    };
    let (first, last) = match ends.split_once('-') {
        Some((_, last)) if last.contains('-') => return wrong("too many hyphens"),
        Some((first, last)) => (first, Some(last)),
        None => (ends, None),
    };
    let mut is_star = matches!(first, "*" | "?");
    let (start, mut end) = if is_star {
        (bounds.min, bounds.max)
    } else {
        let start = number_or_name(first, bounds)?;
        (start, last.map_or(Ok(start), |last| number_or_name(last, bounds))?)
    };
    let step = match step {
        Some(step) => {
            // A number with a step goes on to the end.
            if last.is_none() {
                end = bounds.max;
            }
            let step = number(step)?;
            is_star &= step <= 1;
            step
        }
        None => 1,
    };
    if start < bounds.min {
        return wrong(&format!("beginning of range ({start}) below minimum ({})", bounds.min));
    }
    if end > bounds.max {
        return wrong(&format!("end of range ({end}) above maximum ({})", bounds.max));
    }
    if start > end {
        return wrong(&format!("beginning of range ({start}) beyond end of range ({end})"));
    }
    if step == 0 {
        return wrong("step of range should be a positive number");
    }
    let numbers = (start..=end).step_by(step as usize).fold(0, |set, number| set | 1 << number);
    Ok(Field { numbers, is_star })
}

/// A number, or an English name for one.
fn number_or_name(text: &str, bounds: &Bounds) -> Result<u32, ScheduleError> {
    match bounds.names.iter().position(|name| name.eq_ignore_ascii_case(text)) {
        Some(place) => Ok(bounds.names_from + place as u32),
        None => number(text),
    }
}

/// A number that is not negative.
fn number(text: &str) -> Result<u32, ScheduleError> {
    let digits = text.strip_prefix('+').unwrap_or(text);
    match digits.parse::<u32>() {
        Ok(number) if digits.starts_with(|c: char| c.is_ascii_digit()) => Ok(number),
        _ => Err(ScheduleError::new(format!("failed to parse int from {text}: not a number"))),
    }
}

//! A schedule: read from its text, and asked for the moments at which something is due.

use std::str::FromStr;

use jiff::civil::Weekday;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, Zoned};

use crate::field::{DAYS, Field, HOURS, MINUTES, MONTHS, WEEKDAYS};

/// Years ahead in which a moment is looked for: a 29th of February comes within eight, as a rule within four.
const YEARS_AHEAD: i16 = 5;
/// Minutes skipped at once where an hour does not fit; clocks change at multiples of it.
const QUARTER: i64 = 15;

/// When something is due.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Schedule {
    /// At the minutes that fit all fields.
    Calendar {
        /// Minutes of an hour.
        minutes: Field,
        /// Hours of a day.
        hours: Field,
        /// Days of a month.
        days: Field,
        /// Months of a year.
        months: Field,
        /// Days of a week, from Sunday, which is 0.
        weekdays: Field,
    },
    /// Again after this many seconds.
    Every(i64),
}

impl Schedule {
    /// The first moment after `after` that is due, with the clocks of `zone`; none within five years for days that
    /// there are not, such as the 30th of February.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        match self {
            Self::Every(seconds) => {
                let whole = Timestamp::from_second(after.as_second()).ok()?;
                whole.checked_add(SignedDuration::from_secs(*seconds)).ok()
            }
            Self::Calendar { .. } => self.next_minute(after, zone),
        }
    }

    /// Walks from minute to minute, and past hours, days and months that do not fit. It walks along real time, so that
    /// minutes of a gap are never met and those of an overlap twice.
    fn next_minute(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let start = Timestamp::from_second(after.as_second()).ok()?.to_zoned(zone.clone());
        let mut at = forward(&start, SignedDuration::from_secs(60 - i64::from(start.second())))?;
        let last_year = start.year().checked_add(YEARS_AHEAD)?;
        while at.year() <= last_year {
            let Self::Calendar { minutes, hours, months, .. } = self else { return None };
            at = if !months.has(at.month()) {
                let month = at.date().last_of_month().tomorrow().ok()?;
                month.to_zoned(zone.clone()).ok()?
            } else if !self.is_day(&at) {
                at.date().tomorrow().ok()?.to_zoned(zone.clone()).ok()?
            } else if !hours.has(at.hour()) {
                forward(&at, SignedDuration::from_mins(QUARTER - i64::from(at.minute()) % QUARTER))?
            } else if !minutes.has(at.minute()) {
                forward(&at, SignedDuration::from_mins(1))?
            } else {
                return Some(at.timestamp());
            };
        }
        None
    }

    /// Whether the day fits. Where both of its fields say something, one of them is enough.
    fn is_day(&self, at: &Zoned) -> bool {
        let Self::Calendar { days, weekdays, .. } = self else { return true };
        let (of_month, of_week) = (days.has(at.day()), weekdays.has(at.weekday().to_sunday_zero_offset()));
        if days.is_star || weekdays.is_star { of_month && of_week } else { of_month || of_week }
    }
}

/// A later moment, in real time.
fn forward(at: &Zoned, by: SignedDuration) -> Option<Zoned> {
    at.checked_add(by).ok()
}

impl FromStr for Schedule {
    type Err = ScheduleError;

    fn from_str(text: &str) -> Result<Self, ScheduleError> {
        if text.is_empty() {
            return Err(ScheduleError::new("empty spec string".to_owned()));
        }
        if text.starts_with('@') {
            return descriptor(text);
        }
        let fields: Vec<&str> = text.split_whitespace().collect();
        let [minute, hour, day, month, weekday] = fields[..] else {
            let found = format!("expected exactly 5 fields, found {}: [{}]", fields.len(), fields.join(" "));
            return Err(ScheduleError::new(found));
        };
        Ok(Self::Calendar {
            minutes: Field::parse(minute, &MINUTES)?,
            hours: Field::parse(hour, &HOURS)?,
            days: Field::parse(day, &DAYS)?,
            months: Field::parse(month, &MONTHS)?,
            weekdays: Field::parse(weekday, &WEEKDAYS)?,
        })
    }
}

/// Reads a schedule that has a name.
fn descriptor(text: &str) -> Result<Schedule, ScheduleError> {
    let all = || (Field::all(&DAYS), Field::all(&MONTHS), Field::all(&WEEKDAYS));
    let at = |days, months, weekdays| Schedule::Calendar {
        minutes: Field::one(0),
        hours: Field::one(0),
        days,
        months,
        weekdays,
    };
    let (days, months, weekdays) = all();
    Ok(match text {
        "@yearly" | "@annually" => at(Field::one(1), Field::one(1), weekdays),
        "@monthly" => at(Field::one(1), months, weekdays),
        "@weekly" => at(days, months, Field::one(Weekday::Sunday.to_sunday_zero_offset() as u32)),
        "@daily" | "@midnight" => at(days, months, weekdays),
        "@hourly" => Schedule::Calendar { minutes: Field::one(0), hours: Field::all(&HOURS), days, months, weekdays },
        _ => match text.strip_prefix("@every ") {
            Some(period) => every(text, period)?,
            None => return Err(ScheduleError::new(format!("unrecognized descriptor: {text}"))),
        },
    })
}

/// Reads a period such as `1h30m`; parts of a second are dropped, and it is a second at least.
fn every(text: &str, period: &str) -> Result<Schedule, ScheduleError> {
    let plain = period.starts_with(|c: char| c.is_ascii_digit())
        && period.chars().all(|c| c.is_ascii_digit() || matches!(c, 'h' | 'm' | 's' | '.' | 'u' | 'n'));
    match period.parse::<SignedDuration>() {
        Ok(period) if plain => Ok(Schedule::Every(period.as_secs().max(1))),
        _ => Err(ScheduleError::new(format!("failed to parse duration {text}: invalid duration {period:?}"))),
    }
}

/// A text that is no schedule. Correct it as the sentence says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{sentence}")]
pub struct ScheduleError {
    sentence: String,
}

impl ScheduleError {
    pub(crate) fn new(sentence: String) -> Self {
        Self { sentence }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn zone(name: &str) -> TimeZone {
        crate::bundled(name).expect("a zone")
    }

    /// The moments that are due after one, with local times.
    fn due(schedule: &str, zone_name: &str, after: &str, count: usize) -> Vec<String> {
        let (schedule, zone): (Schedule, _) = (schedule.parse().expect(schedule), zone(zone_name));
        let mut at: Timestamp = after.parse().expect("a time");
        let mut out = Vec::new();
        for _ in 0..count {
            let Some(next) = schedule.next(at, &zone) else { break };
            at = next;
            out.push(at.to_zoned(zone.clone()).strftime("%m-%d %H:%M %Z").to_string());
        }
        out
    }

    fn refused(text: &str) -> String {
        text.parse::<Schedule>().expect_err(text).to_string()
    }

    #[test]
    fn fields_lists_ranges_steps_and_names_are_read() {
        let monday = "2024-01-01T00:00:00Z";
        assert_eq!(due("*/15 * * * *", "UTC", monday, 3), ["01-01 00:15 UTC", "01-01 00:30 UTC", "01-01 00:45 UTC"]);
        assert_eq!(due("5 4 * * sun", "UTC", monday, 2), ["01-07 04:05 UTC", "01-14 04:05 UTC"]);
        assert_eq!(due("0 22 * * 1-5", "UTC", "2024-01-05T22:00:00Z", 1), ["01-08 22:00 UTC"]);
        assert_eq!(due("0 9-17/4 1,15 FEB *", "UTC", monday, 4)[2..], ["02-01 17:00 UTC", "02-15 09:00 UTC"]);
        assert_eq!(due("50/5 0 * * ?", "UTC", monday, 3), ["01-01 00:50 UTC", "01-01 00:55 UTC", "01-02 00:50 UTC"]);
        assert_eq!(due("0 0 29 2 *", "UTC", monday, 2), ["02-29 00:00 UTC", "02-29 00:00 UTC"]);
    }

    #[test]
    fn where_both_kinds_of_days_are_named_one_is_enough() {
        let days = due("0 0 13 * fri", "UTC", "2024-09-01T00:00:00Z", 4);
        assert_eq!(days, ["09-06 00:00 UTC", "09-13 00:00 UTC", "09-20 00:00 UTC", "09-27 00:00 UTC"]);
        // A star with a step says something too.
        let days = due("0 0 */31 * fri", "UTC", "2024-09-01T00:00:00Z", 2);
        assert_eq!(days, ["09-06 00:00 UTC", "09-13 00:00 UTC"]);
    }

    #[test]
    fn schedules_with_names_are_read() {
        let at = "2024-05-14T10:20:30Z";
        assert_eq!(due("@hourly", "UTC", at, 1), ["05-14 11:00 UTC"]);
        assert_eq!(due("@daily", "UTC", at, 1), due("@midnight", "UTC", at, 1));
        assert_eq!(due("@weekly", "UTC", at, 1), ["05-19 00:00 UTC"]);
        assert_eq!(due("@monthly", "UTC", at, 1), ["06-01 00:00 UTC"]);
        assert_eq!(due("@yearly", "UTC", at, 1), ["01-01 00:00 UTC"]);
        assert_eq!(due("@every 1h30m", "UTC", at, 2), ["05-14 11:50 UTC", "05-14 13:20 UTC"]);
        assert_eq!("@every 10ms".parse(), Ok(Schedule::Every(1)));
    }

    #[test]
    fn what_lies_in_a_gap_is_not_due_that_day() {
        // In New York, 2024-03-10 has no times from 02:00 to 03:00.
        let days = due("30 2 * * *", "America/New_York", "2024-03-09T12:00:00Z", 2);
        assert_eq!(days, ["03-11 02:30 EDT", "03-12 02:30 EDT"]);
        let hours = due("0 * * * *", "America/New_York", "2024-03-10T06:00:00Z", 2);
        assert_eq!(hours, ["03-10 03:00 EDT", "03-10 04:00 EDT"]);
    }

    #[test]
    fn what_lies_in_an_overlap_is_due_twice() {
        // In New York, the hour from 01:00 to 02:00 comes twice on 2024-11-03.
        let days = due("30 1 * * *", "America/New_York", "2024-11-02T12:00:00Z", 3);
        assert_eq!(days, ["11-03 01:30 EDT", "11-03 01:30 EST", "11-04 01:30 EST"]);
        // Lord Howe Island puts its clocks back by half an hour.
        let halves = due("45 1 * * *", "Australia/Lord_Howe", "2024-04-06T00:00:00Z", 2);
        assert_eq!(halves.iter().filter(|at| at.starts_with("04-07")).count(), 2, "{halves:?}");
    }

    #[test]
    fn midnight_that_does_not_exist_skips_to_the_next_day() {
        // In Beirut, clocks go from 00:00 to 01:00 on 2024-03-31.
        assert_eq!(due("0 0 * * *", "Asia/Beirut", "2024-03-30T12:00:00Z", 1)[0][..11], *"04-01 00:00");
        assert_eq!(due("0 1 * * *", "Asia/Beirut", "2024-03-30T12:00:00Z", 1)[0][..11], *"03-31 01:00");
    }

    #[test]
    fn days_that_there_are_not_are_never_due() {
        assert_eq!(due("59 23 31 2 *", "UTC", "2024-01-01T00:00:00Z", 1), [""; 0]);
    }

    #[test]
    fn what_is_no_schedule_is_refused_as_upstream_refuses_it() {
        assert_eq!(refused("* * * *"), "expected exactly 5 fields, found 4: [* * * *]");
        assert_eq!(refused("60 * * * *"), "end of range (60) above maximum (59): 60");
        assert_eq!(refused("* * 0 * *"), "beginning of range (0) below minimum (1): 0");
        assert_eq!(refused("* * * * 7"), "end of range (7) above maximum (6): 7");
        assert_eq!(refused("5-1 * * * *"), "beginning of range (5) beyond end of range (1): 5-1");
        assert_eq!(refused("*/0 * * * *"), "step of range should be a positive number: */0");
        assert_eq!(refused("1-2-3 * * * *"), "too many hyphens: 1-2-3");
        assert_eq!(refused("1/2/3 * * * *"), "too many slashes: 1/2/3");
        assert_eq!(refused("@noon"), "unrecognized descriptor: @noon");
        assert!(refused("@every soon").starts_with("failed to parse duration @every soon"));
        assert!(refused("a * * * *").starts_with("failed to parse int from a"));
        assert_eq!(refused(""), "empty spec string");
    }

    proptest! {
        #[test]
        fn no_minute_between_is_due(
            minute in 0..60u32, hour in 0..24u32, step in 1..9u32, start in 1_700_000_000i64..1_800_000_000,
            name in proptest::sample::select(vec!["UTC", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"]),
        ) {
            let schedule: Schedule = format!("{minute} {hour}/{step} * * *").parse().expect("a schedule");
            let (zone, after) = (zone(name), Timestamp::from_second(start).expect("a time"));
            let next = schedule.next(after, &zone).expect("is due within a day or two");
            prop_assert!(next > after);
            let fits = |at: Timestamp| {
                let at = at.to_zoned(zone.clone());
                at.second() == 0 && at.minute() as u32 == minute && at.hour() as u32 >= hour
                    && (at.hour() as u32 - hour).is_multiple_of(step)
            };
            prop_assert!(fits(next));
            let mut at = (after.as_second() / 60 + 1) * 60;
            while at < next.as_second() {
                prop_assert!(!fits(Timestamp::from_second(at).expect("a time")));
                at += 60;
            }
        }

        #[test]
        fn no_text_makes_the_reader_stumble(text in "[-0-9a-z*/,?@ ]{0,24}") {
            let _ = text.parse::<Schedule>();
        }
    }
}

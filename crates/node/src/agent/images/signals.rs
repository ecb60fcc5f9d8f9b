//! Signals as images name them.

/// SIGTERM.
pub(super) const TERM: i32 = 15;

/// The standard ones, by number from 1.
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
];
/// The real-time ones that programs may use, as the C library counts them.
const RT_MIN: i32 = 34;
const RT_MAX: i32 = 64;

/// A signal's number from its number or name, with or without `SIG`; None where there is no such signal.
pub(super) fn parse(text: &str) -> Option<i32> {
    let upper = text.trim().to_ascii_uppercase();
    if let Ok(number) = upper.parse::<i32>() {
        return (1..=RT_MAX).contains(&number).then_some(number);
    }
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(at) = NAMES.iter().position(|n| *n == name) {
        return i32::try_from(at + 1).ok();
    }
    let offset = |text: &str, sign: &str| match text {
        "" => Some(0),
        text => text.strip_prefix(sign)?.parse::<i32>().ok().filter(|n| (0..=30).contains(n)),
    };
    if let Some(rest) = name.strip_prefix("RTMIN") {
        return Some(RT_MIN + offset(rest, "+")?);
    }
    Some(RT_MAX - offset(name.strip_prefix("RTMAX")?, "-")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_numbers_and_names() {
        for (text, number) in [
            ("SIGINT", 2),
            ("quit", 3),
            ("15", 15),
            ("SIGWINCH", 28),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
            ("SIGSYS", 31),
        ] {
            assert_eq!(parse(text), Some(number), "{text}");
        }
        for text in ["", "SIG", "0", "65", "-1", "SIGFOO", "RTMIN+99", "RTMIN-1"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}

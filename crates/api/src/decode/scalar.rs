//! Canonical forms of numbers and of texts that mean more than a text, and why others are refused. The sentences
//! are upstream's: people search for them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::Value;

use crate::quantity::Quantity;

/// A quantity in canonical form: `0.5` is `500m`.
pub(super) fn quantity(text: &str) -> Result<String, String> {
    match Quantity::parse(text.trim()) {
        Ok(quantity) => Ok(quantity.to_string()),
        Err(_) => {
            Err("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
                .to_owned())
        }
    }
}

/// A number that need not be whole. One that is, is written so, as upstream does.
pub(crate) fn number(value: f64) -> Value {
    /// Beyond it not every whole number has a form of its own.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if value.fract() == 0.0 && value.abs() <= EXACT { Value::from(value as i64) } else { Value::from(value) }
}

/// A time in whole seconds, UTC.
pub(super) fn time(text: &str) -> Result<String, String> {
    parse_time(text).map(|t| t.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

/// A time in microseconds, UTC.
pub(super) fn micro_time(text: &str) -> Result<String, String> {
    parse_time(text).map(|t| t.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string())
}

/// RFC 3339 and nothing looser.
fn parse_time(text: &str) -> Result<Timestamp, String> {
    let bytes = text.as_bytes();
    let has_form = bytes.len() >= "2006-01-02T15:04:05Z".len()
        && bytes[10] == b'T'
        && (text.ends_with('Z') || bytes[bytes.len() - 6..].contains(&b':'))
        && bytes[..10].iter().all(|b| b.is_ascii_digit() || *b == b'-')
        && !text.contains('[');
    has_form
        .then(|| text.parse().ok())
        .flatten()
        .ok_or_else(|| format!("parsing time {text:?} as \"2006-01-02T15:04:05Z07:00\": it is not a time of that form"))
}

/// Bytes in base64 with padding, without line breaks.
pub(super) fn bytes(text: &str) -> Result<String, String> {
    let stripped: String;
    let text = if text.contains(['\r', '\n']) {
        stripped = text.replace(['\r', '\n'], "");
        &stripped
    } else {
        text
    };
    match STANDARD.decode(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => {
            let at = match error {
                base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => at,
                _ => text.len(),
            };
            Err(format!("illegal base64 data at input byte {at}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_become_canonical() {
        for (given, canonical) in [
            ("0.5", "500m"),
            ("1024Mi", "1Gi"),
            ("1e3", "1e3"),
            ("2.0", "2"),
            ("1.5Gi", "1536Mi"),
            ("128974848", "128974848"),
        ] {
            assert_eq!(quantity(given).as_deref(), Ok(canonical));
        }
        assert!(quantity("5GB").is_err() && quantity("1 Gi").is_err() && quantity("").is_err());
    }

    #[test]
    fn times_are_cut_to_their_precision_and_moved_to_utc() {
        assert_eq!(time("2021-01-01T02:00:00.9+01:00").as_deref(), Ok("2021-01-01T01:00:00Z"));
        assert_eq!(micro_time("2021-01-01T02:00:00.1234567Z").as_deref(), Ok("2021-01-01T02:00:00.123456Z"));
        assert_eq!(micro_time("2021-01-01T02:00:00Z").as_deref(), Ok("2021-01-01T02:00:00.000000Z"));
        for bad in ["now", "", "2021-01-01", "2021-01-01 00:00:00Z", "2021-01-01T00:00:00", "2021-13-01T00:00:00Z"] {
            assert!(time(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn bytes_are_base64() {
        assert_eq!(bytes("AA\nEC").as_deref(), Ok("AAEC"));
        assert_eq!(bytes("eA=").unwrap_err(), "illegal base64 data at input byte 3");
        assert_eq!(bytes("!AAA").unwrap_err(), "illegal base64 data at input byte 0");
    }
}

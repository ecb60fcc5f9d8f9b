//! Formats of texts: what `format` in a schema asks for.

use std::net::{Ipv4Addr, Ipv6Addr};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Longest host name.
const HOST_MAX: usize = 253;

/// Whether `text` is of this format; formats that nobody knows accept everything.
pub(super) fn fits(format: &str, text: &str) -> bool {
    match format {
        "date" => date(text),
        "date-time" | "datetime" => date_time(text),
        "duration" => duration(text).is_some(),
        "byte" => STANDARD.decode(text.replace(['\r', '\n'], "")).is_ok(),
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "cidr" => cidr(text),
        "mac" => mac(text),
        "uuid" => uuid(text, None),
        "uuid3" => uuid(text, Some(b'3')),
        "uuid4" => uuid(text, Some(b'4')),
        "uuid5" => uuid(text, Some(b'5')),
        "uri" => uri(text),
        "email" => email(text),
        "hostname" => hostname(text),
        "hexcolor" => hex_color(text),
        "rgbcolor" => rgb_color(text),
        "bsonobjectid" => text.len() == 24 && is_hex(text),
        "creditcard" => digits(text).is_some_and(|d| (13..=19).contains(&d.len()) && luhn(&d)),
        "isbn" => isbn10(text) || isbn13(text),
        "isbn10" => isbn10(text),
        "isbn13" => isbn13(text),
        "ssn" => ssn(text),
        "k8s-short-name" => crate::names::dns1123_label(text).is_empty(),
        "k8s-long-name" => crate::names::dns1123_subdomain(text).is_empty(),
        _ => true,
    }
}

/// A calendar date.
fn date(text: &str) -> bool {
    text.len() == 10 && text.parse::<jiff::civil::Date>().is_ok()
}

/// A moment, RFC 3339.
fn date_time(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() >= 20
        && bytes[..10].iter().all(|b| b.is_ascii_digit() || *b == b'-')
        && matches!(bytes[10], b'T' | b't')
        && !text.contains('[')
        && text.to_ascii_uppercase().parse::<jiff::Timestamp>().is_ok()
}

/// A length of time as Go writes it, such as `1h30m`, in nanoseconds; numbers of days and weeks too.
pub(crate) fn duration(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total = 0f64;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let amount: f64 = rest[..end].parse().ok()?;
        rest = rest[end..].trim_start_matches(' ');
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.' || c == ' ').unwrap_or(rest.len());
        let unit = match &rest[..end] {
            "ns" => 1.0,
            "us" | "µs" | "μs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            "d" => 86_400e9,
            "w" => 604_800e9,
            _ => return None,
        };
        total += amount * unit;
        rest = rest[end..].trim_start_matches(' ');
    }
    let total = if negative { -total } else { total };
    (total.abs() < i64::MAX as f64).then_some(total as i64)
}

/// An address and the length of its prefix.
fn cidr(text: &str) -> bool {
    let Some((address, prefix)) = text.split_once('/') else { return false };
    let most = match address.parse::<std::net::IpAddr>() {
        Ok(std::net::IpAddr::V4(_)) => 32,
        Ok(std::net::IpAddr::V6(_)) => 128,
        Err(_) => return false,
    };
    prefix.len() <= 3 && prefix.parse::<u8>().is_ok_and(|p| p <= most)
}

/// An address of a network card.
fn mac(text: &str) -> bool {
    let by = |separator: char, each: usize| {
        let parts: Vec<&str> = text.split(separator).collect();
        matches!(parts.len() * each, 12 | 16 | 40) && parts.iter().all(|p| p.len() == each && is_hex(p))
    };
    by(':', 2) || by('-', 2) || by('.', 4)
}

/// A unique id; with the version where one is asked for.
fn uuid(text: &str, version: Option<u8>) -> bool {
    let bare = text.replace('-', "");
    let is_placed =
        text.len() == 32 || (text.len() == 36 && [8, 13, 18, 23].iter().all(|at| text.as_bytes()[*at] == b'-'));
    bare.len() == 32 && is_hex(&bare) && is_placed && version.is_none_or(|v| bare.as_bytes()[12] == v)
}

/// An address with a scheme, or an absolute path.
fn uri(text: &str) -> bool {
    let is_clean = !text.is_empty() && !text.chars().any(|c| c.is_control() || c == ' ');
    let has_scheme = text.split_once(':').is_some_and(|(scheme, _)| {
        scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
    });
    is_clean && (has_scheme || text.starts_with('/'))
}

/// An address of a mailbox.
fn email(text: &str) -> bool {
    let Some((local, domain)) = text.rsplit_once('@') else { return false };
    !local.is_empty() && !text.chars().any(|c| c.is_whitespace() || c.is_control()) && hostname(domain)
}

/// A name of a host.
fn hostname(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= HOST_MAX
        && text.split('.').all(|label| {
            !label.is_empty()
                && label.len() <= 63
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.chars().all(|c| c.is_alphanumeric() || c == '-')
        })
}

/// `#fff` or `#ffffff`.
fn hex_color(text: &str) -> bool {
    let digits = text.strip_prefix('#').unwrap_or(text);
    matches!(digits.len(), 3 | 6) && is_hex(digits)
}

/// `rgb(0,1,2)`.
fn rgb_color(text: &str) -> bool {
    let inner = text.strip_prefix("rgb(").and_then(|t| t.strip_suffix(')'));
    inner.is_some_and(|inner| {
        let parts: Vec<&str> = inner.split(',').map(str::trim).collect();
        parts.len() == 3 && parts.iter().all(|p| p.parse::<u8>().is_ok())
    })
}

/// A number of an American social insurance.
fn ssn(text: &str) -> bool {
    let parts: Vec<&str> = text.split(['-', ' ']).collect();
    let lengths: Vec<usize> = parts.iter().map(|p| p.len()).collect();
    lengths == [3, 2, 4] && parts.iter().all(|p| p.bytes().all(|b| b.is_ascii_digit()))
}

/// An old book number.
fn isbn10(text: &str) -> bool {
    let bare: Vec<u8> = text.bytes().filter(|b| !matches!(b, b'-' | b' ')).collect();
    if bare.len() != 10 || !bare[..9].iter().all(u8::is_ascii_digit) {
        return false;
    }
    let last = match bare[9] {
        b'X' | b'x' => 10,
        b if b.is_ascii_digit() => u32::from(b - b'0'),
        _ => return false,
    };
    let sum: u32 = bare[..9].iter().zip(1..).map(|(b, n)| n * u32::from(b - b'0')).sum();
    (sum + 10 * last).is_multiple_of(11)
}

/// A book number.
fn isbn13(text: &str) -> bool {
    digits(text).is_some_and(|d| {
        let sum: u32 = d.iter().enumerate().map(|(i, n)| u32::from(*n) * if i % 2 == 0 { 1 } else { 3 }).sum();
        d.len() == 13 && sum.is_multiple_of(10)
    })
}

/// The digits of a number that is written in groups.
fn digits(text: &str) -> Option<Vec<u8>> {
    let bare = text.bytes().filter(|b| !matches!(b, b'-' | b' '));
    bare.map(|b| b.is_ascii_digit().then(|| b - b'0')).collect()
}

/// The check of card numbers.
fn luhn(digits: &[u8]) -> bool {
    let double = |n: u32| if n > 4 { n * 2 - 9 } else { n * 2 };
    let sum: u32 =
        digits.iter().rev().enumerate().map(|(i, d)| if i % 2 == 1 { double((*d).into()) } else { (*d).into() }).sum();
    sum.is_multiple_of(10)
}

/// Whether all characters are hexadecimal digits.
fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_tell_good_from_bad() {
        for (format, good, bad) in [
            ("date", "2024-02-29", "2024-02-30"),
            ("date-time", "2024-02-29T01:02:03Z", "2024-02-29 01:02:03"),
            ("duration", "1h30m", "1 fortnight"),
            ("byte", "AAEC", "!"),
            ("ipv4", "10.0.0.1", "10.0.0.256"),
            ("ipv6", "::1", "10.0.0.1"),
            ("cidr", "10.0.0.0/8", "10.0.0.0/33"),
            ("mac", "00:11:22:33:44:55", "00:11:22:33:44"),
            ("uuid", "123e4567-e89b-12d3-a456-426614174000", "123e4567"),
            ("uuid4", "123e4567-e89b-42d3-a456-426614174000", "123e4567-e89b-12d3-a456-426614174000"),
            ("uri", "https://a.example/x", "a b"),
            ("email", "a@b.example", "a.example"),
            ("hostname", "a.example", "-a.example"),
            ("hexcolor", "#0fF", "#0g0"),
            ("rgbcolor", "rgb(1,2,3)", "rgb(1,2,300)"),
            ("creditcard", "4111 1111 1111 1111", "4111 1111 1111 1112"),
            ("isbn", "978-3-16-148410-0", "978-3-16-148410-1"),
            ("isbn10", "0-306-40615-2", "0-306-40615-3"),
            ("ssn", "111-22-3333", "1112-2-3333"),
            ("k8s-short-name", "a-b", "a.b"),
            ("k8s-long-name", "a.b", "A"),
        ] {
            assert!(fits(format, good), "{format} {good}");
            assert!(!fits(format, bad), "{format} {bad}");
        }
        assert!(fits("nobody-knows", "x"));
    }
}

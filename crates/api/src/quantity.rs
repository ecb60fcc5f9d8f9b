//! Quantities: amounts such as `500m`, `1Gi`, `2e3`, compared and added exactly, printed in canonical form.
//!
//! An amount is an integer count of nano-units; what is finer is rounded up, as upstream does.

use std::cmp::Ordering;
use std::fmt;

/// How a quantity was written, which is how it is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Powers of 1024: `Ki`, `Mi`, …
    BinarySi,
    /// Powers of 1000: `n`, `u`, `m`, none, `k`, `M`, …
    DecimalSi,
    /// Powers of ten: `e3`.
    DecimalExponent,
}

/// An amount and the format it is printed in. Equality and order are those of the amount.
#[derive(Debug, Clone)]
pub struct Quantity {
    /// In nano-units.
    nanos: i128,
    format: Format,
}

/// Nano-units in one.
const NANO: i128 = 1_000_000_000;

/// The largest amount: 2^63-1 units. More is cut to it, as upstream does.
const MAX: i128 = i64::MAX as i128 * NANO;

/// Decimal suffixes and their powers of ten.
const DECIMAL: [(&str, i32); 10] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];

/// Binary suffixes and their powers of two.
const BINARY: [(&str, u32); 6] = [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("Pi", 50), ("Ei", 60)];

impl Quantity {
    /// Reads a quantity.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
        let negative = text.starts_with('-');
        let digits_end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(digits_end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.len() + fraction.len() == 0 || fraction.contains('.') {
            return Err(ParseError);
        }
        let (scale, format) = read_suffix(suffix)?;
        let nanos = match scale {
            Scale::Ten(power) => decimal_nanos(whole, fraction, power),
            Scale::Two(power) => binary_nanos(whole, fraction, power),
        };
        let nanos = nanos.min(MAX);
        Ok(Self { nanos: if negative { -nanos } else { nanos }, format })
    }

    /// A whole number of units.
    pub fn from_units(units: i64) -> Self {
        Self { nanos: i128::from(units) * NANO, format: Format::DecimalSi }
    }

    /// A number of bytes, printed in powers of 1024.
    pub fn from_bytes(bytes: i64) -> Self {
        Self { nanos: i128::from(bytes) * NANO, format: Format::BinarySi }
    }

    /// Whole units, rounded up (away from nothing that was asked for).
    pub fn units(&self) -> i64 {
        i64::try_from(div_up(self.nanos, NANO)).unwrap_or(i64::MAX)
    }

    /// Thousandths, rounded up; saturates.
    pub fn millis(&self) -> i64 {
        i64::try_from(div_up(self.nanos, NANO / 1000)).unwrap_or(i64::MAX)
    }

    /// Whether it is nothing.
    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    /// Whether it is below nothing.
    pub fn is_negative(&self) -> bool {
        self.nanos < 0
    }

    /// Whether it is a whole number of units.
    pub fn is_whole(&self) -> bool {
        self.nanos % NANO == 0
    }

    /// The sum, in this quantity's format; cut at the largest amount.
    pub fn add(&self, other: &Self) -> Self {
        let format = if self.nanos == 0 { other.format } else { self.format };
        Self { nanos: (self.nanos + other.nanos).clamp(-MAX, MAX), format }
    }

    /// The difference, in this quantity's format.
    pub fn sub(&self, other: &Self) -> Self {
        Self { nanos: (self.nanos - other.nanos).clamp(-MAX, MAX), format: self.format }
    }

    /// The format it is printed in.
    pub fn format(&self) -> Format {
        self.format
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl std::str::FromStr for Quantity {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        Self::parse(text)
    }
}

impl fmt::Display for Quantity {
    /// The canonical form: no fraction, the largest suffix that allows it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        // Below 1024 or with a fraction, binary amounts are printed as decimal ones.
        if self.format == Format::BinarySi && self.nanos.abs() >= 1024 * NANO && self.is_whole() {
            let (mut units, mut suffix) = (self.nanos / NANO, "");
            for (name, _) in BINARY {
                if units % 1024 != 0 {
                    break;
                }
                units /= 1024;
                suffix = name;
            }
            return write!(f, "{units}{suffix}");
        }
        let (mut number, mut power) = (self.nanos, -9);
        while power < 18 && number % 1000 == 0 {
            number /= 1000;
            power += 3;
        }
        if self.format == Format::DecimalExponent {
            return if power == 0 { write!(f, "{number}") } else { write!(f, "{number}e{power}") };
        }
        let suffix = DECIMAL.iter().find(|(_, p)| *p == power).map_or("", |(name, _)| *name);
        write!(f, "{number}{suffix}")
    }
}

/// What the digits are multiplied with.
enum Scale {
    /// A power of ten.
    Ten(i32),
    /// A power of two.
    Two(u32),
}

/// What a suffix says.
fn read_suffix(suffix: &str) -> Result<(Scale, Format), ParseError> {
    if let Some((_, power)) = BINARY.iter().find(|(name, _)| *name == suffix) {
        return Ok((Scale::Two(*power), Format::BinarySi));
    }
    if let Some((_, power)) = DECIMAL.iter().find(|(name, _)| *name == suffix) {
        return Ok((Scale::Ten(*power), Format::DecimalSi));
    }
    let exponent = suffix.strip_prefix(['e', 'E']).ok_or(ParseError)?;
    // Exponents beyond this are cut off or rounded away all the same.
    let power: i32 = exponent.parse::<i64>().map_err(|_| ParseError)?.clamp(-1000, 1000) as i32;
    Ok((Scale::Ten(power), Format::DecimalExponent))
}

/// Digits times a power of ten, in nano-units, rounded up.
fn decimal_nanos(whole: &str, fraction: &str, power: i32) -> i128 {
    let digits = [whole, fraction].concat();
    let digits = digits.trim_start_matches('0');
    // How many of the digits stand before the point, once counted in nano-units.
    let point = digits.len() as i64 - fraction.len() as i64 + i64::from(power) + 9;
    if digits.is_empty() {
        return 0;
    }
    if point <= 0 {
        return 1;
    }
    if point > 36 {
        return MAX;
    }
    let point = point as usize;
    let (kept, cut) = if point < digits.len() { digits.split_at(point) } else { (digits, "") };
    let mut value: i128 = kept.parse().unwrap_or(MAX);
    value = value.saturating_mul(10_i128.pow((point - kept.len()) as u32));
    if cut.bytes().any(|c| c != b'0') { value + 1 } else { value }
}

/// Digits times a power of two, in nano-units, rounded up.
fn binary_nanos(whole: &str, fraction: &str, power: u32) -> i128 {
    let factor = 1_i128 << power;
    let whole = if whole.is_empty() { 0 } else { whole.parse::<i128>().unwrap_or(MAX) };
    // More than 18 digits of fraction change nothing but the rounding up.
    let fraction = fraction.trim_end_matches('0');
    let (kept, cut) = fraction.split_at(fraction.len().min(18));
    let base = 10_i128.pow(kept.len() as u32);
    let part = if kept.is_empty() { 0 } else { kept.parse::<i128>().unwrap_or(0) } + i128::from(!cut.is_empty());
    // part/base * factor * NANO; divided by the common power of ten first, so that it fits.
    let scaled = if base >= NANO { div_up(part * factor, base / NANO) } else { part * factor * (NANO / base) };
    whole.min(MAX).saturating_mul(factor).saturating_mul(NANO).saturating_add(scaled)
}

/// Division rounding away from zero's floor: up.
fn div_up(value: i128, by: i128) -> i128 {
    value.div_euclid(by) + i128::from(value.rem_euclid(by) != 0)
}

/// The text is no quantity. The sentence is upstream's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
pub struct ParseError;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn q(text: &str) -> Quantity {
        Quantity::parse(text).expect(text)
    }

    #[test]
    fn texts_become_canonical() {
        for (text, canonical) in [
            ("0", "0"),
            ("1", "1"),
            ("1000", "1k"),
            ("1500", "1500"),
            ("500m", "500m"),
            ("0.5", "500m"),
            ("1.5", "1500m"),
            ("1000m", "1"),
            ("1024Ki", "1Mi"),
            ("1.5Gi", "1536Mi"),
            ("1Gi", "1Gi"),
            ("0.5Ki", "512"),
            ("1e3", "1e3"),
            ("12e6", "12e6"),
            ("1E", "1E"),
            ("100E0", "100"),
            (".5", "500m"),
            ("5.", "5"),
            ("+1", "1"),
            ("-1Gi", "-1Gi"),
            ("1n", "1n"),
            ("0.1n", "1n"),
            ("2500u", "2500u"),
            ("1000000Ki", "1000000Ki"),
            ("1000k", "1M"),
            ("1e-3", "1e-3"),
            ("9223372036854775807", "9223372036854775807"),
            ("99999999999999999999", "9223372036854775807"),
        ] {
            assert_eq!(q(text).to_string(), canonical, "{text}");
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["", "much", "1 Gi", "1.2.3", "Gi", "1KI", "1e", "--1", "1ee3", ".", "1Gi "] {
            assert!(Quantity::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn amounts_compare_across_formats() {
        assert_eq!(q("1Ki"), q("1024"));
        assert!(q("1G") < q("1Gi"));
        assert!(q("-1") < q("0"));
        assert_eq!(q("1Gi").add(&q("512Mi")).to_string(), "1536Mi");
        assert_eq!(q("1").sub(&q("250m")).to_string(), "750m");
        assert_eq!(q("1500m").units(), 2);
        assert_eq!(q("1.5").millis(), 1500);
    }

    proptest! {
        #[test]
        fn printing_and_reading_agree(text in "[-+]?[0-9]{0,20}(\\.[0-9]{0,22})?(|n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|e[-+]?[0-9]{1,3})") {
            if let Ok(quantity) = Quantity::parse(&text) {
                let again = Quantity::parse(&quantity.to_string()).expect("what we print we can read");
                prop_assert_eq!(&again, &quantity);
                prop_assert_eq!(again.to_string(), quantity.to_string());
            }
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,24}") {
            let _ = Quantity::parse(&text);
        }
    }
}

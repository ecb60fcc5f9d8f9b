//! Sizes and times, as people read them.

use jiff::Timestamp;

use crate::overview::{Row, Volume};
use crate::why::span;

/// Bytes: `12.4 MiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    // Precise enough for three digits.
    #[allow(clippy::cast_precision_loss, reason = "three digits are shown")]
    let mut amount = count as f64 / 1024.0;
    let mut unit = 0;
    while amount >= 1024.0 && unit + 1 < UNITS.len() {
        amount /= 1024.0;
        unit += 1;
    }
    let number = if amount >= 100.0 { format!("{amount:.0}") } else { format!("{amount:.1}") };
    format!("{} {}", number.strip_suffix(".0").unwrap_or(&number), UNITS[unit])
}

/// What a volume holds of what.
pub fn room(volume: &Volume) -> String {
    match (volume.used_bytes, volume.promised_bytes) {
        (Some(used), Some(promised)) => format!("{} of {}", bytes(used), bytes(promised)),
        (Some(one), None) | (None, Some(one)) => bytes(one),
        (None, None) => String::new(),
    }
}

/// The fullest of a pod's volumes.
pub fn fullest(row: &Row) -> Option<&Volume> {
    row.volumes.iter().max_by_key(|volume| volume.percent)
}

/// Processor time in processors.
pub fn processors(row: &Row) -> String {
    row.cpu_millis.map(|millis| format!("{}.{:03}", millis / 1000, millis % 1000)).unwrap_or_default()
}

/// Memory.
pub fn memory(row: &Row) -> String {
    row.memory_bytes.map(bytes).unwrap_or_default()
}

/// How long a pod has been there.
pub fn age(row: &Row, now: Timestamp) -> String {
    row.created.map(|created| span(now.duration_since(created))).unwrap_or_default()
}

/// How often its containers were started again.
pub fn restarts(row: &Row) -> String {
    row.uid.as_ref().map(|_| row.restarts.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits_at_most() {
        let told = [0, 1023, 1024, 1536, 150 << 20, 5 << 30].map(bytes);
        assert_eq!(told, ["0 B", "1023 B", "1 KiB", "1.5 KiB", "150 MiB", "5 GiB"]);
    }
}

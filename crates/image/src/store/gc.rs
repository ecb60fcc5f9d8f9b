//! Which images go when the disk fills up. Pure.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Image;
use crate::digest::Digest;

/// When images are removed. The kubelet's defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Thresholds {
    /// Part of the disk in use from which images are removed, percent.
    pub high_percent: u8,
    /// Part of the disk in use that is aimed at, percent.
    pub low_percent: u8,
    /// Images that came or were asked for more recently stay, seconds.
    pub min_age_seconds: u64,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self { high_percent: 85, low_percent: 80, min_age_seconds: 120 }
    }
}

/// How full a disk is, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Of the whole.
    pub capacity: u64,
    /// Not free.
    pub used: u64,
}

impl Thresholds {
    /// How many bytes have to go; 0 where there is no need.
    pub fn excess(&self, disk: Disk) -> u64 {
        let percent = |of: u64, percent: u8| (u128::from(of) * u128::from(percent) / 100) as u64;
        if disk.used < percent(disk.capacity, self.high_percent) {
            return 0;
        }
        disk.used - percent(disk.capacity, self.low_percent).min(disk.used)
    }

    /// Which images go so that `excess` bytes do: least recently asked for first, none in use, none young. `freed` tells
    /// what is gone with an image.
    pub fn choose(
        &self,
        images: &[Image],
        in_use: &BTreeSet<Digest>,
        now: Timestamp,
        excess: u64,
        freed: impl Fn(&Image) -> u64,
    ) -> Vec<Digest> {
        let min_age = Duration::from_secs(self.min_age_seconds);
        // One that is to be used in the future was used before the clock was set back: how long ago is not known.
        let old = |image: &&Image| now.duration_since(image.used).unsigned_abs() >= min_age;
        let mut candidates: Vec<&Image> = images.iter().filter(|i| !in_use.contains(&i.id)).filter(old).collect();
        candidates.sort_by_key(|image| (image.used, image.created, image.id));
        let mut gone = 0;
        let mut chosen = Vec::new();
        for image in candidates {
            if gone >= excess {
                break;
            }
            gone += freed(image);
            chosen.push(image.id);
        }
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(name: &str, used: i64) -> Image {
        let id = Digest::of(name.as_bytes());
        let used = Timestamp::from_second(used).expect("a time");
        Image { id, names: BTreeSet::new(), config: id, layers: vec![], size: 10, created: used, used }
    }

    #[test]
    fn nothing_goes_below_the_high_mark_and_down_to_the_low_one_above() {
        let marks = Thresholds::default();
        assert_eq!(marks.excess(Disk { capacity: 1000, used: 849 }), 0);
        assert_eq!(marks.excess(Disk { capacity: 1000, used: 850 }), 50);
        assert_eq!(marks.excess(Disk { capacity: 1000, used: 1000 }), 200);
        assert_eq!(marks.excess(Disk { capacity: 0, used: 0 }), 0);
    }

    #[test]
    fn the_least_recently_used_go_first_and_neither_used_nor_young_ones() {
        let images = [image("young", 1000), image("old", 10), image("older", 5), image("used", 1)];
        let used = BTreeSet::from([images[3].id]);
        let now = Timestamp::from_second(1060).expect("a time");
        let choose = |excess| Thresholds::default().choose(&images, &used, now, excess, |_| 10);
        assert_eq!(choose(1), [images[2].id]);
        assert_eq!(choose(11), [images[2].id, images[1].id]);
        assert_eq!(choose(1 << 40), [images[2].id, images[1].id]);
        assert_eq!(choose(0), []);
        // After the clock was set back all seem to be of the future: they can go all the same.
        let back = Timestamp::from_second(-5000).expect("a time");
        let choose = Thresholds::default().choose(&images, &used, back, 1 << 40, |_| 10);
        assert_eq!(choose, [images[2].id, images[1].id, images[0].id]);
    }
}

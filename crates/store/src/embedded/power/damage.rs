//! A disk that spoils what it holds.

use super::disk::SECTOR;
use super::*;
use crate::embedded::file::StoreFile;

/// What opening a damaged image gives: fine, refused with what to do, or something worse.
fn verdict(model: &Model, image: Vec<u8>, what: &str) -> bool {
    let disk = SimDisk::holding(image);
    match StoreFile::open(Arc::new(disk.clone()), &ambient(1)) {
        Ok((file, _)) => {
            drop(file);
            // It was in a place that nothing is kept in; then all is there.
            assert_eq!(model.check(&disk, model.newest()), Ok(model.newest()), "{what}");
            false
        }
        Err(Error::Unreadable { why, .. }) => {
            let told = why.contains("put a copy of it back") || why.contains("not a store of statefuld");
            assert!(told || why.contains("use the statefuld that wrote it"), "{what}: no remedy in {why:?}");
            true
        }
        Err(other) => panic!("{what}: {other}"),
    }
}

#[tokio::test]
async fn a_damaged_file_is_refused_with_what_to_do_or_was_not_needed_there() {
    let disk = SimDisk::default();
    let store = open(&disk).expect("opens");
    let model = write(&disk, &store, short()).await;
    drop(store);
    let whole = disk.image();
    let used: Vec<usize> = (0..whole.len().div_ceil(SECTOR))
        .filter(|sector| whole[sector * SECTOR..].iter().take(SECTOR).any(|byte| *byte != 0))
        .collect();
    let entropy = ambient(effort("STATEFULD_STORE_SEEDS", 2));
    let mut dice = history::Dice::new(&entropy);
    let mut refused = 0;
    for sector in used {
        let mut image = whole.clone();
        let at = sector * SECTOR + dice.below(SECTOR).min(whole.len() - sector * SECTOR - 1);
        image[at] ^= 1 << dice.below(8);
        refused += usize::from(verdict(&model, image, &format!("a bit of byte {at}")));
        let mut image = whole.clone();
        let end = ((sector + 1) * SECTOR).min(whole.len());
        image[sector * SECTOR..end].fill(0);
        refused += usize::from(verdict(&model, image, &format!("sector {sector} zeroed")));
    }
    assert!(refused > 20, "{refused} damages mattered");
    for length in [1, 100, SECTOR, 4096, whole.len() / 2, whole.len() - 1] {
        assert!(verdict(&model, whole[..length].to_vec(), &format!("cut to {length}")), "cut to {length}");
    }
}

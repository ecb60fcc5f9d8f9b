//! The built-in image: one read-only file, our own program.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::shim::SealedExe;

/// Name of the program in the image's root.
pub const PROGRAM: &str = "statefuld";

/// Lays the image down as `<images>/sample/<sha256>/statefuld` unless it is there, and returns its folder.
/// Blocks: hashing and copying a program takes some tens of milliseconds.
pub fn materialise(images: &Path, exe: &SealedExe) -> io::Result<PathBuf> {
    let folder = images.join("sample").join(exe.sha256()?);
    let program = folder.join(PROGRAM);
    let mut source = exe.reader()?;
    // A copy is renamed into place when it is whole, so a file of the right length is the right file.
    if fs::metadata(&program).is_ok_and(|have| source.metadata().is_ok_and(|want| have.len() == want.len())) {
        return Ok(folder);
    }
    fs::create_dir_all(&folder)?;
    let temporary = folder.join(format!(".{PROGRAM}.{}", std::process::id()));
    let mut copy = File::create(&temporary)?;
    io::copy(&mut source, &mut copy)?;
    copy.set_permissions(fs::Permissions::from_mode(0o555))?;
    copy.sync_all()?;
    fs::rename(&temporary, &program)?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_is_made_once_and_mended_where_cut_short() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("program");
        fs::write(&source, "abc").unwrap();
        let exe = SealedExe::from_path(&source).unwrap();
        let folder = materialise(dir.path(), &exe).unwrap();
        assert!(folder.ends_with("sample/ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"));
        fs::write(folder.join(PROGRAM), "a").unwrap();
        assert_eq!(materialise(dir.path(), &exe).unwrap(), folder);
        assert_eq!(fs::read_to_string(folder.join(PROGRAM)).unwrap(), "abc");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    }
}

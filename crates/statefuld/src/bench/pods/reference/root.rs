//! What the server sees as its root: this program and a few empty folders. As a folder, and as an image in an archive that
//! any runtime imports (OCI image layout). And an image of the smallest program that does nothing, for sandboxes.

use std::fs::{self, File};
use std::io::{self, Read as _, Write};
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// The server's image.
pub(super) const SERVER_IMAGE: &str = "statefuld.local/bench-server:1";
/// The image of a sandbox.
pub(super) const PAUSE_IMAGE: &str = "statefuld.local/bench-pause:1";
/// The server's program and its arguments.
pub(super) const SERVER: [&str; 6] = ["/statefuld", "sample", "--listen", "0.0.0.0:8080", "--data", "/data"];

/// Folders of a root.
const FOLDERS: [&str; 6] = ["data", "dev", "etc", "proc", "sys", "tmp"];
/// Bytes of a header in a tar archive, and what contents are filled up to.
const BLOCK: usize = 512;

/// Lays the root down.
pub(super) fn lay_down(folder: &Path) -> Result<()> {
    for name in FOLDERS {
        fs::create_dir_all(folder.join(name)).with_context(|| format!("{} cannot be made", folder.display()))?;
    }
    // With its permission bits, so that it can be executed.
    fs::copy("/proc/self/exe", folder.join("statefuld")).context("the program cannot be copied")?;
    Ok(())
}

/// Writes both images into an archive.
pub(super) fn write_images(archive: &Path) -> Result<()> {
    let program = fs::read("/proc/self/exe").context("the program cannot be read")?;
    let pause = pause().context("there is no sandbox program for this processor")?;
    let folders = || FOLDERS.iter().map(|name| (format!("{name}/"), None));
    let server: Vec<_> = folders().chain([("statefuld".to_owned(), Some(program.as_slice()))]).collect();
    let images = [
        Image::new(SERVER_IMAGE, &server, &SERVER)?,
        Image::new(PAUSE_IMAGE, &[("pause".to_owned(), Some(pause.as_slice()))], &["/pause"])?,
    ];
    let out = File::create(archive).and_then(|file| write_layout(&mut io::BufWriter::new(file), &images));
    out.with_context(|| format!("{} cannot be written", archive.display()))
}

/// An OCI image layout as a tar archive.
fn write_layout(out: &mut impl Write, images: &[Image]) -> io::Result<()> {
    let manifests: Vec<Value> = images.iter().map(Image::descriptor).collect();
    let index = json!({"schemaVersion": 2, "manifests": manifests}).to_string();
    entry(out, "oci-layout", Some(br#"{"imageLayoutVersion":"1.0.0"}"#))?;
    entry(out, "index.json", Some(index.as_bytes()))?;
    for blob in images.iter().flat_map(|image| &image.blobs) {
        entry(out, &format!("blobs/sha256/{}", hex(blob)), Some(blob))?;
    }
    out.write_all(&[0; 2 * BLOCK])?;
    out.flush()
}

/// An image of one layer.
struct Image {
    name: &'static str,
    /// Layer, configuration and, last, the manifest.
    blobs: [Vec<u8>; 3],
}

impl Image {
    fn new(name: &'static str, files: &[(String, Option<&[u8]>)], entrypoint: &[&str]) -> Result<Self> {
        let mut layer = Vec::new();
        for (path, content) in files {
            entry(&mut layer, path, *content)?;
        }
        layer.extend_from_slice(&[0; 2 * BLOCK]);
        let config = json!({"architecture": architecture(), "os": "linux", "config": {"Entrypoint": entrypoint},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", hex(&layer))]}});
        let config = config.to_string().into_bytes();
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST,
            "config": described("application/vnd.oci.image.config.v1+json", &config),
            "layers": [described("application/vnd.oci.image.layer.v1.tar", &layer)]});
        Ok(Self { name, blobs: [layer, config, manifest.to_string().into_bytes()] })
    }

    /// Its entry in the index, with its name.
    fn descriptor(&self) -> Value {
        let mut descriptor = described(MANIFEST, &self.blobs[2]);
        descriptor["annotations"] = json!({"io.containerd.image.name": self.name});
        descriptor["platform"] = json!({"architecture": architecture(), "os": "linux"});
        descriptor
    }
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn described(media_type: &str, blob: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": format!("sha256:{}", hex(blob)), "size": blob.len()})
}

fn hex(blob: &[u8]) -> String {
    Sha256::digest(blob).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// As images call the processor that this program is for.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// An entry of a tar archive: a file with its content, executable, or a folder. Source: POSIX.1-2017, `pax`, "ustar
/// Interchange Format".
fn entry(out: &mut impl Write, path: &str, content: Option<&[u8]>) -> io::Result<()> {
    let mut header = [0u8; BLOCK];
    let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    let length = content.map_or(0, <[u8]>::len);
    put(0, path);
    put(100, "0000755");
    put(108, "0000000");
    put(116, "0000000");
    put(124, &format!("{length:011o}"));
    put(136, "00000000000");
    put(148, "        ");
    put(156, if content.is_some() { "0" } else { "5" });
    put(257, "ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    out.write_all(&header)?;
    let content = content.unwrap_or_default();
    out.write_all(content)?;
    let filling = content.len().next_multiple_of(BLOCK) - content.len();
    io::copy(&mut io::repeat(0).take(filling as u64), out)?;
    Ok(())
}

/// A program that waits for ever, and takes next to nothing for it: what holds a sandbox's namespaces in other runtimes.
fn pause() -> Option<Vec<u8>> {
    /// Where it is mapped.
    const AT: u64 = 0x40_0000;
    /// Length of the file's and of the segment's header.
    const HEADERS: u64 = 64 + 56;
    let (machine, code): (u16, &[u8]) = match std::env::consts::ARCH {
        // mov eax, 34 (pause); syscall; again
        "x86_64" => (62, &[0xb8, 34, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7]),
        // x0 to x3 = 0; x8 = 73 (ppoll); svc 0; again
        "aarch64" => (
            183,
            &[
                0x00, 0x00, 0x80, 0xd2, 0x01, 0x00, 0x80, 0xd2, 0x02, 0x00, 0x80, 0xd2, 0x03, 0x00, 0x80, 0xd2, 0x28,
                0x09, 0x80, 0xd2, 0x01, 0x00, 0x00, 0xd4, 0xfa, 0xff, 0xff, 0x17,
            ],
        ),
        _ => return None,
    };
    let size = HEADERS + code.len() as u64;
    let mut file = Vec::new();
    // ELF for 64 bits, little endian, version 1.
    file.extend_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    // An executable for that processor, version 1.
    for half in [2, machine, 1, 0] {
        file.extend_from_slice(&u16::to_le_bytes(half));
    }
    // Where it begins, where its segment's header is, that it has no sections.
    for word in [AT + HEADERS, 64, 0] {
        file.extend_from_slice(&u64::to_le_bytes(word));
    }
    // No flags; lengths of the headers; one segment, no sections.
    for half in [0, 0, 64, 56, 1, 64, 0, 0] {
        file.extend_from_slice(&u16::to_le_bytes(half));
    }
    // The segment: loaded, readable and executable.
    for half in [1, 5] {
        file.extend_from_slice(&u32::to_le_bytes(half));
    }
    for word in [0, AT, AT, size, size, 0x1000] {
        file.extend_from_slice(&u64::to_le_bytes(word));
    }
    file.extend_from_slice(code);
    Some(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sandbox_program_runs_until_it_is_killed() {
        use std::os::unix::fs::PermissionsExt as _;
        use std::os::unix::process::ExitStatusExt as _;
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("pause");
        fs::write(&file, pause().expect("this processor is known")).expect("written");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("executable");
        let mut child = std::process::Command::new(&file).spawn().expect("it is a program");
        assert!(child.try_wait().expect("a child").is_none());
        child.kill().expect("killed");
        assert_eq!(child.wait().expect("a child").signal(), Some(9), "not by a fault of its own");
    }

    #[test]
    fn the_archive_holds_images_that_are_whole() {
        let folder = tempfile::tempdir().expect("a folder");
        let image = Image::new(PAUSE_IMAGE, &[("bin/".to_owned(), None), ("x".to_owned(), Some(b"abc"))], &["/x"]);
        let image = image.expect("an image");
        let archive = folder.path().join("images.tar");
        write_layout(&mut File::create(&archive).expect("a file"), &[image]).expect("written");
        // Our own importer checks every header, length and digest.
        let store = image::Store::open(&folder.path().join("store"), ambient::Ambient::system()).expect("a store");
        let imported = image::import::import(&store, &archive, None, image::Limits::default(), &|_| {}).expect("taken");
        let names: Vec<&String> = imported.iter().flat_map(|image| &image.names).collect();
        assert!(names.iter().any(|name| *name == PAUSE_IMAGE), "{names:?}");
    }
}

//! Layers: tar archives written entry by entry.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

/// How a layer is compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// By gzip.
    #[default]
    Gzip,
    /// By zstd.
    Zstd,
}

/// One entry, as it is written. Nothing is checked.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its name.
    pub path: Vec<u8>,
    /// Its type in the header: `0` file, `1` hard link, `2` symbolic link, `3` character device, `5` folder, `6` pipe.
    pub kind: u8,
    /// What a link leads to.
    pub link: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds since 1970.
    pub mtime: u64,
    /// Its content.
    pub data: Vec<u8>,
    /// Extended attributes.
    pub xattrs: Vec<(String, Vec<u8>)>,
}

impl Entry {
    /// Of that type and name, root's, readable by all.
    pub fn new(kind: u8, path: impl AsRef<[u8]>) -> Self {
        Self {
            path: path.as_ref().to_vec(),
            kind,
            link: Vec::new(),
            mode: if kind == b'5' { 0o755 } else { 0o644 },
            uid: 0,
            gid: 0,
            mtime: 1_700_000_000,
            data: Vec::new(),
            xattrs: Vec::new(),
        }
    }

    /// Header and data.
    fn write(&self, out: &mut Vec<u8>) {
        let mut records = Vec::new();
        if self.path.len() > 100 {
            record(&mut records, b"path", &self.path);
        }
        if self.link.len() > 100 {
            record(&mut records, b"linkpath", &self.link);
        }
        for (name, value) in &self.xattrs {
            record(&mut records, format!("SCHILY.xattr.{name}").as_bytes(), value);
        }
        for (key, id) in [("uid", self.uid), ("gid", self.gid)] {
            if id > 0o7_777_777 {
                record(&mut records, key.as_bytes(), id.to_string().as_bytes());
            }
        }
        if !records.is_empty() {
            let pax = Self { data: records.clone(), ..Self::new(b'x', "pax") };
            out.extend(pax.header());
            pad(out, &records);
        }
        out.extend(self.header());
        pad(out, &self.data);
    }

    fn header(&self) -> [u8; 512] {
        let mut block = [0u8; 512];
        let mut put = |at: usize, room: usize, bytes: &[u8]| {
            let n = bytes.len().min(room);
            block[at..at + n].copy_from_slice(&bytes[..n]);
        };
        put(0, 100, &self.path);
        put(100, 8, format!("{:07o}", self.mode & 0o7777).as_bytes());
        put(108, 8, format!("{:07o}", self.uid & 0o7_777_777).as_bytes());
        put(116, 8, format!("{:07o}", self.gid & 0o7_777_777).as_bytes());
        put(124, 12, format!("{:011o}", self.data.len()).as_bytes());
        put(136, 12, format!("{:011o}", self.mtime).as_bytes());
        put(148, 8, b"        ");
        put(156, 1, &[self.kind]);
        put(157, 100, &self.link);
        put(257, 8, b"ustar\x0000");
        let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        block
    }
}

/// A pax record, whose length counts its own digits.
fn record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    out.extend(length.to_string().as_bytes());
    out.push(b' ');
    out.extend(key);
    out.push(b'=');
    out.extend(value);
    out.push(b'\n');
}

fn pad(out: &mut Vec<u8>, data: &[u8]) {
    out.extend(data);
    out.resize(out.len().next_multiple_of(512), 0);
}

/// A layer in the making.
#[derive(Clone, Debug, Default)]
pub struct Layer {
    tar: Vec<u8>,
    pub(crate) compression: Compression,
}

impl Layer {
    /// Empty, compressed by gzip in the end.
    pub fn new() -> Self {
        Self::default()
    }

    /// Compressed otherwise.
    pub fn compressed(self, compression: Compression) -> Self {
        Self { compression, ..self }
    }

    /// Any entry.
    pub fn entry(mut self, entry: &Entry) -> Self {
        entry.write(&mut self.tar);
        self
    }

    /// A file of root's.
    pub fn file(self, path: &str, mode: u32, data: impl AsRef<[u8]>) -> Self {
        self.entry(&Entry { mode, data: data.as_ref().to_vec(), ..Entry::new(b'0', path) })
    }

    /// A folder of root's.
    pub fn folder(self, path: &str, mode: u32) -> Self {
        self.entry(&Entry { mode, ..Entry::new(b'5', path) })
    }

    /// A folder of somebody's.
    pub fn folder_of(self, path: &str, mode: u32, uid: u32, gid: u32) -> Self {
        self.entry(&Entry { mode, uid, gid, ..Entry::new(b'5', path) })
    }

    /// A symbolic link.
    pub fn symlink(self, path: &str, to: &str) -> Self {
        self.entry(&Entry { link: to.into(), ..Entry::new(b'2', path) })
    }

    /// Another name of what is there already.
    pub fn hard_link(self, path: &str, to: &str) -> Self {
        self.entry(&Entry { link: to.into(), ..Entry::new(b'1', path) })
    }

    /// Says that something of a lower layer is gone.
    pub fn whiteout(self, path: &str) -> Self {
        let (folder, name) = path.rsplit_once('/').map_or(("", path), |(f, n)| (f, n));
        let slash = if folder.is_empty() { "" } else { "/" };
        self.file(&format!("{folder}{slash}.wh.{name}"), 0o644, "")
    }

    /// Says that all that a folder has of lower layers is gone.
    pub fn opaque(self, folder: &str) -> Self {
        self.file(&format!("{folder}/.wh..wh..opq"), 0o644, "")
    }

    /// A file of this machine under the same name, executable, and what it is linked with, as `ldd` tells; links on the
    /// way are followed, so that a root with these alone runs it.
    pub fn program(mut self, program: &str) -> Self {
        let output = std::process::Command::new("ldd").arg(program).output().expect("ldd runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let libraries = text.split_whitespace().filter(|word| word.starts_with('/')).map(str::to_owned);
        for path in std::iter::once(program.to_owned()).chain(libraries) {
            let data = fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
            self = self.file(path.trim_start_matches('/'), 0o755, data);
        }
        self
    }

    /// Everything below a folder of this machine, as it is: kinds, owners, modes, times, links (hard ones too) and file
    /// capabilities. Sockets and devices are left out.
    pub fn tree(mut self, root: &Path) -> Self {
        let mut linked = std::collections::HashMap::new();
        let mut folders = vec![root.to_owned()];
        while let Some(folder) = folders.pop() {
            let mut paths: Vec<_> =
                fs::read_dir(&folder).expect("a folder").map(|e| e.expect("an entry").path()).collect();
            paths.sort();
            for path in paths {
                let meta = fs::symlink_metadata(&path).expect("it is there");
                let name = path.strip_prefix(root).expect("it lies below").as_os_str().as_encoded_bytes().to_vec();
                let kind = meta.file_type();
                if kind.is_socket() || kind.is_block_device() || kind.is_char_device() {
                    continue;
                }
                let code = match () {
                    () if kind.is_dir() => b'5',
                    () if kind.is_symlink() => b'2',
                    () if kind.is_fifo() => b'6',
                    () => b'0',
                };
                let mut entry = Entry::new(code, &name);
                (entry.mode, entry.uid, entry.gid) = (meta.mode() & 0o7777, meta.uid(), meta.gid());
                entry.mtime = u64::try_from(meta.mtime()).unwrap_or(0);
                if kind.is_dir() {
                    folders.push(path);
                } else if kind.is_symlink() {
                    entry.link = fs::read_link(&path).expect("a link").into_os_string().into_encoded_bytes();
                } else if let (true, Some(first)) = (meta.nlink() > 1, linked.get(&meta.ino())) {
                    entry.kind = b'1';
                    entry.link = Vec::clone(first);
                } else if kind.is_file() {
                    linked.insert(meta.ino(), name);
                    entry.data = fs::read(&path).expect("readable");
                    let mut value = [0; 64];
                    if let Ok(n) = rustix::fs::lgetxattr(&path, "security.capability", &mut value[..]) {
                        entry.xattrs.push(("security.capability".to_owned(), value[..n].to_vec()));
                    }
                }
                entry.write(&mut self.tar);
            }
        }
        self
    }

    /// The archive, uncompressed.
    pub fn tar(&self) -> Vec<u8> {
        let mut tar = self.tar.clone();
        tar.extend([0; 1024]);
        tar
    }

    /// The layer as it is fetched.
    pub fn blob(&self) -> Vec<u8> {
        let tar = self.tar();
        match self.compression {
            Compression::None => tar,
            Compression::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(&tar).expect("memory");
                encoder.finish().expect("memory")
            }
            Compression::Zstd => zstd::encode_all(&tar[..], 1).expect("memory"),
        }
    }

    pub(crate) fn media_type(&self) -> &'static str {
        match self.compression {
            Compression::None => "application/vnd.oci.image.layer.v1.tar",
            Compression::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Compression::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

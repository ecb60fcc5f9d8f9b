//! Layers: what an archive asks for ([`plan`], pure), and doing it in a folder ([`apply`]).

pub mod apply;
pub mod compression;
pub mod plan;

pub use apply::apply;

/// What a layer may be at most. A layer beyond is refused: it was made to fill disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes, uncompressed.
    pub bytes: u64,
    /// Entries.
    pub entries: u64,
    /// Uncompressed bytes per compressed one, looked at beyond [`Limits::ratio_from`].
    pub ratio: u64,
    /// Uncompressed bytes up to which any ratio is fine: a file of zeros compresses a thousandfold.
    pub ratio_from: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 64 << 30, entries: 2_000_000, ratio: 200, ratio_from: 1 << 30 }
    }
}

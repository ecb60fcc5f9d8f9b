//! Commands about volumes: what a claim's folder holds, and data that comes from elsewhere or goes there.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{Output, Server};

/// `statefuld volume`.
#[derive(Debug, Args)]
pub struct Volume {
    /// What to do
    #[command(subcommand)]
    pub what: VolumeWhat,
}

/// What can be done with volumes.
#[derive(Debug, Subcommand)]
pub enum VolumeWhat {
    /// Claims, and the folders that hold their data
    List(VolumeList),
    /// One claim: its folder, what is in it, and who uses it
    Inspect(VolumeInspect),
    /// Take over a folder of this machine as the data of a claim that is not there yet
    Import(VolumeImport),
    /// Copy the data of a claim that nobody uses into a folder
    Export(VolumeExport),
}

/// `statefuld volume list`.
#[derive(Debug, Args)]
pub struct VolumeList {
    /// Where it is asked
    #[command(flatten)]
    pub server: Server,

    /// Namespace (default: all)
    #[arg(long, short, value_name = "NAME")]
    pub namespace: Option<String>,

    /// What to print
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// `statefuld volume inspect`.
#[derive(Debug, Args)]
pub struct VolumeInspect {
    /// The claim
    #[arg(value_name = "NAMESPACE/CLAIM")]
    pub claim: String,

    /// Where it is asked
    #[command(flatten)]
    pub server: Server,

    /// What to print
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// `statefuld volume import`.
#[derive(Debug, Args)]
pub struct VolumeImport {
    /// The folder; nothing may have it open
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,

    /// The claim that it becomes: for ordinal 0 of set postgres with template data, NAMESPACE/data-postgres-0
    #[arg(long = "as", value_name = "NAMESPACE/CLAIM")]
    pub claim: String,

    /// Where
    #[command(flatten)]
    pub server: Server,

    /// Take the folder itself instead of a copy; on the same file system this takes no time and no room
    #[arg(long = "move")]
    pub moved: bool,

    /// Give all files this owner; without it each keeps its own
    #[arg(long, value_name = "UID[:GID]", value_parser = parse_owner)]
    pub owner: Option<(u32, u32)>,

    /// What the claim asks for (default: twice what the folder holds)
    #[arg(long, value_name = "SIZE")]
    pub size: Option<String>,

    /// How the claim may be mounted
    #[arg(long, value_name = "MODE", default_value = "ReadWriteOnce")]
    pub access_mode: String,

    /// The claim's class
    #[arg(long, value_name = "NAME", default_value = "local")]
    pub class: String,

    /// On which node of this machine, where it has several
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,
}

/// `statefuld volume export`.
#[derive(Debug, Args)]
pub struct VolumeExport {
    /// The claim; no pod may use it
    #[arg(value_name = "NAMESPACE/CLAIM")]
    pub claim: String,

    /// A folder that is not there yet
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,

    /// Where it is asked
    #[command(flatten)]
    pub server: Server,

    /// Give all files this owner; without it each keeps its own
    #[arg(long, value_name = "UID[:GID]", value_parser = parse_owner)]
    pub owner: Option<(u32, u32)>,
}

/// `999` or `999:998`.
fn parse_owner(text: &str) -> Result<(u32, u32), String> {
    let wrong = |_| format!("{text:?} is no owner; write numbers, as 999 or 999:998");
    let (uid, gid) = text.split_once(':').unwrap_or((text, text));
    Ok((uid.parse().map_err(wrong)?, gid.parse().map_err(wrong)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_numbers() {
        assert_eq!(parse_owner("999"), Ok((999, 999)));
        assert_eq!(parse_owner("999:0"), Ok((999, 0)));
        for wrong in ["", "postgres", "1:", ":1", "-1", "1:2:3"] {
            assert!(parse_owner(wrong).is_err(), "{wrong}");
        }
    }
}

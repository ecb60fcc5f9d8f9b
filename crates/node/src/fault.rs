//! Places where a test can have this process die, as by `kill -9`: once each, to see that the next one goes on well.
//!
//! Nothing happens unless the environment variable `STATEFULD_FAULT` says `<point>@<file>`: the process that comes to
//! that point and can remove the file dies there. The agent hands the variable on to the shims it starts; containers
//! never see it.

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use rustix::process::{Signal, getpid, kill_process};

/// The variable that arms a point.
pub const VARIABLE: &str = "STATEFULD_FAULT";

/// When in a pod's life a point lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum During {
    /// From seen to running, in the agent.
    Raising,
    /// The same, in the shim.
    Starting,
    /// Its shim was lost, in the agent.
    Losing,
    /// It ended by itself, in the agent.
    Ending,
    /// From the wish to delete it to gone, in the agent.
    Leaving,
    /// The same, in the shim.
    Stopping,
}

macro_rules! points {
    ($($(#[$doc:meta])* $name:ident, $during:ident, $text:literal;)*) => {
        /// A place to die at.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Point {
            $($(#[$doc])* $name,)*
        }

        impl Point {
            /// Every point there is.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// As the variable names it.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }

            /// When in a pod's life it lies.
            pub fn during(self) -> During {
                match self {
                    $(Self::$name => During::$during,)*
                }
            }
        }
    };
}

points! {
    /// The pod was seen; nothing of it is there.
    Seen, Raising, "seen";
    /// What it names was read.
    Fetched, Raising, "fetched";
    /// Its address is on record.
    AddressRecorded, Raising, "address-recorded";
    /// Its own users are on record, where it has such.
    UsersRecorded, Raising, "users-recorded";
    /// Its folder says whose it is.
    FolderSigned, Raising, "folder-signed";
    /// A claim's epoch is on record; its folder may not be there.
    EpochRecorded, Raising, "epoch-recorded";
    /// A memory file system was mounted.
    MemoryMounted, Raising, "memory-mounted";
    /// New files of a volume were written and are not shown yet.
    FilesWritten, Raising, "files-written";
    /// New files of a volume are shown; the old are still there.
    FilesShown, Raising, "files-shown";
    /// All volumes are there.
    VolumesMade, Raising, "volumes-made";
    /// What the shim is told is written.
    SpecWritten, Raising, "spec-written";
    /// The shim is up.
    SandboxMade, Raising, "sandbox-made";
    /// Its interface was made and has no address.
    InterfaceMade, Raising, "interface-made";
    /// Its interface is ready.
    InterfaceReady, Raising, "interface-ready";
    /// The shim was told to start the containers.
    StartAsked, Raising, "start-asked";
    /// A status was written.
    StatusWritten, Raising, "status-written";
    /// The shim has the pod's folder.
    ShimLocked, Starting, "shim-locked";
    /// The pod's cgroups were made.
    ShimGrouped, Starting, "shim-grouped";
    /// The pod's namespaces were made.
    ShimSeparated, Starting, "shim-separated";
    /// The shim listens.
    ShimListening, Starting, "shim-listening";
    /// The shim's first state is written.
    ShimRecorded, Starting, "shim-recorded";
    /// A container's first process was made.
    ContainerMade, Starting, "container-made";
    /// A container's program was executed; that is not on record.
    ContainerRuns, Starting, "container-runs";
    /// A shim was found dead, and how its containers ended is remembered.
    LossNoted, Losing, "loss-noted";
    /// What a dead shim left was cleared away.
    RemainsCleared, Losing, "remains-cleared";
    /// The end of a pod is written; its sandbox is there.
    EndWritten, Ending, "end-written";
    /// The shim of a pod that is over was let go.
    EndAcknowledged, Ending, "end-acknowledged";
    /// The shim was told to stop the containers.
    StopAsked, Leaving, "stop-asked";
    /// All containers have ended.
    Stopped, Leaving, "stopped";
    /// The last status was written.
    LastStatusWritten, Leaving, "last-status-written";
    /// The shim was let go.
    Acknowledged, Leaving, "acknowledged";
    /// Processes and cgroups are gone.
    SandboxCleared, Leaving, "sandbox-cleared";
    /// Mounts in its folder are gone; the folder is there.
    MountsGone, Leaving, "mounts-gone";
    /// Its folder is gone.
    FolderGone, Leaving, "folder-gone";
    /// Its interface is gone.
    InterfaceGone, Leaving, "interface-gone";
    /// Its address is free.
    AddressFree, Leaving, "address-free";
    /// Its own users may be another's, where it had such.
    UsersFree, Leaving, "users-free";
    /// The API took the node's word that the pod is gone.
    GoneReported, Leaving, "gone-reported";
    /// A container was asked to end.
    ContainerSignalled, Stopping, "container-signalled";
    /// A container has ended; that is not on record.
    ContainerEnded, Stopping, "container-ended";
    /// Everything has ended; that is on record.
    ShimFinished, Stopping, "shim-finished";
    /// The shim was let go and still is there.
    ShimAcknowledged, Stopping, "shim-acknowledged";
}

/// Dies here, where this point is armed.
pub fn point(point: Point) {
    let Some((name, token)) = armed() else { return };
    if name == point.name() && fs::remove_file(token).is_ok() {
        // The kernel does not come back from this.
        let _ = kill_process(getpid(), Signal::KILL);
    }
}

/// Gives a program that is about to be started the same fault.
pub fn pass_on(command: &mut Command) {
    if armed().is_some()
        && let Some(value) = std::env::var_os(VARIABLE)
    {
        command.env(VARIABLE, value);
    }
}

fn armed() -> Option<&'static (String, PathBuf)> {
    static ARMED: OnceLock<Option<(String, PathBuf)>> = OnceLock::new();
    ARMED.get_or_init(|| parse(&std::env::var_os(VARIABLE)?)).as_ref()
}

fn parse(value: &OsStr) -> Option<(String, PathBuf)> {
    let (name, token) = value.to_str()?.split_once('@')?;
    Some((name.to_owned(), PathBuf::from(token)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_point_has_a_name_of_its_own() {
        let names: BTreeSet<&str> = Point::ALL.iter().map(|p| p.name()).collect();
        assert_eq!(names.len(), Point::ALL.len());
    }

    #[test]
    fn nothing_is_armed_by_accident() {
        assert_eq!(parse(OsStr::new("")), None);
        assert_eq!(parse(OsStr::new("seen")), None);
        assert_eq!(parse(OsStr::new("seen@/x")), Some(("seen".to_owned(), PathBuf::from("/x"))));
        assert!(armed().is_none());
        point(Point::Seen);
    }
}

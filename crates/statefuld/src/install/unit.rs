//! The service files, as text. No I/O.
//!
//! What they have to say, whatever the service manager:
//! - stopping or restarting the service leaves pods running, so that an upgrade does not stop a database: only the main process
//!   is ended (`KillMode=process`), and pods have control groups of their own;
//! - a machine that is shut down stops pods from the top ordinal, within a time that covers their grace periods;
//! - whoever ends the main process by force asks it to leave the pods alone (SIGQUIT).

use std::path::Path;
use std::time::Duration;

/// First line of what we write: how `uninstall` knows that a file is ours.
pub(super) const MARK: &str = "# Written by `statefuld install`; `statefuld uninstall` removes it.";

/// Before the path of a program that `install` has put in its place, and `uninstall` removes.
const PROGRAM_MARK: &str = "# Program: ";

/// What a service file is made from.
#[derive(Debug)]
pub(super) struct Service<'a> {
    /// The program.
    pub(super) binary: &'a Path,
    /// Whether `install` has put it there.
    pub(super) placed: bool,
    /// Where the instance lives.
    pub(super) data: &'a Path,
    /// Arguments of `statefuld daemon` beside the data directory.
    pub(super) arguments: &'a [String],
    /// How long a stop may take.
    pub(super) stop_timeout: Duration,
}

impl Service<'_> {
    /// For systemd.
    pub(super) fn systemd(&self) -> String {
        let binary = quoted_for_systemd(&self.binary.display().to_string());
        let data = quoted_for_systemd(&format!("--data-dir={}", self.data.display()));
        let arguments: Vec<String> = self.arguments.iter().map(|a| quoted_for_systemd(a)).collect();
        format!(
            "{MARK}\n{program}\
             [Unit]\n\
             Description=statefuld: StatefulSets on this machine\n\
             Documentation=man:statefuld(8)\n\
             Wants=network-online.target\n\
             After=network-online.target time-sync.target local-fs.target\n\
             \n\
             [Service]\n\
             Type=notify\n\
             ExecStart={binary} daemon {data} {arguments}\n\
             ExecStop={binary} service-stop {data}\n\
             TimeoutStartSec=5min\n\
             TimeoutStopSec={stop}\n\
             Restart=on-failure\n\
             RestartSec=1\n\
             # Pods outlive their daemon: nothing but the main process is ended, and it is told to leave them.\n\
             KillMode=process\n\
             KillSignal=SIGQUIT\n\
             Delegate=yes\n\
             OOMScoreAdjust=-900\n\
             LimitNOFILE=1048576\n\
             LimitNPROC=infinity\n\
             TasksMax=infinity\n\
             \n\
             [Install]\n\
             WantedBy=multi-user.target\n",
            program = self.program(),
            arguments = arguments.join(" "),
            stop = self.stop_timeout.as_secs(),
        )
    }

    /// For OpenRC.
    pub(super) fn openrc(&self) -> String {
        let binary = quoted_for_shell(&self.binary.display().to_string());
        let data = quoted_for_shell(&format!("--data-dir={}", self.data.display()));
        let arguments: Vec<String> = self.arguments.iter().map(|a| quoted_for_shell(a)).collect();
        format!(
            "#!/sbin/openrc-run\n{MARK}\n{program}\
             description=\"StatefulSets on this machine\"\n\
             extra_started_commands=\"\"\n\
             \n\
             depend() {{\n\
             \tneed localmount\n\
             \tuse net\n\
             \tafter firewall ntp-client\n\
             }}\n\
             \n\
             start() {{\n\
             \tebegin \"Starting statefuld\"\n\
             \t{binary} up --detach {data} {arguments}\n\
             \teend $?\n\
             }}\n\
             \n\
             # Pods go on, unless the machine is shut down.\n\
             stop() {{\n\
             \tebegin \"Stopping statefuld\"\n\
             \tif yesno \"$RC_GOINGDOWN\"; then\n\
             \t\t{binary} service-stop --shutdown {data}\n\
             \telse\n\
             \t\t{binary} service-stop {data}\n\
             \tfi\n\
             \teend $?\n\
             }}\n",
            program = self.program(),
            arguments = arguments.join(" "),
        )
    }

    fn program(&self) -> String {
        if self.placed { format!("{PROGRAM_MARK}{}\n", self.binary.display()) } else { String::new() }
    }
}

/// What `uninstall` reads in a service file of ours: the program that was put there, if one was, and the data directory.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Installed {
    /// The program that `install` has put there.
    pub(super) program: Option<String>,
    /// The data directory, for the message.
    pub(super) data: Option<String>,
}

/// Reads such a file; none where it is somebody else's.
pub(super) fn read(text: &str) -> Option<Installed> {
    if !text.lines().take(2).any(|line| line == MARK) {
        return None;
    }
    let program = text.lines().find_map(|line| line.strip_prefix(PROGRAM_MARK)).map(str::to_owned);
    let after = text.split("--data-dir=").nth(1);
    let data = after.and_then(|rest| rest.split(['"', '\'', '\n', ' ']).next()).map(str::to_owned);
    Some(Installed { program, data })
}

/// One word of a command line in a unit: systemd.service(5), "Command lines", and its specifiers and variables doubled.
fn quoted_for_systemd(word: &str) -> String {
    let escaped = word.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%").replace('$', "$$");
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=/.:,%$".contains(c);
    if !word.is_empty() && word.chars().all(plain) { escaped } else { format!("\"{escaped}\"") }
}

/// One word of a shell script.
fn quoted_for_shell(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=/.:,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service<'a>(data: &'a str, arguments: &'a [String]) -> Service<'a> {
        Service {
            binary: Path::new("/usr/local/bin/statefuld"),
            placed: true,
            data: Path::new(data),
            arguments,
            stop_timeout: Duration::from_secs(900),
        }
    }

    #[test]
    fn a_unit_says_that_pods_outlive_the_daemon() {
        let arguments = ["--listen=127.0.0.1:6443".to_owned()];
        let unit = service("/var/lib/statefuld", &arguments).systemd();
        for line in [
            "ExecStart=/usr/local/bin/statefuld daemon --data-dir=/var/lib/statefuld --listen=127.0.0.1:6443",
            "ExecStop=/usr/local/bin/statefuld service-stop --data-dir=/var/lib/statefuld",
            "KillMode=process",
            "KillSignal=SIGQUIT",
            "Delegate=yes",
            "TimeoutStopSec=900",
        ] {
            assert!(unit.lines().any(|l| l == line), "{line} is missing in\n{unit}");
        }
    }

    #[test]
    fn what_was_installed_is_read_back() {
        let service = service("/srv/state", &[]);
        let expected =
            Installed { program: Some("/usr/local/bin/statefuld".to_owned()), data: Some("/srv/state".to_owned()) };
        assert_eq!(read(&service.systemd()), Some(Installed { ..expected }));
        assert!(read(&service.openrc()).is_some_and(|i| i.program.is_some() && i.data.is_some()));
        let packaged = Service { placed: false, ..service };
        assert_eq!(read(&packaged.systemd()).and_then(|i| i.program), None);
        assert_eq!(read("[Unit]\nDescription=somebody else's\n"), None);
    }

    #[test]
    fn words_stay_words() {
        assert_eq!(quoted_for_systemd("--a=/b/c"), "--a=/b/c");
        assert_eq!(quoted_for_systemd("--a=50% of $HOME"), "\"--a=50%% of $$HOME\"");
        assert_eq!(quoted_for_systemd("say \"hi\""), r#""say \"hi\"""#);
        assert_eq!(quoted_for_shell("it's $x"), r"'it'\''s $x'");
    }
}

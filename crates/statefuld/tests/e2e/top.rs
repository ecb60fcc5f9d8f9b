//! `statefuld top` on a real terminal, with keys; and its output where there is none.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use serde_json::Value;

use crate::harness::{Instance, eventually, example, statefuld};

const WIDTH: u16 = 130;
const HEIGHT: u16 = 30;

/// A program on a terminal of its own.
struct Terminal {
    child: Child,
    keys: File,
    /// All that it wrote.
    written: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    fn start(command: &Command) -> Self {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        grantpt(&ours).and_then(|()| unlockpt(&ours)).expect("it can be opened");
        let size = Winsize { ws_row: HEIGHT, ws_col: WIDTH, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&ours, size).expect("it has a size");
        let name = ptsname(&ours, Vec::new()).expect("it has a name");
        let theirs =
            File::options().read(true).write(true).open(name.to_str().expect("a path")).expect("its other end");
        // A session of its own, whose terminal this is.
        let child = Command::new("setsid")
            .arg("--ctty")
            .arg(command.get_program())
            .args(command.get_args())
            .env("TERM", "xterm-256color")
            .stdin(theirs.try_clone().expect("another"))
            .stdout(theirs.try_clone().expect("another"))
            .stderr(Stdio::from(theirs))
            .spawn()
            .expect("it runs");
        let keys = File::from(ours);
        let mut output = keys.try_clone().expect("another");
        let written: Arc<Mutex<Vec<u8>>> = Arc::default();
        let sink = written.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // Ends with an error once nobody has the other end.
            while let Ok(n @ 1..) = output.read(&mut buffer) {
                sink.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&buffer[..n]);
            }
        });
        Self { child, keys, written }
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).expect("it reads");
    }

    fn raw(&self) -> String {
        String::from_utf8_lossy(&self.written.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    /// Waits until the screen shows that.
    fn until(&self, what: &str, shows: impl Fn(&str) -> bool) {
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            eventually(what, || shows(&screen(&self.raw())).then_some(()));
        }));
        assert!(found.is_ok(), "never shown: {what}\n{}", screen(&self.raw()));
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a terminal shows that got this, as far as `top` uses terminals: places, clearing, text.
fn screen(written: &str) -> String {
    let mut rows = vec![vec![' '; usize::from(WIDTH)]; usize::from(HEIGHT)];
    let (mut row, mut column) = (0, 0);
    let mut rest = written.chars();
    while let Some(c) = rest.next() {
        if c != '\u{1b}' {
            if !c.is_control() && row < rows.len() && column < usize::from(WIDTH) {
                rows[row][column] = c;
                column += 1;
            }
            continue;
        }
        rest.next();
        let mut sequence = String::new();
        let letter = rest.by_ref().find(|c| {
            sequence.push(*c);
            c.is_ascii_alphabetic()
        });
        let numbers: Vec<usize> =
            sequence.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect();
        match (letter, numbers.as_slice()) {
            (Some('H'), [y, x]) => (row, column) = (y - 1, x - 1),
            (Some('J'), _) => rows.iter_mut().flatten().for_each(|cell| *cell = ' '),
            (Some('K'), _) if row < rows.len() => rows[row].iter_mut().skip(column).for_each(|cell| *cell = ' '),
            _ => {}
        }
    }
    rows.into_iter().map(|row| row.into_iter().collect::<String>().trim_end().to_owned() + "\n").collect()
}

fn top(instance: &Instance, arguments: &[&str]) -> Command {
    let mut command = statefuld();
    command.arg("top").arg("--data-dir").arg(instance.data()).args(arguments);
    command
}

#[test]
fn e2e_top_shows_a_namespace_follows_it_and_acts_at_a_key_after_a_question() {
    let mut instance = Instance::new();
    instance.up(&[example("journal.yaml")]);
    let snapshot = top(&instance, &[]).output().expect("it runs");
    let text = String::from_utf8_lossy(&snapshot.stdout).into_owned();
    assert!(
        text.lines().any(|l| l.starts_with(" sts/journal") && l.contains("journal-2") && l.contains("Ready")),
        "{text}"
    );
    let document = top(&instance, &["-o", "json"]).output().expect("it runs");
    let document: Value = serde_json::from_slice(&document.stdout).expect("JSON");
    let row = &document["sets"][0]["rows"][0];
    assert_eq!(
        (&row["pod"], &row["state"], &row["containers"][0]),
        (&"journal-0".into(), &"ready".into(), &"journal".into())
    );
    let volume = &row["volumes"][0];
    assert_eq!(volume["claim"], "data-journal-0");
    assert!(volume["usedBytes"].as_u64() > Some(0) && volume["percent"].as_u64() > Some(0), "{volume}");
    assert!(row["memoryBytes"].as_u64() > Some(0), "{row}");

    let mut terminal = Terminal::start(&top(&instance, &[]));
    terminal.until("all ordinals", |s| s.contains("■■■ 3 of 3 Ready") && s.contains("journal-2") && s.contains('▰'));
    terminal.press("\u{1b}[B\r");
    terminal.until("details of journal-1", |s| s.contains(" journal-1 Ready") && s.contains("LOG"));
    terminal.until("its log and events", |s| s.contains("listening on") && s.contains("Started: "));
    terminal.press("q");
    terminal.press("s\u{7f}2\r");
    terminal.until("the question", |s| s.contains("Give journal 2 pods?"));
    assert_eq!(instance.get("statefulset", "journal")["spec"]["replicas"], 3, "nothing happens without a yes");
    terminal.press("y");
    terminal.until("two pods", |s| s.contains("■■ 2 of 2 Ready"));
    let before = instance.get("pod", "journal-1")["metadata"]["uid"].clone();
    terminal.press("dy");
    instance.ready("journal-1", before.as_str());
    instance.kubectl(&["set", "image", "statefulset/journal", "journal=statefuld.local/nosuch:1"]);
    terminal.until("why it waits", |s| s.contains("│ journal-1 is not Ready") && s.contains("nosuch"));
    terminal.press("q");
    let status = terminal.child.wait().expect("it ends");
    assert!(status.success(), "{status}");
    eventually("the terminal is as it was", || terminal.raw().contains("\u{1b}[?1049l").then_some(()));
}

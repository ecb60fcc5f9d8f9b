//! Every command of kubectl, as `docs/kubectl.md` lists them: what the table says works is run here.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};

use crate::harness::{Instance, PATIENCE, eventually};

/// A row of the table.
struct Row {
    command: String,
    verdict: String,
    /// What is run, or why not.
    text: String,
}

/// Rows whose lines do not end by themselves, and what tries them.
/// A row of the table, and what shows it.
type ByHand = (&'static str, fn(&Instance));

const BY_HAND: &[ByHand] = &[
    ("attach", attach),
    ("exec", exec),
    ("get --watch", watch),
    ("logs --follow, --previous", follow),
    ("port-forward", port_forward),
    ("proxy", proxy),
];

#[test]
fn e2e_kubectl_works_as_its_table_says() {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/kubectl.md");
    let document = std::fs::read_to_string(document).expect("docs/kubectl.md");
    let rows = rows(&document);
    assert!(rows.len() > 70, "only {} rows were understood", rows.len());
    let mut instance = Instance::new();
    for (name, text) in manifests(&document) {
        std::fs::write(instance.scratch().join(name), text).expect("a file");
    }
    instance.up(&[instance.scratch().join("web.yaml"), instance.scratch().join("settings.yaml")]);
    let mut by_hand = BY_HAND.iter().map(|(name, _)| *name).collect::<Vec<_>>();
    let mut wrong = Vec::new();
    for row in &rows {
        match row.verdict.as_str() {
            "works" => match BY_HAND.iter().find(|(name, _)| *name == row.command) {
                Some((name, case)) => {
                    by_hand.retain(|n| n != name);
                    case(&instance);
                }
                None => wrong.extend(lines(&row.text).iter().filter_map(|line| fails(&instance, &row.command, line))),
            },
            "not applicable" => assert!(row.text.len() > 10, "{}: why?", row.command),
            other => panic!("{}: neither works nor not applicable: {other}", row.command),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(by_hand.is_empty(), "not in the table: {by_hand:?}");
}

/// The table's rows.
fn rows(document: &str) -> Vec<Row> {
    let table = document.lines().filter(|line| line.starts_with("| `"));
    let row = |line: &str| {
        let cells: Vec<String> = cells(line);
        let [command, verdict, text] = cells.as_slice() else { panic!("three cells: {line}") };
        Row { command: command.replace('`', ""), verdict: verdict.clone(), text: text.clone() }
    };
    table.map(row).collect()
}

/// A row's cells; a pipe inside of one is written `\|`.
fn cells(line: &str) -> Vec<String> {
    let hidden = line.replace("\\|", "\0");
    hidden.trim_matches('|').split('|').map(|cell| cell.trim().replace('\0', "|")).collect()
}

/// The lines between backticks.
fn lines(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// The manifests below the table, each under its file's name.
fn manifests(document: &str) -> BTreeMap<&str, &str> {
    let parts: Vec<&str> = document.split("\n```yaml\n").collect();
    parts.windows(2).map(|pair| (last_line(pair[0]), pair[1].split("```").next().unwrap_or_default())).collect()
}

fn last_line(text: &str) -> &str {
    text.trim_end().rsplit('\n').next().unwrap_or_default().trim_matches('`')
}

/// Runs a line as a person would; says what went wrong.
fn fails(instance: &Instance, row: &str, line: &str) -> Option<String> {
    // A kubectl that waits for ever is a failure, too.
    let limited = format!("timeout {} bash -ec \"$LINE\"", PATIENCE.as_secs());
    let mut command = instance.with_kubeconfig(Command::new("bash"));
    let output = command.args(["-c", &limited]).env("LINE", line).current_dir(instance.scratch()).output();
    let output = output.expect("bash runs");
    let text = [output.stdout, output.stderr].concat();
    (!output.status.success()).then(|| format!("{row}: {line}\n{}: {}", output.status, String::from_utf8_lossy(&text)))
}

/// A kubectl that runs on, and its lines as they come.
struct Running {
    child: Child,
    lines: Receiver<String>,
}

impl Running {
    fn start(instance: &Instance, arguments: &[&str]) -> Self {
        Self::of(instance.kubectl_command(arguments))
    }

    fn of(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("kubectl runs");
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                // Nobody reads it any more.
                let _ = sender.send(line);
            }
        });
        Self { child, lines }
    }

    /// The first line that fits.
    fn line(&self, what: &str, fits: impl Fn(&str) -> bool) -> String {
        loop {
            let line = self.lines.recv_timeout(PATIENCE).unwrap_or_else(|e| panic!("{what}: {e}"));
            if fits(&line) {
                return line;
            }
        }
    }

    fn say(&mut self, text: &str) {
        self.child.stdin.as_mut().expect("a pipe").write_all(text.as_bytes()).expect("kubectl reads");
    }

    fn exit_code(mut self) -> Option<i32> {
        drop(self.child.stdin.take());
        self.child.wait().expect("kubectl ends").code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Input reaches the container's own program, a second client sees the output, and the end of one ends the clients.
fn attach(instance: &Instance) {
    let restarts = || instance.get("pod", "web-0")["status"]["containerStatuses"][1]["restartCount"].as_u64();
    let before = restarts();
    let mut first = Running::start(instance, &["attach", "-i", "web-0", "-c", "shell"]);
    first.say("one\n");
    first.line("it answers", |line| line == "got one");
    let second = Running::start(instance, &["attach", "web-0", "-c", "shell"]);
    // Said again until the second one is there to hear it.
    eventually("the second client hears it", || {
        first.say("two\n");
        second.lines.try_iter().any(|line| line == "got two").then_some(())
    });
    first.say("end\n");
    second.line("the last word", |line| line == "got end");
    assert_eq!((first.exit_code(), second.exit_code()), (Some(0), Some(0)));
    eventually("the container is started again", || (restarts() > before).then_some(()));
    instance.ready("web-0", None);
    terminal(instance);
}

/// A pod of one's own, with a terminal.
fn terminal(instance: &Instance) {
    let line = "kubectl run -it shell --rm --image=host --restart=Never --override-type=strategic \
                --overrides='{\"spec\":{\"runtimeClassName\":\"host\"}}' --command -- /bin/sh";
    let mut command = instance.with_kubeconfig(Command::new("script"));
    command.args(["-qec", line, "/dev/null"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("script runs");
    child.stdin.as_mut().expect("a pipe").write_all(b"test -t 0 && echo it is $((1 + 1))\nexit 0\n").expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("it is 2"), "{text}");
}

/// Input, exit codes, a terminal, and no program left behind when its client goes.
fn exec(instance: &Instance) {
    let inside = ["exec", "-i", "web-0", "-c", "shell", "--"];
    let count = instance.kubectl_with(&[&inside[..], &["wc", "-c"]].concat(), "12345").expect("exec");
    assert_eq!(count.trim(), "5");
    let coded = Running::start(instance, &["exec", "web-0", "--", "/bin/sh", "-c", "exit 42"]);
    assert_eq!(coded.exit_code(), Some(42));
    // Over SPDY, as older ones do.
    let mut older =
        instance.kubectl_command(&["exec", "web-0", "--", "/bin/sh", "-c", "echo out; echo bad >&2; exit 42"]);
    let output = older.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false").output().expect("kubectl runs");
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(42), &b"out\n"[..]));
    assert!(output.stderr.starts_with(b"bad\n"), "{}", String::from_utf8_lossy(&output.stderr));
    let arguments = "kubectl exec -it web-0 -c shell -- /bin/sh -c 'test -t 0 && stty size'";
    let mut terminal = instance.with_kubeconfig(Command::new("script"));
    let output = terminal.args(["-qec", arguments, "/dev/null"]).stdin(Stdio::null()).output().expect("script runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let mut left = Running::start(instance, &[&inside[..], &["/bin/sh", "-c", "echo here; exec sleep 76543"]].concat());
    left.line("it runs", |line| line == "here");
    left.child.kill().expect("it can be killed");
    eventually("the program ends with its client", || {
        let list = instance.kubectl(&["exec", "web-0", "-c", "shell", "--", "ps", "ax"]);
        (!list.contains("76543")).then_some(())
    });
}

/// Changes come as they happen.
fn watch(instance: &Instance) {
    let watching = Running::start(instance, &["get", "configmaps", "--watch", "-o", "name"]);
    watching.line("what is there", |line| line == "configmap/settings");
    instance.kubectl(&["create", "configmap", "watched"]);
    watching.line("what is new", |line| line == "configmap/watched");
}

/// A follower sees lines as they are written until its container ends; the former run can be read afterwards.
fn follow(instance: &Instance) {
    let following = Running::start(instance, &["logs", "--follow", "web-1", "-c", "shell"]);
    following.line("the first line", |line| line == "started");
    let say = |text: &str| {
        let attach = ["attach", "-i", "web-1", "-c", "shell"];
        let mut attached = Running::start(instance, &attach);
        attached.say(text);
        attached
    };
    let mut attached = say("hello\n");
    following.line("what is new", |line| line == "got hello");
    attached.say("end\n");
    following.line("the last line", |line| line == "got end");
    assert_eq!(following.exit_code(), Some(0));
    let before = eventually("the former run's log", || {
        instance.try_kubectl(&["logs", "--previous", "web-1", "-c", "shell"]).ok()
    });
    assert!(before.ends_with("got hello\ngot end\n"), "{before}");
    instance.ready("web-1", None);
}

/// Through a pod and a service, several connections at once; a port where nobody listens does not end the forwarding.
fn port_forward(instance: &Instance) {
    // The last one over SPDY, as older ones do.
    for (target, sockets) in [("pod/web-0", "true"), ("service/web", "true"), ("pod/web-0", "false")] {
        let mut command = instance.kubectl_command(&["port-forward", target, ":8000"]);
        command.env("KUBECTL_PORT_FORWARD_WEBSOCKETS", sockets);
        let forward = Running::of(command);
        let line = forward.line("it listens", |line| line.starts_with("Forwarding from 127.0.0.1:"));
        let port = line.split([':', ' ']).nth(3).expect("a port").to_owned();
        let fetches: Vec<_> = (0..3).map(|_| connect(&port)).collect();
        for mut stream in fetches {
            assert!(fetch(&mut stream).starts_with("HTTP/1.0 200"));
        }
    }
    let forward = Running::start(instance, &["port-forward", "pod/web-0", ":8000", ":9"]);
    let ports: Vec<String> = [8000, 9]
        .iter()
        .map(|port| {
            let line =
                forward.line("it listens", |line| line.contains("127.0.0.1") && line.ends_with(&format!("-> {port}")));
            line.split([':', ' ']).nth(3).expect("a port").to_owned()
        })
        .collect();
    assert_eq!(fetch(&mut connect(&ports[1])), "", "nobody listens there");
}

fn connect(port: &str) -> TcpStream {
    let stream = TcpStream::connect(format!("127.0.0.1:{port}")).expect("kubectl listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time-out can be set");
    stream
}

fn fetch(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    // Where nobody listens the connection ends at once.
    let _ = stream.write_all(b"GET / HTTP/1.0\r\n\r\n");
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

/// The API without credentials, on a port of this machine.
fn proxy(instance: &Instance) {
    let proxy = Running::start(instance, &["proxy", "--port=0"]);
    let line = proxy.line("it listens", |line| line.starts_with("Starting to serve on "));
    let mut stream = connect(line.rsplit(':').next().expect("a port"));
    stream.write_all(b"GET /version HTTP/1.0\r\nHost: localhost\r\n\r\n").expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    assert!(answer.contains("\"gitVersion\""), "{answer}");
}

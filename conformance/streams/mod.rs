//! Exec, attach, port-forward and logs of pods that run, on a server that is a node too.
//!
//! Another server takes the pods' image from `STATEFULD_CONFORMANCE_IMAGE`: it needs `sh` and `httpd`, as
//! `busybox` has them.

mod socket;
mod spdy;

use serde_json::{Value, json};

use self::socket::{Channels, upgrade};
use self::spdy::Spdy;
use crate::cluster::{Answer, Ask, Case};
use crate::runner::{Named, cases};
use crate::target::Running;
use crate::verbs::text;

/// Names the image of pods on another server.
const IMAGE: &str = "STATEFULD_CONFORMANCE_IMAGE";

/// Where the second container serves HTTP.
const PORT: u16 = 8080;

/// The cases.
pub(crate) fn cases() -> Vec<Named> {
    use crate::streams as pods;
    cases! {
        "streams" on Running::Node;
        pods:
            logs_are_told_in_part_and_followed_to_their_end
            exec_over_websocket_in_versions_4_and_5
            exec_over_spdy
            attach_joins_the_container
            ports_are_forwarded_by_channels
            ports_are_forwarded_over_spdy_and_through_a_tunnel
            what_cannot_be_streamed_is_refused_with_a_status;
    }
}

/// A pod of a case: container `shell` answers the lines that it is given, `web` serves HTTP.
async fn pod(case: &Case) -> String {
    let script = "echo started; while read -r line; do echo got $line; [ $line != end ] || exit 7; done";
    let shell = json!({"name": "shell", "image": "host", "command": ["sh", "-c", script], "stdin": true});
    let web = json!({"name": "web", "image": "host", "readinessProbe": {"tcpSocket": {"port": PORT}, "periodSeconds": 1},
        "command": ["/usr/bin/python3", "-m", "http.server", PORT.to_string()]});
    let mut spec = json!({"restartPolicy": "Never", "terminationGracePeriodSeconds": 0, "containers": [shell, web]});
    if case.cluster.is_own() {
        spec["runtimeClassName"] = "host".into();
        let subject = json!({"kind": "ServiceAccount", "name": "default", "namespace": &*case.namespace});
        let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole",
            "name": "statefuld:runtimeclass-host"});
        let bindings = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{}/rolebindings", case.namespace);
        let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": {"name": "host"}, "subjects": [subject], "roleRef": role});
        case.create(&bindings, binding).await;
    } else {
        let image = std::env::var(IMAGE).unwrap_or_else(|_| "busybox".to_owned());
        for container in 0..2 {
            spec["containers"][container]["image"] = image.as_str().into();
        }
        spec["containers"][1]["command"] = json!(["httpd", "-f", "-p", PORT.to_string()]);
    }
    let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec});
    case.create(&case.core("pods"), object).await;
    let path = format!("{}/p", case.core("pods"));
    let ready = |answer: &Answer| {
        let conditions = answer.body["status"]["conditions"].as_array();
        conditions.into_iter().flatten().any(|one| one["type"] == "Ready" && one["status"] == "True")
    };
    case.until(Ask::new("GET", &path), "the pod runs", ready).await;
    path
}

/// The text of a log.
async fn log(case: &Case, path: &str, query: &[(&str, &str)]) -> String {
    let ask = query.iter().fold(Ask::new("GET", &format!("{path}/log")), |ask, (name, value)| ask.query(name, value));
    let answer = case.ask(ask).await;
    assert_eq!(answer.code, 200, "{}", answer.body);
    String::from_utf8_lossy(&answer.bytes).into_owned()
}

/// The exit code that a Status tells at the end of a program.
fn exit_code(status: &Value) -> &str {
    match text(status, "/status") {
        "Success" => "0",
        _ => text(status, "/details/causes/0/message"),
    }
}

async fn logs_are_told_in_part_and_followed_to_their_end(case: Case) {
    let path = pod(&case).await;
    let follow = log(&case, &path, &[("container", "shell"), ("follow", "true")]);
    let say = async {
        let mut attached =
            Channels::open(&case, &path, "attach", &[("container", "shell"), ("stdin", "true")], "v4.channel.k8s.io")
                .await;
        attached.send(0, b"one\nend\n").await;
        attached.end().await;
    };
    let (followed, ()) = tokio::join!(follow, say);
    assert_eq!(followed, "started\ngot one\ngot end\n");
    assert_eq!(log(&case, &path, &[("container", "shell"), ("tailLines", "1")]).await, "got end\n");
    assert_eq!(log(&case, &path, &[("container", "shell"), ("limitBytes", "4")]).await, "star");
    let stamped = log(&case, &path, &[("container", "shell"), ("timestamps", "true"), ("tailLines", "1")]).await;
    let (time, rest) = stamped.split_once(' ').expect("a time");
    assert!(time.parse::<jiff::Timestamp>().is_ok() && rest == "got end\n", "{stamped}");
    let later = ambient::Ambient::system().now() + jiff::SignedDuration::from_hours(1);
    let later = later.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    assert_eq!(log(&case, &path, &[("container", "shell"), ("sinceTime", &later)]).await, "");
}

/// What is run to see input, both outputs and an exit code.
const TALK: [(&str, &str); 7] = [
    ("container", "shell"),
    ("command", "sh"),
    ("command", "-c"),
    ("command", "read x; echo \"got $x\"; echo bad >&2; cat > /dev/null; exit 3"),
    ("stdin", "true"),
    ("stdout", "true"),
    ("stderr", "true"),
];

async fn exec_over_websocket_in_versions_4_and_5(case: Case) {
    let path = pod(&case).await;
    let mut five = Channels::open(&case, &path, "exec", &TALK, "v5.channel.k8s.io").await;
    five.send(0, b"word\n").await;
    // The end of the input is a message of its own; the program ends by itself then.
    five.send(255, &[0]).await;
    let ended = five.end().await;
    assert_eq!((ended.text(1), ended.text(2)), ("got word\n".to_owned(), "bad\n".to_owned()));
    assert_eq!(exit_code(&ended.status()), "3");
    // Version 4 cannot say so: the program has to know.
    let command = [
        ("container", "shell"),
        ("command", "sh"),
        ("command", "-c"),
        ("command", "read x; echo \"$x\""),
        ("stdin", "true"),
        ("stdout", "true"),
    ];
    let mut four = Channels::open(&case, &path, "exec", &command, "v4.channel.k8s.io").await;
    four.send(0, b"word\n").await;
    let ended = four.end().await;
    assert_eq!((ended.text(1), exit_code(&ended.status())), ("word\n".to_owned(), "0"));
    // A terminal has a size, and one output.
    let size = [
        ("container", "shell"),
        ("command", "sh"),
        ("command", "-c"),
        ("command", "until [ \"$(stty size)\" = '33 77' ]; do :; done; echo fits >&2"),
        ("stdin", "true"),
        ("stdout", "true"),
        ("tty", "true"),
    ];
    let mut terminal = Channels::open(&case, &path, "exec", &size, "v5.channel.k8s.io").await;
    terminal.send(4, br#"{"Width":77,"Height":33}"#).await;
    assert_eq!(terminal.end().await.text(1), "fits\r\n");
}

async fn exec_over_spdy(case: Case) {
    let path = pod(&case).await;
    let (connection, _) = upgrade(&case, "POST", &path, "exec", &TALK, "SPDY/3.1", "v4.channel.k8s.io").await;
    let mut spdy = Spdy::over(connection);
    let streams = ["error", "stdin", "stdout", "stderr"];
    for (n, kind) in (0..).zip(streams) {
        spdy.open(2 * n + 1, &[("streamtype", kind)]).await;
    }
    spdy.write(3, b"word\n", true).await;
    let said = spdy.until_finished(&[1, 5, 7]).await;
    assert_eq!((said.text(5), said.text(7)), ("got word\n".to_owned(), "bad\n".to_owned()));
    let status: Value = serde_json::from_str(&said.text(1)).expect("a Status");
    assert_eq!(exit_code(&status), "3");
}

async fn attach_joins_the_container(case: Case) {
    let path = pod(&case).await;
    let query = [("container", "shell"), ("stdin", "true"), ("stdout", "true")];
    let mut attached = Channels::open(&case, &path, "attach", &query, "v5.channel.k8s.io").await;
    attached.send(0, b"one\nend\n").await;
    let ended = attached.end().await;
    assert_eq!(ended.text(1), "got one\ngot end\n");
    let ended = |answer: &Answer| {
        let statuses = answer.body["status"]["containerStatuses"].as_array();
        statuses.into_iter().flatten().any(|one| one["state"]["terminated"]["exitCode"] == 7)
    };
    case.until(Ask::new("GET", &path), "the container has ended as it was told to", ended).await;
}

/// What a browser would ask.
const GET: &[u8] = b"GET / HTTP/1.0\r\n\r\n";

async fn ports_are_forwarded_by_channels(case: Case) {
    let path = pod(&case).await;
    let port = PORT.to_string();
    let mut forward = Channels::open(&case, &path, "portforward", &[("ports", &port)], "v4.channel.k8s.io").await;
    forward.send(0, GET).await;
    let ended = forward.until(|all| all.of(0).len() > 12).await;
    // Each channel begins with the port's number.
    assert_eq!((&ended.of(0)[..2], ended.of(1)), (&PORT.to_le_bytes()[..], PORT.to_le_bytes().to_vec()));
    assert!(ended.of(0)[2..].starts_with(b"HTTP/1."), "{}", ended.text(0));
}

/// Fetches from a port by a SPDY connection, and asks for one where nobody listens.
async fn fetch(mut spdy: Spdy) {
    let pair = |id: &'static str, port: &'static str, kind: &'static str| {
        [("streamtype", kind), ("port", port), ("requestid", id)]
    };
    spdy.open(1, &pair("0", "8080", "error")).await;
    spdy.open(3, &pair("0", "8080", "data")).await;
    spdy.write(3, GET, false).await;
    let said = spdy.until_finished(&[3]).await;
    assert!(said.of(3).starts_with(b"HTTP/1."), "{}", said.text(3));
    spdy.open(5, &pair("1", "9", "error")).await;
    spdy.open(7, &pair("1", "9", "data")).await;
    let said = spdy.until_finished(&[5]).await;
    assert!(said.text(5).contains("error forwarding port 9 to pod"), "{}", said.text(5));
}

async fn ports_are_forwarded_over_spdy_and_through_a_tunnel(case: Case) {
    let path = pod(&case).await;
    let (plain, _) = upgrade(&case, "POST", &path, "portforward", &[], "SPDY/3.1", "portforward.k8s.io").await;
    fetch(Spdy::over(plain)).await;
    let tunnel = "SPDY/3.1+portforward.k8s.io";
    let (socket, _) = upgrade(&case, "GET", &path, "portforward", &[], "websocket", tunnel).await;
    fetch(Spdy::inside(socket).await).await;
}

async fn what_cannot_be_streamed_is_refused_with_a_status(case: Case) {
    let path = pod(&case).await;
    let plain = case.get(&format!("{path}/exec?container=shell&command=true&stdout=true")).await;
    assert_eq!((plain.code, text(&plain.body, "/reason")), (400, "BadRequest"), "{}", plain.body);
    for (sub, query, says) in [
        ("exec", vec![("command", "true"), ("stdout", "true")], "a container name must be specified"),
        (
            "exec",
            vec![("container", "none"), ("command", "true"), ("stdout", "true")],
            "container none is not valid for pod p",
        ),
        ("exec", vec![("container", "shell"), ("stdout", "true")], "command"),
    ] {
        let refused = socket::refused(&case, &path, sub, &query).await;
        assert!(refused.0 >= 400 && refused.1.contains(says), "{refused:?}");
    }
    let none = socket::refused(&case, &format!("{}/none", case.core("pods")), "exec", &TALK).await;
    assert_eq!(none.0, 404, "{none:?}");
}

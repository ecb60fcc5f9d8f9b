//! Services as people use them: from pods, from the machine, with the daemon dead, and without the kernel's filter.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

use crate::harness::{Instance, eventually, statefuld};

const MANIFEST: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: LoadBalancer
  selector: {app: web}
  ports: [{name: http, port: PORT, targetPort: http}]
---
apiVersion: v1
kind: Service
metadata: {name: by-hand}
spec:
  ports: [{name: http, port: 80}]
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: web}
spec:
  # A service with an address, not a headless one, as in every seventh manifest.
  serviceName: web
  replicas: 2
  podManagementPolicy: Parallel
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 5
      containers:
        - name: c
          image: statefuld.local/sample
          args: ["--listen", "0.0.0.0:8080", "--data", "/tmp"]
          ports: [{name: http, containerPort: 8080, hostPort: HOSTPORT, hostIP: 127.0.0.1}]
          readinessProbe: {httpGet: {path: /healthz, port: http}, periodSeconds: 1}
          volumeMounts: [{name: tmp, mountPath: /tmp}]
      volumes: [{name: tmp, emptyDir: {}}]
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  runtimeClassName: host
  terminationGracePeriodSeconds: 1
  containers:
    - name: c
      image: host
      command: [/bin/bash, -c, "trap 'exit 0' TERM; while :; do sleep 0.1; done"]
"#;

/// The journal of whoever answers there: its lines name their host.
fn get(address: &str, port: u64) -> Result<String, std::io::Error> {
    let mut stream = TcpStream::connect((address, u16::try_from(port).expect("a port")))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// How often is asked where everybody is to answer: with two, one of them is missed by chance once in a billion.
const TRIES: usize = 30;

/// The hosts that answer, of many tries.
fn hosts(address: &str, port: u64) -> Vec<&'static str> {
    let answers: String = (0..TRIES).map(|_| get(address, port).unwrap_or_default()).collect();
    named(&answers)
}

fn named(answers: &str) -> Vec<&'static str> {
    ["web-0", "web-1"].into_iter().filter(|host| answers.contains(&format!("host={host} "))).collect()
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("0.0.0.0:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

/// Asks from a pod, by name, so often; the hosts that answer.
fn from_pod(instance: &Instance, name: &str, port: u16, tries: usize) -> Vec<&'static str> {
    let once = format!("exec 3<>/dev/tcp/{name}/{port}; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3");
    let line = format!("for n in $(seq {tries}); do ( {once} ); done");
    named(&instance.exec("client", &line).unwrap_or_else(|error| error))
}

#[test]
fn e2e_services_lead_to_their_pods_from_everywhere_and_without_the_daemon() {
    let mut instance = Instance::new();
    instance.up(&[]);
    let (port, host_port) = (free_port(), free_port());
    let one = MANIFEST.replace("HOSTPORT", &host_port.to_string()).replace("replicas: 2", "replicas: 1");
    let one = one.replace("PORT", &port.to_string());
    instance.kubectl_with(&["apply", "-f", "-"], &one).expect("applied");
    instance.ready("client", None);
    instance.settled("web", 1);
    assert!(get("127.0.0.1", host_port.into()).expect("a host port").contains("host=web-0"));
    // Without host port there is room for two.
    let without = one.replace(&format!(", hostPort: {host_port}, hostIP: 127.0.0.1"), "");
    instance.kubectl_with(&["apply", "-f", "-"], &without.replace("replicas: 1", "replicas: 2")).expect("applied");
    instance.kubectl(&["rollout", "status", "statefulset/web", "--timeout=180s"]);
    instance.settled("web", 2);
    assert!(get("127.0.0.1", host_port.into()).is_err(), "the host port is gone");

    let service = eventually("the machine's address is given", || {
        let service = instance.get("service", "web");
        service["status"]["loadBalancer"]["ingress"][0]["ip"].is_string().then_some(service)
    });
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let (cluster_ip, machine) =
        (text(&service["spec"]["clusterIP"]), text(&service["status"]["loadBalancer"]["ingress"][0]["ip"]));
    let node_port = service["spec"]["ports"][0]["nodePort"].as_u64().expect("a node port");
    let both = ["web-0", "web-1"];
    eventually("the balancer's port is open", || get(&machine, port.into()).ok());
    for (address, port) in [(&cluster_ip, port.into()), (&machine, port.into()), (&"127.0.0.1".to_owned(), node_port)] {
        assert_eq!(hosts(address, port), both, "{address}:{port}");
    }
    assert_eq!(from_pod(&instance, "web", port, TRIES), both);
    // A member has its name below a service that is not headless, too.
    assert_eq!(from_pod(&instance, "web-1.web", 8080, 1), ["web-1"]);

    // Endpoints that a person writes.
    let address = text(&instance.get("pod", "web-1")["status"]["podIP"]);
    let endpoints = format!(
        "apiVersion: v1\nkind: Endpoints\nmetadata: {{name: by-hand}}\nsubsets:\n- addresses: [{{ip: {address}}}]\n  \
         ports: [{{name: http, port: 8080}}]\n"
    );
    instance.kubectl_with(&["apply", "-f", "-"], &endpoints).expect("applied");
    eventually("what was written by hand is reached", || {
        (from_pod(&instance, "by-hand", 80, 1) == ["web-1"]).then_some(())
    });

    // The kernel has the rules; the next daemon finds them.
    instance.kill_daemon();
    assert_eq!(hosts(&cluster_ip, port.into()), both);
    instance.up(&[]);
    instance.kubectl(&["scale", "statefulset/web", "--replicas=0"]);
    instance.gone("web-0");
    instance.gone("web-1");
    eventually("nobody is there, and clients are told", || {
        let refused =
            |address, port| get(address, port).is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused);
        (refused(cluster_ip.as_str(), u64::from(port)) && refused("127.0.0.1", node_port)).then_some(())
    });
}

#[test]
fn e2e_without_the_packet_filter_sockets_serve() {
    let mut instance = Instance::new();
    instance.mark_started();
    let output = instance.up_command(&[]).args(["--services", "sockets"]).output().expect("statefuld runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let port = free_port();
    let manifest = MANIFEST.replace(", hostPort: HOSTPORT, hostIP: 127.0.0.1", "").replace("PORT", &port.to_string());
    instance.kubectl_with(&["apply", "-f", "-"], &manifest).expect("applied");
    instance.ready("client", None);
    instance.settled("web", 2);
    eventually("both answer", || (from_pod(&instance, "web", port, TRIES) == ["web-0", "web-1"]).then_some(()));
    // The API is a service as well.
    instance.exec("client", "HOME=/tmp kubectl auth whoami -o json").expect("the API is reached");
}

#[test]
fn e2e_names_are_installed_for_the_machine_and_taken_away() {
    let instance = Instance::new();
    let root = instance.scratch().join("root");
    let run = |arguments: &[&str]| {
        let mut command = statefuld();
        command.arg("dns").args(arguments).arg("--data-dir").arg(instance.data()).arg("--root").arg(&root);
        let output = command.output().expect("statefuld runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.success(), text(&output.stdout), text(&output.stderr))
    };
    let (done, _, said) = run(&["install"]);
    assert!(!done && said.contains("run `statefuld up` first"), "{said}");
    let config = node::Config::choose(&instance.data(), &node::Wishes::default()).expect("a node's choice");
    let claim = config.pod_cidr.to_string().replace('/', "-");
    let _ = std::fs::remove_file(std::path::Path::new("/run/statefuld/ranges").join(claim));
    std::fs::create_dir_all(&root).expect("a root");
    let (done, line, _) = run(&["install"]);
    assert!(done);
    assert_eq!(line, format!("nameserver {}\n", config.gateway));
    std::fs::create_dir_all(root.join("run/systemd/resolve")).expect("as if it ran");
    assert!(run(&["install"]).0);
    let folder = root.join("etc/systemd/resolved.conf.d");
    let file = folder.join(format!("statefuld-{}.conf", config.tag()));
    let text = std::fs::read_to_string(&file).expect("the file");
    assert!(text.contains(&format!("DNS={}\nDomains=~cluster.local ~", config.gateway)), "{text}");
    assert!(run(&["uninstall"]).0 && !file.exists());
    std::fs::write(folder.join("statefuld-00000000.conf"), "").expect("another's");
    let (done, _, said) = run(&["install"]);
    assert!(!done && said.contains("names another instance"), "{said}");
    assert!(run(&["uninstall"]).2.contains("nothing was installed"));
}

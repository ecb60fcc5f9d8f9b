//! The recipes of docs/take-over.md, as they stand there: from a service that Debian set up, with data in it, to a set with
//! the same data. What the recipe's `systemctl` stops is the packaged program on the packaged settings, in a mount namespace of
//! its own, so that the machine's own folders are not touched.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::Instance;

/// Debian's service before the recipe, as a shell knows it, and what its data is afterwards.
struct Case {
    /// The recipe's heading.
    heading: &'static str,
    set: &'static str,
    /// What `systemctl` calls it.
    service: &'static str,
    /// The folders that it lives in: kept ones, and those made at each boot with their owner.
    kept: &'static str,
    made: (&'static str, &'static str),
    /// Runs the program in the foreground; clients on this machine alone.
    server: &'static str,
    /// The signal by which it is stopped.
    signal: &'static str,
    /// Succeeds once the data is written.
    fill: &'static str,
    /// Says how much is there, in a pod.
    count: &'static str,
}

const ROOM: &str = "1000";

const POSTGRES: Case = Case {
    heading: "PostgreSQL",
    set: "postgres",
    service: "postgresql",
    kept: "/var/lib/postgresql",
    made: ("/run/postgresql", "postgres"),
    server: "exec setpriv --reuid=postgres --regid=postgres --init-groups /usr/lib/postgresql/$VERSION/bin/postgres \
             -D /var/lib/postgresql/$VERSION/main -c config_file=/etc/postgresql/$VERSION/main/postgresql.conf \
             -c listen_addresses=",
    signal: "INT",
    fill: "setpriv --reuid=postgres --regid=postgres --init-groups psql --quiet --command \
           'create table kept as select generate_series(1, 1000)'",
    count: "setpriv --reuid=postgres --regid=postgres --init-groups psql --host=/tmp --tuples-only --no-align \
            --command 'select count(*) from kept'",
};

const MARIADB: Case = Case {
    heading: "MariaDB",
    set: "mariadb",
    service: "mariadb",
    kept: "/var/lib/mysql",
    made: ("/run/mysqld", "mysql"),
    server: "exec mariadbd --user=mysql --skip-networking",
    signal: "TERM",
    fill: "mariadb --execute 'create database if not exists kept; create or replace table kept.t as \
           with recursive r(n) as (select 1 union all select n + 1 from r where n < 1000) select n from r'",
    count: "mariadb --socket=/tmp/mysqld.sock --skip-column-names --execute 'select count(*) from kept.t'",
};

const REDIS: Case = Case {
    heading: "Redis",
    set: "redis",
    service: "redis-server",
    kept: "/var/lib/redis",
    made: ("/run/redis", "redis"),
    server: "exec setpriv --reuid=redis --regid=redis --init-groups redis-server /etc/redis/redis.conf --daemonize no \
             --supervised no --logfile '' --port 0 --unixsocket /run/redis/socket",
    signal: "TERM",
    fill: "redis-cli -s /run/redis/socket eval 'for n = 1, 1000 do redis.call(\"set\", \"kept\" .. n, n) end' 0",
    count: "redis-cli dbsize",
};

/// What stands between a heading's first `sh` fences.
fn recipe(heading: &str) -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/take-over.md");
    let text = fs::read_to_string(page).expect("the page");
    let section = text.split_once(&format!("\n## {heading}\n")).expect("the heading").1;
    let (block, _) = section.split_once("```sh\n").expect("a block").1.split_once("```").expect("its end");
    assert!(!section[..section.find("```sh").expect("a block")].contains("\n## "), "the block is of another heading");
    block.replace("/15/", &format!("/{}/", postgres_version()))
}

fn postgres_version() -> String {
    let folders = fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is installed");
    let versions = folders.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    versions.max_by_key(|version| version.parse::<u32>().unwrap_or(0)).expect("a version")
}

/// A folder to put in front of PATH: this program, and a service manager that knows one service.
fn programs(folder: PathBuf, case: &Case) -> PathBuf {
    fs::create_dir(&folder).expect("a folder");
    symlink(env!("CARGO_BIN_EXE_statefuld"), folder.join("statefuld")).expect("a link");
    let systemctl = folder.join("systemctl");
    let script = format!(
        "#!/bin/sh\nset -e\ntest \"$2\" = {service}\ncase $1 in\n\
         stop) pid=$(cat {pid}); kill -{signal} $pid; while kill -0 $pid 2>/dev/null; do sleep 0.05; done ;;\n\
         disable) ;;\n*) exit 1 ;;\nesac\n",
        service = case.service,
        signal = case.signal,
        pid = folder.join("pid").display(),
    );
    fs::write(&systemctl, script).expect("a script");
    fs::set_permissions(&systemctl, fs::Permissions::from_mode(0o755)).expect("a mode");
    folder
}

fn taken_over(case: &Case) {
    let mut instance = Instance::new();
    instance.up(&[]);
    let programs = programs(instance.scratch().join("bin"), case);
    let old = instance.scratch().join("old");
    let script = format!(
        "set -eu\n\
         cp -a {kept} {old}\nmount --bind {old} {kept}\n\
         mkdir -p {made}\nmount -t tmpfs -o mode=755 tmpfs {made}\nchown {owner} {made}\n\
         ({server}) >{log} 2>&1 &\necho $! >{pid}\n\
         tries=0\nuntil {fill} >>{log} 2>&1; do tries=$((tries + 1)); test $tries -lt 900; sleep 0.1; done\n\
         {recipe}",
        kept = case.kept,
        old = old.display(),
        made = case.made.0,
        owner = case.made.1,
        server = case.server,
        log = instance.scratch().join("server.log").display(),
        pid = programs.join("pid").display(),
        fill = case.fill,
        recipe = recipe(case.heading),
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-c", &script]);
    command.env("PATH", format!("{}:{}", programs.display(), std::env::var("PATH").unwrap_or_default()));
    command.env("STATEFULD_DATA_DIR", instance.data()).env("VERSION", postgres_version());
    command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."));
    let output = instance.with_kubeconfig(command).output().expect("a shell");
    assert!(
        output.status.success(),
        "{}{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
        fs::read_to_string(instance.scratch().join("server.log")).unwrap_or_default(),
    );
    let pod = format!("{}-0", case.set);
    let count = || instance.exec(&pod, case.count).map(|said| said.trim().to_owned());
    assert_eq!(count().as_deref(), Ok(ROOM), "the set has the data of the service");
    // A clean stop and another start, as any pod's.
    let before = instance.get("pod", &pod)["metadata"]["uid"].as_str().map(str::to_owned);
    instance.kubectl(&["delete", "pod", &pod]);
    instance.ready(&pod, before.as_deref());
    assert_eq!(count().as_deref(), Ok(ROOM), "and keeps it");
}

#[test]
fn e2e_debians_postgresql_becomes_a_set_with_its_data() {
    taken_over(&POSTGRES);
}

#[test]
fn e2e_debians_mariadb_becomes_a_set_with_its_data() {
    taken_over(&MARIADB);
}

#[test]
fn e2e_debians_redis_becomes_a_set_with_its_data() {
    taken_over(&REDIS);
}

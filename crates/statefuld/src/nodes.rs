//! The nodes of one instance: one for the machine, and with `--nodes N` further ones beside it.
//!
//! ```text
//!   DATA/node, DATA/volumes                      the first node, called as the machine is
//!   DATA/nodes/2/node, DATA/nodes/2/volumes      the second, `<first>-2`, and so on
//! ```
//! Each has its own name, bridge, address range, control group, name server and volumes. The machine routes between
//! the bridges. Each offers all of the machine: what pods ask for is counted once per node. Pods and volumes belong to
//! a node by its name, so the number can grow at any start, and shrink only where nothing is left on the nodes that go.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, ListParams};
use kube::{Api, Client};

use crate::cli;
use crate::place::DataDir;

/// The most nodes of one instance.
pub const MOST: i64 = 32;

/// The nodes of a start.
#[derive(Debug)]
pub struct Nodes {
    /// Those that run, the machine's own first.
    pub configs: Vec<node::Config>,
    /// Those that ran before and do no more. Nothing of theirs is on the disk but their own folder.
    pub dropped: Vec<node::Config>,
}

/// Chooses the nodes: as many as are asked for, else as many as there were.
pub fn choose(data: &DataDir, args: &cli::Node) -> Result<Nodes> {
    let rules = node::rules::Rules {
        unsafe_sysctls: args.allowed_unsafe_sysctls.clone(),
        max_pods: args.max_pods,
        pod_pids: args.pod_max_pids,
    };
    rules.check().map_err(anyhow::Error::msg).context("--allowed-unsafe-sysctls")?;
    let wishes = node::Wishes { node_name: args.node_name.clone(), rules: rules.clone(), ..Default::default() };
    let first = with_services(node::Config::choose(data.path(), &wishes)?, args);
    let recorded = further(data)?;
    let count = args.nodes.map_or(1 + recorded.len(), |n| n as usize);
    let mut dropped = Vec::new();
    for (number, folder) in recorded.iter().skip(count - 1) {
        let Some(config) = node::Config::load(folder)? else { continue };
        if let Some(left) = left_behind(&config) {
            bail!(
                "node {} cannot be left out: {left} is on it; start with --nodes {number}, or drain it and delete its \
                 claims first",
                config.node_name,
            );
        }
        dropped.push(config);
    }
    let mut configs = vec![first];
    for number in 2..=count {
        let wishes = node::Wishes {
            node_name: Some(format!("{}-{number}", configs[0].node_name)),
            cluster_domain: Some(configs[0].cluster_domain.clone()),
            rules: rules.clone(),
        };
        configs.push(with_services(node::Config::choose(&folder(data, number), &wishes)?, args));
    }
    Ok(Nodes { configs, dropped })
}

/// How a node's services are carried, which is said at every start.
fn with_services(config: node::Config, args: &cli::Node) -> node::Config {
    node::Config { service_mode: args.services.into(), expose_lan: args.expose_lan, ..config }
}

/// The nodes as they were recorded; none where nothing ever ran.
pub fn recorded(data: &DataDir) -> Result<Vec<node::Config>> {
    let mut configs: Vec<node::Config> = node::Config::load(data.path())?.into_iter().collect();
    for folder in further(data)?.values() {
        configs.extend(node::Config::load(folder)?);
    }
    Ok(configs)
}

/// Takes nodes that do not run any more out of the API, and removes their folders. Refused while pods are bound to one.
pub async fn forget(client: &Client, dropped: &[node::Config]) -> Result<()> {
    for config in dropped {
        let name = &config.node_name;
        let pods: Api<Pod> = Api::all(client.clone());
        let bound = pods.list(&ListParams::default().fields(&format!("spec.nodeName={name}"))).await?;
        if let Some(pod) = bound.items.first() {
            let pod = pod.metadata.name.as_deref().unwrap_or_default();
            bail!(
                "node {name} cannot be left out: pod {pod} is bound to it; start with more --nodes, and drain it first"
            );
        }
        match Api::<Node>::all(client.clone()).delete(name, &DeleteParams::default()).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error).with_context(|| format!("node {name} cannot be deleted")),
        }
        std::fs::remove_dir_all(&config.data_dir)
            .with_context(|| format!("{} cannot be removed", config.data_dir.display()))?;
    }
    Ok(())
}

/// The folders of the further nodes by their numbers.
fn further(data: &DataDir) -> Result<BTreeMap<usize, PathBuf>> {
    let all = data.nodes();
    let entries = match std::fs::read_dir(&all) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(error).with_context(|| format!("{} cannot be read", all.display())),
    };
    let mut found = BTreeMap::new();
    for entry in entries {
        let path = entry.with_context(|| format!("{} cannot be read", all.display()))?.path();
        let number = path.file_name().and_then(|name| name.to_str()?.parse::<usize>().ok());
        if let Some(number) = number.filter(|number| *number >= 2) {
            found.insert(number, path);
        }
    }
    Ok(found)
}

fn folder(data: &DataDir, number: usize) -> PathBuf {
    data.nodes().join(number.to_string())
}

/// The first thing on a node that would be lost with it: a volume's data, or a pod.
fn left_behind(config: &node::Config) -> Option<String> {
    let inside = |folder: &Path| -> Vec<PathBuf> {
        let mut inside: Vec<_> = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()).collect();
        inside.sort();
        inside
    };
    let named = |path: &Path| path.file_name().is_some_and(|name| !name.as_encoded_bytes().starts_with(b"."));
    let volumes = inside(&config.volumes_dir());
    let volume = volumes.iter().filter(|p| named(p)).flat_map(|space| inside(space)).find(|p| named(p));
    let pods = || inside(&config.pods_dir()).into_iter().next();
    volume.map(|v| format!("volume {}", v.display())).or_else(|| pods().map(|p| format!("a pod ({})", p.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(nodes: Option<u32>) -> cli::Node {
        cli::Node {
            node_name: Some("box".to_owned()),
            nodes,
            expose_lan: false,
            services: cli::Services::Auto,
            max_pods: 110,
            pod_max_pids: None,
            allowed_unsafe_sysctls: Vec::new(),
        }
    }

    /// Gives the ranges back that a test took.
    struct Claims(PathBuf);
    impl Drop for Claims {
        fn drop(&mut self) {
            let data = DataDir::new(&self.0).expect("a path");
            for config in recorded(&data).unwrap_or_default() {
                let claim = config.pod_cidr.to_string().replace('/', "-");
                let _ = std::fs::remove_file(Path::new("/run/statefuld/ranges").join(claim));
            }
        }
    }

    #[test]
    fn the_number_of_nodes_is_kept_grows_and_shrinks_where_nothing_is_left() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let data = DataDir::new(dir.path()).expect("a path");
        let _claims = Claims(dir.path().to_owned());
        let names = |nodes: &[node::Config]| nodes.iter().map(|c| c.node_name.clone()).collect::<Vec<_>>();
        let three = choose(&data, &args(Some(3))).expect("three");
        assert_eq!(names(&three.configs), ["box", "box-2", "box-3"]);
        assert_eq!(choose(&data, &args(None)).expect("the same").configs, three.configs);
        assert_eq!(recorded(&data).expect("recorded"), three.configs);
        for (i, a) in three.configs.iter().enumerate() {
            for b in &three.configs[..i] {
                assert!(!a.pod_cidr.overlaps(&b.pod_cidr));
                assert!(a.bridge != b.bridge && a.cgroup_root != b.cgroup_root && a.volumes_dir() != b.volumes_dir());
            }
        }
        assert_eq!(names(&choose(&data, &args(Some(4))).expect("four").configs)[3], "box-4");
        let two = choose(&data, &args(Some(2))).expect("nothing is on the others");
        assert_eq!(
            (names(&two.configs), names(&two.dropped)),
            (vec!["box".into(), "box-2".into()], vec!["box-3".into(), "box-4".into()])
        );
        std::fs::create_dir_all(three.configs[2].volumes_dir().join("default/web-2-data")).expect("a volume");
        let refused = choose(&data, &args(Some(1))).expect_err("data would be lost").to_string();
        assert!(
            refused.contains("node box-3 cannot be left out: volume ") && refused.contains("--nodes 3"),
            "{refused}"
        );
    }
}

//! Other firewalls on the machine: what has to be done so that pods' packets pass them. No I/O but [`look`] and [`tend`].
//!
//! A packet has to pass every table; ours cannot overrule another's refusal. Docker and ufw let their iptables chains
//! refuse what no rule decides: there a rule for the bridge is added at the chain's end, in iptables' own form, so that
//! what they refuse by a rule of their own stays refused. In everybody else's tables nothing is changed: one sentence
//! says what a person can do.

use std::net::Ipv4Addr;

use crate::nft::{self, BaseChain, Hook, Socket};

/// The table that iptables filters in.
const IPTABLES: &str = "filter";
/// The table that firewalld filters in.
const FIREWALLD: &str = "firewalld";

/// Another firewall that stands in the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// An iptables chain: a rule is added to it.
    Passable(BaseChain),
    /// One that a person has to open.
    Told(String),
}

/// What stands in the way of a bridge's pods, among these chains. `legacy` says that the kernel filters with the older
/// iptables too, whose rules cannot be seen.
pub fn obstacles(chains: &[BaseChain], legacy: bool, bridge: &str, range: &str) -> Vec<Obstacle> {
    let mut found = Vec::new();
    for chain in chains {
        let word = match chain.hook {
            Hook::Input => "INPUT",
            _ => "FORWARD",
        };
        let obstacle = if chain.table == FIREWALLD {
            Some(Obstacle::Told(format!(
                "firewalld is active: so that pods reach their node and the outside, run `firewall-cmd --permanent \
                 --zone=trusted --add-source={range} && firewall-cmd --reload`"
            )))
        } else if !chain.drops || chain.table.starts_with("statefuld-") {
            None
        } else if chain.ip_only && chain.table == IPTABLES && chain.name == word {
            Some(Obstacle::Passable(chain.clone()))
        } else {
            let (family, out) = (if chain.ip_only { "ip" } else { "inet" }, chain.hook != Hook::Input);
            let name = format!("{family} {} {}", chain.table, chain.name);
            let also =
                if out { format!(" and `nft insert rule {name} oifname {bridge} accept`") } else { String::new() };
            Some(Obstacle::Told(format!(
                "chain {name} drops what no rule accepts: so that pods reach their node and the outside, run `nft \
                 insert rule {name} iifname {bridge} accept`{also}"
            )))
        };
        found.extend(obstacle.filter(|obstacle| !found.contains(obstacle)));
    }
    if legacy {
        found.push(Obstacle::Told(format!(
            "the older iptables filters here, whose rules statefuld cannot see: if pods do not reach the outside, run \
             `iptables-legacy -A FORWARD -i {bridge} -j ACCEPT && iptables-legacy -A FORWARD -o {bridge} -j ACCEPT`"
        )));
    }
    found
}

/// What stands in the way on this machine. Changes nothing. Blocks.
pub fn look(socket: &Socket, bridge: &str, range: &str) -> Result<Vec<Obstacle>, nft::Error> {
    Ok(obstacles(&nft::base_chains(socket)?, has_legacy(), bridge, range))
}

/// Adds the rules that may be added and answers what a person has to do. Blocks.
pub fn tend(socket: &Socket, bridge: &str, range: &str, own: Ipv4Addr) -> Result<Vec<String>, nft::Error> {
    let mut told = Vec::new();
    for obstacle in look(socket, bridge, range)? {
        match obstacle {
            Obstacle::Passable(chain) => {
                if nft::append_accept(socket, &chain, bridge, own)? {
                    tracing::info!(chain = %chain.name, %bridge, "added a rule for pods to the machine's firewall");
                }
            }
            Obstacle::Told(text) => told.push(text),
        }
    }
    Ok(told)
}

/// Whether the older iptables has a filter in this thread's network namespace.
fn has_legacy() -> bool {
    let names = std::fs::read_to_string("/proc/thread-self/net/ip_tables_names").unwrap_or_default();
    names.lines().any(|name| name == IPTABLES)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(table: &str, name: &str, hook: Hook, drops: bool, ip_only: bool) -> BaseChain {
        BaseChain { table: table.into(), name: name.into(), hook, drops, ip_only }
    }

    fn told(chains: &[BaseChain], legacy: bool) -> Vec<String> {
        let found = obstacles(chains, legacy, "sfd-1", "10.201.7.0/24");
        found
            .into_iter()
            .map(|obstacle| match obstacle {
                Obstacle::Passable(chain) => chain.name,
                Obstacle::Told(text) => text,
            })
            .collect()
    }

    #[test]
    fn dockers_and_ufws_chains_are_passed_and_open_ones_left_alone() {
        let chains = [
            chain("filter", "FORWARD", Hook::Forward, true, true),
            chain("filter", "INPUT", Hook::Input, true, true),
            chain("filter", "INPUT", Hook::Input, false, true),
            chain("statefuld-2", "filter-forward", Hook::Forward, true, true),
        ];
        assert_eq!(told(&chains, false), ["FORWARD", "INPUT"]);
    }

    #[test]
    fn what_others_keep_in_tables_of_their_own_is_told() {
        let firewalld = chain("firewalld", "filter_FORWARD", Hook::Forward, false, false);
        let twice = [firewalld.clone(), BaseChain { name: "filter_INPUT".into(), hook: Hook::Input, ..firewalld }];
        let said = told(&twice, false);
        assert_eq!(said.len(), 1);
        assert!(said[0].contains("--add-source=10.201.7.0/24"), "{said:?}");
        let own = chain("mine", "fwd", Hook::Forward, true, false);
        let said = told(&[own], false);
        assert!(said[0].contains("nft insert rule inet mine fwd iifname sfd-1 accept` and"), "{said:?}");
        assert!(told(&[], true)[0].contains("iptables-legacy -A FORWARD -i sfd-1"));
    }
}

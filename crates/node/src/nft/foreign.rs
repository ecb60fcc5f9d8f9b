//! Tables of others: which of their chains stand in the way, and the one kind of rule that is added to them.

use std::net::Ipv4Addr;

use super::Hook;
use super::apply::{DELETE_RULE, LIST_CHAINS, LIST_RULES, NEW_RULE, hook_number};
use super::encode;
use super::socket::{Error, Socket};
use super::wire::{APPEND, Attributes, CREATE, IPV4, REQUEST};

/// The family of tables for IPv4 and IPv6 together.
const INET: u8 = 1;

/// A chain that packets enter by themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseChain {
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// Where it hooks in.
    pub hook: Hook,
    /// Whether what no rule decides is dropped.
    pub drops: bool,
    /// Whether its table is of family `ip`, as iptables' are.
    pub ip_only: bool,
}

/// The chains of others and ours that filter IPv4 packets for this machine, or that it passes on. Blocks.
pub fn base_chains(socket: &Socket) -> Result<Vec<BaseChain>, Error> {
    let mut found = Vec::new();
    for family in [IPV4, INET] {
        socket.list("list chains", LIST_CHAINS, family, |chain| {
            // A listing that is begun anew tells things twice.
            if let Some(base) = base_chain(chain, family == IPV4).filter(|base| !found.contains(base)) {
                found.push(base);
            }
        })?;
    }
    Ok(found)
}

fn base_chain(chain: Attributes<'_>, ip_only: bool) -> Option<BaseChain> {
    let hook = chain.nested(4)?.number(1)?;
    let hook = [Hook::Input, Hook::Forward].into_iter().find(|known| hook_number(*known) == hook)?;
    Some(BaseChain { table: chain.text(1)?, name: chain.text(3)?, hook, drops: chain.number(5) == Some(0), ip_only })
}

/// Rules of a chain of family `ip` that mention an interface: their handles.
fn mentions(socket: &Socket, table: &str, chain: &str, interface: &str) -> Result<Vec<u64>, Error> {
    let mut handles = Vec::new();
    socket.list("list rules", LIST_RULES, IPV4, |rule| {
        let here = rule.text(1).as_deref() == Some(table) && rule.text(2).as_deref() == Some(chain);
        let said = rule.get(4).is_some_and(|bytes| holds(bytes, interface.as_bytes()));
        if here && said {
            let handle = rule.long(3).filter(|handle| !handles.contains(handle));
            handles.extend(handle);
        }
    })?;
    Ok(handles)
}

fn holds(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// Adds to the end of a chain of family `ip` that packets of the interface pass, unless a rule there mentions it.
/// Answers whether anything was added. Blocks.
///
/// At the end, so that whatever the chain's owner refuses by a rule stays refused: only the chain's last word is
/// overruled. The rules are in the form that iptables writes and reads.
pub fn append_accept(socket: &Socket, chain: &BaseChain, interface: &str, own: Ipv4Addr) -> Result<bool, Error> {
    if !mentions(socket, &chain.table, &chain.name, interface)?.is_empty() {
        return Ok(false);
    }
    let rules: &[(bool, Option<Ipv4Addr>)] = match chain.hook {
        // What pods ask of their node, and nothing else of the machine.
        Hook::Input => &[(true, Some(own))],
        _ => &[(true, None), (false, None)],
    };
    socket.transact("let the packets of pods pass a firewall", |out| {
        for (coming, to) in rules {
            out.begin(NEW_RULE, REQUEST | CREATE | APPEND, IPV4, 0);
            out.text(1, &chain.table);
            out.text(2, &chain.name);
            out.nest(4, |m| encode::iptables_accept(m, *coming, interface, *to));
        }
    })?;
    Ok(true)
}

/// Takes away what [`append_accept`] added for that interface, wherever it is. Blocks.
pub fn remove_mentions(socket: &Socket, interface: &str) -> Result<(), Error> {
    for chain in base_chains(socket)?.into_iter().filter(|chain| chain.ip_only) {
        let handles = mentions(socket, &chain.table, &chain.name, interface)?;
        socket.transact("take away the rules for pods from a firewall", |out| {
            for handle in &handles {
                out.begin(DELETE_RULE, REQUEST, IPV4, 0);
                out.text(1, &chain.table);
                out.text(2, &chain.name);
                out.bytes(3, &handle.to_be_bytes());
            }
        })?;
    }
    Ok(())
}

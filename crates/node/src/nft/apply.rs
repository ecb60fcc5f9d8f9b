//! Makes the kernel's table be as wanted, in one transaction: before it the old rules hold, after it the new ones.
//!
//! Chains and remembered sets that stay are kept, so that the order among tables and what sets remember stay; rules
//! and the elements of all other sets are written anew.

use std::collections::BTreeSet;

use super::encode;
use super::socket::{Error, Socket, TABLES};
use super::wire::{APPEND, CREATE, IPV4, Messages, REQUEST};
use super::{Hook, Kind, Set, Table};

pub(super) const NEW_TABLE: u16 = TABLES << 8;
pub(super) const DELETE_TABLE: u16 = (TABLES << 8) | 2;
pub(super) const NEW_CHAIN: u16 = (TABLES << 8) | 3;
pub(super) const LIST_CHAINS: u16 = (TABLES << 8) | 4;
pub(super) const DELETE_CHAIN: u16 = (TABLES << 8) | 5;
pub(super) const NEW_RULE: u16 = (TABLES << 8) | 6;
pub(super) const LIST_RULES: u16 = (TABLES << 8) | 7;
pub(super) const DELETE_RULE: u16 = (TABLES << 8) | 8;
const NEW_SET: u16 = (TABLES << 8) | 9;
const LIST_SETS: u16 = (TABLES << 8) | 10;
const DELETE_SET: u16 = (TABLES << 8) | 11;
const NEW_ELEMENT: u16 = (TABLES << 8) | 12;
const DELETE_ELEMENT: u16 = (TABLES << 8) | 14;

/// Elements in one message: a message's list has less than 64 kB.
const ELEMENTS_AT_ONCE: usize = 400;
/// Most that a remembered set holds.
const REMEMBERED_MAX: u32 = 65_535;

/// What there is of a table in the kernel.
#[derive(Debug, Default)]
struct There {
    chains: BTreeSet<String>,
    sets: BTreeSet<String>,
}

/// Makes the table so, whatever it was before. Blocks.
pub fn apply(socket: &Socket, table: &Table) -> Result<(), Error> {
    let there = look(socket, &table.name)?;
    socket.transact("change the rules of the packet filter", |out| write(out, table, &there))
}

/// Takes a table away, if it is there. Blocks.
pub fn remove(socket: &Socket, name: &str) -> Result<(), Error> {
    let removed = socket.transact("remove the rules of the packet filter", |out| {
        out.begin(DELETE_TABLE, REQUEST, IPV4, 0);
        out.text(1, name);
    });
    match removed {
        Err(error) if error.is_missing() => Ok(()),
        other => other,
    }
}

/// Whether there is a table of that name. Blocks.
pub fn is_there(socket: &Socket, name: &str) -> Result<bool, Error> {
    Ok(!look(socket, name)?.chains.is_empty())
}

fn look(socket: &Socket, table: &str) -> Result<There, Error> {
    let mut there = There::default();
    socket.list("list chains", LIST_CHAINS, IPV4, |found| {
        if found.text(1).as_deref() == Some(table) {
            there.chains.extend(found.text(3));
        }
    })?;
    socket.list("list sets", LIST_SETS, IPV4, |found| {
        if found.text(1).as_deref() == Some(table) {
            there.sets.extend(found.text(2));
        }
    })?;
    Ok(there)
}

/// Order matters: what is referred to is there before, and nothing refers any more to what goes.
fn write(out: &mut Messages, table: &Table, there: &There) {
    out.begin(NEW_TABLE, REQUEST | CREATE, IPV4, 0);
    out.text(1, &table.name);
    if !there.chains.is_empty() {
        out.begin(DELETE_RULE, REQUEST, IPV4, 0);
        out.text(1, &table.name);
    }
    for name in &there.sets {
        match table.sets.get(name) {
            Some(Set::Remembered { .. }) => {}
            Some(_) => named(out, DELETE_ELEMENT, &table.name, 2, name),
            None => named(out, DELETE_SET, &table.name, 2, name),
        }
    }
    for name in table.chains.keys().filter(|name| !there.chains.contains(*name)) {
        new_chain(out, table, name);
    }
    for (number, (name, set)) in (1..).zip(&table.sets) {
        if !there.sets.contains(name) {
            new_set(out, &table.name, name, set, number);
        }
        new_elements(out, &table.name, name, set);
    }
    for (name, chain) in &table.chains {
        for steps in &chain.rules {
            out.begin(NEW_RULE, REQUEST | CREATE | APPEND, IPV4, 0);
            out.text(1, &table.name);
            out.text(2, name);
            out.nest(4, |m| encode::rule(m, steps));
        }
    }
    for name in there.chains.iter().filter(|name| !table.chains.contains_key(*name)) {
        named(out, DELETE_CHAIN, &table.name, 3, name);
    }
}

/// A message that names an object of a table and nothing else.
fn named(out: &mut Messages, kind: u16, table: &str, attribute: u16, name: &str) {
    out.begin(kind, REQUEST, IPV4, 0);
    out.text(1, table);
    out.text(attribute, name);
}

fn new_chain(out: &mut Messages, table: &Table, name: &str) {
    out.begin(NEW_CHAIN, REQUEST | CREATE, IPV4, 0);
    out.text(1, &table.name);
    out.text(3, name);
    let Some(base) = table.chains.get(name).and_then(|chain| chain.base) else { return };
    out.nest(4, |m| {
        m.number(1, hook_number(base.hook));
        m.number(2, base.priority.cast_unsigned());
    });
    out.number(5, u32::from(!base.drops));
    out.text(
        7,
        match base.kind {
            Kind::Filter => "filter",
            Kind::Nat => "nat",
        },
    );
}

/// A hook's number.
pub(super) fn hook_number(hook: Hook) -> u32 {
    match hook {
        Hook::Prerouting => 0,
        Hook::Input => 1,
        Hook::Forward => 2,
        Hook::Output => 3,
        Hook::Postrouting => 4,
    }
}

fn new_set(out: &mut Messages, table: &str, name: &str, set: &Set, number: u32) {
    /// How `nft` calls the kind of a verdict.
    const VERDICTS: u32 = 0xffff_ff00;
    let shape = encode::shape(set);
    out.begin(NEW_SET, REQUEST | CREATE, IPV4, 0);
    out.text(1, table);
    out.text(2, name);
    out.number(3, shape.flags);
    out.number(4, shape.key_kind);
    out.number(5, shape.key_bytes);
    if shape.verdicts {
        out.number(6, VERDICTS);
        out.number(7, 0);
    }
    out.number(10, number);
    if let Some(timeout_ms) = shape.timeout_ms {
        out.nest(9, |m| m.number(1, REMEMBERED_MAX));
        out.bytes(11, &timeout_ms.to_be_bytes());
    }
}

fn new_elements(out: &mut Messages, table: &str, name: &str, set: &Set) {
    for some in encode::elements(set).chunks(ELEMENTS_AT_ONCE) {
        out.begin(NEW_ELEMENT, REQUEST | CREATE, IPV4, 0);
        out.text(1, table);
        out.text(2, name);
        out.nest(3, |m| {
            for (key, chain) in some {
                encode::element(m, key, *chain);
            }
        });
    }
}

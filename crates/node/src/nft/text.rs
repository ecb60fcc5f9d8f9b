//! Tables as text, in the words of the `nft` program where it has words for it.

use std::fmt::{Display, Formatter, Result};

use super::{Base, Hook, Interface, Kind, Set, Step, Table, Target};

impl Display for Table {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        writeln!(f, "table ip {} {{", self.name)?;
        for (name, set) in &self.sets {
            writeln!(f, "  {} {name} {{ {set} }}", set.word())?;
        }
        for (name, chain) in &self.chains {
            writeln!(f, "  chain {name} {{")?;
            if let Some(base) = &chain.base {
                writeln!(f, "    {base}")?;
            }
            for rule in &chain.rules {
                let steps: Vec<String> = rule.iter().map(ToString::to_string).collect();
                writeln!(f, "    {}", steps.join(" "))?;
            }
            writeln!(f, "  }}")?;
        }
        writeln!(f, "}}")
    }
}

impl Display for Base {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let kind = match self.kind {
            Kind::Filter => "filter",
            Kind::Nat => "nat",
        };
        let policy = if self.drops { "drop" } else { "accept" };
        write!(f, "type {kind} hook {} priority {}; policy {policy};", self.hook, self.priority)
    }
}

impl Display for Hook {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.write_str(match self {
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
        })
    }
}

impl Set {
    fn word(&self) -> &'static str {
        match self {
            Self::Targets(_) | Self::Ports(_) => "map",
            _ => "set",
        }
    }
}

impl Display for Set {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let items: Vec<String> = match self {
            Self::Targets(map) => map.iter().map(|(target, chain)| format!("{target} : goto {chain}")).collect(),
            Self::Ports(map) => {
                map.iter().map(|((protocol, port), chain)| format!("{protocol} . {port} : goto {chain}")).collect()
            }
            Self::TargetSet(set) => set.iter().map(ToString::to_string).collect(),
            Self::Addresses(set) => set.iter().map(ToString::to_string).collect(),
            Self::Selves(set) => set.iter().map(|address| format!("{address} . {address}")).collect(),
            Self::Remembered { seconds } => return write!(f, "flags dynamic,timeout; timeout {seconds}s;"),
        };
        f.write_str(&items.join(", "))
    }
}

impl Display for Target {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "{} . {} . {}", self.address, self.protocol, self.port)
    }
}

impl Display for Interface {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::Is(name) => write!(f, "\"{name}\""),
            Self::Begins(begin) => write!(f, "\"{begin}*\""),
        }
    }
}

impl Display for Step {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::In(interface) => write!(f, "iifname {interface}"),
            Self::NotIn(interface) => write!(f, "iifname != {interface}"),
            Self::Out(interface) => write!(f, "oifname {interface}"),
            Self::NotOut(interface) => write!(f, "oifname != {interface}"),
            Self::From(range) => write!(f, "ip saddr {range}"),
            Self::To(range) => write!(f, "ip daddr {range}"),
            Self::ToMachine => f.write_str("fib daddr type local"),
            Self::FromMachine => f.write_str("fib saddr type local"),
            Self::Is(protocol) => write!(f, "meta l4proto {protocol}"),
            Self::New => f.write_str("ct state new"),
            Self::Translated => f.write_str("ct status dnat"),
            Self::NotTranslated => f.write_str("ct status ! dnat"),
            Self::FromOneOf(set) => write!(f, "ip saddr @{set}"),
            Self::ToOneOf(set) => write!(f, "ip daddr @{set}"),
            Self::TargetIn(set) => write!(f, "ip daddr . meta l4proto . th dport @{set}"),
            Self::ToItself(set) => write!(f, "ip saddr . ip daddr @{set}"),
            Self::OneIn(count) => write!(f, "numgen random mod {count} 0"),
            Self::Remember(set) => write!(f, "update @{set} {{ ip saddr }}"),
            Self::ByTarget(map) => write!(f, "ip daddr . meta l4proto . th dport vmap @{map}"),
            Self::ByPort(map) => write!(f, "meta l4proto . th dport vmap @{map}"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Return => f.write_str("return"),
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Reject => f.write_str("reject"),
            Self::Reset => f.write_str("reject with tcp reset"),
            Self::Dnat(to) => write!(f, "dnat to {to}"),
            Self::Masquerade => f.write_str("masquerade"),
        }
    }
}

//! Ranges of addresses and ports, as flags give them.

use std::fmt;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// The shortest prefix of a service range: upstream keeps 20 bits at most.
const PREFIX_LEAST: u8 = 12;
/// The longest: eight addresses.
const PREFIX_MOST: u8 = 29;

/// A network of IPv4 addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    /// Its first address.
    pub network: Ipv4Addr,
    /// How many bits of it are fixed.
    pub prefix: u8,
}

impl FromStr for Cidr {
    type Err = RangeError;

    /// `10.96.0.0/16`; of an address within the network the rest is dropped, as upstream does.
    fn from_str(text: &str) -> Result<Self, RangeError> {
        let (address, prefix) = text.split_once('/').ok_or_else(|| RangeError::Cidr(text.to_owned()))?;
        if address.contains(':') {
            return Err(RangeError::Version6(text.to_owned()));
        }
        let address: Ipv4Addr = address.parse().map_err(|_| RangeError::Cidr(text.to_owned()))?;
        let prefix: u8 = prefix.parse().ok().filter(|p| *p <= 32).ok_or_else(|| RangeError::Cidr(text.to_owned()))?;
        if prefix < PREFIX_LEAST {
            return Err(RangeError::TooLarge(text.to_owned()));
        }
        if prefix > PREFIX_MOST {
            return Err(RangeError::TooSmall(text.to_owned()));
        }
        let mask = u32::MAX << (32 - u32::from(prefix));
        Ok(Self { network: Ipv4Addr::from(u32::from(address) & mask), prefix })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

/// Some ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortRange(pub RangeInclusive<u16>);

impl FromStr for PortRange {
    type Err = RangeError;

    /// `30000-32767`, both inclusive; `30000+100`, that one and so many more; or one port.
    fn from_str(text: &str) -> Result<Self, RangeError> {
        let wrong = || RangeError::Ports(text.to_owned());
        let port = |digits: &str| digits.trim().parse::<u16>().map_err(|_| wrong());
        let range = if let Some((first, last)) = text.split_once('-') {
            port(first)?..=port(last)?
        } else if let Some((first, more)) = text.split_once('+') {
            let first = port(first)?;
            first..=first.checked_add(port(more)?).ok_or_else(wrong)?
        } else {
            let only = port(text)?;
            only..=only
        };
        if range.is_empty() || *range.start() == 0 {
            return Err(wrong());
        }
        Ok(Self(range))
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.0.start(), self.0.end())
    }
}

/// Why a range was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// Not the form of a network. Write it as the example.
    #[error("{0:?} is not a network; write it as 10.96.0.0/16")]
    Cidr(String),
    /// Services have addresses of version 4 here.
    #[error("{0:?} is a network of IPv6 addresses; services have IPv4 addresses here, such as 10.96.0.0/16")]
    Version6(String),
    /// More addresses than are kept account of.
    #[error("{0:?} is too large; for 32-bit addresses, the mask must be >= {PREFIX_LEAST}")]
    TooLarge(String),
    /// Too few to be of use.
    #[error(
        "{0:?} is too small; the service cluster IP range must be at least 8 IP addresses: the mask must be <= {PREFIX_MOST}"
    )]
    TooSmall(String),
    /// Not ports, or none.
    #[error("{0:?} is not a range of ports; write the first and the last within 1-65535, such as 30000-32767")]
    Ports(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_read_masked_and_bounded() {
        let shown = |text: &str| text.parse::<Cidr>().map(|cidr| cidr.to_string());
        assert_eq!(shown("10.43.0.0/16").as_deref(), Ok("10.43.0.0/16"));
        assert_eq!(shown("10.43.7.9/12").as_deref(), Ok("10.32.0.0/12"));
        assert_eq!(shown("10.43.7.9/29").as_deref(), Ok("10.43.7.8/29"));
        for wrong in ["10.0.0.0", "10.0.0.0/33", "10.0.0/16", "x/16", "10.0.0.0/", ""] {
            assert_eq!(shown(wrong), Err(RangeError::Cidr(wrong.to_owned())));
        }
        assert!(matches!(shown("10.0.0.0/8"), Err(RangeError::TooLarge(_))));
        assert!(matches!(shown("10.0.0.0/30"), Err(RangeError::TooSmall(_))));
        assert!(matches!(shown("fd00::/108"), Err(RangeError::Version6(_))));
    }

    #[test]
    fn port_ranges_are_read_as_upstream_reads_them() {
        let range = |text: &str| text.parse::<PortRange>().map(|range| range.0);
        assert_eq!(range("30000-32767"), Ok(30000..=32767));
        assert_eq!(range("30000+100"), Ok(30000..=30100));
        assert_eq!(range("30000"), Ok(30000..=30000));
        for wrong in ["", "-", "5-4", "0-10", "1-65536", "65000+1000", "a-b", "1-2-3"] {
            assert_eq!(range(wrong), Err(RangeError::Ports(wrong.to_owned())));
        }
    }
}

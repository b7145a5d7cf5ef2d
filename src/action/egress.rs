//! Which addresses a job may make Tenure call.
//!
//! Whoever may create a job chooses a URL, and Tenure's pod sends the request: without a guard that is a way to the pod's own
//! loopback, to the node, and to the cloud's metadata service with its credentials. [`Egress`] judges the very address that
//! is connected to, after resolution, so neither a notation of an IP literal nor a name that changes its address gets past.
//!
//! Private addresses (RFC 1918, unique local) are allowed: they are the cluster. Not covered: what a network policy says, and
//! what stands behind an allowed address.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The rule for addresses: the refused ranges below, less those that were allowed by name.
#[derive(Debug, Clone, Default)]
pub struct Egress {
    allow: Vec<Cidr>,
}

/// A range of addresses: `10.0.0.0/8`, `::1/128`, or a single address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr(IpNet);

/// An address that is not called.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{address} is {reason}, which is not called unless the replica is started with --egress-allow={}", Cidr::single(*.address))]
pub struct AddressRefused {
    /// The address.
    pub address: IpAddr,
    /// What it is.
    pub reason: &'static str,
}

/// A text is not a range of addresses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a range of addresses: write ADDRESS/PREFIX, for example 127.0.0.0/8 or ::1/128, or a single address"
)]
pub struct CidrError(String);

const METADATA: &str = "an address of a cloud's metadata service";
const LINK_LOCAL: &str = "a link-local address (among them the cloud's metadata service)";

const REFUSED_V4: [(Ipv4Net, &str); 8] = [
    (Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 8), "an unspecified address"),
    (Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8), "a loopback address"),
    (Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16), LINK_LOCAL),
    (Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4), "a multicast address"),
    (Ipv4Net::new_assert(Ipv4Addr::new(240, 0, 0, 0), 4), "a reserved or broadcast address"),
    // The metadata services outside of link-local: Alibaba, Oracle, Azure.
    (Ipv4Net::new_assert(Ipv4Addr::new(100, 100, 100, 200), 32), METADATA),
    (Ipv4Net::new_assert(Ipv4Addr::new(192, 0, 0, 192), 32), METADATA),
    (Ipv4Net::new_assert(Ipv4Addr::new(168, 63, 129, 16), 32), METADATA),
];

const REFUSED_V6: [(Ipv6Net, &str); 11] = [
    (Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128), "a loopback address"),
    (Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 128), "an unspecified address"),
    (Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 96), "an IPv4-compatible address"),
    (Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10), LINK_LOCAL),
    (Ipv6Net::new_assert(Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0), 10), "a site-local address"),
    (Ipv6Net::new_assert(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8), "a multicast address"),
    // Where the IPv4 address is inside of it depends on the network: it cannot be judged.
    (Ipv6Net::new_assert(Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, 0, 0), 48), "a local NAT64 address"),
    (Ipv6Net::new_assert(Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 32), "a Teredo address"),
    // The metadata services on unique local addresses: Amazon, Google, Scaleway.
    (Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), 128), METADATA),
    (Ipv6Net::new_assert(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254), 128), METADATA),
    (Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42), 128), METADATA),
];

/// The IPv6 ranges whose packets a translator sends on to an IPv4 address inside of them, and the octet it begins at.
const TRANSLATED: [(Ipv6Net, usize); 3] = [
    (Ipv6Net::new_assert(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96), 12),
    (Ipv6Net::new_assert(Ipv6Addr::new(0, 0, 0, 0, 0xffff, 0, 0, 0), 96), 12),
    (Ipv6Net::new_assert(Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16), 2),
];

impl Egress {
    /// The refused ranges, less those in `allow`.
    pub fn new(allow: Vec<Cidr>) -> Self {
        Self { allow }
    }

    /// Whether `address` may be called.
    ///
    /// # Errors
    /// [`AddressRefused`] if it is in a refused range that is not allowed.
    pub fn check(&self, address: IpAddr) -> Result<(), AddressRefused> {
        // The kernel connects a mapped address (::ffff:a.b.c.d) by IPv4: it is that IPv4 address.
        let called = address.to_canonical();
        let Some(reason) = refused(called) else { return Ok(()) };
        if self.allow.iter().any(|range| range.0.contains(&called) || range.0.contains(&address)) {
            return Ok(());
        }
        Err(AddressRefused { address: called, reason })
    }
}

fn refused(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(address) => refused_v4(address),
        IpAddr::V6(address) => {
            let direct = REFUSED_V6.iter().find(|(range, _)| range.contains(&address)).map(|(_, reason)| *reason);
            direct.or_else(|| translated(address).and_then(refused_v4))
        }
    }
}

fn refused_v4(address: Ipv4Addr) -> Option<&'static str> {
    REFUSED_V4.iter().find(|(range, _)| range.contains(&address)).map(|(_, reason)| *reason)
}

fn translated(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let (_, begin) = TRANSLATED.iter().find(|(range, _)| range.contains(&address))?;
    let octets: [u8; 4] = address.octets().get(*begin..begin + 4)?.try_into().ok()?;
    Some(octets.into())
}

impl Cidr {
    fn single(address: IpAddr) -> Self {
        Self(address.into())
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let single = || text.parse().map(Self::single).ok();
        text.parse().map(Self).ok().or_else(single).ok_or_else(|| CidrError(text.to_owned()))
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;
    use crate::dial::{Dial, TcpDial};

    fn egress(allow: &[&str]) -> Egress {
        Egress::new(allow.iter().map(|range| range.parse().expect("a range")).collect())
    }

    #[rstest]
    #[case("127.0.0.1", "loopback")]
    #[case("127.255.255.254", "loopback")]
    #[case("0.0.0.0", "unspecified")]
    #[case("169.254.169.254", "link-local")]
    #[case("224.0.0.1", "multicast")]
    #[case("255.255.255.255", "broadcast")]
    #[case("100.100.100.200", "metadata")]
    #[case("168.63.129.16", "metadata")]
    #[case("::", "unspecified")]
    #[case("::1", "loopback")]
    #[case("::7f00:1", "IPv4-compatible")]
    #[case("::ffff:127.0.0.1", "loopback")]
    #[case("::ffff:169.254.169.254", "link-local")]
    #[case("::ffff:0:169.254.169.254", "link-local")]
    #[case("64:ff9b::a9fe:a9fe", "link-local")]
    #[case("64:ff9b:1::a9fe:a9fe", "NAT64")]
    #[case("2002:a9fe:a9fe::1", "link-local")]
    #[case("fe80::1", "link-local")]
    #[case("fec0::1", "site-local")]
    #[case("ff02::1", "multicast")]
    #[case("fd00:ec2::254", "metadata")]
    fn an_address_that_leads_inwards_is_refused_and_named(#[case] address: &str, #[case] reason: &str) {
        let refused = egress(&[]).check(address.parse().expect("an address")).expect_err("it is refused");
        assert!(refused.to_string().contains(reason), "{refused}");
        assert!(refused.to_string().contains("--egress-allow="), "{refused}");
    }

    #[rstest]
    #[case("10.0.0.1")]
    #[case("172.16.5.4")]
    #[case("192.168.1.1")]
    #[case("100.64.0.1")]
    #[case("93.184.215.14")]
    #[case("fd12:3456::1")]
    #[case("2606:2800:21f:cb07:6820:80da:af6b:8b2c")]
    #[case("64:ff9b::5db8:d70e")]
    fn the_cluster_and_the_world_may_be_called(#[case] address: &str) {
        assert_eq!(egress(&[]).check(address.parse().expect("an address")), Ok(()));
    }

    #[test]
    fn an_allowed_range_opens_itself_and_nothing_else() {
        let egress = egress(&["127.0.0.0/8", "::1"]);
        for allowed in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(egress.check(allowed.parse().expect("an address")), Ok(()), "{allowed}");
        }
        for refused in ["169.254.169.254", "fe80::1", "64:ff9b::7f00:1", "::7f00:1"] {
            assert!(egress.check(refused.parse().expect("an address")).is_err(), "{refused}");
        }
    }

    proptest! {
        #[test]
        fn an_ipv4_address_is_judged_alike_in_whatever_ipv6_address_it_hides(bits: u32) {
            let address = Ipv4Addr::from_bits(bits);
            let [a, b, c, d] = address.octets().map(u16::from);
            let (high, low) = (a << 8 | b, c << 8 | d);
            let hidden = [
                address.to_ipv6_mapped(),
                Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
                Ipv6Addr::new(0, 0, 0, 0, 0xffff, 0, high, low),
                Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1),
            ];
            for hidden in hidden {
                prop_assert_eq!(
                    egress(&[]).check(hidden.into()).is_ok(),
                    egress(&[]).check(address.into()).is_ok(),
                    "{} is {}", hidden, address
                );
            }
        }
    }

    #[tokio::test]
    #[allow(clippy::disallowed_methods, reason = "the resolver reads literals without asking the network")]
    async fn every_notation_that_the_resolver_reads_is_judged_by_its_address() {
        for literal in ["169.254.169.254", "2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "::ffff:169.254.169.254"]
        {
            let addresses = TcpDial.resolve(literal.to_owned(), 80).await.expect("a literal is always resolved");
            assert!(!addresses.is_empty(), "{literal}");
            for address in addresses {
                assert!(egress(&[]).check(address.ip()).is_err(), "{literal} is {address}");
            }
        }
    }

    #[test]
    fn a_range_that_cannot_be_read_is_refused_with_an_example() {
        assert_eq!("10.0.0.0/8".parse::<Cidr>().expect("a range").to_string(), "10.0.0.0/8");
        assert_eq!("10.0.0.1".parse::<Cidr>().expect("a range").to_string(), "10.0.0.1/32");
        for wrong in ["", "10.0.0.0/33", "localhost", "10.0.0/8"] {
            let error = wrong.parse::<Cidr>().expect_err("it is not a range").to_string();
            assert!(error.contains("127.0.0.0/8"), "{error}");
        }
    }
}

//! Addresses given by hand for some host names, as curl's `--resolve` does.
//!
//! For tests and for names that no resolver knows. It changes which address a name has, not whether it may be called: the
//! egress guard judges the address all the same.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use futures::{FutureExt, future::BoxFuture};

use crate::dial::{Dial, SharedDial, Stream};

/// A dialler that knows the addresses of some names, and asks another one for the rest.
#[derive(Debug, Clone)]
pub struct ResolveOverride {
    addresses: BTreeMap<String, Vec<IpAddr>>,
    inner: SharedDial,
}

/// A host name and its address, written `HOST=ADDRESS`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostAddress {
    /// The name, in lower case.
    pub host: String,
    /// The address.
    pub address: IpAddr,
}

/// A text is not a host name with an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not HOST=ADDRESS, for example ledger.test=127.0.0.2")]
pub struct HostAddressError(String);

impl ResolveOverride {
    /// A dialler that gives `known` names their addresses. A name that is given several times has several.
    pub fn new(known: impl IntoIterator<Item = HostAddress>, inner: SharedDial) -> Self {
        let mut addresses = BTreeMap::<_, Vec<_>>::new();
        for HostAddress { host, address } in known {
            addresses.entry(host).or_default().push(address);
        }
        Self { addresses, inner }
    }
}

impl Dial for ResolveOverride {
    fn resolve(&self, host: String, port: u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
        match self.addresses.get(&host.to_ascii_lowercase()) {
            Some(known) => {
                let addresses = known.iter().map(|address| SocketAddr::new(*address, port)).collect();
                std::future::ready(Ok(addresses)).boxed()
            }
            None => self.inner.resolve(host, port),
        }
    }

    fn connect(&self, address: SocketAddr) -> BoxFuture<'static, io::Result<Box<dyn Stream>>> {
        self.inner.connect(address)
    }
}

impl FromStr for HostAddress {
    type Err = HostAddressError;

    fn from_str(text: &str) -> Result<Self, HostAddressError> {
        let wrong = || HostAddressError(text.to_owned());
        let (host, address) = text.split_once('=').ok_or_else(wrong)?;
        let address = address.parse().map_err(|_| wrong())?;
        if host.is_empty() || host.contains(|letter: char| letter.is_whitespace() || letter == ':' || letter == '/') {
            return Err(wrong());
        }
        Ok(Self { host: host.to_ascii_lowercase(), address })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::dial::TcpDial;

    #[tokio::test]
    async fn a_given_name_has_the_given_addresses_and_another_is_looked_up() {
        let known = ["Ledger.test=127.0.0.2", "ledger.test=::1"].map(|text| text.parse().expect("a host address"));
        let dial = ResolveOverride::new(known, Arc::new(TcpDial));
        let given = dial.resolve("LEDGER.test".into(), 80).await.expect("it is known");
        assert_eq!(given, ["127.0.0.2:80".parse().expect("an address"), "[::1]:80".parse().expect("an address")]);
        let other = dial.resolve("10.1.2.3".into(), 80).await.expect("a literal is always resolved");
        assert_eq!(other, ["10.1.2.3:80".parse().expect("an address")]);
    }

    #[test]
    fn what_is_not_a_host_and_an_address_is_refused_with_an_example() {
        for wrong in ["", "host", "host=", "=127.0.0.1", "host=name", "host:80=127.0.0.1"] {
            let error = wrong.parse::<HostAddress>().expect_err("it is wrong").to_string();
            assert!(error.contains("ledger.test=127.0.0.2"), "{error}");
        }
    }
}

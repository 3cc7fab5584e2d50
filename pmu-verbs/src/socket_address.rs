//! Socket addresses in the C library's terms.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// A `sockaddr` of either family.
#[derive(Clone, Copy)]
pub(crate) union RawAddress {
    pub(crate) any: libc::sockaddr,
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

pub(crate) fn to_raw(address: SocketAddr) -> RawAddress {
    match address {
        SocketAddr::V4(address) => RawAddress {
            v4: libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: address.port().to_be(),
                sin_addr: libc::in_addr {
                    s_addr: u32::from_ne_bytes(address.ip().octets()),
                },
                sin_zero: [0; 8],
            },
        },
        SocketAddr::V6(address) => RawAddress {
            v6: libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: address.port().to_be(),
                sin6_flowinfo: address.flowinfo(),
                sin6_addr: libc::in6_addr {
                    s6_addr: address.ip().octets(),
                },
                sin6_scope_id: address.scope_id(),
            },
        },
    }
}

/// # Safety
/// `raw` points to as many readable bytes as its family's structure has, aligned for it.
pub(crate) unsafe fn from_raw(raw: *const libc::sockaddr) -> Option<SocketAddr> {
    // SAFETY: every family's structure starts with the family.
    match i32::from(unsafe { (*raw).sa_family }) {
        libc::AF_INET => {
            // SAFETY: the family says that this is a sockaddr_in.
            let raw = unsafe { *raw.cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(raw.sin_addr.s_addr.to_ne_bytes());
            Some(SocketAddrV4::new(ip, u16::from_be(raw.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: the family says that this is a sockaddr_in6.
            let raw = unsafe { *raw.cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(raw.sin6_addr.s6_addr);
            let port = u16::from_be(raw.sin6_port);
            Some(SocketAddrV6::new(ip, port, raw.sin6_flowinfo, raw.sin6_scope_id).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_way_to_c_and_back() {
        for text in [
            "10.77.0.1:7471",
            "[::1]:1",
            "[fe80::1%3]:65535",
            "0.0.0.0:0",
        ] {
            let address: SocketAddr = text.parse().unwrap();
            let raw = to_raw(address);
            // SAFETY: the union is as large and as aligned as each family's structure.
            assert_eq!(unsafe { from_raw(&raw const raw.any) }, Some(address));
        }
    }
}

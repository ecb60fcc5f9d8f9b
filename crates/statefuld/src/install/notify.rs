//! Telling systemd how far the service is: sd_notify(3), a datagram to the socket that the environment names.

use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Says that the API serves. Does nothing where nobody asked to be told.
pub fn ready(url: &str) {
    tell(&format!("READY=1\nSTATUS=API ready at {url}\n"));
}

/// Says that the service is on its way out.
pub fn stopping() {
    tell("STOPPING=1\n");
}

fn tell(text: &str) {
    let Some(address) = std::env::var("NOTIFY_SOCKET").ok().filter(|name| !name.is_empty()) else { return };
    if let Err(error) = send(&address, text) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}

/// A name that begins with @ is of the abstract kind.
fn send(address: &str, text: &str) -> std::io::Result<()> {
    use std::os::linux::net::SocketAddrExt as _;
    let to = match address.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(address)?,
    };
    UnixDatagram::unbound()?.send_to_addr(text.as_bytes(), &to).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_and_an_abstract_name_are_told() {
        use std::os::linux::net::SocketAddrExt as _;
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("notify");
        let name = format!("statefuld-test-{}", std::process::id());
        let abstract_address = SocketAddr::from_abstract_name(&name).expect("an address");
        let sockets = [
            (path.display().to_string(), UnixDatagram::bind(&path).expect("a socket")),
            (format!("@{name}"), UnixDatagram::bind_addr(&abstract_address).expect("a socket")),
        ];
        for (address, socket) in sockets {
            send(&address, "READY=1\n").expect("sent");
            let mut buffer = [0; 64];
            let length = socket.recv(&mut buffer).expect("received");
            assert_eq!(&buffer[..length], b"READY=1\n", "{address}");
        }
    }
}

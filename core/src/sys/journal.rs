//! Messages with fields for the journal, by its own protocol (systemd's documentation, "Native Journal Protocol").

use std::os::unix::net::UnixDatagram;
use std::path::Path;

use crate::error::{Error, Result};

/// Where the journal listens.
pub const SOCKET: &str = "/run/systemd/journal/socket";

/// Sends one message. Names of fields are upper-case letters, digits and `_`. Never waits: where the journal cannot
/// take it now, it is lost.
///
/// # Errors
/// What the system says, such as that nobody listens.
pub fn send(socket: &Path, fields: &[(&str, &str)]) -> Result<()> {
    let fail = |e| Error::io("write to", socket, e);
    let datagram = UnixDatagram::unbound().map_err(fail)?;
    datagram.set_nonblocking(true).map_err(fail)?;
    datagram.send_to(&message(fields), socket).map_err(fail)?;
    Ok(())
}

/// A line for each field; a value of several lines has its length before it.
fn message(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut message = Vec::new();
    for (name, value) in fields {
        message.extend_from_slice(name.as_bytes());
        if value.contains('\n') {
            message.push(b'\n');
            message.extend_from_slice(&(value.len() as u64).to_le_bytes());
        } else {
            message.push(b'=');
        }
        message.extend_from_slice(value.as_bytes());
        message.push(b'\n');
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_arrives_with_its_fields_also_of_several_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let journal = UnixDatagram::bind(&path).unwrap();
        send(&path, &[("MESSAGE", "a=b"), ("WHY", "x\ny")]).unwrap();
        let mut seen = [0; 100];
        let length = journal.recv(&mut seen).unwrap();
        assert_eq!(&seen[..length], b"MESSAGE=a=b\nWHY\n\x03\0\0\0\0\0\0\0x\ny\n");
        drop(journal);
        assert!(send(&path, &[("MESSAGE", "nobody listens")]).is_err());
    }
}

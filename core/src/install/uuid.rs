//! What partitions and file systems are told apart by.

use std::fmt;

use crate::error::{Error, Result};

/// A random UUID (version 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uuid([u8; 16]);

impl Uuid {
    /// A new one.
    pub fn random() -> Result<Self> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).map_err(|e| Error::io("read", "/dev/urandom", std::io::Error::other(e)))?;
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Ok(Self(bytes))
    }

    /// The serial number of a FAT file system, as `mkfs.vfat -i` takes it.
    pub fn fat_serial(&self) -> String {
        hex::encode_upper(&self.0[..4])
    }

    /// That serial number as udev and `root=UUID=` write it.
    pub fn fat_uuid(&self) -> String {
        let serial = self.fat_serial();
        format!("{}-{}", &serial[..4], &serial[4..])
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = hex::encode(self.0);
        let parts = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
        f.write_str(&parts.join("-"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_version_4_and_differ() {
        let (a, b) = (Uuid::random().unwrap(), Uuid::random().unwrap());
        assert_ne!(a, b);
        let text = a.to_string();
        assert_eq!((text.len(), text.as_bytes()[14]), (36, b'4'));
        assert!(matches!(text.as_bytes()[19], b'8' | b'9' | b'a' | b'b'));
        assert_eq!(a.fat_uuid().replace('-', ""), a.fat_serial());
        assert_eq!(a.fat_uuid().len(), 9);
    }
}

//! A reader that knows what its bytes have to be.
//!
//! Invariant: the end is only ever reached by bytes that have the digest; others give an error in its place, so whoever
//! copies to the end has copied what the name says, or knows that he has not. Where the file system has fs-verity the
//! kernel says so as well.

use std::io::{self, Read};

use crate::ids::ObjectId;
use crate::sys::verity::Hasher;

/// Fails at the end where the bytes are not those of the digest.
pub struct Checked<R> {
    inner: R,
    hasher: Option<Hasher>,
    id: ObjectId,
}

impl<R: Read> Checked<R> {
    /// From the first byte of what should be this object.
    pub fn new(inner: R, id: ObjectId) -> Self {
        Self {
            inner,
            hasher: Some(Hasher::new(id.algorithm())),
            id,
        }
    }
}

impl<R: Read> Read for Checked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let length = self.inner.read(buffer)?;
        match &mut self.hasher {
            Some(hasher) if length > 0 => hasher.update(&buffer[..length]),
            Some(hasher) => {
                let found = hasher.finish();
                self.hasher = None;
                if found != self.id {
                    let why = format!(
                        "object {} is damaged: its bytes have the digest {found}; `cfs-update fsck --repair` fetches it again",
                        self.id
                    );
                    return Err(io::Error::new(io::ErrorKind::InvalidData, why));
                }
            }
            None => {}
        }
        Ok(length)
    }
}

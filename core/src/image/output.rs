//! Where an image's bytes go.

use crate::error::Result;

/// Takes an image's bytes in order.
pub trait Output {
    /// Whether the bytes are of interest, or only how many they are.
    const WRITES: bool;
    fn put(&mut self, bytes: &[u8]);
    fn position(&self) -> u64;
    /// Zeros up to a position that is not before this one.
    fn zeros_to(&mut self, position: u64);
}

/// Counts only.
pub struct Counter(pub u64);

impl Output for Counter {
    const WRITES: bool = false;

    fn put(&mut self, bytes: &[u8]) {
        self.0 += bytes.len() as u64;
    }

    fn position(&self) -> u64 {
        self.0
    }

    fn zeros_to(&mut self, position: u64) {
        self.0 = position;
    }
}

impl Output for Vec<u8> {
    const WRITES: bool = true;

    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }

    fn position(&self) -> u64 {
        self.len() as u64
    }

    #[allow(clippy::cast_possible_truncation)] // `build` has reserved as many bytes.
    fn zeros_to(&mut self, position: u64) {
        self.resize(position as usize, 0);
    }
}

/// Gives bytes on in pieces; after the first failure there is nothing more to give.
pub struct Pieces<'s> {
    buffer: Vec<u8>,
    /// Bytes that were given on.
    given: u64,
    sink: &'s mut dyn FnMut(&[u8]) -> Result<()>,
    result: Result<()>,
}

impl<'s> Pieces<'s> {
    const SIZE: usize = 1 << 20;

    pub fn new(sink: &'s mut dyn FnMut(&[u8]) -> Result<()>) -> Self {
        Self {
            buffer: Vec::with_capacity(Self::SIZE),
            given: 0,
            sink,
            result: Ok(()),
        }
    }

    /// Gives on what is left.
    pub fn finish(mut self) -> Result<()> {
        self.flush();
        self.result
    }

    fn flush(&mut self) {
        if self.result.is_ok() && !self.buffer.is_empty() {
            self.result = (self.sink)(&self.buffer);
        }
        self.given += self.buffer.len() as u64;
        self.buffer.clear();
    }
}

impl Output for Pieces<'_> {
    const WRITES: bool = true;

    fn put(&mut self, mut bytes: &[u8]) {
        while bytes.len() > Self::SIZE - self.buffer.len() {
            let (now, rest) = bytes.split_at(Self::SIZE - self.buffer.len());
            self.buffer.extend_from_slice(now);
            self.flush();
            bytes = rest;
        }
        self.buffer.extend_from_slice(bytes);
    }

    fn position(&self) -> u64 {
        self.given + self.buffer.len() as u64
    }

    fn zeros_to(&mut self, position: u64) {
        while self.position() < position {
            let room = (Self::SIZE - self.buffer.len()) as u64;
            let count = room.min(position - self.position());
            self.buffer
                .resize(self.buffer.len() + usize::try_from(count).unwrap_or(0), 0);
            if self.buffer.len() == Self::SIZE {
                self.flush();
            }
        }
    }
}

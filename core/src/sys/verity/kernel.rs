//! What the kernel does of fs-verity: sealing a file, and saying what is sealed.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::ioctl;

use crate::error::{Error, Result};
use crate::ids::{Algorithm, ObjectId};
use crate::sys::fs;

/// `struct fsverity_enable_arg` (linux/fsverity.h).
#[derive(Clone, Copy)]
#[repr(C)]
struct EnableArg {
    version: u32,
    hash_algorithm: u32,
    block_size: u32,
    salt_size: u32,
    salt_ptr: u64,
    sig_size: u32,
    reserved1: u32,
    sig_ptr: u64,
    reserved2: [u64; 11],
}

/// `struct fsverity_digest` with room for the longest digest.
#[repr(C)]
struct DigestArg {
    algorithm: u16,
    size: u16,
    digest: [u8; 64],
}

/// The size in the ioctl's number is that of the header alone.
#[repr(C)]
struct DigestHeader {
    algorithm: u16,
    size: u16,
}

/// Seals a file for ever: its content can no longer change and is checked by the kernel at each read.
///
/// The file must be open for reading only, and nobody may have it open for writing. `false` where the file system or
/// kernel has no fs-verity; a file that has it already is success.
///
/// # Errors
/// The system's answer, other than "not supported".
pub fn enable(file: &File, algorithm: Algorithm) -> Result<bool> {
    let arg = EnableArg {
        version: 1,
        hash_algorithm: u32::from(algorithm.number()),
        block_size: 4096,
        salt_size: 0,
        salt_ptr: 0,
        sig_size: 0,
        reserved1: 0,
        sig_ptr: 0,
        reserved2: [0; 11],
    };
    for attempt in 0..8_u32 {
        match enable_once(file, arg) {
            Ok(()) | Err(Errno::EXIST) => return Ok(true),
            Err(Errno::NOTTY | Errno::OPNOTSUPP | Errno::NOPKG) => return Ok(false),
            // A child of another thread's fork holds our writable descriptor until it calls exec.
            Err(Errno::TXTBSY) if attempt < 7 => std::thread::sleep(Duration::from_millis(1 << attempt)),
            Err(e) => return Err(Error::io("enable fs-verity on", "an object", e)),
        }
    }
    unreachable!("the last attempt returns")
}

#[allow(unsafe_code, reason = "FS_IOC_ENABLE_VERITY reads 128 bytes, which EnableArg has")]
fn enable_once(file: &File, arg: EnableArg) -> Result<(), Errno> {
    const OPCODE: ioctl::Opcode = ioctl::opcode::write::<EnableArg>(b'f', 133);
    // SAFETY: the opcode's argument is `struct fsverity_enable_arg`; salt and signature are absent, so that the kernel
    // follows no pointer in it.
    unsafe { ioctl::ioctl(file.as_fd(), ioctl::Setter::<OPCODE, EnableArg>::new(arg)) }
}

#[allow(
    unsafe_code,
    reason = "FS_IOC_MEASURE_VERITY writes at most `size` bytes behind its header"
)]
fn measure_once(file: &File, arg: &mut DigestArg) -> Result<(), Errno> {
    const OPCODE: ioctl::Opcode = ioctl::opcode::read_write::<DigestHeader>(b'f', 134);
    // SAFETY: the kernel writes the header and at most `arg.size` = 64 bytes of digest, which `DigestArg` has room for.
    unsafe { ioctl::ioctl(file.as_fd(), ioctl::Updater::<OPCODE, DigestArg>::new(arg)) }
}

/// The digest that the kernel has for a file; `None` where the file has none, or the file system cannot have any.
///
/// # Errors
/// The system's answer, other than "not supported"; a digest of an algorithm that we do not know.
pub fn measure(file: &File) -> Result<Option<ObjectId>> {
    let mut arg = DigestArg {
        algorithm: 0,
        size: 64,
        digest: [0; 64],
    };
    match measure_once(file, &mut arg) {
        Ok(()) => {}
        Err(Errno::NODATA | Errno::NOTTY | Errno::OPNOTSUPP) => return Ok(None),
        Err(e) => return Err(Error::io("measure fs-verity of", "a file", e)),
    }
    let algorithm = match arg.algorithm {
        1 => Algorithm::Sha256,
        2 => Algorithm::Sha512,
        other => {
            let unknown = io::Error::other(format!("unknown hash algorithm {other}"));
            return Err(Error::io("measure fs-verity of", "a file", unknown));
        }
    };
    Ok(ObjectId::from_bytes(
        algorithm,
        &arg.digest[..usize::from(arg.size).min(64)],
    ))
}

/// Why [`measure`] gives `None`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmeasured {
    /// The file could have fs-verity and has none.
    NotEnabled,
    /// Its file system cannot have any.
    FileSystem,
    /// No file can have any.
    Kernel,
}

impl fmt::Display for Unmeasured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotEnabled => "it was never enabled for this file",
            Self::FileSystem => "its file system has no fs-verity",
            Self::Kernel => "this kernel has no fs-verity (CONFIG_FS_VERITY)",
        })
    }
}

/// Where [`measure`] gives `None`: what is missing.
pub fn why_unmeasured(file: &File) -> Unmeasured {
    let mut arg = DigestArg {
        algorithm: 0,
        size: 64,
        digest: [0; 64],
    };
    // What a kernel with fs-verity shows of it, by file system.
    let signs = [
        "/sys/fs/ext4/features/verity",
        "/sys/fs/btrfs/features/verity",
        "/sys/fs/f2fs/features/verity",
        "/proc/sys/fs/verity",
    ];
    match measure_once(file, &mut arg) {
        Err(Errno::NODATA) => Unmeasured::NotEnabled,
        _ if !signs.iter().any(|sign| fs::exists(sign.as_ref())) => Unmeasured::Kernel,
        _ => Unmeasured::FileSystem,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_verity_measures_as_none() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(measure(&file).unwrap(), None);
    }
}

//! Loop devices: over an image, for kernels that cannot mount EROFS from a file itself (before 6.12), and over a part
//! of a disk image, whose partitions then need neither device nodes of their own nor a scan by the kernel.
//!
//! Invariant: the device goes away by itself with its last user, so that nothing is left behind by a killed run; over
//! an image it is read-only.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;

use linux_raw_sys::loop_device::{_bindgen_ty_1 as Flags, LOOP_CONFIGURE, LOOP_CTL_GET_FREE, loop_config, loop_info64};
use rustix::io::Errno;
use rustix::ioctl::{self, Ioctl, IoctlOutput, Opcode};

use crate::error::{Error, Result};

const CONTROL: &str = "/dev/loop-control";
/// Somebody else may take the free device before we do.
const ATTEMPTS: usize = 16;

/// An attached loop device; keep it until it is mounted.
#[derive(Debug)]
pub struct LoopDevice {
    _device: File,
    path: PathBuf,
}

impl LoopDevice {
    /// Attaches `file`, read-only, in blocks of 4096 bytes, bypassing the page cache where the file system can.
    pub fn attach(file: &File) -> Result<Self> {
        Self::attach_as(
            file,
            &Part {
                writable: false,
                block: 4096,
                offset: 0,
                size: 0,
            },
        )
    }

    /// Attaches a part of `file`, for reading and writing, in blocks of `block` bytes.
    pub fn attach_part(file: &File, offset: u64, size: u64, block: u32) -> Result<Self> {
        Self::attach_as(
            file,
            &Part {
                writable: true,
                block,
                offset,
                size,
            },
        )
    }

    fn attach_as(file: &File, part: &Part) -> Result<Self> {
        let control = File::options()
            .read(true)
            .write(true)
            .open(CONTROL)
            .map_err(|e| Error::io("open", CONTROL, e))?;
        let mut refusal = Errno::BUSY;
        for _ in 0..ATTEMPTS {
            let number = free_number(&control).map_err(|e| Error::io("find a free loop device with", CONTROL, e))?;
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let device = File::options()
                .read(true)
                .write(part.writable)
                .open(&path)
                .map_err(|e| Error::io("open", &path, e))?;
            match configure(&device, file, part, true).or_else(|_| configure(&device, file, part, false)) {
                Ok(()) => return Ok(Self { _device: device, path }),
                Err(e @ (Errno::BUSY | Errno::AGAIN)) => refusal = e,
                Err(e) => return Err(Error::io("attach an image to", path, e)),
            }
        }
        Err(Error::io("attach an image to a device of", CONTROL, refusal))
    }

    /// `/dev/loopN`.
    pub fn path(&self) -> &std::path::Path {
        &self.path
    }
}

/// Which bytes of a file, and how; size 0 = to its end.
struct Part {
    writable: bool,
    block: u32,
    offset: u64,
    size: u64,
}

struct GetFree;

#[allow(unsafe_code, reason = "LOOP_CTL_GET_FREE takes no argument; its result is a number")]
// SAFETY: no memory is passed; `IS_MUTATING` is false and the pointer is null.
unsafe impl Ioctl for GetFree {
    type Output = u32;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        LOOP_CTL_GET_FREE as Opcode
    }

    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        std::ptr::null_mut()
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut std::ffi::c_void) -> rustix::io::Result<u32> {
        u32::try_from(out).map_err(|_| Errno::RANGE)
    }
}

#[allow(unsafe_code, reason = "an ioctl without argument")]
fn free_number(control: &File) -> Result<u32, Errno> {
    // SAFETY: see `GetFree`.
    unsafe { ioctl::ioctl(control, GetFree) }
}

#[allow(unsafe_code, reason = "LOOP_CONFIGURE reads one struct loop_config")]
fn configure(device: &File, file: &File, part: &Part, direct: bool) -> Result<(), Errno> {
    const OPCODE: Opcode = LOOP_CONFIGURE as Opcode;
    let read_only = if part.writable {
        0
    } else {
        Flags::LO_FLAGS_READ_ONLY as u32
    };
    let flags = read_only | Flags::LO_FLAGS_AUTOCLEAR as u32;
    let direct = if direct { Flags::LO_FLAGS_DIRECT_IO as u32 } else { 0 };
    // SAFETY: all fields are integers, for which zero is a value.
    let mut config: loop_config = unsafe { std::mem::zeroed() };
    // SAFETY: as above.
    let mut info: loop_info64 = unsafe { std::mem::zeroed() };
    info.lo_flags = flags | direct;
    info.lo_offset = part.offset;
    info.lo_sizelimit = part.size;
    config.fd = u32::try_from(file.as_raw_fd()).map_err(|_| Errno::BADF)?;
    config.block_size = part.block;
    config.info = info;
    // SAFETY: the opcode's argument is `struct loop_config`, which holds no pointers; the file stays open.
    unsafe { ioctl::ioctl(device.as_fd(), ioctl::Setter::<OPCODE, loop_config>::new(config)) }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn a_part_of_a_file_is_a_device_of_its_own_and_goes_when_it_is_dropped() {
        if !rustix::process::geteuid().is_root() {
            println!("not checked: loop devices need root");
            return;
        }
        let file = tempfile::tempfile().unwrap();
        file.set_len(3 << 20).unwrap();
        let part = LoopDevice::attach_part(&file, 1 << 20, 1 << 20, 512).unwrap();
        let path = part.path().to_path_buf();
        let mut device = File::options().read(true).write(true).open(&path).unwrap();
        device.write_all(&[7; 4096]).unwrap();
        device.sync_all().unwrap();
        let mut rest = Vec::new();
        device.read_to_end(&mut rest).unwrap();
        assert_eq!(rest.len(), (1 << 20) - 4096, "it ends where the part ends");
        drop(device);
        let backing = |path: &std::path::Path| {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            std::fs::read_to_string(format!("/sys/block/{name}/loop/backing_file")).ok()
        };
        let attached = backing(&path);
        drop(part);
        assert!(attached.is_some() && backing(&path) != attached, "nothing is left");
        let mut found = [0; 8192];
        file.read_exact_at(&mut found, (1 << 20) - 4096).unwrap();
        assert!(found[..4096].iter().all(|b| *b == 0) && found[4096..].iter().all(|b| *b == 7));
    }
}

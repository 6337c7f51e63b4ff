//! The one door to the kernel: nothing outside this folder uses `std::fs` for writing, `Command`, or `unsafe`.

#![allow(clippy::disallowed_methods, reason = "this is the door")]

pub mod checked;
pub mod dir;
mod fresh;
pub mod filesystem;
pub mod fs;
pub mod journal;
pub mod kernel_log;
pub mod lock;
pub mod loop_device;
pub mod memory;
pub mod mount;
pub mod mount_tree;
pub mod objects;
pub mod power;
pub mod process;
pub mod secret;
pub mod sha256;
pub mod space;
pub mod verity;

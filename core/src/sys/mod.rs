//! The one door to the kernel: nothing outside this folder uses `std::fs` for writing, `Command`, or `unsafe`.

pub mod fs;
pub mod lock;
pub mod mount;
pub mod process;
pub mod verity;

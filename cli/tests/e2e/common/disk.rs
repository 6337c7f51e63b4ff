//! Small file systems of their own.

use std::fs;
use std::path::{Path, PathBuf};

use super::tool;

/// One in memory, unmounted when dropped.
pub struct Tmpfs(PathBuf);

impl Tmpfs {
    pub fn mount(at: &Path, megabytes: u32) -> Self {
        fs::create_dir_all(at).unwrap();
        let options = format!("size={megabytes}m");
        tool("mount", ["-t", "tmpfs", "-o", &options, "tmpfs", at.to_str().unwrap()]);
        Self(at.to_path_buf())
    }

    pub fn resize(&self, megabytes: u32) {
        self.set(&format!("size={megabytes}m"));
    }

    fn set(&self, option: &str) {
        let options = format!("remount,{option}");
        tool("mount", ["-o", &options, self.0.to_str().unwrap()]);
    }

    pub fn free(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.0).unwrap();
        stat.f_bfree * stat.f_frsize
    }

    /// Makes it so large that so many bytes are free.
    pub fn leave(&self, bytes: u64) {
        let stat = rustix::fs::statvfs(&self.0).unwrap();
        let used = (stat.f_blocks - stat.f_bfree) * stat.f_frsize;
        self.set(&format!("size={}", used + bytes));
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(&self.0).status();
    }
}

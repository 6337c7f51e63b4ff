//! The built program, end to end: a real registry, a real Debian image, a sysroot on disk, root and not.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

#[allow(dead_code, reason = "more tests use more of it")]
mod common;
mod commands;
mod measure;

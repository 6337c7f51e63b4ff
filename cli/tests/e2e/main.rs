//! The built program, end to end: a real registry, a real Debian image, a sysroot on disk, root and not.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

mod archives;
mod boot;
mod bound;
mod chunked;
mod commands;
mod common;
mod damage;
mod etc;
mod export;
mod expose;
mod faults;
mod install;
mod keys;
mod lint;
mod measure;
mod mount;
mod network;
mod os_image;
mod podman;
mod podman_composefs;
mod policy;
mod preflight;
mod readme;
mod registry;

//! From an image reference to a signed composefs deployment.
//!
//! The modules are listed in the order in which the data flows, the forms that they have (layers, trees, images) before
//! all that reads them; none imports one that is listed below it (`tests/layering.rs` checks that). What lives where, and
//! which promise it keeps: `docs/architecture.md`.
//!
//! The feature `update` (default) is the whole way; without it there is what the initramfs program needs to mount the
//! end of it, and no dependency that talks to a network.

#![cfg_attr(
    test,
    allow(clippy::disallowed_methods, reason = "tests make and break files as they like")
)]

pub mod error;
pub mod ids;
pub mod monitor;
pub mod sys;
pub mod reference;
#[cfg(feature = "update")]
pub mod manifest;
#[cfg(feature = "update")]
pub mod policy;
#[cfg(feature = "update")]
pub mod layers;
#[cfg(feature = "update")]
pub mod tree;
#[cfg(feature = "update")]
pub mod image;
#[cfg(feature = "update")]
pub mod podman;
#[cfg(feature = "update")]
pub mod registry;
#[cfg(feature = "update")]
pub mod chunked;
#[cfg(feature = "update")]
pub mod splitstream;
#[cfg(feature = "update")]
pub mod store;
pub mod synced;
#[cfg(feature = "update")]
pub mod preflight;
#[cfg(feature = "update")]
pub mod pull;
#[cfg(feature = "update")]
pub mod forecast;
#[cfg(feature = "update")]
pub mod export;
#[cfg(feature = "update")]
pub mod expose;
pub mod signature;
pub mod deployment;
#[cfg(feature = "update")]
pub mod etc;
pub mod boot;
#[cfg(feature = "update")]
pub mod initrd;
#[cfg(feature = "update")]
pub mod bootable;
#[cfg(feature = "update")]
pub mod bound;
#[cfg(feature = "update")]
pub mod lint;
pub mod plan;
#[cfg(feature = "update")]
pub mod sysroot;
#[cfg(feature = "update")]
pub mod deploy;
#[cfg(feature = "update")]
pub mod finalize;
#[cfg(feature = "update")]
pub(crate) mod trial;
#[cfg(feature = "update")]
pub(crate) mod activate;
#[cfg(feature = "update")]
pub(crate) mod kernels;
#[cfg(feature = "update")]
pub mod health;
#[cfg(feature = "update")]
pub mod expected;
#[cfg(feature = "update")]
pub mod changes;
#[cfg(feature = "update")]
pub mod download;
#[cfg(feature = "update")]
pub mod update;
#[cfg(feature = "update")]
pub mod outlook;
#[cfg(feature = "update")]
pub mod install;
#[cfg(feature = "update")]
pub mod rollback;
#[cfg(feature = "update")]
pub mod arguments;
#[cfg(feature = "update")]
pub mod keys;
#[cfg(feature = "update")]
pub(crate) mod wanted;
#[cfg(feature = "update")]
pub mod upkeep;
#[cfg(feature = "update")]
pub mod repair;
pub mod testing;

pub use error::{Error, Kind, Result};

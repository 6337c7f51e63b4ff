//! From an image reference to a signed composefs deployment.
//!
//! The modules are listed in the order in which the data flows; none imports one that is listed below it
//! (`tests/layering.rs` checks that). What lives where, and which promise it keeps: `docs/architecture.md`.

#![cfg_attr(
    test,
    allow(clippy::disallowed_methods, reason = "tests make and break files as they like")
)]

pub mod error;
pub mod ids;
pub mod monitor;
pub mod sys;
pub mod reference;
pub mod manifest;
pub mod registry;
pub mod layers;
pub mod splitstream;
pub mod store;
pub mod tree;
pub mod image;
pub mod synced;
pub mod pull;
pub mod signature;
pub mod deployment;
pub mod etc;
pub mod boot;
pub mod bootable;
pub mod plan;
pub mod sysroot;
pub mod deploy;
pub mod update;
pub mod rollback;
pub mod upkeep;
pub mod testing;

pub use error::{Error, Kind, Result};

//! Records of deployments below `SYSROOT/state`: what is installed, where its /etc and /var are, who vouches for it.
//!
//! The `deploy` stage: a [`SignedImage`](crate::signature::SignedImage) goes in, a [`Deployment`] comes out.
//!
//! Invariants: a folder named by a digest under `state/deploy` is complete and durable (it is built as `.#<digest>`,
//! synced, then renamed); whatever starts with `.#` is a leftover and means nothing. One broken record never hides the
//! others ([`Deployments::list`]). No component of a path below SYSROOT that is written through is a symbolic link.
//!
//! Pure text: [`ini`], [`origin`], [`mod@select`]. The shared layout is that of bootc's composefs back end, so records
//! of either tool can be read by the other; what only this program knows is in the section `[cfs-update]` of the
//! origin.

mod create;
pub mod downloaded;
pub mod history;
pub mod ini;
mod layout;
mod list;
pub(crate) mod note;
pub mod origin;
pub mod select;
pub mod begun;
pub mod running;
pub mod staged;
pub mod trial;

pub use begun::Begun;
pub use create::{Draft, EtcDraft};
pub use downloaded::Downloaded;
pub use history::{Event, Failed, FailedDigests, History};
pub use layout::Layout;
pub use list::{Deployment, Deployments, Found, Record};
pub use origin::{BootType, KernelSizes, Origin};
pub use running::Running;
pub use select::{Choice, Roles, select};
pub use staged::Staged;
pub use trial::Trial;

#[cfg(test)]
mod tests;

//! A deployment's /etc: written from the image the first time, merged three ways at every update.
//!
//! What was in the old image, what the administrator made of it, and what is in the new image are three listings
//! ([`Listing`]); [`plan`](fn@plan) decides from them, without touching a file, where each path of the result comes
//! from; [`apply`](fn@apply) writes that result into a new folder. Nothing is ever changed in place, so a power cut
//! leaves the old /etc as it was, and the caller gives the new one its name when it is durable.
//!
//! What was changed after a merge, which a last one at shutdown brings over, is known by a note of it ([`Merged`]).
//!
//! Invariants: what the administrator changed or added is in the result, byte for byte; what he deleted is not; where
//! he did nothing, the result is the new image's. Where both changed a file differently his stays, and the image's is
//! kept beside it as `NAME.cfs-new`. No name of an image or of the old folder leads outside the new one.

mod apply;
mod listing;
mod merged;
mod plan;
mod source;

pub use apply::{Report, apply, write};
pub use listing::{Item, Listing, MAX_DEPTH, Node, Rules};
pub use merged::{Merged, lacking};
pub use plan::{Change, Conflict, Plan, SUFFIX, Side, Step, What, diff, is_kept_beside, plan};
pub use source::{FolderSource, Source, TreeSource};

#[cfg(test)]
mod tests;

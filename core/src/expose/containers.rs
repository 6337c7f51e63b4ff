//! What of podman's own stands on layers that it is shown.

use std::collections::BTreeSet;

use super::PATIENCE;
use crate::error::Result;
use crate::podman::{Place, Places, Storage};

/// podman's containers, of which none is made meanwhile.
pub(super) enum Containers {
    None,
    Of {
        /// What they stand on.
        layers: BTreeSet<String>,
        _storage: Box<Storage>,
    },
    /// Any layer may have one on it: why that is not known.
    Unknown(String),
}

impl Containers {
    /// What in podman's own storage may stand on a layer; podman changes nothing there as long as this is held.
    pub(super) fn of(podman: &Places) -> Result<Self> {
        let Some(place) = podman.place()? else {
            return Ok(Self::None);
        };
        // Not the additional stores, of which this is one.
        let additional = Vec::new();
        let opened = Storage::open(&Place { additional, ..place }, PATIENCE);
        Ok(match opened {
            Ok(None) => Self::None,
            Ok(Some(storage)) => Self::Of {
                layers: storage.needed().map(String::from).collect(),
                _storage: Box::new(storage),
            },
            Err(error) => Self::Unknown(error.to_string()),
        })
    }

    pub(super) fn may_use(&self, layer: &str) -> bool {
        match self {
            Self::None => false,
            Self::Of { layers, .. } => layers.contains(layer),
            Self::Unknown(_) => true,
        }
    }
}

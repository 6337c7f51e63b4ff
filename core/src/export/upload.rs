//! To a registry.

use super::{Content, Outgoing, Target};
use crate::error::Result;
use crate::ids::ManifestDigest;
use crate::manifest::Descriptor;
use crate::monitor::Monitor;
use crate::reference::Reference;
use crate::registry::Push;

#[derive(Debug)]
pub(super) struct Upload {
    push: Push,
    /// A repository of the same registry that has the blobs.
    sibling: Option<String>,
}

impl Upload {
    pub(super) fn new(push: Push, source: Option<&Reference>) -> Self {
        let sibling = match source {
            Some(Reference::Registry(name)) => push.sibling(name).map(String::from),
            _ => None,
        };
        Self { push, sibling }
    }
}

impl Target for Upload {
    fn is_there(&mut self, manifest: &ManifestDigest, monitor: &dyn Monitor) -> Result<bool> {
        Ok(self.push.current(monitor)? == Some(*manifest))
    }

    fn is_layout(&self) -> bool {
        false
    }

    fn has(&mut self, blob: &Descriptor, monitor: &dyn Monitor) -> Result<bool> {
        if self.push.has(blob, monitor)? {
            return Ok(true);
        }
        match &self.sibling {
            Some(from) => self.push.mount(&blob.digest, from, monitor),
            None => Ok(false),
        }
    }

    fn put(&mut self, blob: &Descriptor, content: Content<'_>, monitor: &dyn Monitor) -> Result<()> {
        self.push.put(blob, content, monitor)
    }

    fn finish(&mut self, manifest: &Outgoing<'_>, monitor: &dyn Monitor) -> Result<()> {
        self.push
            .put_manifest(manifest.bytes, manifest.media_type, manifest.digest, monitor)
    }
}

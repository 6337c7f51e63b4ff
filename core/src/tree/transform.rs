//! What an image of an OCI container differs in from its layers.
use super::Tree;
use crate::error::Result;
use crate::ids::ObjectId;

impl Tree {
    /// Makes a container's tree independent of how it was built.
    pub fn transform_for_oci(&mut self) -> Result<()> {
        todo!()
    }

    /// Makes it bootable. `read` gives the whole content of an object.
    pub fn transform_for_boot(&mut self, read: &dyn Fn(&ObjectId) -> Result<Vec<u8>>) -> Result<()> {
        let _ = read;
        todo!()
    }
}

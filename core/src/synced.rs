//! The permission to refer to something: it is durable.

/// Something that is durable, with all that it refers to. Only what was synced can be signed, only what was signed can
/// be deployed, only what is deployed gets a boot entry.
#[derive(Debug)]
pub struct Synced<T>(T);

impl<T> Synced<T> {
    /// For [`crate::pull`], when the store has published it, and for tests ([`crate::testing::synced`]).
    pub(crate) fn after_publish(value: T) -> Self {
        Self(value)
    }

    /// What is known of it: as durable as the thing itself.
    pub fn map<U>(&self, facts: impl FnOnce(&T) -> U) -> Synced<U> {
        Synced(facts(&self.0))
    }

    /// The thing itself, for whoever has used the permission.
    pub(crate) fn into_inner(self) -> T {
        self.0
    }
}

impl<T> std::ops::Deref for Synced<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

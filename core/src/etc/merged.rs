//! `etc-merged.json` beside a deployment's /etc: what that was merged from, and what the merge made of it.
//!
//! By it is known, and no clock is asked, what somebody changed since: in the /etc that it was merged from, which is
//! told where the last merge did not happen; or in its own, which means that it ran, so no merge may go over it.
//!
//! Invariant: what it says of the other /etc is true of the one that the merge read. One that is lost, or that an older
//! version did not write, means that every change against the image is taken for one that came since.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::listing::{Listing, Rules};
use super::plan::{Change, UPDATED};
use crate::deployment::Layout;
use crate::deployment::note::{self, Note};
use crate::error::Result;
use crate::ids::{Algorithm, DeploymentId, ObjectId};
use crate::sys::fs::Fs;
use crate::sys::verity;

const NOTE: Note = Note {
    file: "etc-merged.json",
    what: "note of a merge of /etc",
    limit: 256 << 20,
    remedy: "remove it",
};

/// A merge that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Merged {
    format_version: u32,
    /// The deployment whose /etc it was made from.
    pub from: DeploymentId,
    /// What it made: each is the digest of a whole /etc. Two while one takes the other's place.
    made: Vec<ObjectId>,
    /// What that other /etc was: a digest for each path.
    paths: BTreeMap<String, ObjectId>,
}

impl Merged {
    /// One that made `result` of what was `there`, in the /etc of `from`.
    pub fn new(from: DeploymentId, there: &Listing, result: &Listing) -> Self {
        Self {
            format_version: note::VERSION,
            from,
            made: vec![whole(result)],
            paths: digests(there),
        }
    }

    /// As it is while the result of `next` takes its place: either of the two is a merge's.
    pub fn or(mut self, next: &Self) -> Self {
        self.made.extend(&next.made);
        self
    }

    /// Whether this is what the merge made, to an administrator.
    pub fn made(&self, found: &Listing) -> bool {
        self.made.contains(&whole(found))
    }

    /// What was changed in the other /etc since.
    pub fn since(&self, now: &Listing) -> Vec<(PathBuf, Change)> {
        let now = digests(now);
        let changed = now.iter().filter_map(|(name, digest)| match self.paths.get(name) {
            None => Some((name, Change::Added)),
            Some(before) if before != digest => Some((name, Change::Changed)),
            Some(_) => None,
        });
        let gone = self.paths.keys().filter(|name| !now.contains_key(*name));
        let all = changed.chain(gone.map(|name| (name, Change::Removed)));
        let mut all: Vec<_> = all.filter_map(|(name, change)| Some((path(name)?, change))).collect();
        all.retain(|(path, _)| path != Path::new(UPDATED));
        all.sort();
        all
    }

    /// Of what somebody changed in the /etc that was made, what came with the merge; as it is in another one, where it
    /// may have been changed back or removed.
    pub fn undone(&self, own: Vec<(PathBuf, Change)>, there: &Listing) -> Vec<(PathBuf, Change)> {
        let own = own.into_iter().filter(|(path, _)| self.paths.contains_key(&name(path)));
        let seen = |(path, _): (PathBuf, _)| match there.get(&path) {
            Some(_) => (path, Change::Changed),
            None => (path, Change::Removed),
        };
        own.map(seen).collect()
    }

    /// Reads that of a deployment; `None` where there is none.
    ///
    /// # Errors
    /// [`Error::Settings`](crate::error::Error::Settings) for a file that cannot be understood. It may be removed.
    pub fn load(layout: &Layout, id: &DeploymentId) -> Result<Option<Self>> {
        NOTE.read_in(&layout.record(id))
    }

    /// Writes it into the folder of a record, durable when this returns.
    pub fn save(&self, fs: &dyn Fs, record: &Path) -> Result<()> {
        NOTE.write_in(fs, record, self)
    }

    /// Removes that of a deployment, durable when this returns; a missing one is success.
    pub fn clear(fs: &dyn Fs, layout: &Layout, id: &DeploymentId) -> Result<()> {
        NOTE.remove_in(fs, &layout.record(id))
    }
}

/// What `here` lacks of these changes, made `there`. A socket is nobody's, but of what made it.
pub fn lacking(
    changes: Vec<(PathBuf, Change)>,
    there: &Listing,
    here: &Listing,
    rules: Rules,
) -> Vec<(PathBuf, Change)> {
    let lacks = |path: &Path| match (there.get(path), here.get(path)) {
        (Some(there), _) if there.is_socket() => false,
        (Some(there), here) => !here.is_some_and(|here| rules.same(there, here)),
        (None, here) => here.is_some(),
    };
    changes.into_iter().filter(|(path, _)| lacks(path)).collect()
}

fn digests(listing: &Listing) -> BTreeMap<String, ObjectId> {
    let digest = |(path, node)| (name(path), Rules::STRICT.digest(node));
    listing.iter().map(digest).collect()
}

fn whole(listing: &Listing) -> ObjectId {
    let mut text = Vec::new();
    for (name, digest) in digests(listing) {
        text.extend(name.as_bytes());
        text.push(0);
        text.extend(digest.as_bytes());
    }
    verity::hash(Algorithm::Sha256, &text)
}

/// A path as text: a backslash, and what is no UTF-8, as a backslash and two hex digits.
fn name(path: &Path) -> String {
    let mut name = String::new();
    for chunk in path.as_os_str().as_bytes().utf8_chunks() {
        name += &chunk.valid().replace('\\', "\\5c");
        for byte in chunk.invalid() {
            name += &format!("\\{byte:02x}");
        }
    }
    name
}

/// The path of such a text; `None` for any other.
fn path(name: &str) -> Option<PathBuf> {
    let mut parts = name.split('\\');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        bytes.push(u8::from_str_radix(part.get(..2)?, 16).ok()?);
        bytes.extend(&part.as_bytes()[2..]);
    }
    Some(PathBuf::from(OsString::from_vec(bytes)))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use proptest::prelude::*;

    use super::*;
    use crate::sys::fs::RealFs;

    /// Frozen: what version 1 wrote is read, and written again byte for byte.
    #[test]
    fn the_note_of_state_format_1_is_read_and_written_as_ever() {
        let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/../testdata/state-v1/etc-merged.json");
        let sample = std::fs::read_to_string(sample).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path());
        let digest = |byte| ObjectId::from_bytes(Algorithm::Sha256, &[byte; 32]).unwrap();
        let (id, record) = (digest(5), layout.record(&digest(5)));
        assert_eq!(Merged::load(&layout, &id).unwrap(), None);
        std::fs::create_dir_all(&record).unwrap();
        std::fs::write(record.join("etc-merged.json"), &sample).unwrap();
        let merged = Merged::load(&layout, &id).unwrap().unwrap();
        assert_eq!((merged.from, &merged.made), (digest(0xab), &vec![digest(1)]));
        let paths: Vec<_> = merged.paths.keys().map(|name| path(name).unwrap()).collect();
        let odd = PathBuf::from(OsStr::from_bytes(b"odd\\xff".split_at(3).0));
        assert!(paths[0].as_os_str().is_empty() && paths[2] != odd);
        merged.save(&RealFs, &record).unwrap();
        let now = std::fs::read_to_string(record.join("etc-merged.json")).unwrap();
        assert_eq!(now, sample);
        std::fs::write(record.join("etc-merged.json"), "{}").unwrap();
        assert!(
            Merged::load(&layout, &id)
                .unwrap_err()
                .to_string()
                .contains("etc-merged.json")
        );
        Merged::clear(&RealFs, &layout, &id).unwrap();
        Merged::clear(&RealFs, &layout, &id).unwrap();
        assert_eq!(Merged::load(&layout, &id).unwrap(), None);
    }

    proptest! {
        #[test]
        fn every_path_has_a_text_and_the_text_is_of_that_path_alone(
            bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(b'\\'), Just(b'5')], 0..12),
        ) {
            let own = PathBuf::from(OsStr::from_bytes(&bytes));
            prop_assert_eq!(path(&name(&own)), Some(own));
        }
    }
}

//! EFI variables of the Boot Loader Interface, as text; and what is to be said of those that choose an entry, as far
//! as they keep another one from booting.
//!
//! The latter are the administrator's (`bootctl set-default`, `set-preferred`, `set-oneshot`), and are only read and
//! told of. One that names an entry goes before everything that its generation says.

use std::path::{Path, PathBuf};

use cfs_core::boot::Entries;
use cfs_core::sys::fs;

use crate::name::OwnName;
use crate::precedence::Place;

/// Where they are, below the root of the running system.
pub const FOLDER: &str = "sys/firmware/efi/efivars";

const STARTED: &str = "LoaderEntrySelected";
const VENDOR: &str = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";
/// No name of an entry is longer.
const LIMIT: u64 = 4096;

/// Where a variable of that interface is, below `folder` (`/sys/firmware/efi/efivars`): systemd's vendor id follows
/// its name.
pub fn path(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}-{VENDOR}"))
}

/// Its string; `None` where there is no such variable, or no string in it.
pub fn read(folder: &Path, name: &str) -> Option<String> {
    text(&fs::read(&path(folder, name), LIMIT).ok().flatten()?)
}

/// The generation of the entry that the boot loader started, as the variables in `folder` say; `None` where they do
/// not, or it is none of ours.
pub fn started(folder: &Path) -> Option<u64> {
    let id = read(folder, STARTED)?;
    // Its name without the counter; old ones leave `.conf` off.
    let name = OwnName::parse(&id).or_else(|| OwnName::parse(&format!("{id}.conf")))?;
    Some(name.generation())
}

/// What is to be said of the variables in this folder (`/sys/firmware/efi/efivars`), given the entries in menu order.
pub fn warnings(folder: &Path, entries: &Entries) -> Vec<String> {
    let places = [Place::Once, Place::Preferred, Place::Default].into_iter();
    let told = places.filter_map(|place| {
        let value = read(folder, place.variable()?).filter(|value| !value.is_empty())?;
        place.warning(&value, entries)
    });
    told.collect()
}

/// The string of an EFI variable: four bytes of attributes, then UTF-16 up to a zero.
fn text(variable: &[u8]) -> Option<String> {
    let (units, _) = variable.get(4..)?.as_chunks::<2>();
    let units = units
        .iter()
        .map(|pair| u16::from_le_bytes(*pair))
        .take_while(|&unit| unit != 0);
    String::from_utf16(&units.collect::<Vec<_>>()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_utf_16_behind_its_attributes() {
        let mut variable = vec![7, 0, 0, 0];
        variable.extend("\\a+1-2.conf".encode_utf16().flat_map(u16::to_le_bytes));
        variable.extend([0, 0]);
        assert_eq!(text(&variable).as_deref(), Some("\\a+1-2.conf"));
        assert_eq!(text(&[7, 0]), None);
    }

    #[test]
    fn the_entry_that_was_started_is_known_by_its_generation() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(started(folder.path()), None);
        let short = "ab".repeat(6);
        for (id, generation) in [
            (format!("cfs-000012-{short}.conf"), Some(12)),
            (format!("cfs-000012-{short}"), Some(12)),
            (format!("CFS-1234567-{short}.CONF"), Some(1_234_567)),
            ("auto-windows".into(), None),
        ] {
            let mut variable = vec![7, 0, 0, 0];
            variable.extend(id.encode_utf16().flat_map(u16::to_le_bytes));
            std::fs::write(path(folder.path(), STARTED), variable).unwrap();
            assert_eq!(started(folder.path()), generation, "{id}");
        }
    }
}

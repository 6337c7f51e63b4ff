//! The names of our own entries: `cfs-<generation>-<first 12 digits of the id>[+LEFT-DONE].conf`.
//!
//! Pure. The generation has at least six digits, so that a plain listing is in order up to a million entries; boot
//! loaders compare it as a number. A name that differs in anything is not ours, and what is not ours is never touched.

use std::fmt;

use cfs_core::boot::Tries;
use cfs_core::ids::DeploymentId;

use crate::counter::CountedName;

/// The `sort-key` of our entries.
pub const SORT_KEY: &str = "cfs-update";

/// The folder of our kernel files on `$BOOT`.
pub const KERNEL_FOLDER: &str = "cfs-update";

/// The name of an entry of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnName {
    generation: u64,
    short: String,
    counted: CountedName,
}

impl OwnName {
    /// The name of a new entry; `tries` 1 to 99.
    pub fn new(generation: u64, id: &DeploymentId, tries: Option<u8>) -> Self {
        let short = id.short();
        Self {
            counted: CountedName::new(&format!("cfs-{generation:06}-{short}"), tries, ".conf"),
            generation,
            short,
        }
    }

    /// `None` for a name that is not ours. FAT does not keep apart upper and lower case, so neither does this.
    pub fn parse(file: &str) -> Option<Self> {
        let counted = CountedName::parse(file);
        if !counted.suffix().eq_ignore_ascii_case(".conf") {
            return None;
        }
        let stem = counted.stem().to_ascii_lowercase();
        let (generation, short) = stem.strip_prefix("cfs-")?.split_once('-')?;
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        let well_formed = generation.bytes().all(|b| b.is_ascii_digit()) && short.len() == 12 && short.bytes().all(hex);
        Some(Self {
            generation: generation.parse().ok().filter(|_| well_formed)?,
            short: short.to_owned(),
            counted,
        })
    }

    /// Whether a name that is not ours looks as if it had been: worth telling.
    pub fn is_look_alike(file: &str) -> bool {
        let lower = file.to_ascii_lowercase();
        let digits = |s: &str| s.starts_with(|c: char| c.is_ascii_digit());
        lower.strip_prefix("cfs-").is_some_and(digits) && Self::parse(file).is_none()
    }

    /// The higher, the newer.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The first 12 digits of the deployment's id.
    pub fn short(&self) -> &str {
        &self.short
    }

    /// What the counter says.
    pub fn tries(&self) -> Tries {
        self.counted.tries()
    }

    /// The name with its counter, to count on.
    pub fn counted(&self) -> &CountedName {
        &self.counted
    }
}

impl fmt::Display for OwnName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.counted.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> DeploymentId {
        "0123456789abcdef".repeat(4).parse().unwrap()
    }

    #[test]
    fn a_name_reads_back_as_it_was_made() {
        for (tries, text) in [
            (Some(3), "cfs-000042-0123456789ab+03-00.conf"),
            (None, "cfs-000042-0123456789ab.conf"),
        ] {
            let name = OwnName::new(42, &id(), tries);
            assert_eq!(name.to_string(), text);
            assert_eq!(OwnName::parse(text), Some(name));
        }
        let huge = OwnName::new(u64::MAX, &id(), Some(99));
        assert_eq!(OwnName::parse(&huge.to_string()), Some(huge));
    }

    #[test]
    fn other_names_are_not_ours() {
        for name in [
            "cfs-000042-0123456789ab",
            "cfs-000042-0123456789ab.efi",
            "cfs-000042-0123456789a.conf",
            "cfs-000042-0123456789abc.conf",
            "cfs-000042-0123456789ag.conf",
            "cfs--0123456789ab.conf",
            "cfs-+42-0123456789ab.conf",
            "cfs-99999999999999999999-0123456789ab.conf",
            "cfs-000042-0123456789ab+3-.conf",
            "cfs-000042-0123456789ab+3.conf.bak",
            ".#cfs-000042-0123456789ab+03-00.conf",
            "xcfs-000042-0123456789ab.conf",
            "6a9857a393724b7a981ebb5b8495b9ea-6.1.0.conf",
        ] {
            assert_eq!(OwnName::parse(name), None, "{name}");
        }
        assert!(OwnName::is_look_alike("cfs-000042-0123456789ab+3-.conf"));
        assert!(!OwnName::is_look_alike("cfs-backup.conf"));
        assert!(!OwnName::is_look_alike("debian.conf"));
    }

    #[test]
    fn case_and_leading_zeros_do_not_matter() {
        let name = OwnName::parse("CFS-42-0123456789AB+2-1.CONF").unwrap();
        assert_eq!((name.generation(), name.short()), (42, "0123456789ab"));
        assert_eq!(name.tries(), Tries::Left { left: 2, done: 1 });
        assert_eq!(name.to_string(), "CFS-42-0123456789AB+2-1.CONF");
    }
}

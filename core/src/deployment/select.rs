//! Which deployment a user means.
//!
//! Pure. Invariant: one answer or an error that says what would be one; nothing is guessed where two fit.

use crate::error::{Error, Result};
use crate::ids::{DeploymentId, ManifestDigest};

/// What a user can tell deployments apart by, in the order of `status`.
#[derive(Clone, Copy, Debug)]
pub struct Choice<'a> {
    /// Its id.
    pub id: DeploymentId,
    /// Followed reference, where the record can be read.
    pub reference: Option<&'a str>,
    /// Manifest digest, where the record can be read.
    pub manifest: Option<ManifestDigest>,
}

/// The deployments that have a name of their own.
#[derive(Clone, Copy, Debug, Default)]
pub struct Roles {
    /// The running one.
    pub booted: Option<DeploymentId>,
    /// The one that boots next and never ran.
    pub staged: Option<DeploymentId>,
    /// The one that `rollback` would take.
    pub rollback: Option<DeploymentId>,
}

/// The shortest id that is taken for one; shorter words of hex digits are indexes or references.
const SHORTEST_ID: usize = 4;

/// Finds a deployment by `booted`, `staged`, `rollback`, the index in `status` (from 0), its id or at least the first
/// 4 digits of it, its manifest digest, or its image reference (with or without `docker://`).
///
/// # Errors
/// [`Error::Usage`] where none or more than one fits, with what there is.
pub fn select(text: &str, choices: &[Choice<'_>], roles: &Roles) -> Result<DeploymentId> {
    let fail = |why: String| Error::Usage(format!("deployment {text}: {why}"));
    let role = match text {
        "booted" => Some(roles.booted),
        "staged" => Some(roles.staged),
        "rollback" => Some(roles.rollback),
        _ => None,
    };
    if let Some(role) = role {
        return role.ok_or_else(|| {
            fail(format!(
                "no deployment is {text}; `cfs-update status` shows what there is"
            ))
        });
    }
    let is_number = !text.is_empty() && text.len() < SHORTEST_ID && text.bytes().all(|b| b.is_ascii_digit());
    if is_number {
        let index = text.parse::<usize>().ok().and_then(|index| choices.get(index));
        return index.map(|choice| choice.id).ok_or_else(|| {
            let there = choices.len();
            fail(format!(
                "there are {there} deployments, counted from 0; `cfs-update status` shows them"
            ))
        });
    }
    let is_id = text.len() >= SHORTEST_ID && text.bytes().all(|b| b.is_ascii_hexdigit());
    let prefix = text.to_ascii_lowercase();
    let fits = |choice: &&Choice<'_>| {
        (is_id && choice.id.to_hex().starts_with(&prefix))
            || choice.manifest.is_some_and(|digest| digest.to_string() == text)
            || choice
                .reference
                .is_some_and(|reference| reference == text || reference.strip_prefix("docker://") == Some(text))
    };
    let mut found: Vec<DeploymentId> = choices.iter().filter(fits).map(|choice| choice.id).collect();
    found.sort();
    found.dedup();
    match found.as_slice() {
        [one] => Ok(*one),
        [] => Err(fail(
            "no such deployment; give its number in `cfs-update status`, its id, or booted, staged or rollback".into(),
        )),
        several => Err(fail(format!(
            "more than one fits: {}; give one of these ids",
            several.iter().map(DeploymentId::short).collect::<Vec<_>>().join(", ")
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Algorithm;

    fn id(first: u8, second: u8) -> DeploymentId {
        let mut raw = [second; 32];
        raw[0] = first;
        DeploymentId::from_bytes(Algorithm::Sha256, &raw).unwrap()
    }

    #[test]
    fn every_way_to_name_a_deployment_finds_it_and_none_is_guessed() {
        let manifest = ManifestDigest::from_hash([9; 32]);
        let choice = |id, reference, manifest| Choice {
            id,
            reference,
            manifest,
        };
        let choices = [
            choice(id(0xab, 1), Some("docker://h/os:2"), Some(manifest)),
            choice(id(0xab, 2), Some("docker://h/os:1"), None),
            choice(id(0x12, 3), Some("docker://h/os:1"), None),
            choice(id(0x99, 4), None, None),
        ];
        let roles = Roles {
            booted: Some(choices[1].id),
            staged: None,
            rollback: Some(choices[2].id),
        };
        let pick = |text: &str| select(text, &choices, &roles);
        for (text, index) in [
            ("booted", 1),
            ("rollback", 2),
            ("0", 0),
            ("3", 3),
            ("ab02", 1),
            ("AB02", 1),
            ("1203", 2),
            ("h/os:2", 0),
            ("docker://h/os:2", 0),
            (&choices[3].id.to_hex(), 3),
            (&manifest.to_string(), 0),
        ] {
            assert_eq!(pick(text).unwrap(), choices[index].id, "{text}");
        }
        for (text, why) in [
            ("staged", "no deployment is staged"),
            ("4", "there are 4 deployments"),
            ("h/os:1", "more than one fits: 120303030303, ab0202020202"),
            ("ab", "no such deployment"),
            ("", "no such deployment"),
            ("dead", "no such deployment"),
        ] {
            let error = pick(text).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
        let ambiguous = select(
            "abab",
            &[choice(id(0xab, 0xab), None, None), choice(id(0xab, 0xab), None, None)],
            &roles,
        );
        assert!(ambiguous.is_ok(), "the same deployment listed twice is one");
    }
}

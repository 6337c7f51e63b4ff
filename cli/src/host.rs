//! `status` in the shape of bootc's API `org.containers.bootc/v1`, which greenboot, Cockpit and others read; fields of
//! ours stand beside bootc's in each entry, under `cfsUpdate`.
//!
//! Invariant: field names and value forms of bootc's never change here; they are another program's contract.

use serde::Serialize;

use crate::output::Report;

/// The document.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Host {
    pub api_version: &'static str,
    pub kind: &'static str,
    pub metadata: Metadata,
    pub spec: Spec,
    pub status: Status,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Metadata {
    pub name: &'static str,
}

/// What is followed.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Spec {
    pub image: Option<ImageReference>,
    pub boot_order: &'static str,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageReference {
    pub image: String,
    pub transport: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signature: Option<&'static str>,
}

/// What there is.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    pub staged: Option<Entry>,
    pub booted: Option<Entry>,
    pub rollback: Option<Entry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub other_deployments: Vec<Entry>,
    pub rollback_queued: bool,
    #[serde(rename = "type")]
    pub host_type: Option<&'static str>,
    pub usr_overlay: Option<()>,
    pub read_only: bool,
    pub cfs_update: System,
}

/// What bootc has no field for and belongs to no deployment.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct System {
    /// Images that are not installed again by themselves, oldest first.
    pub failed_images: Vec<FailedImage>,
    /// An image that is here and that nothing boots yet.
    pub downloaded: Option<DownloadedImage>,
    /// What the checks of the last boot said; `None` before the first.
    pub health: Option<Health>,
    /// What automatic updates do: `off`, `download`, `stage` or `apply`.
    pub automatic_updates: &'static str,
    /// What makes the boot loader take something else than what `bootsNext` says, or will after an update, each with
    /// what to do.
    pub overrides: Vec<String>,
    /// State that cannot be read, each with what to do.
    pub problems: Vec<String>,
}

/// An image that waits for `upgrade --from-downloaded`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DownloadedImage {
    pub image: String,
    pub image_digest: String,
    pub version: Option<String>,
    pub since: String,
}

/// An image that did not stay.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FailedImage {
    pub image_digest: String,
    pub time: String,
    pub why: String,
    /// The administrator went back from it: only automatic updates leave it alone.
    pub by_administrator: bool,
}

/// The health of one boot.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// `good` or `bad`.
    pub result: &'static str,
    pub deployment: Option<String>,
    pub time: String,
    pub checks: Vec<cfs_core::health::Ran>,
    pub notes: Vec<String>,
}

/// One deployment.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    pub image: Option<Image>,
    pub cached_update: Option<Image>,
    pub incompatible: bool,
    pub pinned: bool,
    pub soft_reboot_capable: bool,
    pub download_only: bool,
    pub store: Option<&'static str>,
    pub ostree: Option<()>,
    pub composefs: Option<Composefs>,
    pub cfs_update: Ours,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Image {
    pub image: ImageReference,
    pub version: Option<String>,
    pub timestamp: Option<String>,
    pub image_digest: String,
    pub architecture: String,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Composefs {
    pub verity: String,
    pub boot_type: &'static str,
    pub bootloader: &'static str,
    pub boot_digest: Option<String>,
    pub missing_verity_allowed: bool,
}

/// What bootc has no field for.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Ours {
    /// Its index, as `pin` and the like take it.
    pub index: usize,
    /// The deployment's id: the digest of its boot image.
    pub deployment: String,
    /// It is the one that boots next.
    pub boots_next: bool,
    /// Of its newest boot entry; `None` = no entry.
    pub generation: Option<u64>,
    /// File name of that entry.
    pub boot_entry: Option<String>,
    /// `None` = the entry does not count, or has been marked good.
    pub tries_left: Option<u32>,
    /// Id of the key that its signature was verified by.
    pub verified_by: Option<String>,
    /// It counts as bad.
    pub failed: bool,
    /// What is wrong with it, each with what to do; empty = nothing.
    pub problems: Vec<String>,
}

impl Host {
    /// A host that follows `image` and has no deployments.
    pub fn new(image: Option<ImageReference>) -> Self {
        Self {
            api_version: "org.containers.bootc/v1",
            kind: "BootcHost",
            metadata: Metadata { name: "host" },
            spec: Spec {
                image,
                boot_order: "default",
            },
            status: Status {
                staged: None,
                booted: None,
                rollback: None,
                other_deployments: Vec::new(),
                rollback_queued: false,
                host_type: Some("bootcHost"),
                usr_overlay: None,
                read_only: false,
                cfs_update: System::default(),
            },
        }
    }
}

impl Report for Host {
    fn human(&self) -> String {
        let Status {
            staged,
            booted,
            rollback,
            other_deployments,
            cfs_update,
            ..
        } = &self.status;
        let mut text = String::new();
        if let Some(image) = &self.spec.image {
            let only = if image.signature.is_some() {
                ", with a signature"
            } else {
                ""
            };
            text.push_str(&format!("Following {}{only}\n", image.full()));
        }
        let first = [("Staged", staged), ("Booted", booted), ("Rollback", rollback)];
        let first = first
            .into_iter()
            .filter_map(|(title, entry)| Some((title, entry.as_ref()?)));
        for (title, entry) in first.chain(other_deployments.iter().map(|entry| ("Other", entry))) {
            if !text.is_empty() {
                text.push('\n');
            }
            text.push_str(&entry.human(title));
        }
        if text.is_empty() {
            text.push_str("No deployments; `cfs-update switch IMAGE` makes the first one\n");
        }
        if self.status.rollback_queued {
            text.push_str("\nA rollback is queued: the rollback deployment boots next\n");
        }
        text + &cfs_update.human()
    }
}

impl System {
    /// What is worth a line; nothing where all is well.
    fn human(&self) -> String {
        let mut lines = Vec::new();
        for FailedImage {
            image_digest,
            time,
            why,
            by_administrator,
        } in &self.failed_images
        {
            let left_alone = if *by_administrator {
                "left alone by automatic updates"
            } else {
                "failed"
            };
            lines.push(format!("Image {image_digest} {left_alone}, {time}: {why}"));
        }
        if let Some(DownloadedImage {
            image,
            image_digest,
            version,
            since,
        }) = &self.downloaded
        {
            let version = version.as_ref().map(|v| format!(" (version {v})")).unwrap_or_default();
            lines.push(format!(
                "Downloaded, {since}: {image}{version}, {image_digest}; `cfs-update upgrade --from-downloaded` lets it boot next"
            ));
        }
        if let Some(health) = &self.health {
            lines.extend(health.notes.iter().cloned());
            for ran in &health.checks {
                if let cfs_core::health::Outcome::Failed { why } = &ran.outcome {
                    lines.push(format!("Health check {} failed, {}: {why}", ran.check, health.time));
                }
            }
        }
        lines.extend(self.overrides.iter().map(|why| format!("Boot loader: {why}")));
        lines.extend(self.problems.iter().map(|problem| format!("Problem: {problem}")));
        lines.iter().map(|line| format!("\n{line}\n")).collect()
    }
}

impl ImageReference {
    /// As it can be given to `switch`.
    pub fn full(&self) -> String {
        match self.transport.as_str() {
            "registry" => self.image.clone(),
            transport => format!("{transport}:{}", self.image),
        }
    }
}

impl Entry {
    fn human(&self, title: &str) -> String {
        let mark = if title == "Booted" { "●" } else { " " };
        let image = self.image.as_ref();
        let name = image.map_or_else(|| "unknown".into(), |i| i.image.full());
        let mut text = format!("{mark} {title:>8} image: {name}\n");
        let mut line = |label: &str, value: String| text.push_str(&format!("{label:>16}: {value}\n"));
        if let Some(image) = image {
            line("Digest", format!("{} ({})", image.image_digest, image.architecture));
            match (&image.version, &image.timestamp) {
                (Some(version), Some(time)) => line("Version", format!("{version} ({time})")),
                (Some(version), None) => line("Version", version.clone()),
                (None, Some(time)) => line("Created", time.clone()),
                (None, None) => {}
            }
        }
        let ours = &self.cfs_update;
        line("Deployment", format!("{} (index {})", ours.deployment, ours.index));
        if ours.boots_next {
            line("Boots next", "yes".into());
        }
        match (&ours.boot_entry, ours.generation) {
            (Some(entry), _) => line("Boot entry", entry.clone()),
            (None, Some(generation)) => line("Generation", generation.to_string()),
            (None, None) => line("Boot entry", "none; it cannot be booted".into()),
        }
        match &ours.verified_by {
            Some(key) => line("Signature", format!("verified by {key}")),
            None => line("Signature", "not verified; it is not trusted".into()),
        }
        if let Some(tries) = ours.tries_left {
            line("Tries left", tries.to_string());
        }
        if self.pinned {
            line("Pinned", "yes".into());
        }
        if ours.failed {
            line("Failed", "yes; it counts as bad".into());
        }
        for problem in &ours.problems {
            line("Problem", problem.clone());
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(version: &str) -> Entry {
        Entry {
            image: Some(Image {
                image: ImageReference {
                    image: "quay.io/org/os:41".into(),
                    transport: "registry".into(),
                    signature: None,
                },
                version: Some(version.into()),
                timestamp: Some("2026-11-01T12:00:00Z".into()),
                image_digest: format!("sha256:{}", "0a".repeat(32)),
                architecture: "amd64".into(),
            }),
            cached_update: None,
            incompatible: false,
            pinned: false,
            soft_reboot_capable: false,
            download_only: false,
            store: None,
            ostree: None,
            composefs: Some(Composefs {
                verity: "cd".repeat(32),
                boot_type: "Bls",
                bootloader: "systemd",
                boot_digest: Some("ef".repeat(32)),
                missing_verity_allowed: false,
            }),
            cfs_update: Ours {
                index: 0,
                deployment: "cd".repeat(32),
                boots_next: true,
                generation: Some(2),
                boot_entry: Some("cfs-2-cdcdcdcdcdcd+03-00.conf".into()),
                tries_left: Some(3),
                verified_by: Some("host (0123456789abcdef)".into()),
                failed: false,
                problems: Vec::new(),
            },
        }
    }

    fn host() -> Host {
        let mut previous = entry("41.1");
        previous.pinned = true;
        previous.cfs_update = Ours {
            index: 1,
            deployment: "ab".repeat(32),
            failed: true,
            problems: vec!["object 00: missing; run fsck --repair".into()],
            ..Ours::default()
        };
        let mut host = Host::new(entry("41.2").image.map(|i| i.image));
        host.status.booted = Some(entry("41.2"));
        host.status.rollback = Some(previous);
        host
    }

    #[test]
    fn people_read_what_is_booted_trusted_and_failed() {
        let expected = format!(
            "Following quay.io/org/os:41

●   Booted image: quay.io/org/os:41
          Digest: sha256:{zeros} (amd64)
         Version: 41.2 (2026-11-01T12:00:00Z)
      Deployment: {cd} (index 0)
      Boots next: yes
      Boot entry: cfs-2-cdcdcdcdcdcd+03-00.conf
       Signature: verified by host (0123456789abcdef)
      Tries left: 3

  Rollback image: quay.io/org/os:41
          Digest: sha256:{zeros} (amd64)
         Version: 41.1 (2026-11-01T12:00:00Z)
      Deployment: {ab} (index 1)
      Boot entry: none; it cannot be booted
       Signature: not verified; it is not trusted
          Pinned: yes
          Failed: yes; it counts as bad
         Problem: object 00: missing; run fsck --repair
",
            zeros = "0a".repeat(32),
            cd = "cd".repeat(32),
            ab = "ab".repeat(32)
        );
        assert_eq!(host().human(), expected);
    }

    #[test]
    fn greenboot_finds_the_booted_digest_where_bootc_has_it() {
        let value = serde_json::to_value(host()).unwrap();
        assert_eq!(value["apiVersion"], "org.containers.bootc/v1");
        assert_eq!(value["kind"], "BootcHost");
        assert_eq!(value["metadata"]["name"], "host");
        assert_eq!(
            value["status"]["booted"]["image"]["imageDigest"],
            format!("sha256:{}", "0a".repeat(32))
        );
        assert_eq!(value["status"]["booted"]["composefs"]["bootType"], "Bls");
        assert!(value["status"]["staged"].is_null());
        assert_eq!(value["status"]["type"], "bootcHost");
    }

    #[test]
    fn a_digest_that_looks_like_a_number_stays_text_in_yaml() {
        for text in [
            "1".repeat(64),
            format!("1e{}", "2".repeat(62)),
            "0x10".into(),
            "null".into(),
        ] {
            let yaml = serde_saphyr::to_string(&vec![&text]).unwrap();
            assert!(
                yaml.contains(&format!("\"{text}\"")) || yaml.contains(&format!("'{text}'")),
                "{yaml}"
            );
        }
    }

    #[test]
    fn yaml_says_the_same_as_json() {
        let yaml = serde_saphyr::to_string(&host()).unwrap();
        assert!(
            yaml.starts_with("apiVersion: org.containers.bootc/v1\nkind: BootcHost\n"),
            "{yaml}"
        );
        assert!(
            yaml.contains("\n    image: quay.io/org/os:41\n") || yaml.contains("image: \"quay.io/org/os:41\""),
            "{yaml}"
        );
    }
}

//! What podman calls images of the store.

use crate::reference::Reference;

/// A name without tag and digest.
pub(super) fn repository(name: &str) -> Option<String> {
    match name.parse::<Reference>().ok()? {
        Reference::Registry(name) => Some(name.full()),
        _ => None,
    }
}

/// What podman calls an image that the store has under this name. Names of registries are podman's own; those of
/// folders and archives become `localhost/FILE:NAME`, with as much of both
/// as podman allows.
pub fn name_for_podman(name: &str) -> Option<String> {
    let reference = name.parse::<Reference>().ok()?;
    let is_folder = matches!(reference, Reference::Layout(_));
    let layout = match reference {
        // podman takes a tag beside a digest for a second image.
        Reference::Registry(registry) => {
            let digest = registry
                .digest()
                .map(|digest| Some(format!("{}@{digest}", repository(name)?)));
            return digest.unwrap_or_else(|| Some(name.into()));
        }
        Reference::ContainersStorage(text) => {
            let (_, image) = crate::podman::split(&text).ok()?;
            let plain = image.contains('/') && !image.contains('@');
            return plain.then(|| image.to_owned());
        }
        Reference::Layout(layout) | Reference::OciArchive(layout) | Reference::DockerArchive(layout) => layout,
    };
    let file = layout.path().file_name()?.to_str()?;
    let file = if is_folder { file } else { without_suffix(file) };
    let tag = match layout.choice() {
        crate::reference::Choice::Named(name) => tag(name),
        _ => "latest".into(),
    };
    let text = format!("localhost/{}:{tag}", repository_of(file));
    text.parse::<Reference>().is_ok().then_some(text)
}

/// An archive's name without what says that it is one. Anything else behind a dot may be what tells two apart.
fn without_suffix(file: &str) -> &str {
    let packed = ["gz", "zst", "xz", "bz2"];
    let archives = ["tar", "tgz", "tzst", "txz", "tbz2", "oci", "ociarchive"];
    let cut = |file: &'_ str, known: &[&str]| {
        let (stem, last) = file.rsplit_once('.')?;
        (!stem.is_empty() && known.contains(&last.to_lowercase().as_str())).then_some(stem.len())
    };
    let file = &file[..cut(file, &packed).unwrap_or(file.len())];
    &file[..cut(file, &archives).unwrap_or(file.len())]
}

/// As a part of a repository's name: lower case, and between letters or digits `.`, `_`, `__` or dashes.
fn repository_of(file: &str) -> String {
    let mut out = String::new();
    let mut between = String::new();
    for c in file.to_lowercase().chars() {
        if !c.is_ascii_lowercase() && !c.is_ascii_digit() {
            between.push(if matches!(c, '.' | '_') { c } else { '-' });
            continue;
        }
        if !out.is_empty() {
            let allowed = matches!(between.as_str(), "" | "." | "_" | "__") || between.bytes().all(|b| b == b'-');
            out.push_str(if allowed { &between } else { "-" });
        }
        between.clear();
        out.push(c);
    }
    out
}

/// As a tag: letters, digits and `._-`, of which only `_` may begin it.
fn tag(name: &str) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let plain: String = name.chars().map(|c| if allowed(c) { c } else { '-' }).collect();
    plain.trim_start_matches(['.', '-']).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_one_that_podman_takes() {
        let name = |text| name_for_podman(text);
        assert_eq!(name("quay.io/org/app:1").as_deref(), Some("quay.io/org/app:1"));
        assert_eq!(
            name("oci:/srv/My_Images:stable").as_deref(),
            Some("localhost/my_images:stable")
        );
        for (text, expected) in [
            ("oci:/srv/app2:1.0", "app2:1.0"),
            ("oci:/srv/app2:1-0", "app2:1-0"),
            ("oci:/srv/app2:V1_a.B", "app2:V1_a.B"),
            ("oci:/srv/app2:--x+z", "app2:x-z"),
            ("oci:/srv/My.Images_1", "my.images_1:latest"),
            ("oci:/srv/_a..b._c--d___e f-", "a-b-c--d-e-f:latest"),
            ("oci:/srv/os-1.0.tar", "os-1.0.tar:latest"),
            ("oci-archive:/srv/os-1.0.tar.zst", "os-1.0:latest"),
            ("oci-archive:/srv/os-1.0", "os-1.0:latest"),
            ("docker-archive:/srv/App.TGZ:x/y:1.0", "app:x-y-1.0"),
            ("oci-archive:/srv/.tar", "tar:latest"),
        ] {
            assert_eq!(name(text), Some(format!("localhost/{expected}")), "{text}");
        }
        assert_eq!(name("oci-archive:/srv/os.tar").as_deref(), Some("localhost/os:latest"));
        assert_eq!(
            name("containers-storage:localhost/os:1").as_deref(),
            Some("localhost/os:1")
        );
        assert_eq!(
            name("containers-storage:[/srv]localhost/os:1").as_deref(),
            Some("localhost/os:1")
        );
        assert_eq!(name("containers-storage:os"), None);
        let digest = format!("sha256:{}", "0a".repeat(32));
        assert_eq!(
            name_for_podman(&format!("quay.io:5000/org/app:1@{digest}")),
            Some(format!("quay.io:5000/org/app@{digest}"))
        );
        assert_eq!(name("oci:/srv/..."), None);
    }
}

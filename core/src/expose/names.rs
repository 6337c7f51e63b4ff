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
/// folders and archives become `localhost/FILE:NAME`.
pub fn name_for_podman(name: &str) -> Option<String> {
    let layout = match name.parse::<Reference>().ok()? {
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
    let stem = layout.path().file_stem()?.to_str()?;
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let clean = |text: &str| -> String {
        let lower = text.to_lowercase();
        let plain: String = lower.chars().map(|c| if allowed(c) { c } else { '-' }).collect();
        plain.trim_matches('-').into()
    };
    let tag = match layout.choice() {
        crate::reference::Choice::Named(name) => clean(name),
        _ => "latest".into(),
    };
    let text = format!("localhost/{}:{tag}", clean(stem));
    text.parse::<Reference>().is_ok().then_some(text)
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
            Some("localhost/my-images:stable")
        );
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

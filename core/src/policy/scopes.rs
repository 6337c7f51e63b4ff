//! The names under which a policy may speak of an image, the most specific first.

use std::path::Path;

use crate::reference::Name;

/// The transport's name in a policy, and the scopes that the image is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scopes {
    /// `docker`, `oci`, `oci-archive`, `docker-archive`, `containers-storage`.
    pub transport: &'static str,
    /// The most specific first; the transport's default is not among them.
    pub names: Vec<String>,
}

impl Scopes {
    /// Of an image in a registry: `host/org/os:41`, `host/org/os`, `host/org`, `host`, `*.example.com`, `*.com`.
    pub fn registry(name: &Name) -> Self {
        Self {
            transport: "docker",
            names: [named(name), domains(name.host())].concat(),
        }
    }

    /// Of a folder or an archive: its path and the folders above it. `path` is absolute, without links.
    pub fn file(transport: &'static str, path: &Path) -> Self {
        let names = path.ancestors().filter(|path| path.parent().is_some());
        Self {
            transport,
            names: names.map(|path| path.to_string_lossy().into_owned()).collect(),
        }
    }

    /// Of an archive that `docker save` wrote: there are no scopes.
    pub fn docker_archive() -> Self {
        Self {
            transport: "docker-archive",
            names: Vec::new(),
        }
    }

    /// Of an image of podman's: each name in the storage, then the storage.
    pub fn storage(driver: &str, root: &Path, name: Option<&Name>) -> Self {
        let root = root.display();
        let store = format!("[{driver}@{root}]");
        let names = name.map(named).unwrap_or_default();
        let names = names.into_iter().map(|name| format!("{store}{name}"));
        Self {
            transport: "containers-storage",
            names: names.chain([store.clone(), format!("[{root}]")]).collect(),
        }
    }
}

/// Whether a transport can have such a scope at all: one that it cannot would never count.
pub(super) fn check(transport: &str, scope: &str) -> Result<(), &'static str> {
    let path = |text: &str| {
        let plain = |name: &str| !matches!(name, "" | "." | "..");
        let names = text.strip_prefix('/').filter(|names| names.split('/').all(plain));
        names.map(|_| ()).ok_or("is no absolute path without . and ..")
    };
    match transport {
        _ if scope.is_empty() => Ok(()),
        "oci" | "oci-archive" | "dir" | "sif" => path(scope),
        "docker-archive" | "tarball" => Err("is a scope, and this transport has none but the empty one"),
        "containers-storage" => {
            let store = scope.strip_prefix('[').and_then(|rest| rest.split_once(']'));
            let (store, _) = store.ok_or("has no [STORAGE]")?;
            path(store.split_once('@').map_or(store, |(_, root)| root))
        }
        _ => Ok(()),
    }
}

/// With its tag or digest, without, and what is above it, to the host.
fn named(name: &Name) -> Vec<String> {
    let full = name.full();
    let version = match (name.digest(), name.tag()) {
        (Some(digest), _) => format!("@{digest}"),
        (None, Some(tag)) => format!(":{tag}"),
        (None, None) => String::new(),
    };
    let mut names = vec![format!("{full}{version}"), full];
    while let Some((above, _)) = names.last().and_then(|last| last.rsplit_once('/')) {
        names.push(above.to_owned());
    }
    names
}

/// `*.example.com` and `*.com` for `quay.example.com:5000`.
fn domains(host: &str) -> Vec<String> {
    let mut rest = host.split(':').next().unwrap_or_default();
    let mut domains = Vec::new();
    while let Some((_, above)) = rest.split_once('.') {
        domains.push(format!("*.{above}"));
        rest = above;
    }
    domains
}

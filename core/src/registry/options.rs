//! What the command line decides for the transports, as plain data: the library reads no environment.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::limit::Limit;
use super::retry::Retry;
use crate::podman::Places;
use crate::policy;

/// Everything a [`super::Registry`] has to know beside the reference.
///
/// The default reads no configuration and no credentials at all; [`Options::usual`] gives the documented places.
#[derive(Clone, Debug)]
pub struct Options {
    /// containers-auth.json(5) and Docker's config.json, in order: the first that has credentials wins. Missing or
    /// unreadable ones are passed over.
    pub auth_files: Vec<PathBuf>,
    /// The user's own containers-registries.conf(5) and folder of drop-ins: where the file is, no other and no other
    /// drop-in counts.
    pub own_registries: Option<(PathBuf, PathBuf)>,
    /// containers-registries.conf(5), version 2: the first that exists. One alone has to exist.
    pub registries_conf: Vec<PathBuf>,
    /// Folders of drop-ins (`*.conf`, by name), read after it in this order; later ones win.
    pub registries_conf_d: Vec<PathBuf>,
    /// Folders of certificates, `HOST[:PORT]/{*.crt,*.cert,*.key}`: containers-certs.d(5). All that exist count.
    pub certs_d: Vec<PathBuf>,
    /// containers-policy.json(5): which images may be taken.
    pub policy: policy::Files,
    /// Hosts (`host` or `host:port`) that may be asked without TLS or with a certificate that nobody vouches for.
    pub insecure: Vec<String>,
    /// Sent as `User-Agent`.
    pub user_agent: String,
    /// HTTP proxies; loopback is never asked through one.
    pub proxy: Proxy,
    /// When to try again.
    pub retry: Retry,
    /// When to give a connection up.
    pub timeouts: Timeouts,
    /// How fast everything may go that is sent and received, put together; clones share it.
    pub limit: Option<Limit>,
    /// Where a compressed archive is unpacked to, in a file without a name.
    pub temporary: PathBuf,
    /// podman's images on this machine: layers that are among them are not fetched.
    pub podman: Places,
}

/// Proxies as in the usual environment variables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxy {
    /// For `https://`.
    pub https: Option<String>,
    /// For `http://`.
    pub http: Option<String>,
    /// Hosts and domains that are asked directly, by comma.
    pub no_proxy: Option<String>,
}

/// When a connection counts as dead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// For making it.
    pub connect: Duration,
    /// For the answer to begin, and between two pieces of a body.
    pub idle: Duration,
    /// A body that comes slower than [`Timeouts::slow_rate`] for this long, waiting for us not counted, is cut.
    pub slow_after: Duration,
    /// Bytes a second.
    pub slow_rate: u64,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(30),
            idle: Duration::from_secs(60),
            slow_after: Duration::from_secs(120),
            slow_rate: 1024,
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            auth_files: Vec::new(),
            own_registries: None,
            registries_conf: Vec::new(),
            registries_conf_d: Vec::new(),
            certs_d: Vec::new(),
            policy: policy::Files::First(Vec::new()),
            insecure: Vec::new(),
            user_agent: concat!("cfs-update/", env!("CARGO_PKG_VERSION")).into(),
            proxy: Proxy::default(),
            retry: Retry::default(),
            timeouts: Timeouts::default(),
            limit: None,
            temporary: "/var/tmp".into(),
            podman: Places::default(),
        }
    }
}

/// Values of the environment that places depend on; read by the command line, never here.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// The user.
    pub uid: u32,
    /// `HOME`
    pub home: Option<PathBuf>,
    /// `XDG_RUNTIME_DIR`
    pub runtime: Option<PathBuf>,
    /// `XDG_CONFIG_HOME`
    pub config: Option<PathBuf>,
    /// `XDG_DATA_HOME`
    pub data: Option<PathBuf>,
    /// `DOCKER_CONFIG`: a folder.
    pub docker_config: Option<PathBuf>,
    /// `REGISTRY_AUTH_FILE`: the only file of credentials if given.
    pub auth_file: Option<PathBuf>,
    /// `CONTAINERS_REGISTRIES_CONF`: the only registries.conf if given, without drop-ins.
    pub registries_conf: Option<PathBuf>,
    /// `CONTAINERS_STORAGE_CONF`: the only storage.conf if given.
    pub storage_conf: Option<PathBuf>,
}

impl Options {
    /// The documented places for this user: bootc's, then podman's, then Docker's.
    pub fn usual(environment: &Environment) -> Self {
        let env = environment;
        let config = env.config.clone().or_else(|| Some(env.home.as_ref()?.join(".config")));
        let containers = |name: &str| {
            config
                .iter()
                .map(|config| config.join("containers").join(name))
                .collect::<Vec<_>>()
        };
        let system = |name: &str| {
            vec![
                Path::new("/etc/containers").join(name),
                Path::new("/usr/share/containers").join(name),
            ]
        };
        let (registries_conf, registries_conf_d) = match &env.registries_conf {
            Some(only) => (vec![only.clone()], Vec::new()),
            None => {
                let mut folders = system("registries.conf.d");
                folders.reverse();
                folders.extend(containers("registries.conf.d"));
                (system("registries.conf"), folders)
            }
        };
        let own = env.registries_conf.is_none().then_some(config.as_ref()).flatten();
        let own = own.map(|config| config.join("containers"));
        let certs = [
            vec!["/etc/containers/certs.d".into(), "/etc/docker/certs.d".into()],
            containers("certs.d"),
        ];
        Self {
            auth_files: auth_files(env, config.as_deref()),
            own_registries: own.map(|own| (own.join("registries.conf"), own.join("registries.conf.d"))),
            registries_conf,
            registries_conf_d,
            certs_d: certs.concat(),
            policy: policy(env),
            podman: podman(env, config.as_deref()),
            ..Self::default()
        }
    }
}

/// The user's own, else the system's.
fn policy(env: &Environment) -> policy::Files {
    let own = env.home.iter().map(|home| home.join(".config/containers/policy.json"));
    policy::Files::First(own.chain(["/etc/containers/policy.json".into()]).collect())
}

/// containers-storage.conf(5): root's images, or the user's own.
fn podman(env: &Environment, config: Option<&Path>) -> Places {
    let usual = usual_podman(env, config);
    match &env.storage_conf {
        Some(only) => Places {
            files: vec![only.clone()],
            ..usual
        },
        None => usual,
    }
}

fn usual_podman(env: &Environment, config: Option<&Path>) -> Places {
    let (home, uid) = (env.home.clone(), env.uid);
    let system: Vec<PathBuf> = ["/etc", "/usr/share"]
        .map(|top| Path::new(top).join("containers/storage.conf"))
        .into();
    if uid == 0 {
        // podman takes that variable from root, but not ~/.config.
        let own = env.config.iter().map(|config| config.join("containers/storage.conf"));
        return Places {
            files: own.chain(system).collect(),
            usual: Some("/var/lib/containers/storage".into()),
            run: Some("/run/containers/storage".into()),
            system: Vec::new(),
            home,
            uid,
        };
    }
    let data = env.data.clone().or_else(|| Some(home.as_ref()?.join(".local/share")));
    let config = config.iter().map(|config| config.join("containers/storage.conf"));
    Places {
        files: config.collect(),
        usual: data.map(|data| data.join("containers/storage")),
        run: env.runtime.as_ref().map(|runtime| runtime.join("containers")),
        system,
        home,
        uid,
    }
}

fn auth_files(env: &Environment, config: Option<&Path>) -> Vec<PathBuf> {
    if let Some(only) = &env.auth_file {
        return vec![only.clone()];
    }
    let mut files: Vec<PathBuf> = ["/run", "/etc", "/usr/lib"]
        .map(|top| Path::new(top).join("ostree/auth.json"))
        .into();
    let runtime = env.runtime.as_ref().map(|runtime| runtime.join("containers/auth.json"));
    files.extend(runtime);
    files.push(format!("/run/containers/{}/auth.json", env.uid).into());
    files.extend(config.map(|config| config.join("containers/auth.json")));
    let home = env.home.as_ref();
    let docker = env.docker_config.clone().or_else(|| Some(home?.join(".docker")));
    files.extend(docker.map(|docker| docker.join("config.json")));
    files.extend(home.map(|home| home.join(".dockercfg")));
    files.dedup();
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_looked_for_in_bootcs_then_podmans_then_dockers_places() {
        let root = Environment {
            home: Some("/root".into()),
            ..Environment::default()
        };
        let options = Options::usual(&root);
        let files: Vec<_> = options.auth_files.iter().map(|p| p.display().to_string()).collect();
        let expected = [
            "/run/ostree/auth.json",
            "/etc/ostree/auth.json",
            "/usr/lib/ostree/auth.json",
            "/run/containers/0/auth.json",
            "/root/.config/containers/auth.json",
            "/root/.docker/config.json",
            "/root/.dockercfg",
        ];
        assert_eq!(files, expected);
        assert!(
            options
                .registries_conf
                .contains(&"/etc/containers/registries.conf".into())
        );
        assert_eq!(
            options.registries_conf_d.last(),
            Some(&"/root/.config/containers/registries.conf.d".into())
        );
    }

    #[test]
    fn a_file_named_by_the_user_is_the_only_one() {
        let environment = Environment {
            uid: 1000,
            home: Some("/home/u".into()),
            auth_file: Some("/x/auth.json".into()),
            registries_conf: Some("/x/registries.conf".into()),
            ..Environment::default()
        };
        let options = Options::usual(&environment);
        assert_eq!(options.auth_files, [PathBuf::from("/x/auth.json")]);
        assert_eq!(options.registries_conf, [PathBuf::from("/x/registries.conf")]);
        assert!(options.registries_conf_d.is_empty());
    }
}

//! HTTP clients, one for each host: TLS, certificates, proxies.

use std::collections::HashMap;
use std::error::Error as _;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Mutex, Once, PoisonError};

use reqwest::{Certificate, Client, ClientBuilder, Identity, NoProxy, Url};

use super::Options;
use super::https::api_host;
use crate::error::{Error, Result};
use crate::sys::fs;

const FILE_LIMIT: u64 = 4 << 20;

/// Makes and keeps clients.
#[derive(Debug)]
pub(super) struct Clients {
    options: Options,
    made: Mutex<HashMap<Kind, Client>>,
}

/// What tells clients apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Kind {
    tls: bool,
    /// Any certificate will do.
    unverified: bool,
    host: String,
    /// The registry that led there, where that is another host.
    led_by: Option<String>,
}

impl Clients {
    pub(super) fn new(options: &Options) -> Self {
        Self {
            options: options.clone(),
            made: Mutex::default(),
        }
    }

    /// The client for the host of `url`, which the registry `led_by` led to. `unverified`: take any certificate.
    pub(super) fn get(&self, url: &Url, unverified: bool, led_by: &Url) -> Result<Client> {
        let host = authority(url);
        let kind = Kind {
            tls: url.scheme() == "https",
            unverified,
            led_by: Some(authority(led_by)).filter(|registry| *registry != host),
            host,
        };
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = made.get(&kind) {
            return Ok(client.clone());
        }
        let client = self.make(&kind)?;
        made.insert(kind, client.clone());
        Ok(client)
    }

    fn make(&self, kind: &Kind) -> Result<Client> {
        let (host, tls) = (kind.host.as_str(), kind.tls);
        // TLS with ring: one provider for the whole process, whoever comes first.
        static PROVIDER: Once = Once::new();
        PROVIDER.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
        let fail = |e: reqwest::Error| Error::Network {
            url: host.into(),
            why: format!("no client can be made: {}", causes(&e)),
        };
        let mut builder = Client::builder()
            .http1_only()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .user_agent(&self.options.user_agent)
            .connect_timeout(self.options.timeouts.connect)
            .no_proxy();
        builder = match (tls, kind.unverified) {
            // Reading the system's certificates takes longer than a request on the local network.
            (false, _) => builder.tls_certs_only([]),
            (true, true) => builder.tls_danger_accept_invalid_certs(true),
            (true, false) => builder,
        };
        if tls {
            for folder in &self.options.certs_d {
                for name in folders(host) {
                    builder = certificates(builder, &folder.join(name), true)?;
                }
                // As in podman, a registry's authorities vouch for its token service and its store as well.
                for name in kind.led_by.iter().flat_map(|registry| folders(registry)) {
                    builder = certificates(builder, &folder.join(name), false)?;
                }
            }
        }
        if !is_loopback(host) {
            builder = self.proxied(builder, tls).map_err(fail)?;
        }
        builder.build().map_err(fail)
    }

    fn proxied(&self, builder: ClientBuilder, tls: bool) -> Result<ClientBuilder, reqwest::Error> {
        let settings = &self.options.proxy;
        let proxy = match tls {
            true => settings
                .https
                .as_deref()
                .filter(|p| !p.is_empty())
                .map(reqwest::Proxy::https),
            false => settings
                .http
                .as_deref()
                .filter(|p| !p.is_empty())
                .map(reqwest::Proxy::http),
        };
        let Some(proxy) = proxy else { return Ok(builder) };
        let except = settings.no_proxy.as_deref().and_then(NoProxy::from_string);
        Ok(builder.proxy(proxy?.no_proxy(except)))
    }
}

/// Names of the folders of a host: also with the port that goes without saying, and Docker Hub's is that of its
/// references.
fn folders(host: &str) -> Vec<String> {
    let mut names = vec![host.to_owned()];
    let port = host.rsplit_once(':').map(|(_, port)| port);
    if port.is_none_or(|port| port.ends_with(']')) {
        names.push(format!("{host}:443"));
    }
    if host == api_host("docker.io".into()) {
        names.push("docker.io".into());
    }
    names
}

/// containers-certs.d(5): `*.crt` are trusted beside the system's, `*.cert` with the `.key` of the same name is shown
/// to the registry, if it is `ours` to show.
fn certificates(mut builder: ClientBuilder, folder: &Path, ours: bool) -> Result<ClientBuilder> {
    for name in fs::names(folder)? {
        let path = folder.join(&name);
        let extension = path.extension().and_then(|e| e.to_str());
        let fail = |why: String| Error::Settings {
            path: path.clone(),
            why,
        };
        let broken = |what: &str, e: reqwest::Error| fail(format!("{what}: {}", causes(&e)));
        let read = |path: &Path| fs::read(path, FILE_LIMIT).map(Option::unwrap_or_default);
        match extension {
            Some("crt") => {
                let pem = read(&path)?;
                let found = Certificate::from_pem_bundle(&pem).map_err(|e| broken("no certificate", e))?;
                if found.is_empty() {
                    return Err(fail("there is no certificate in it; PEM is expected".into()));
                }
                usable(|alone| alone.tls_certs_only(found.clone())).map_err(|e| broken("no certificate", e))?;
                builder = builder.tls_certs_merge(found);
            }
            Some("cert") if ours => {
                let mut pem = read(&path)?;
                let key = read(&path.with_extension("key"))?;
                if key.is_empty() {
                    return Err(fail("has no key: there should be a file of this name with .key".into()));
                }
                pem.extend(key);
                let identity = Identity::from_pem(&pem).map_err(|e| broken("no certificate with key", e))?;
                usable(|alone| alone.identity(identity.clone()))
                    .map_err(|e| broken("cannot be used with its key", e))?;
                builder = builder.identity(identity);
            }
            _ => {}
        }
    }
    Ok(builder)
}

/// Whether a client can be made with this file alone: of one with all of them, nobody could say which it was.
fn usable(with: impl FnOnce(ClientBuilder) -> ClientBuilder) -> Result<(), reqwest::Error> {
    with(Client::builder().tls_certs_only([])).build().map(drop)
}

/// An error with what it comes from.
fn causes(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text += &format!(": {cause}");
        next = cause.source();
    }
    text
}

/// `host[:port]` as in a reference: without the port that goes without saying.
pub(super) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.into(),
    }
}

/// Whether `host[:port]` is this machine.
pub(super) fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(inner) => inner.split(']').next().unwrap_or(inner),
        None => host.split(':').next().unwrap_or(host),
    };
    match name.parse::<IpAddr>() {
        Ok(address) => address.to_canonical().is_loopback(),
        Err(_) => name == "localhost" || name.ends_with(".localhost"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_loopback() {
        for host in [
            "localhost",
            "localhost:5000",
            "x.localhost",
            "127.0.0.1:5000",
            "127.9.9.9",
            "[::1]",
            "[::1]:5000",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "localhost.example",
            "127.0.0.1.example",
            "128.0.0.1",
            "[::2]:5000",
            "quay.io",
            "10.0.0.1",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn a_broken_certificate_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("quay.io:5000");
        #[allow(clippy::disallowed_methods)]
        let write = |text: &str| {
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("ca.crt"), text).unwrap();
        };
        let clients = Clients::new(&Options {
            certs_d: vec![dir.path().into()],
            ..Options::default()
        });
        let url = "https://quay.io:5000/v2/".parse().unwrap();
        for text in [
            "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n",
            "",
            "\u{30}\u{82}",
        ] {
            write(text);
            let error = clients.get(&url, false, &url).unwrap_err().to_string();
            assert!(error.contains("ca.crt"), "{text:?}: {error}");
        }
        let plain = "http://quay.io:5000/v2/".parse().unwrap();
        assert!(clients.get(&plain, false, &plain).is_ok());
    }

    #[test]
    #[allow(clippy::disallowed_methods)]
    fn what_is_wrong_with_a_certificate_is_said_with_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("quay.io");
        std::fs::create_dir(&folder).unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).unwrap();
        let made = |name: &str| rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        let (ours, other) = (made("a"), made("b"));
        let clients = || {
            Clients::new(&Options {
                certs_d: vec![dir.path().into()],
                ..Options::default()
            })
        };
        let url = "https://quay.io/v2/".parse().unwrap();
        let error = || clients().get(&url, false, &url).unwrap_err().to_string();

        write("us.cert", &ours.cert.pem());
        write("us.key", &other.signing_key.serialize_pem());
        let text = error();
        assert!(text.contains("us.cert") && text.contains("KeyMismatch"), "{text}");
        write("us.key", "no key");
        let text = error();
        assert!(
            text.contains("us.cert") && text.contains("private key or certificate not found"),
            "{text}"
        );
        write("us.key", &ours.signing_key.serialize_pem());
        assert!(clients().get(&url, false, &url).is_ok());
        write(
            "ca.crt",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        );
        let text = error();
        assert!(text.contains("ca.crt") && text.contains("BadEncoding"), "{text}");
    }

    #[test]
    #[allow(clippy::disallowed_methods)]
    fn certificates_are_found_by_every_way_to_write_a_host_and_count_for_whom_it_leads_to() {
        let dir = tempfile::tempdir().unwrap();
        let clients = || {
            Clients::new(&Options {
                certs_d: vec![dir.path().into()],
                ..Options::default()
            })
        };
        let url = |text: &str| text.parse::<Url>().unwrap();
        // A broken one shows who reads it.
        let reads = |asked: &str, led_by: &str| clients().get(&url(asked), false, &url(led_by)).is_err();
        for (folder, asked) in [
            ("quay.io", "https://quay.io/v2/"),
            ("quay.io:443", "https://quay.io/v2/"),
            ("quay.io:444", "https://quay.io:444/v2/"),
            ("[::1]:443", "https://[::1]/v2/"),
            ("docker.io", "https://registry-1.docker.io/v2/"),
        ] {
            let folder = dir.path().join(folder);
            std::fs::create_dir(&folder).unwrap();
            std::fs::write(folder.join("ca.crt"), "no certificate").unwrap();
            assert!(reads(asked, asked), "{}", folder.display());
            assert!(reads("https://tokens.example/", asked), "{}", folder.display());
            // What shows who we are is for the host itself.
            std::fs::rename(folder.join("ca.crt"), folder.join("us.cert")).unwrap();
            assert!(
                reads(asked, asked) && !reads("https://tokens.example/", asked),
                "{asked}"
            );
            std::fs::remove_dir_all(&folder).unwrap();
        }
    }
}

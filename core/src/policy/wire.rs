//! The JSON of a policy, as strict as the manual has it.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};

use super::{Identity, KeySource, Requirement, scopes};

/// A file's parts: what counts by default, and by transport and scope.
type Parts = (Vec<Requirement>, BTreeMap<String, BTreeMap<String, Vec<Requirement>>>);

/// Reads a file; on failure says why.
pub(super) fn parse(text: &str) -> Result<Parts, String> {
    let file: File = serde_json::from_str(text).map_err(|e| e.to_string())?;
    let default = requirements(file.default, "default")?;
    let mut transports = BTreeMap::new();
    for (transport, named) in file.transports.0 {
        let mut read = BTreeMap::new();
        for (scope, list) in named.0 {
            let place = format!("{transport}: {scope:?}");
            scopes::check(&transport, &scope).map_err(|why| format!("{place} {why}"))?;
            let list = requirements(list, &place)?;
            read.insert(scope, list);
        }
        transports.insert(transport, read);
    }
    Ok((default, transports))
}

fn requirements(list: Vec<Wire>, place: &str) -> Result<Vec<Requirement>, String> {
    if list.is_empty() {
        return Err(format!(
            "{place} has an empty list; write insecureAcceptAnything where nothing is demanded"
        ));
    }
    let read = list.into_iter().map(Requirement::try_from);
    read.collect::<Result<_, _>>().map_err(|why| format!("{place}: {why}"))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    default: Vec<Wire>,
    #[serde(default)]
    transports: Unique<Unique<Vec<Wire>>>,
}

#[derive(Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
enum Wire {
    #[serde(rename = "insecureAcceptAnything")]
    Nothing {},
    #[serde(rename = "reject")]
    Reject {},
    #[serde(rename = "signedBy")]
    SignedBy(SignedBy),
    #[serde(rename = "sigstoreSigned")]
    Sigstore(Box<Sigstore>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[allow(dead_code, reason = "read to refuse what is no such requirement")]
struct SignedBy {
    key_type: KeyType,
    key_path: Option<PathBuf>,
    key_paths: Option<Vec<PathBuf>>,
    key_data: Option<String>,
    signed_identity: Option<Identity>,
}

#[derive(Deserialize)]
enum KeyType {
    #[serde(rename = "GPGKeys")]
    Gpg,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Sigstore {
    key_path: Option<PathBuf>,
    key_paths: Option<Vec<PathBuf>>,
    key_data: Option<String>,
    key_datas: Option<Vec<String>>,
    fulcio: Option<IgnoredAny>,
    pki: Option<IgnoredAny>,
    rekor_public_key_path: Option<IgnoredAny>,
    rekor_public_key_paths: Option<IgnoredAny>,
    rekor_public_key_data: Option<IgnoredAny>,
    rekor_public_key_datas: Option<IgnoredAny>,
    signed_identity: Option<Identity>,
}

impl TryFrom<Wire> for Requirement {
    type Error = String;

    fn try_from(wire: Wire) -> Result<Self, String> {
        Ok(match wire {
            Wire::Nothing {} => Self::Nothing,
            Wire::Reject {} => Self::Reject,
            Wire::SignedBy(signed) => {
                let given = [
                    signed.key_path.is_some(),
                    signed.key_paths.is_some(),
                    signed.key_data.is_some(),
                ];
                one_of(&given, "signedBy needs one of keyPath, keyPaths and keyData")?;
                Self::Unsupported("signedBy (signatures by GPG)")
            }
            Wire::Sigstore(signed) => sigstore(*signed)?,
        })
    }
}

fn sigstore(signed: Sigstore) -> Result<Requirement, String> {
    let decode = |text: &String| {
        let bytes = STANDARD.decode(text).map_err(|_| "key data that is not base64");
        bytes.map(KeySource::Inline)
    };
    let given = [
        signed.key_path.is_some(),
        signed.key_paths.is_some(),
        signed.key_data.is_some(),
        signed.key_datas.is_some(),
        signed.fulcio.is_some(),
        signed.pki.is_some(),
    ];
    let wanted = "sigstoreSigned needs one of keyPath, keyPaths, keyData, keyDatas, fulcio and pki";
    one_of(&given, wanted)?;
    let logged = [
        signed.rekor_public_key_path.is_some(),
        signed.rekor_public_key_paths.is_some(),
        signed.rekor_public_key_data.is_some(),
        signed.rekor_public_key_datas.is_some(),
    ];
    if signed.fulcio.is_some() {
        return Ok(Requirement::Unsupported("sigstoreSigned with fulcio"));
    }
    if signed.pki.is_some() {
        return Ok(Requirement::Unsupported("sigstoreSigned with pki"));
    }
    if logged.contains(&true) {
        return Ok(Requirement::Unsupported("sigstoreSigned with a Rekor key"));
    }
    let files = signed
        .key_path
        .into_iter()
        .chain(signed.key_paths.into_iter().flatten());
    let data = signed.key_data.iter().chain(signed.key_datas.iter().flatten());
    let mut keys: Vec<_> = files.map(KeySource::File).collect();
    for text in data {
        keys.push(decode(text)?);
    }
    if keys.is_empty() {
        return Err("sigstoreSigned has an empty list of keys".into());
    }
    let identity = signed.signed_identity.unwrap_or(Identity::MatchRepoDigestOrExact {});
    Ok(Requirement::Sigstore { keys, identity })
}

fn one_of(given: &[bool], wanted: &str) -> Result<(), String> {
    match given.iter().filter(|given| **given).count() {
        1 => Ok(()),
        n => Err(format!("{wanted}, and has {n} of them")),
    }
}

/// An object in which no name may stand twice.
struct Unique<V>(BTreeMap<String, V>);

impl<V> Default for Unique<V> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Unique<V> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Names(PhantomData))
    }
}

struct Names<V>(PhantomData<V>);

impl<'de, V: Deserialize<'de>> Visitor<'de> for Names<V> {
    type Value = Unique<V>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Unique<V>, A::Error> {
        let mut read = BTreeMap::new();
        while let Some((name, value)) = map.next_entry::<String, V>()? {
            if read.contains_key(&name) {
                return Err(A::Error::custom(format!("{name:?} is there twice")));
            }
            read.insert(name, value);
        }
        Ok(Unique(read))
    }
}

//! What a 401 asks for.

use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

/// How to log in, as the registry says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// User name and password with every request.
    Basic,
    /// A token, to be had elsewhere.
    Bearer(Bearer),
}

/// Where a token is to be had (distribution's token authentication).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Bearer {
    pub realm: String,
    pub service: Option<String>,
    pub scope: Option<String>,
    /// Why the token that was sent is not enough: `insufficient_scope`.
    pub error: Option<String>,
}

impl Challenge {
    /// The best of all challenges in the headers of an answer; `None` where none is understood.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let texts = headers
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        let all: Vec<_> = texts.flat_map(|text| parse(&plain(&text))).collect();
        all.iter()
            .find(|challenge| **challenge != Self::Basic)
            .or(all.first())
            .cloned()
    }
}

/// As its parser wants it: single spaces, and nothing but ASCII. What is not is in texts for people.
fn plain(text: &str) -> String {
    let ascii = text.replace(|c: char| !c.is_ascii(), "?").replace('\t', " ");
    let mut words = ascii.split(' ').filter(|word| !word.is_empty());
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |text, word| text + " " + word)
}

fn parse(text: &str) -> Vec<Challenge> {
    let challenges = http_auth::parser::ChallengeParser::new(text).map_while(Result::ok);
    challenges.filter_map(|challenge| read(&challenge)).collect()
}

fn read(challenge: &http_auth::ChallengeRef<'_>) -> Option<Challenge> {
    let is = |name: &str| challenge.scheme.eq_ignore_ascii_case(name);
    let parameter = |name: &str| {
        let found = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found
            .map(|(_, value)| value.to_unescaped())
            .filter(|value| !value.is_empty())
    };
    if is("basic") {
        return Some(Challenge::Basic);
    }
    let bearer = || Bearer {
        realm: parameter("realm").unwrap_or_default(),
        service: parameter("service"),
        scope: parameter("scope"),
        error: parameter("error"),
    };
    is("bearer")
        .then(bearer)
        .filter(|bearer| !bearer.realm.is_empty())
        .map(Challenge::Bearer)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    fn of(texts: &[&str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        for text in texts {
            headers.append(WWW_AUTHENTICATE, HeaderValue::from_bytes(text.as_bytes()).unwrap());
        }
        Challenge::of(&headers)
    }

    #[test]
    fn a_token_is_preferred_to_a_password_and_nonsense_is_passed_over() {
        let bearer = r#"Bearer realm="https://auth.example/token",service="reg",scope="repository:os:pull,push""#;
        let expected = Challenge::Bearer(Bearer {
            realm: "https://auth.example/token".into(),
            service: Some("reg".into()),
            scope: Some("repository:os:pull,push".into()),
            error: None,
        });
        assert_eq!(of(&[bearer]), Some(expected.clone()));
        assert_eq!(of(&["Basic realm=\"x\"", bearer]), Some(expected.clone()));
        assert_eq!(of(&[&format!("Basic realm=\"x\", {bearer}")]), Some(expected));
        assert_eq!(of(&["BASIC realm=\"x\""]), Some(Challenge::Basic));
        assert_eq!(of(&["Basic  realm=\"x\""]), Some(Challenge::Basic));
        assert!(
            matches!(of(&["Bearer\trealm=\"https://a/t\",error=\"\u{e4}\""]), Some(Challenge::Bearer(b)) if b.realm == "https://a/t")
        );
        assert_eq!(of(&["Bearer service=\"no realm\""]), None);
        assert_eq!(of(&["Negotiate"]), None);
        assert_eq!(of(&["=,;\"", ""]), None);
        assert_eq!(of(&[]), None);
    }
}

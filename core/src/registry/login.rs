//! Answers to a registry's challenge: a password, or a token fetched with it.
//!
//! Invariant: one answer to one refusal. A token that has run out is replaced, but a registry that refuses a fresh
//! answer is not asked again.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{Method, Url};
use serde::Deserialize;

use super::auth::{Login, Places, Search};
use super::challenge::{Bearer, Challenge};
use super::fetch::{Fetcher, Refused, Request, network};
use super::{Again, Failure};
use crate::error::Error;
use crate::monitor::Monitor;

/// Largest answer of a token service.
const TOKEN_LIMIT: u64 = 1 << 20;
/// Validity of a token that does not say (distribution's token specification).
const TOKEN_LIFE: u64 = 60;
/// A token is replaced this long before it runs out, or after nine tenths of its life.
const MARGIN: Duration = Duration::from_secs(10);

/// Being logged in to one source, or not.
#[derive(Debug)]
pub(super) struct Session {
    places: Places,
    /// As in the reference: the key of credentials.
    host: String,
    repository: String,
    /// The configuration calls it insecure.
    insecure: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Counts answers, so that of several refused requests only the first fetches a new token.
    answers: u64,
    header: Option<HeaderValue>,
    renew: Option<(Instant, Bearer)>,
    search: Option<Search>,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "State({} answers)", self.answers)
    }
}

/// What to send with a request.
#[derive(Clone, Debug, Default)]
pub(super) struct Pass {
    pub header: Option<HeaderValue>,
    answers: u64,
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    /// A number of seconds; what some services send instead is not worth a refusal.
    expires_in: Option<serde_json::Value>,
}

impl Session {
    pub(super) fn new(places: Places, host: &str, repository: &str, insecure: bool) -> Self {
        Self {
            places,
            host: host.into(),
            repository: repository.into(),
            insecure,
            state: Mutex::default(),
        }
    }

    /// What the next request carries: nothing before the first challenge, and never a token about to run out.
    pub(super) fn pass(&self, fetcher: &Fetcher, from: &Url, monitor: &dyn Monitor) -> Result<Pass, Failure> {
        let mut state = self.lock();
        if let Some((at, bearer)) = state.renew.clone()
            && Instant::now() >= at
        {
            self.fetch_token(&mut state, bearer, fetcher, from, monitor)?;
        }
        Ok(state.pass())
    }

    /// The answer to a 401 that came in spite of `refused`.
    pub(super) fn answer(
        &self,
        refused: &Pass,
        headers: &HeaderMap,
        fetcher: &Fetcher,
        from: &Url,
        monitor: &dyn Monitor,
    ) -> Result<Option<Pass>, Failure> {
        let mut state = self.lock();
        if state.answers > refused.answers {
            return Ok(Some(state.pass()));
        }
        match Challenge::of(headers) {
            // A password does not get better by being sent again.
            Some(Challenge::Basic) if refused.header.is_some() => Ok(None),
            Some(Challenge::Basic) => {
                let Some((Login::Password(user, password), _)) = self.search(&mut state, monitor).found.clone() else {
                    return Ok(None);
                };
                state.set(basic(&user, &password), None);
                Ok(Some(state.pass()))
            }
            Some(Challenge::Bearer(bearer)) => {
                self.fetch_token(&mut state, bearer, fetcher, from, monitor)?;
                Ok(Some(state.pass()))
            }
            None => Ok(None),
        }
    }

    /// Why the registry will not have us, and what to do.
    pub(super) fn refused(&self, said: &str, monitor: &dyn Monitor) -> String {
        let mut state = self.lock();
        let search = self.search(&mut state, monitor).clone();
        let host = &self.host;
        match &search.found {
            Some((_, place)) if state.answers > 0 => format!(
                "401 Unauthorized{said}; the credentials for {host} from {place} were refused, \
                 log in again with `podman login {host}`"
            ),
            Some((_, place)) => format!(
                "401 Unauthorized{said}; it asks for a login of a kind for which those for {host} from {place} do not do: \
                 a password is sent as Basic says, a password or an identity token where Bearer names a token service"
            ),
            None => format!(
                "401 Unauthorized{said}; no credentials for {host} were found in {}; \
                 log in with `podman login {host}`, or write them there",
                match search.looked.is_empty() {
                    true => "no file at all".into(),
                    false => search.looked.join(", "),
                }
            ),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn search<'s>(&self, state: &'s mut State, monitor: &dyn Monitor) -> &'s Search {
        state
            .search
            .get_or_insert_with(|| self.places.search(&self.host, &self.repository, monitor))
    }

    fn fetch_token(
        &self,
        state: &mut State,
        bearer: Bearer,
        fetcher: &Fetcher,
        from: &Url,
        monitor: &dyn Monitor,
    ) -> Result<(), Failure> {
        let found = self.search(state, monitor).found.clone();
        if let Some((Login::Token(token), _)) = &found {
            state.set(header(&format!("Bearer {token}")), None);
            return Ok(());
        }
        let realm = self.realm(&bearer, fetcher, from)?;
        let login = found.as_ref().map(|(login, _)| login);
        let request = Request {
            insecure: fetcher.insecure(from, self.insecure, &realm),
            named_by: Some(from.clone()),
            ..self.token_request(&bearer, realm.clone(), login)
        };
        let answer = fetcher.ask(request).map_err(|refused| match refused {
            Refused::Scheme(failure) | Refused::Closed(failure) | Refused::Failed(_, failure) => failure,
            Refused::Login(_, said) => {
                let place = found.as_ref().map(|(_, place)| place.as_str());
                let why = match place {
                    Some(place) => format!("401 Unauthorized{said}; it refused the credentials from {place}"),
                    None => format!(
                        "401 Unauthorized{said}; it gives no token without credentials for {}",
                        self.host
                    ),
                };
                network(&realm, why).into()
            }
        })?;
        let broken = |why: &str| Failure::from(network(&realm, format!("the token service's answer {why}")));
        let body = answer.body.up_to(TOKEN_LIMIT)?.ok_or_else(|| broken("is too long"))?;
        let answer: TokenAnswer = serde_json::from_slice(&body).map_err(|e| broken(&format!("is broken: {e}")))?;
        let token = answer
            .token
            .into_iter()
            .chain(answer.access_token)
            .find(|token| !token.is_empty());
        let token = token.ok_or_else(|| broken("has no token in it"))?;
        let life = answer
            .expires_in
            .and_then(|life| life.as_u64())
            .filter(|life| *life > 0);
        let life = Duration::from_secs(life.unwrap_or(TOKEN_LIFE));
        let early = MARGIN.min(life / 10);
        let renew = Instant::now().checked_add(life - early).map(|at| (at, bearer));
        state.set(header(&format!("Bearer {token}")), renew);
        Ok(())
    }

    /// The token service's address. Credentials go there, so it has to be as safe as the registry itself.
    fn realm(&self, bearer: &Bearer, fetcher: &Fetcher, from: &Url) -> Result<Url, Failure> {
        let refuse = |why: String| Failure {
            error: Error::Network {
                url: super::net::shown(from),
                why,
            },
            again: Again::Never,
            refused: false,
        };
        let realm: Url = bearer
            .realm
            .parse()
            .map_err(|e| refuse(format!("its token service {:?}: {e}", bearer.realm)))?;
        let plain = from.scheme() == "http" && fetcher.plain_allowed(from, self.insecure, &realm);
        match realm.scheme() {
            "https" => Ok(realm),
            "http" if plain => Ok(realm),
            _ => Err(refuse(format!(
                "its token service {} is not safe; no credentials were sent",
                super::net::shown(&realm)
            ))),
        }
    }

    fn token_request(&self, bearer: &Bearer, mut url: Url, login: Option<&Login>) -> Request<'static> {
        let scope = bearer
            .scope
            .clone()
            .unwrap_or_else(|| format!("repository:{}:pull", self.repository));
        if let Some(Login::Identity(token)) = login {
            // The URL type is what there is to write a form with.
            let mut form = url.clone();
            form.query_pairs_mut()
                .clear()
                .append_pair("grant_type", "refresh_token")
                .append_pair("service", bearer.service.as_deref().unwrap_or_default())
                .append_pair("scope", &scope)
                .append_pair("client_id", "cfs-update")
                .append_pair("refresh_token", token);
            return Request {
                method: Method::POST,
                form: form.query().map(String::from),
                ..Request::get(url)
            };
        }
        {
            let mut query = url.query_pairs_mut();
            if let Some(service) = &bearer.service {
                query.append_pair("service", service);
            }
            for scope in scope.split(' ').filter(|scope| !scope.is_empty()) {
                query.append_pair("scope", scope);
            }
            if let Some(Login::Password(user, _)) = login {
                query.append_pair("account", user);
            }
        }
        let authorization = match login {
            Some(Login::Password(user, password)) => basic(user, password),
            _ => None,
        };
        Request {
            authorization,
            ..Request::get(url)
        }
    }
}

impl State {
    fn set(&mut self, header: Option<HeaderValue>, renew: Option<(Instant, Bearer)>) {
        self.answers += 1;
        self.header = header;
        self.renew = renew;
    }

    fn pass(&self) -> Pass {
        Pass {
            header: self.header.clone(),
            answers: self.answers,
        }
    }
}

fn basic(user: &str, password: &str) -> Option<HeaderValue> {
    header(&format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
}

fn header(text: &str) -> Option<HeaderValue> {
    let mut header = HeaderValue::from_str(text).ok()?;
    header.set_sensitive(true);
    Some(header)
}

//! A blob on its way to a registry: in parts, each gone on with where a connection was cut.
//!
//! Distribution specification, "Pushing a blob in chunks"; `in_one` has what goes without. Nothing of it can be seen in the registry before the last
//! request, which names the digest.

use std::io::{self, Write};
use std::sync::atomic::Ordering;

use bytes::Bytes;
use reqwest::header::{HeaderMap, LOCATION, RANGE};
use reqwest::{Method, StatusCode, Url};

use super::Push;
use crate::error::Result;
use crate::manifest::Descriptor;
use crate::monitor::Monitor;
use crate::registry::Again;
use crate::registry::fetch::{Content, Payload, Request, network};

/// Bytes of an upload at a time.
pub(super) const PART: usize = 8 << 20;
/// A registry may want larger parts; those up to here are held in memory.
const LARGEST_PART: usize = 64 << 20;
pub(super) const BINARY: &str = "application/octet-stream";
const LEAST: &str = "oci-chunk-min-length";

/// A way to go on after a failed part: where, and how many bytes the registry has.
pub(super) struct Upload {
    pub at: Url,
    done: u64,
    /// The least that every part but the last has.
    least: u64,
}

impl Push {
    pub(super) fn begin(&self, monitor: &dyn Monitor) -> Result<Upload> {
        let url = self.url("blobs/uploads/")?;
        let request = Request {
            method: Method::POST,
            ..Request::get(url.clone())
        };
        let answer = self.patient(&request, monitor)?;
        let at = location(&url, &answer.headers).ok_or_else(|| network(&url, "does not say where to upload to"))?;
        let least = answer.headers.get(LEAST).and_then(|value| value.to_str().ok());
        Ok(Upload {
            at,
            done: 0,
            least: least.and_then(|least| least.trim().parse().ok()).unwrap_or(0),
        })
    }

    /// Sends one part, or what of it a cut connection has not brought there.
    fn part(&self, upload: &mut Upload, part: &[u8], monitor: &dyn Monitor) -> Result<()> {
        let end = upload.done + part.len() as u64;
        let mut rounds = self.retry.rounds(true);
        let part = Bytes::copy_from_slice(part);
        let start = upload.done;
        while upload.done < end {
            let from = usize::try_from(upload.done - start).unwrap_or(usize::MAX);
            let request = Request {
                method: Method::PATCH,
                content: Some(Content {
                    media_type: BINARY.into(),
                    payload: Payload::Bytes(part.slice(from..)),
                    at: Some(upload.done),
                }),
                ..Request::get(upload.at.clone())
            };
            match self.send(&request, monitor) {
                Ok(answer) => {
                    upload.at = location(&upload.at, &answer.headers).unwrap_or_else(|| upload.at.clone());
                    upload.done = taken(&answer.headers, upload.done, end);
                }
                Err((status, failure)) => {
                    self.note(status);
                    if start == 0 && status.is_some_and(means_no_parts) {
                        self.in_one.store(true, Ordering::Relaxed);
                    }
                    let again = failure.again;
                    rounds.wait(failure, upload.at.as_str(), monitor)?;
                    if again != Again::Never {
                        self.look(upload, start, end, monitor)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// How far the registry has got: some of a part may have come there before the connection was cut.
    fn look(&self, upload: &mut Upload, start: u64, end: u64, monitor: &dyn Monitor) -> Result<()> {
        let answer = self.patient(&Request::get(upload.at.clone()), monitor)?;
        upload.at = location(&upload.at, &answer.headers).unwrap_or_else(|| upload.at.clone());
        let has = received(&answer.headers);
        if has < start || has > end {
            let why = format!("has {has} bytes of an upload of which {start} to {end} were sent");
            return Err(network(&upload.at, why));
        }
        upload.done = has;
        Ok(())
    }

    /// The last request of an upload, which may bring all or the rest of the blob.
    fn complete(&self, upload: Upload, rest: Vec<u8>, blob: &Descriptor, monitor: &dyn Monitor) -> Result<()> {
        let request = last(upload, Payload::Bytes(rest.into()), blob);
        let mut rounds = self.retry.rounds(true);
        loop {
            match self.send(&request, monitor) {
                Ok(_) => return Ok(()),
                Err((status, failure)) => {
                    self.note(status);
                    rounds.wait(failure, request.url.as_str(), monitor)?;
                    // It may have been the answer that was lost.
                    if self.has(blob, monitor)? {
                        return Ok(());
                    }
                }
            }
        }
    }
}

/// The request that ends an upload.
pub(super) fn last<'r>(upload: Upload, payload: Payload, blob: &Descriptor) -> Request<'r> {
    let mut url = upload.at;
    url.query_pairs_mut().append_pair("digest", &blob.digest.to_string());
    Request {
        method: Method::PUT,
        content: Some(Content {
            media_type: BINARY.into(),
            payload,
            at: None,
        }),
        ..Request::get(url)
    }
}

/// What registries say to the first part of a blob that know no parts, or none as large as ours.
fn means_no_parts(status: StatusCode) -> bool {
    matches!(status.as_u16(), 400 | 405 | 411 | 415 | 416 | 501)
}

/// Cuts what is written into parts.
pub(super) struct Parts<'a> {
    push: &'a Push,
    monitor: &'a dyn Monitor,
    upload: Option<Upload>,
    buffer: Vec<u8>,
    size: u64,
    /// Bytes of a part.
    part: usize,
}

impl<'a> Parts<'a> {
    /// Of a blob of `size` bytes.
    pub(super) fn new(push: &'a Push, size: u64, monitor: &'a dyn Monitor) -> Self {
        Self {
            push,
            monitor,
            upload: None,
            buffer: Vec::with_capacity(PART.min(usize::try_from(size).unwrap_or(PART))),
            size,
            part: PART,
        }
    }

    /// Sends a part, or finds out that the registry wants larger ones.
    fn full(&mut self) -> Result<()> {
        if self.upload.is_none() {
            let upload = self.push.begin(self.monitor)?;
            let least = upload.least;
            let at = upload.at.clone();
            self.upload = Some(upload);
            self.part = match usize::try_from(least) {
                Ok(least) if least <= LARGEST_PART => least.max(PART),
                _ => {
                    self.push.in_one.store(true, Ordering::Relaxed);
                    self.push.forget(at.clone(), self.monitor);
                    return Err(network(&at, format!("wants parts of at least {least} bytes")));
                }
            };
            let whole = usize::try_from(self.size).unwrap_or(self.part);
            let more = self.part.min(whole).saturating_sub(self.buffer.len());
            self.buffer.reserve_exact(more);
            if self.part > self.buffer.len() {
                return Ok(());
            }
        }
        self.flush_part()
    }

    fn flush_part(&mut self) -> Result<()> {
        let mut upload = match self.upload.take() {
            Some(upload) => upload,
            None => self.push.begin(self.monitor)?,
        };
        let sent = self.push.part(&mut upload, &self.buffer, self.monitor);
        if sent.is_err() && self.push.in_one.load(Ordering::Relaxed) {
            self.push.forget(upload.at.clone(), self.monitor);
        }
        sent?;
        self.upload = Some(upload);
        self.buffer.clear();
        Ok(())
    }

    /// Sends what is left.
    pub(super) fn finish(mut self, blob: &Descriptor) -> Result<()> {
        let upload = match self.upload.take() {
            Some(upload) => upload,
            None => self.push.begin(self.monitor)?,
        };
        if upload.done == 0 {
            return self.push.complete(upload, self.buffer, blob, self.monitor);
        }
        // Not all registries take the last part with the last request.
        self.upload = Some(upload);
        if !self.buffer.is_empty() {
            self.flush_part()?;
        }
        match self.upload.take() {
            Some(upload) => self.push.complete(upload, Vec::new(), blob, self.monitor),
            None => Ok(()),
        }
    }
}

impl Write for Parts<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.len() == self.part {
            self.full().map_err(io::Error::other)?;
        }
        let take = bytes.len().min(self.part - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..take]);
        Ok(take)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Where an answer leads to, seen from where it was asked for.
pub(super) fn location(from: &Url, headers: &HeaderMap) -> Option<Url> {
    let mut url = from.join(headers.get(LOCATION)?.to_str().ok()?).ok()?;
    let _ = url.set_username("");
    let _ = url.set_password(None);
    Some(url)
}

/// How far a registry has got that was sent the bytes from `from` to `end` and took them: to the end, unless it says
/// that some are left.
fn taken(headers: &HeaderMap, from: u64, end: u64) -> u64 {
    Some(received(headers))
        .filter(|has| (from + 1..end).contains(has))
        .unwrap_or(end)
}

/// `Range: 0-99`: 100 bytes. Registries say `0-0` of nothing, too; a blob's first byte alone never makes a part.
fn received(headers: &HeaderMap) -> u64 {
    let last = || {
        let text = headers.get(RANGE)?.to_str().ok()?.trim();
        let text = text.strip_prefix("bytes=").unwrap_or(text);
        text.split_once('-')?.1.parse::<u64>().ok()
    };
    match last() {
        None | Some(0) => 0,
        Some(last) => last + 1,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_a_registry_has_of_an_upload_is_read_as_registries_write_it() {
        let of = |text: &str| received(&HeaderMap::from_iter([(RANGE, text.parse().unwrap())]));
        assert_eq!(of("0-99"), 100);
        assert_eq!(of("bytes=0-99"), 100);
        assert_eq!([of("0-0"), of("x"), of("0-"), received(&HeaderMap::new())], [0; 4]);
    }

    #[test]
    fn a_part_of_which_the_registry_says_that_it_took_some_is_gone_on_with_there() {
        let of = |text: &str| taken(&HeaderMap::from_iter([(RANGE, text.parse().unwrap())]), 100, 200);
        assert_eq!([of("0-149"), of("0-198"), of("0-100")], [150, 199, 101]);
        // Nothing new, nothing at all, more than was sent: registries that do not mean what they say.
        assert_eq!([of("0-99"), of("0-0"), of("0-199"), of("0-300"), of("x")], [200; 5]);
        assert_eq!(taken(&HeaderMap::new(), 100, 200), 200);
    }

    #[test]
    fn where_an_upload_goes_on_is_relative_to_where_it_was_asked_and_carries_no_credentials() {
        let from: Url = "https://r.example/v2/a/blobs/uploads/".parse().unwrap();
        let of = |text: &str| location(&from, &HeaderMap::from_iter([(LOCATION, text.parse().unwrap())]));
        assert_eq!(
            of("/v2/a/blobs/uploads/1?s=2").unwrap().as_str(),
            "https://r.example/v2/a/blobs/uploads/1?s=2"
        );
        assert_eq!(
            of("https://u:p@cdn.example/x").unwrap().as_str(),
            "https://cdn.example/x"
        );
        assert_eq!(location(&from, &HeaderMap::new()), None);
    }
}

//! A blob on its way to a registry: in parts, each gone on with where a connection was cut.
//!
//! Distribution specification, "Pushing a blob in chunks". Nothing of it can be seen in the registry before the last
//! request, which names the digest.

use std::io::{self, Write};

use bytes::Bytes;
use reqwest::header::{HeaderMap, LOCATION, RANGE};
use reqwest::{Method, Url};

use super::Push;
use crate::error::Result;
use crate::manifest::Descriptor;
use crate::monitor::Monitor;
use crate::registry::Again;
use crate::registry::fetch::{Content, Request, network};

/// Bytes of an upload at a time.
const PART: usize = 8 << 20;
const BINARY: &str = "application/octet-stream";

/// A way to go on after a failed part: where, and how many bytes the registry has.
struct Upload {
    at: Url,
    done: u64,
}

impl Push {
    fn begin(&self, monitor: &dyn Monitor) -> Result<Upload> {
        let url = self.url("blobs/uploads/")?;
        let request = Request {
            method: Method::POST,
            ..Request::get(url.clone())
        };
        let answer = self.patient(&request, monitor)?;
        let at = location(&url, &answer.headers).ok_or_else(|| network(&url, "does not say where to upload to"))?;
        Ok(Upload { at, done: 0 })
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
                    bytes: part.slice(from..),
                    at: Some(upload.done),
                }),
                ..Request::get(upload.at.clone())
            };
            match self.send(&request, monitor) {
                Ok(answer) => {
                    upload.at = location(&upload.at, &answer.headers).unwrap_or_else(|| upload.at.clone());
                    upload.done = end;
                }
                Err((status, failure)) => {
                    self.note(status);
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
        let mut url = upload.at;
        url.query_pairs_mut().append_pair("digest", &blob.digest.to_string());
        let request = Request {
            method: Method::PUT,
            content: Some(Content {
                media_type: BINARY.into(),
                bytes: rest.into(),
                at: None,
            }),
            ..Request::get(url)
        };
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

/// Cuts what is written into parts.
pub(super) struct Parts<'a> {
    push: &'a Push,
    monitor: &'a dyn Monitor,
    upload: Option<Upload>,
    buffer: Vec<u8>,
}

impl<'a> Parts<'a> {
    /// Of a blob of `size` bytes.
    pub(super) fn new(push: &'a Push, size: u64, monitor: &'a dyn Monitor) -> Self {
        Self {
            push,
            monitor,
            upload: None,
            buffer: Vec::with_capacity(PART.min(usize::try_from(size).unwrap_or(PART))),
        }
    }

    fn flush_part(&mut self) -> Result<()> {
        let mut upload = match self.upload.take() {
            Some(upload) => upload,
            None => self.push.begin(self.monitor)?,
        };
        self.push.part(&mut upload, &self.buffer, self.monitor)?;
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
        if self.buffer.len() == PART {
            self.flush_part().map_err(io::Error::other)?;
        }
        let take = bytes.len().min(PART - self.buffer.len());
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

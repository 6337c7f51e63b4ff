//! A blob in one request, made while it is sent: for registries that take no parts.
//!
//! Google's Artifact Registry and others know uploads as a whole only ("monolithic" in the distribution
//! specification). What is cut begins anew, with an upload of its own.

use std::io::Write;
use std::sync::atomic::Ordering;

use super::Push;
use super::upload::{PART, last};
use crate::error::{Error, Result};
use crate::manifest::Descriptor;
use crate::monitor::Monitor;
use crate::registry::fetch::{Payload, Request, network};
use crate::registry::flow::{Flow, Source};
use crate::registry::net::Answer;
use crate::registry::push::Refusal;

/// Lets whoever writes go on when the request is over, however it ended.
struct Closing(Flow);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Push {
    /// Small blobs go so anyway, out of memory.
    pub(super) fn goes_in_one(&self, blob: &Descriptor) -> bool {
        blob.size > PART as u64 && self.in_one.load(Ordering::Relaxed)
    }

    /// As [`Push::put`].
    pub(super) fn put_in_one(
        &self,
        blob: &Descriptor,
        content: &mut dyn FnMut(&mut dyn Write) -> Result<()>,
        monitor: &dyn Monitor,
    ) -> Result<()> {
        let mut rounds = self.retry.rounds(true);
        loop {
            let upload = self.begin(monitor)?;
            let (mut source, flow) = self.fetcher.flow(blob.size);
            let request = last(upload, Payload::Flow(flow.clone()), blob);
            let mut made = Ok(());
            let answer = self.send_while(&request, Closing(flow), monitor, || {
                made = content(&mut source).and_then(|()| finished(&mut source));
                let cut = source.cut;
                drop(source);
                cut
            });
            match (made, answer) {
                // Not because nobody took it: it cannot be made.
                (Err(error), (false, _)) => return Err(error),
                (Ok(()), (_, Ok(_))) => return Ok(()),
                (Err(_), (true, Ok(_))) => {
                    // It may have had the blob from elsewhere.
                    return match self.has(blob, monitor)? {
                        true => Ok(()),
                        false => Err(network(&request.url, "took an upload for complete that was not")),
                    };
                }
                (_, (_, Err((status, failure)))) => {
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

    /// Sends a request on a thread of its own while `write` makes its body; gives what both said.
    fn send_while<T>(
        &self,
        request: &Request<'_>,
        closing: Closing,
        monitor: &dyn Monitor,
        write: impl FnOnce() -> T,
    ) -> (T, Result<Answer, Refusal>) {
        std::thread::scope(|scope| {
            let sender = scope.spawn(move || {
                let _closing = closing;
                self.send(request, monitor)
            });
            let written = write();
            match sender.join() {
                Ok(answer) => (written, answer),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }
}

/// The last piece goes, too.
fn finished(source: &mut Source) -> Result<()> {
    source.flush().map_err(|e| Error::from_read("the blob", e))
}

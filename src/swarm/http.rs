//! Frames from the appliance by HTTP range requests (RFC 9110 section 14): a few long ranges, each read as a stream and
//! cut into frames. What breaks off is taken up at the first frame that is missing.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use futures::future::{BoxFuture, FutureExt, try_join_all};
use reqwest::{RequestBuilder, StatusCode, header};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::{BackOff, Frame, Source, Wanted};
use crate::error::{Error, Result};

/// How a source behaves when the network does not.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Ranges that are read side by side.
    pub streams: usize,
    /// The longest range of one request, in bytes.
    pub range: u64,
    /// No byte for this long: the connection is dropped and made again.
    pub stall: Duration,
    /// A frame that takes longer is a stall too, however many single bytes still come.
    pub frame: Duration,
    /// No whole frame for this long: the source gives up.
    pub patience: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            streams: 2,
            range: 64 << 20,
            stall: Duration::from_secs(20),
            frame: Duration::from_secs(120),
            patience: Duration::from_secs(900),
        }
    }
}

type MakeRequest = dyn Fn() -> RequestBuilder + Send + Sync;
type Note = dyn Fn(Option<String>) + Send + Sync;

pub struct HttpSource {
    request: Box<MakeRequest>,
    /// Told what is being waited for, and `None` when it goes on.
    note: Box<Note>,
    limits: Limits,
}

enum Fault {
    Passing(String),
    Final(Error),
    /// The receiver has had enough.
    Closed,
}

impl HttpSource {
    /// `request` makes a GET of the chunk file, with whatever proves the right to it.
    pub fn new(
        request: impl Fn() -> RequestBuilder + Send + Sync + 'static,
        note: impl Fn(Option<String>) + Send + Sync + 'static,
        limits: Limits,
    ) -> Self {
        Self { request: Box::new(request), note: Box::new(note), limits }
    }

    /// Takes ranges from the common queue until it is empty.
    async fn stream(&self, ranges: &Mutex<VecDeque<&[Wanted]>>, sink: &mpsc::Sender<Frame>) -> Result<()> {
        loop {
            let Some(mut rest) = ranges.lock().unwrap_or_else(PoisonError::into_inner).pop_front() else {
                return Ok(());
            };
            let mut wait = BackOff::default();
            let mut last = Instant::now();
            let mut said = false;
            while !rest.is_empty() {
                let mut brought = 0;
                let end = self.range(rest, sink, &mut brought).await;
                rest = rest.get(brought..).unwrap_or_default();
                if brought > 0 {
                    last = Instant::now();
                    wait.reset();
                    if std::mem::take(&mut said) {
                        (self.note)(None);
                    }
                }
                match end {
                    Ok(()) => {}
                    Err(Fault::Closed) => return Ok(()),
                    Err(Fault::Final(e)) => return Err(e),
                    Err(Fault::Passing(reason)) => {
                        if last.elapsed() >= self.limits.patience {
                            let waited = self.limits.patience.as_secs();
                            let what = format!("no chunk of the image came within {waited} s");
                            return Err(Error::unreachable("source.unreachable", what)
                                .hint("look at the network between this machine and the appliance, then order again")
                                .because(reason));
                        }
                        said = true;
                        (self.note)(Some(format!("waiting for image data: {reason}")));
                        tokio::time::sleep(wait.next_wait().min(self.limits.patience)).await;
                    }
                }
            }
        }
    }

    /// One request for frames near each other; counts those that were handed over in `brought`.
    async fn range(&self, frames: &[Wanted], sink: &mpsc::Sender<Frame>, brought: &mut usize) -> Result<(), Fault> {
        let (Some(first), Some(last)) = (frames.first(), frames.last()) else { return Ok(()) };
        let end = last.offset + u64::from(last.len);
        let range = format!("bytes={}-{}", first.offset, end - 1);
        let request = (self.request)().header(header::RANGE, range).send();
        let mut response = match timeout(self.limits.stall, request).await {
            Ok(Ok(response)) => response,
            Ok(Err(e)) => return Err(Fault::Passing(innermost(e.without_url()))),
            Err(_) => return Err(Fault::Passing("no answer".into())),
        };
        check_answer(&response, first.offset)?;
        let mut at_hand = Bytes::new();
        let mut at = first.offset;
        for frame in frames {
            let give_up = Instant::now() + self.limits.frame;
            let mut bytes = BytesMut::with_capacity(frame.len as usize);
            while bytes.len() < frame.len as usize {
                if at_hand.is_empty() {
                    let left = give_up.saturating_duration_since(Instant::now()).min(self.limits.stall);
                    at_hand = match timeout(left, response.chunk()).await {
                        Ok(Ok(Some(piece))) => piece,
                        Ok(Ok(None)) => return Err(Fault::Passing("the answer is cut short".into())),
                        Ok(Err(e)) => return Err(Fault::Passing(innermost(e.without_url()))),
                        Err(_) => return Err(Fault::Passing("the data stopped coming".into())),
                    };
                }
                // Between frames there may be those of zero chunks, which nobody wants.
                let skip = usize::try_from(frame.offset.saturating_sub(at)).unwrap_or(usize::MAX).min(at_hand.len());
                at_hand.advance(skip);
                let take = at_hand.len().min(frame.len as usize - bytes.len());
                at += skip as u64 + take as u64;
                bytes.extend_from_slice(&at_hand.split_to(take));
            }
            let frame = Frame { index: frame.index, bytes: bytes.freeze() };
            sink.send(frame).await.map_err(|_| Fault::Closed)?;
            *brought += 1;
        }
        Ok(())
    }
}

impl Source for HttpSource {
    fn fetch<'a>(&'a self, wanted: &'a [Wanted], sink: mpsc::Sender<Frame>) -> BoxFuture<'a, Result<()>> {
        async move {
            let ranges = Mutex::new(ranges(wanted, self.limits.range));
            let streams = (0..self.limits.streams.max(1)).map(|_| self.stream(&ranges, &sink));
            try_join_all(streams).await.map(drop)
        }
        .boxed()
    }
}

/// 206 from the right place, or 200 where the range starts at 0 anyway.
fn check_answer(response: &reqwest::Response, offset: u64) -> Result<(), Fault> {
    let status = response.status();
    let starts_at = || {
        let text = response.headers().get(header::CONTENT_RANGE)?.to_str().ok()?;
        text.strip_prefix("bytes ")?.split('-').next()?.parse::<u64>().ok()
    };
    match status {
        StatusCode::PARTIAL_CONTENT if starts_at() == Some(offset) => Ok(()),
        StatusCode::OK if offset == 0 => Ok(()),
        StatusCode::PARTIAL_CONTENT | StatusCode::OK => Err(Fault::Final(
            Error::refused("source.range", "the appliance does not answer range requests for the image")
                .hint("let no proxy stand between agent and appliance"),
        )),
        s if s.is_server_error() || s == StatusCode::TOO_MANY_REQUESTS => {
            Err(Fault::Passing(format!("the appliance answers {s}")))
        }
        s => Err(Fault::Final(
            Error::refused("source.refused", format!("the appliance answers {s} for the image's data"))
                .hint("see `rackline image list` for the images it has"),
        )),
    }
}

/// A gap of this many bytes is cheaper to read over than another request.
const GAP: u64 = 256 << 10;

/// Frames that stand close to each other in the file, up to `longest` bytes together (one frame at least).
fn ranges(wanted: &[Wanted], longest: u64) -> VecDeque<&[Wanted]> {
    let mut bytes = 0;
    wanted
        .chunk_by(|a, b| {
            bytes += u64::from(a.len);
            let near = b.offset.checked_sub(a.offset + u64::from(a.len)).is_some_and(|gap| gap <= GAP);
            let together = near && bytes + u64::from(b.len) <= longest;
            if !together {
                bytes = 0;
            }
            together
        })
        .collect()
}

fn innermost(e: reqwest::Error) -> String {
    let mut innermost: &dyn std::error::Error = &e;
    while let Some(next) = innermost.source() {
        innermost = next;
    }
    innermost.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(offsets: &[(u64, u32)]) -> Vec<Wanted> {
        let frame = |(i, (offset, len)): (usize, &(u64, u32))| Wanted { index: i as u32, offset: *offset, len: *len };
        offsets.iter().enumerate().map(frame).collect()
    }

    #[test]
    fn near_frames_share_a_request() {
        let frames = wanted(&[(0, 10), (10, 10), (30, 10), (40 + GAP + 1, 5), (45 + GAP + 1, 5)]);
        let lens = |longest| ranges(&frames, longest).iter().map(|r| r.len()).collect::<Vec<_>>();
        assert_eq!(lens(1000), [3, 2]);
        assert_eq!(lens(20), [2, 1, 2]);
        assert_eq!(lens(1), [1, 1, 1, 1, 1]);
        assert!(ranges(&[], 10).is_empty());
    }
}

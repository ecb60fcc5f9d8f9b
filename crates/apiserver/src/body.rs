//! The body of an answer: bytes at hand, or a stream of them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::Stream;
use http_body::{Frame, SizeHint};

/// Why a streamed body ended early.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// The body of an answer.
pub struct Body(Inner);

/// What a body is made of.
enum Inner {
    /// All of it; `None` once taken.
    Full(Option<Bytes>),
    /// Chunks as they come.
    Stream(Pin<Box<dyn Stream<Item = Result<Bytes, BodyError>> + Send>>),
}

impl Body {
    /// No bytes.
    pub fn empty() -> Self {
        Self(Inner::Full(None))
    }

    /// These bytes.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self(Inner::Full((!bytes.is_empty()).then_some(bytes)))
    }

    /// The bytes, if they are at hand and there are any.
    pub(crate) fn bytes(&self) -> Option<&Bytes> {
        match &self.0 {
            Inner::Full(bytes) => bytes.as_ref(),
            Inner::Stream(_) => None,
        }
    }

    /// Chunks as they come; each is sent at once.
    pub fn stream(chunks: impl Stream<Item = Result<Bytes, BodyError>> + Send + 'static) -> Self {
        Self(Inner::Stream(Box::pin(chunks)))
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let inner = &mut self.get_mut().0;
        match inner {
            Inner::Full(bytes) => Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            Inner::Stream(stream) => {
                // A body is polled by its connection, which other requests share: a panic must end this one only.
                let polled = catch_unwind(AssertUnwindSafe(|| stream.as_mut().poll_next(cx)));
                match polled {
                    Ok(next) => next.map(|next| next.map(|c| c.map(Frame::data))),
                    Err(_) => {
                        tracing::error!("an answer panicked while it was sent; it ends here");
                        *inner = Inner::Full(None);
                        Poll::Ready(Some(Err("this answer failed in an unexpected way".into())))
                    }
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.0, Inner::Full(None))
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Inner::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Inner::Stream(_) => SizeHint::default(),
        }
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.0 {
            Inner::Full(_) => "Body::Full",
            Inner::Stream(_) => "Body::Stream",
        })
    }
}

impl Default for Body {
    fn default() -> Self {
        Self::empty()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test]
    async fn a_panic_ends_the_answer_and_nothing_else() {
        let mut chunks = 0;
        let body = Body::stream(futures::stream::poll_fn(move |_| {
            chunks += 1;
            assert!(chunks == 1, "poisoned");
            Poll::Ready(Some(Ok(Bytes::from_static(b"one"))))
        }));
        let mut body = Box::pin(body);
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "one");
        assert!(body.frame().await.unwrap().is_err());
        assert!(body.frame().await.is_none());
    }
}

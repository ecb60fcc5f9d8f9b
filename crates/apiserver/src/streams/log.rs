//! `pods/log`: its options as kube-apiserver checks them, and the text as it comes from the node.

use api::status::{FieldError, Status};
use futures::stream;
use http::Response;
use http::header::CONTENT_TYPE;
use jiff::{SignedDuration, Timestamp};
use nodeconn::{ExitStatus, Frame, StreamRequest};

use super::Call;
use crate::body::{Body, BodyError};
use crate::errors::Outcome;

/// Streams the log, or answers 204 where the pod has no node yet.
pub(super) async fn serve(call: &Call<'_>) -> Outcome<Response<Body>> {
    let options = Options::read(call)?;
    let container = call.container()?;
    if call.assigned().is_empty() {
        return Ok(Response::builder().status(204).body(Body::empty()).expect("constant parts"));
    }
    let request = StreamRequest::Log {
        target: call.target(container),
        follow: options.follow,
        previous: options.previous,
        timestamps: options.timestamps,
        since_time: options.since.map(|time| time.to_string()),
        tail_lines: options.tail_lines,
        limit_bytes: options.limit_bytes,
    };
    let node = call.open(request).await?;
    let text = stream::unfold(node, |mut node| async move {
        loop {
            let item: Result<_, BodyError> = match node.rx.recv().await? {
                Frame::Stdout(text) | Frame::Stderr(text) => Ok(text),
                // An end that is no end: the client sees a broken answer, not a short log.
                Frame::Exit(ExitStatus::Error(why)) => Err(why.into()),
                Frame::Exit(ExitStatus::Code(_)) => return None,
                Frame::Stdin(_) | Frame::StdinEof | Frame::Resize { .. } => continue,
            };
            return Some((item, node));
        }
    });
    let answer = Response::builder().header(CONTENT_TYPE, "text/plain");
    Ok(answer.body(Body::stream(text)).expect("constant parts"))
}

/// `PodLogOptions`.
#[derive(Debug, PartialEq)]
struct Options {
    follow: bool,
    previous: bool,
    timestamps: bool,
    since: Option<Timestamp>,
    tail_lines: Option<u64>,
    limit_bytes: Option<u64>,
}

impl Options {
    fn read(call: &Call<'_>) -> Outcome<Self> {
        let query = &call.query;
        let (tail, limit) = (query.number("tailLines")?, query.number("limitBytes")?);
        let since_seconds = query.number("sinceSeconds")?;
        let since_time = match query.text("sinceTime") {
            "" => None,
            text => Some(
                text.parse::<Timestamp>()
                    .map_err(|_| Box::new(Status::bad_request(format!("sinceTime: {text:?} is no RFC 3339 time"))))?,
            ),
        };
        let mut errors = Vec::new();
        if let Some(lines) = tail.filter(|lines| *lines < 0) {
            errors.push(FieldError::invalid("tailLines", lines, "must be greater than or equal to 0"));
        }
        if let Some(bytes) = limit.filter(|bytes| *bytes < 1) {
            errors.push(FieldError::invalid("limitBytes", bytes, "must be greater than 0"));
        }
        match (since_seconds, since_time) {
            (Some(_), Some(_)) => {
                errors
                    .push(FieldError::forbidden("[]", "at most one of `sinceTime` or `sinceSeconds` may be specified"));
            }
            (Some(seconds), None) if seconds < 1 => {
                errors.push(FieldError::invalid("sinceSeconds", seconds, "must be greater than 0"));
            }
            _ => {}
        }
        if !errors.is_empty() {
            return Err(Box::new(Status::invalid("", "PodLogOptions", call.name(), errors)));
        }
        let ago = |seconds| call.now.saturating_sub(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MIN);
        Ok(Self {
            follow: query.flag("follow"),
            previous: query.flag("previous"),
            timestamps: query.flag("timestamps"),
            since: since_time.or(since_seconds.map(ago)),
            tail_lines: tail.and_then(|lines| u64::try_from(lines).ok()),
            limit_bytes: limit.and_then(|bytes| u64::try_from(bytes).ok()),
        })
    }
}

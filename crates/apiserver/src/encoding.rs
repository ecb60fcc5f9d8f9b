//! What becomes of an answer on its way out: compressed if it is large, left out if the client has it already.

use std::io::Write as _;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{
    ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, ETAG, HeaderValue, IF_NONE_MATCH, VARY,
};
use http::request::Parts;
use http::{HeaderMap, Method, Response, StatusCode};

use crate::body::Body;

/// Answers of this size and more are compressed for clients that take it. Below, it costs more than it saves.
const COMPRESSED_FROM: usize = 128 << 10;

/// What the request says about the answer's way.
pub(crate) struct Way {
    gzip: bool,
    reads: bool,
    known: Option<HeaderValue>,
}

impl Way {
    /// From the request.
    pub(crate) fn of(parts: &Parts) -> Self {
        Self {
            gzip: accepts_gzip(&parts.headers),
            reads: parts.method == Method::GET || parts.method == Method::HEAD,
            known: parts.headers.get(IF_NONE_MATCH).cloned(),
        }
    }

    /// Sends the answer on its way.
    pub(crate) async fn finish(&self, mut response: Response<Body>) -> Response<Body> {
        if self.reads && response.status() == StatusCode::OK && self.knows(response.headers()) {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            *response.body_mut() = Body::empty();
            response.headers_mut().remove(CONTENT_TYPE);
            return response;
        }
        if !response.status().is_success() || response.headers().contains_key(CONTENT_ENCODING) {
            return response;
        }
        let Some(bytes) = response.body().bytes().filter(|b| b.len() >= COMPRESSED_FROM).cloned() else {
            return response;
        };
        response.headers_mut().append(VARY, HeaderValue::from_static("Accept-Encoding"));
        if !self.gzip {
            return response;
        }
        // Megabytes take a while: not on the threads that serve others.
        if let Ok(Some(packed)) = tokio::task::spawn_blocking(move || gzip(&bytes)).await {
            response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            response.headers_mut().remove(CONTENT_LENGTH);
            *response.body_mut() = Body::full(packed);
        }
        response
    }

    /// Whether the client has just this answer.
    fn knows(&self, headers: &HeaderMap) -> bool {
        let (Some(known), Some(tag)) = (self.known.as_ref().and_then(|k| k.to_str().ok()), headers.get(ETAG)) else {
            return false;
        };
        let Ok(tag) = tag.to_str() else { return false };
        known.split(',').map(|one| one.trim().trim_start_matches("W/")).any(|one| one == tag || one == "*")
    }
}

/// Whether the client takes gzip.
fn accepts_gzip(headers: &HeaderMap) -> bool {
    let values = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split(',')).any(|one| {
        let mut parts = one.split(';').map(str::trim);
        let named = parts.next().is_some_and(|name| name.eq_ignore_ascii_case("gzip"));
        let refused = parts
            .filter_map(|p| p.strip_prefix("q="))
            .any(|q| q.trim().parse::<f32>().is_ok_and(|quality| quality <= 0.0));
        named && !refused
    })
}

/// Compressed, quickly rather than tightly.
fn gzip(bytes: &Bytes) -> Option<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 4), Compression::fast());
    encoder.write_all(bytes).ok()?;
    encoder.finish().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(headers: &[(&str, &str)]) -> Way {
        let mut request = http::Request::get("/");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Way::of(&request.body(()).unwrap().into_parts().0)
    }

    fn answer(size: usize) -> Response<Body> {
        let mut response = Response::new(Body::full(vec![b'x'; size]));
        response.headers_mut().insert(ETAG, HeaderValue::from_static("\"T\""));
        response
    }

    #[tokio::test]
    async fn large_answers_are_compressed_for_who_takes_it() {
        for (size, accept, packed) in [
            (COMPRESSED_FROM, "gzip", true),
            (COMPRESSED_FROM, "br, GZIP;q=0.5", true),
            (COMPRESSED_FROM - 1, "gzip", false),
            (COMPRESSED_FROM, "gzip;q=0", false),
            (COMPRESSED_FROM, "br", false),
        ] {
            let response = way(&[("accept-encoding", accept)]).finish(answer(size)).await;
            assert_eq!(response.headers().contains_key(CONTENT_ENCODING), packed, "{size} {accept}");
            assert_eq!(response.body().bytes().unwrap().len() < 10_000, packed);
        }
    }

    #[tokio::test]
    async fn what_the_client_has_is_not_sent_again() {
        for (known, code) in [("\"T\"", 304), ("W/\"T\"", 304), ("\"a\", \"T\"", 304), ("*", 304), ("\"a\"", 200)] {
            let response = way(&[("if-none-match", known)]).finish(answer(10)).await;
            assert_eq!(response.status().as_u16(), code, "{known}");
            assert_eq!(response.body().bytes().is_none(), code == 304);
        }
    }
}

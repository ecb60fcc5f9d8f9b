//! Asking one registry: who we are, where it sends us, and once more where it did not work.

use std::io::{self, Write as _};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ambient::Ambient;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::header::{
    ACCEPT, AUTHORIZATION, CONTENT_RANGE, HOST, LOCATION, RANGE, RETRY_AFTER, USER_AGENT, WWW_AUTHENTICATE,
};
use hyper::{Request, Response, StatusCode, Uri};
use serde::Deserialize;

use super::auth::{Challenge, Credentials};
use super::error::ClientError;
use super::settings::Endpoint;
use super::wire;
use crate::digest::{Digest, Hashing};
use crate::manifest::{DOCKER_INDEX, DOCKER_MANIFEST, Descriptor, MAX_MANIFEST, OCI_INDEX, OCI_MANIFEST};

/// How often something is tried that may work the next time, without anything having arrived in between.
const TRIES: u32 = 5;
/// How often a download is taken up in all.
const RESUMES: u32 = 50;
/// First pause between tries; it doubles.
const PAUSE: Duration = Duration::from_millis(200);
/// Longest pause that a registry may ask for.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// How long a download may stand still.
const STALL_LIMIT: Duration = Duration::from_secs(30);
/// How often a registry may send us elsewhere.
const REDIRECTS: usize = 5;
/// Longest token answer, or message of an error.
const MAX_TEXT: u64 = 1 << 20;

/// A client of one endpoint, with one set of credentials.
pub struct Client {
    endpoint: Endpoint,
    /// The repository there.
    path: String,
    credentials: Option<Credentials>,
    tls: Arc<rustls::ClientConfig>,
    ambient: Ambient,
    /// What was accepted last.
    authorization: Mutex<Option<String>>,
}

/// A document, and what it is called by.
#[derive(Debug)]
pub struct Fetched {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Their digest.
    pub digest: Digest,
}

#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
}

impl Client {
    /// For a repository.
    pub fn new(
        endpoint: Endpoint,
        repository: &str,
        credentials: Option<Credentials>,
        ambient: Ambient,
    ) -> Result<Self, ClientError> {
        let tls = wire::tls(&endpoint.registry).map_err(|source| ClientError::Settings { source })?;
        let path = format!("{}{repository}", endpoint.prefix);
        Ok(Self { endpoint, path, credentials, tls, ambient, authorization: Mutex::default() })
    }

    /// A manifest or index, by tag or digest.
    pub async fn manifest(&self, version: &str) -> Result<Fetched, ClientError> {
        let url = self.url("manifests", version);
        let accept = [OCI_INDEX, DOCKER_INDEX, OCI_MANIFEST, DOCKER_MANIFEST].join(", ");
        let bytes = self.document(&url, &accept, MAX_MANIFEST).await?;
        Ok(Fetched { digest: Digest::of(&bytes), bytes })
    }

    /// A manifest, index or configuration that is known by its descriptor.
    pub async fn known(&self, kind: &str, descriptor: &Descriptor, max: u64) -> Result<Vec<u8>, ClientError> {
        if descriptor.size > max {
            return Err(ClientError::TooLong { url: self.url(kind, &descriptor.digest.to_string()), max });
        }
        let url = self.url(kind, &descriptor.digest.to_string());
        let accept = if kind == "blobs" { "*/*" } else { descriptor.media_type.as_str() };
        let bytes = self.document(&url, accept, descriptor.size).await?;
        let found = Digest::of(&bytes);
        if found != descriptor.digest {
            return Err(ClientError::Digest { wanted: descriptor.digest, found });
        }
        Ok(bytes)
    }

    /// Downloads a blob to a file, which is taken up where an earlier try ended; verified when this returns.
    pub async fn blob(
        &self,
        descriptor: &Descriptor,
        file: &Path,
        arrived: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), ClientError> {
        let (mut failures, mut resumes) = (0, 0);
        loop {
            let before = length(file)?;
            let result = match before {
                before if before == descriptor.size => match verify(descriptor, file).await {
                    // What was there before may have been spoilt by a crash: once more from the start.
                    Err(ClientError::Digest { .. }) if resumes == 0 && before > 0 => Ok(()),
                    result => return result,
                },
                _ => self.download(descriptor, file, arrived).await,
            };
            resumes += 1;
            let Err(error) = result else {
                // Whatever came is now as long as it should be.
                continue;
            };
            failures = if length(file)? > before { 0 } else { failures + 1 };
            if !error.may_work_later() || failures >= TRIES || resumes > RESUMES {
                return Err(error);
            }
            tracing::debug!(digest = %descriptor.digest, %error, "a download was cut off; taking it up again");
            self.pause(failures, &error).await;
        }
    }

    /// One try: what is missing of the file is added.
    async fn download(
        &self,
        descriptor: &Descriptor,
        path: &Path,
        arrived: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), ClientError> {
        let url = self.url("blobs", &descriptor.digest.to_string());
        let have = length(path)?;
        let response = self.request(&url, "*/*", have).await?;
        let resumed = response.status() == StatusCode::PARTIAL_CONTENT && starts_at(&response, have);
        let unwanted = response.status() == StatusCode::PARTIAL_CONTENT && !resumed;
        if unwanted || response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            // It has other bytes than we believed.
            truncate(path)?;
            return Err(ClientError::Cut { url, source: io::Error::other("the registry does not take it up there") });
        }
        let response = self.expect_success(&url, response).await?;
        if !resumed {
            truncate(path)?;
        }
        let mut at = if resumed { have } else { 0 };
        let cut = |source| ClientError::Cut { url: url.clone(), source };
        let mut file =
            std::fs::File::options().append(true).create(true).open(path).map_err(ClientError::disk(path))?;
        let mut body = response.into_body();
        loop {
            let frame = tokio::time::timeout(STALL_LIMIT, body.frame()).await;
            let frame = frame.map_err(|_| cut(io::Error::new(io::ErrorKind::TimedOut, "nothing arrives any more")))?;
            let Some(frame) = frame else { break };
            let Ok(data) = frame.map_err(|e| cut(io::Error::other(e)))?.into_data() else { continue };
            at += data.len() as u64;
            if at > descriptor.size {
                truncate(path)?;
                return Err(ClientError::Size { digest: descriptor.digest, wanted: descriptor.size });
            }
            file.write_all(&data).map_err(ClientError::disk(path))?;
            arrived(at);
        }
        if at < descriptor.size {
            return Err(cut(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("{at} of {} bytes arrived", descriptor.size),
            )));
        }
        Ok(())
    }

    /// A document as a whole, tried several times.
    async fn document(&self, url: &str, accept: &str, max: u64) -> Result<Vec<u8>, ClientError> {
        let mut failures = 0;
        loop {
            let error = match self.document_once(url, accept, max).await {
                Ok(bytes) => return Ok(bytes),
                Err(error) => error,
            };
            failures += 1;
            if !error.may_work_later() || failures >= TRIES {
                return Err(error);
            }
            self.pause(failures, &error).await;
        }
    }

    async fn document_once(&self, url: &str, accept: &str, max: u64) -> Result<Vec<u8>, ClientError> {
        let response = self.request(url, accept, 0).await?;
        let response = self.expect_success(url, response).await?;
        read(response, max, url).await
    }

    /// Sends a request as whoever we are, and follows where it leads.
    async fn request(&self, url: &str, accept: &str, from: u64) -> Result<Response<Incoming>, ClientError> {
        let known = self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let first = self.follow(url, accept, from, known.as_deref()).await?;
        if first.status() != StatusCode::UNAUTHORIZED {
            return Ok(first);
        }
        let challenges = first.headers().get_all(WWW_AUTHENTICATE).iter().filter_map(|h| h.to_str().ok());
        let Some(challenge) = challenges.into_iter().find_map(Challenge::parse) else { return Ok(first) };
        let authorization = match challenge {
            Challenge::Basic => self.credentials.as_ref().map(Credentials::basic),
            Challenge::Bearer { realm, service, scope } => Some(self.token(&realm, service, scope).await?),
        };
        let Some(authorization) = authorization.filter(|a| Some(a) != known.as_ref()) else { return Ok(first) };
        *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = Some(authorization.clone());
        self.follow(url, accept, from, Some(&authorization)).await
    }

    /// A token of the server that the registry named.
    async fn token(&self, realm: &str, service: Option<String>, scope: Option<String>) -> Result<String, ClientError> {
        let scope = scope.unwrap_or_else(|| format!("repository:{}:pull", self.path));
        let mut url = realm.to_owned();
        let parameters = service.iter().map(|s| ("service", s)).chain([("scope", &scope)]);
        for (name, value) in parameters {
            url.push(if url.contains('?') { '&' } else { '?' });
            url.push_str(&format!("{name}={}", escaped(value)));
        }
        let basic = self.credentials.as_ref().map(Credentials::basic);
        let response = self.follow(&url, "application/json", 0, basic.as_deref()).await?;
        let response = self.expect_success(&url, response).await?;
        let text = read(response, MAX_TEXT, &url).await?;
        let answer: Option<TokenAnswer> = serde_json::from_slice(&text).ok();
        let token = answer.and_then(|a| a.token.or(a.access_token)).filter(|t| !t.is_empty());
        token.map(|t| format!("Bearer {t}")).ok_or(ClientError::Token { realm: realm.to_owned() })
    }

    /// Sends a request, and again to wherever a redirect leads; elsewhere without telling who we are.
    async fn follow(
        &self,
        url: &str,
        accept: &str,
        from: u64,
        authorization: Option<&str>,
    ) -> Result<Response<Incoming>, ClientError> {
        let mut url: Uri = url.parse().map_err(|_| ClientError::Url(url.to_owned()))?;
        let mut authorization = authorization;
        for _ in 0..=REDIRECTS {
            let response = self.send(&url, accept, from, authorization).await?;
            let location = response.headers().get(LOCATION).and_then(|l| l.to_str().ok());
            let (true, Some(location)) = (response.status().is_redirection(), location) else { return Ok(response) };
            let next = absolute(&url, location).ok_or_else(|| ClientError::Url(location.to_owned()))?;
            if next.authority() != url.authority() || next.scheme() != url.scheme() {
                authorization = None;
            }
            url = next;
        }
        Err(ClientError::Redirects { url: url.to_string() })
    }

    async fn send(
        &self,
        url: &Uri,
        accept: &str,
        from: u64,
        authorization: Option<&str>,
    ) -> Result<Response<Incoming>, ClientError> {
        let unusable = || ClientError::Url(url.to_string());
        let secure = match url.scheme_str() {
            Some("https") => true,
            Some("http") if self.endpoint.registry.plain_http => false,
            Some("http") => return Err(ClientError::Insecure { url: url.to_string() }),
            _ => return Err(unusable()),
        };
        let authority = url.authority().ok_or_else(unusable)?;
        let path = url.path_and_query().map_or("/", |p| p.as_str());
        let mut request = Request::get(path)
            .header(HOST, authority.as_str())
            .header(ACCEPT, accept)
            .header(USER_AGENT, concat!("statefuld/", env!("CARGO_PKG_VERSION")));
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        if from > 0 {
            request = request.header(RANGE, format!("bytes={from}-"));
        }
        let request = request.body(Empty::<Bytes>::new()).map_err(|_| unusable())?;
        let sent = wire::send(secure, authority, request, &self.tls, &self.ambient).await;
        sent.map_err(|source| ClientError::Connection { url: url.to_string(), source })
    }

    async fn expect_success(&self, url: &str, response: Response<Incoming>) -> Result<Response<Incoming>, ClientError> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let after = response.headers().get(RETRY_AFTER).and_then(|h| h.to_str().ok()?.parse().ok());
        let text = read(response, MAX_TEXT, url).await.unwrap_or_default();
        Err(ClientError::Status {
            url: url.to_owned(),
            status,
            message: message_of(&text),
            after: after.map(Duration::from_secs),
        })
    }

    async fn pause(&self, failures: u32, error: &ClientError) {
        let own = PAUSE.saturating_mul(1 << failures.min(10));
        let asked = match error {
            ClientError::Status { after: Some(after), .. } => *after,
            _ => Duration::ZERO,
        };
        tokio::time::sleep(self.ambient.jitter(own.max(asked).min(PAUSE_MAX), 0.2)).await;
    }

    fn url(&self, kind: &str, version: &str) -> String {
        let scheme = if self.endpoint.registry.plain_http { "http" } else { "https" };
        format!("{scheme}://{}/v2/{}/{kind}/{version}", self.endpoint.host, self.path)
    }
}

/// The first message of a registry's error document.
fn message_of(text: &[u8]) -> String {
    let document: serde_json::Value = serde_json::from_slice(text).unwrap_or_default();
    let first = &document["errors"][0];
    let text = [&first["code"], &first["message"]].map(|v| v.as_str().unwrap_or_default().to_owned());
    text.iter().filter(|t| !t.is_empty()).map(|t| t.chars().take(300).collect()).collect::<Vec<String>>().join(": ")
}

/// Where a redirect leads, from where it was given.
fn absolute(base: &Uri, location: &str) -> Option<Uri> {
    if location.starts_with('/') && !location.starts_with("//") {
        return format!("{}://{}{location}", base.scheme_str()?, base.authority()?).parse().ok();
    }
    location.parse::<Uri>().ok().filter(|uri| uri.scheme().is_some() && uri.authority().is_some())
}

/// As part of a query.
fn escaped(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'~' | b'/' | b':');
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

fn starts_at(response: &Response<Incoming>, at: u64) -> bool {
    let range = response.headers().get(CONTENT_RANGE).and_then(|h| h.to_str().ok());
    range.and_then(|r| r.strip_prefix("bytes ")?.split('-').next()?.parse().ok()) == Some(at)
}

async fn read(response: Response<Incoming>, max: u64, url: &str) -> Result<Vec<u8>, ClientError> {
    let mut body = response.into_body();
    let mut bytes = Vec::new();
    let cut = |source| ClientError::Cut { url: url.to_owned(), source };
    loop {
        let frame = tokio::time::timeout(STALL_LIMIT, body.frame()).await;
        let frame = frame.map_err(|_| cut(io::Error::new(io::ErrorKind::TimedOut, "nothing arrives any more")))?;
        let Some(frame) = frame else { return Ok(bytes) };
        if let Ok(data) = frame.map_err(|e| cut(io::Error::other(e)))?.into_data() {
            if (bytes.len() + data.len()) as u64 > max {
                return Err(ClientError::TooLong { url: url.to_owned(), max });
            }
            bytes.extend_from_slice(&data);
        }
    }
}

fn length(path: &Path) -> Result<u64, ClientError> {
    match std::fs::metadata(path) {
        Ok(meta) => Ok(meta.len()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(ClientError::disk(path)(error)),
    }
}

fn truncate(path: &Path) -> Result<(), ClientError> {
    std::fs::File::create(path).map(drop).map_err(ClientError::disk(path))
}

/// Looks whether what arrived is what was asked for; otherwise nothing of it is kept.
async fn verify(descriptor: &Descriptor, path: &Path) -> Result<(), ClientError> {
    let file = path.to_owned();
    let job = move || {
        let mut hashing = Hashing::new(std::fs::File::open(&file)?);
        io::copy(&mut hashing, &mut io::sink())?;
        Ok::<_, io::Error>(hashing.finish().0)
    };
    let found = tokio::task::spawn_blocking(job).await.expect("hashing does not panic");
    let found = found.map_err(ClientError::disk(path))?;
    if found == descriptor.digest {
        return Ok(());
    }
    truncate(path)?;
    Err(ClientError::Digest { wanted: descriptor.digest, found })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_lead_from_where_they_are_given() {
        let base: Uri = "https://registry.test:5000/v2/a/blobs/x".parse().expect("a URL");
        let to = |location: &str| absolute(&base, location).map(|u| u.to_string());
        assert_eq!(to("/cdn/x?y=z").as_deref(), Some("https://registry.test:5000/cdn/x?y=z"));
        assert_eq!(to("http://other.test/x").as_deref(), Some("http://other.test/x"));
        assert_eq!(to("//other.test/x"), None);
        assert_eq!(to("relative"), None);
        assert_eq!(escaped("repository:a/b:pull,push &x"), "repository:a/b:pull%2Cpush%20%26x");
    }

    #[test]
    fn a_registrys_words_are_taken_from_its_document() {
        let text = br#"{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}"#;
        assert_eq!(message_of(text), "MANIFEST_UNKNOWN: manifest unknown");
        assert_eq!(message_of(b"<html>"), "");
    }
}

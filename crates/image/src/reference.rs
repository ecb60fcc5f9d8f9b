//! Names of images, as people write them and as registries are asked for them.
//!
//! The grammar and what a short name stands for are those of distribution's `reference` package
//! (<https://github.com/distribution/reference>): `nginx` is `docker.io/library/nginx:latest`.

use std::fmt;

use crate::digest::{Digest, DigestError};

/// The registry of names that have none.
const DEFAULT_DOMAIN: &str = "docker.io";
/// An older name of it.
const LEGACY_DOMAIN: &str = "index.docker.io";
/// Where that registry keeps names without an owner.
const OFFICIAL: &str = "library";
/// The tag of names that have neither tag nor digest.
const DEFAULT_TAG: &str = "latest";
/// Longest name of a repository, its registry included.
const MAX_NAME: usize = 255;
/// Longest tag.
const MAX_TAG: usize = 128;

/// A whole name: registry, repository, and a tag or a digest or both.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Reads a name as people write it.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        if text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(ReferenceError::Identifier(text.to_owned()));
        }
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => (text, None),
        };
        // A colon after the last slash parts a tag; one before it, a port.
        let after_slash = name.rfind('/').map_or(0, |at| at + 1);
        let (name, tag) = match name[after_slash..].find(':') {
            Some(at) => (&name[..after_slash + at], Some(&name[after_slash + at + 1..])),
            None => (name, None),
        };
        let (domain, path) = split_domain(name);
        if path.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(ReferenceError::Uppercase);
        }
        if !is_domain(&domain) || !is_path(&path) || tag.is_some_and(|t| !is_tag(t)) {
            return Err(ReferenceError::Format);
        }
        if domain.len() + 1 + path.len() > MAX_NAME {
            return Err(ReferenceError::TooLong);
        }
        let digest = digest.map(str::parse).transpose().map_err(|error| match error {
            DigestError::Malformed(_) => ReferenceError::Format,
            DigestError::Algorithm(_) => ReferenceError::Digest(error),
        })?;
        let tag = tag.or(digest.is_none().then_some(DEFAULT_TAG)).map(str::to_owned);
        Ok(Self { domain, path, tag, digest })
    }

    /// The registry, with its port where it has one.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository's path within its registry.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Registry and repository.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// The tag.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// What a registry is asked for: the digest where there is one, else the tag.
    pub fn version(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => DEFAULT_TAG.to_owned(),
        }
    }

    /// The same repository by digest alone.
    pub fn by_digest(&self, digest: Digest) -> Self {
        Self { tag: None, digest: Some(digest), ..self.clone() }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.domain, self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// What comes before the first slash is a registry only where it looks like one.
fn split_domain(name: &str) -> (String, String) {
    let looks_like_one = |first: &str| {
        first.contains(['.', ':']) || first == "localhost" || first.bytes().any(|b| b.is_ascii_uppercase())
    };
    let (domain, path) = match name.split_once('/') {
        Some((first, rest)) if looks_like_one(first) => (first, rest),
        _ => (DEFAULT_DOMAIN, name),
    };
    let domain = if domain == LEGACY_DOMAIN { DEFAULT_DOMAIN } else { domain };
    if domain == DEFAULT_DOMAIN && !path.contains('/') {
        return (domain.to_owned(), format!("{OFFICIAL}/{path}"));
    }
    (domain.to_owned(), path.to_owned())
}

/// Host names of letters, digits and inner dashes, or an IPv6 address in brackets; then a port, perhaps.
fn is_domain(domain: &str) -> bool {
    let (host, port) = match domain.strip_prefix('[') {
        Some(rest) => {
            let Some((address, after)) = rest.split_once(']') else { return false };
            if address.is_empty() || !address.bytes().all(|b| b.is_ascii_hexdigit() || b == b':') {
                return false;
            }
            match after.strip_prefix(':') {
                Some(port) => (None, Some(port)),
                None if after.is_empty() => (None, None),
                None => return false,
            }
        }
        None => match domain.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(domain), None),
        },
    };
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    host.is_none_or(|host| host.split('.').all(label))
        && port.is_none_or(|port| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()))
}

fn is_path(path: &str) -> bool {
    path.split('/').all(is_path_component)
}

/// Lower-case letters and digits, with separators between: one dot, one or two underscores, or dashes.
fn is_path_component(component: &str) -> bool {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    if !word(*first) || !word(*last) {
        return false;
    }
    let separators = bytes.split(|b| word(*b)).filter(|s| !s.is_empty());
    separators.into_iter().all(|s| matches!(s, b"." | b"_" | b"__") || s.iter().all(|b| *b == b'-'))
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= MAX_TAG
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

/// A text that is no name of an image; in the words of distribution's package, which users know from the kubelet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// It does not follow the grammar.
    #[error("invalid reference format")]
    Format,
    /// Capital letters outside of the registry's name.
    #[error("invalid reference format: repository name must be lowercase")]
    Uppercase,
    /// It is an image's identity, which no registry is asked for.
    #[error("invalid repository name ({0}), cannot specify 64-byte hexadecimal strings")]
    Identifier(String),
    /// Longer than registries take.
    #[error("repository name must not be more than {MAX_NAME} characters")]
    TooLong,
    /// Its digest is of a kind that is not understood.
    #[error("{0}")]
    Digest(DigestError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_stand_for_whole_ones() {
        let digest = Digest::of(b"x");
        for (text, whole) in [
            ("nginx", "docker.io/library/nginx:latest"),
            ("nginx:1.25", "docker.io/library/nginx:1.25"),
            ("bitnami/redis", "docker.io/bitnami/redis:latest"),
            ("docker.io/nginx", "docker.io/library/nginx:latest"),
            ("index.docker.io/library/nginx", "docker.io/library/nginx:latest"),
            ("localhost/x", "localhost/x:latest"),
            ("localhost:5000/a/b:v1", "localhost:5000/a/b:v1"),
            ("registry.k8s.io/etcd:3.5.1-0", "registry.k8s.io/etcd:3.5.1-0"),
            ("[::1]:5000/x", "[::1]:5000/x:latest"),
            ("MyHost/x", "MyHost/x:latest"),
            ("a__b/c-d---e.f", "docker.io/a__b/c-d---e.f:latest"),
        ] {
            assert_eq!(Reference::parse(text).expect(text).to_string(), whole);
            assert_eq!(Reference::parse(whole).expect(whole).to_string(), whole);
        }
        let both = format!("nginx:1.25@{digest}");
        let parsed = Reference::parse(&both).expect("a name");
        assert_eq!(parsed.to_string(), format!("docker.io/library/{both}"));
        assert_eq!(parsed.version(), digest.to_string());
        assert_eq!(Reference::parse(&format!("nginx@{digest}")).expect("a name").tag(), None);
    }

    #[test]
    fn what_is_no_name_is_refused_in_the_words_that_users_know() {
        let hex = "a".repeat(64);
        for (text, why) in [
            ("", "invalid reference format"),
            ("Nginx", "invalid reference format: repository name must be lowercase"),
            ("nginx:", "invalid reference format"),
            ("nginx:-x", "invalid reference format"),
            ("a//b", "invalid reference format"),
            ("a..b", "invalid reference format"),
            ("a/../b", "invalid reference format"),
            ("-a", "invalid reference format"),
            ("a:b:c", "invalid reference format"),
            ("nginx@sha256:12", "invalid reference format"),
            ("host:port/x", "invalid reference format"),
            ("a b", "invalid reference format"),
            ("nginx\n", "invalid reference format"),
        ] {
            assert_eq!(Reference::parse(text).expect_err(text).to_string(), why, "{text:?}");
        }
        assert!(matches!(Reference::parse(&hex), Err(ReferenceError::Identifier(_))));
        assert_eq!(Reference::parse(&format!("a/{}", "b".repeat(300))), Err(ReferenceError::TooLong));
        assert!(Reference::parse(&format!("a:{}", "b".repeat(129))).is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic_and_what_is_read_is_written_the_same(text in "[a-zA-Z0-9:/@._\\[\\]-]{0,40}") {
            if let Ok(reference) = Reference::parse(&text) {
                let written = reference.to_string();
                proptest::prop_assert_eq!(Reference::parse(&written), Ok(reference));
            }
        }
    }
}

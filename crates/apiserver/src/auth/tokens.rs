//! Bearer tokens.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::Identity;
use super::service_account::ISSUER;

/// Says whose token it is.
pub trait TokenAuthenticator: Send + Sync + 'static {
    /// The identity behind the token, and for which of these audiences it is good; `None` where it is not known, no
    /// longer good, or good for none of them.
    fn review(&self, token: &str, audiences: &[String]) -> Option<Authenticated>;

    /// The identity behind a token for this server.
    fn authenticate(&self, token: &str) -> Option<Identity> {
        self.review(token, &[ISSUER.to_owned()]).map(|authenticated| authenticated.identity)
    }
}

/// Whose token it is, and whom it is meant for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authenticated {
    /// Who.
    pub identity: Identity,
    /// Those of the audiences asked about that it is good for.
    pub audiences: Vec<String>,
}

impl Authenticated {
    /// For tokens that say nothing of audiences: they are for this server; `None` where only others are asked about.
    pub(crate) fn for_this_server(identity: Identity, audiences: &[String]) -> Option<Self> {
        let audiences: Vec<String> = audiences.iter().filter(|audience| *audience == ISSUER).cloned().collect();
        (!audiences.is_empty()).then_some(Self { identity, audiences })
    }
}

/// Tokens that are given at start and never expire.
///
/// Only digests are kept: looking one up takes the same time however much of a guess is right.
#[derive(Clone, Default)]
pub struct StaticTokens {
    by_digest: HashMap<[u8; 32], Identity>,
}

impl StaticTokens {
    /// No tokens.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a token.
    pub fn insert(&mut self, token: &str, identity: Identity) {
        self.by_digest.insert(digest(token), identity);
    }

    /// Reads kube-apiserver's token file: lines of `token,user,uid` and optionally `,"group1,group2"`.
    pub fn parse(text: &str) -> Result<Self, TokenFileError> {
        let mut tokens = Self::default();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let fields = fields(line);
            let [token, user, uid, rest @ ..] = fields.as_slice() else {
                return Err(TokenFileError { line: index + 1 });
            };
            if token.is_empty() || user.is_empty() {
                return Err(TokenFileError { line: index + 1 });
            }
            let groups: Vec<&str> = rest
                .first()
                .map(|groups| groups.split(',').map(str::trim).filter(|g| !g.is_empty()).collect())
                .unwrap_or_default();
            tokens.insert(token, Identity { uid: uid.clone(), ..Identity::user(user.as_str(), &groups) });
        }
        Ok(tokens)
    }
}

impl TokenAuthenticator for StaticTokens {
    fn review(&self, token: &str, audiences: &[String]) -> Option<Authenticated> {
        let identity = self.by_digest.get(&digest(token)).cloned()?;
        Authenticated::for_this_server(identity, audiences)
    }
}

impl fmt::Debug for StaticTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StaticTokens({})", self.by_digest.len())
    }
}

/// Several authenticators, asked in order.
pub struct Tokens(pub Vec<Arc<dyn TokenAuthenticator>>);

impl TokenAuthenticator for Tokens {
    fn review(&self, token: &str, audiences: &[String]) -> Option<Authenticated> {
        self.0.iter().find_map(|member| member.review(token, audiences))
    }
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

/// The comma separated fields of a line; double quotes keep commas inside a field.
fn fields(line: &str) -> Vec<String> {
    let mut out = vec![String::new()];
    let mut inside = false;
    for c in line.chars() {
        match c {
            '"' => inside = !inside,
            ',' if !inside => out.push(String::new()),
            _ => out.last_mut().expect("begins with one").push(c),
        }
    }
    out.iter().map(|field| field.trim().to_owned()).collect()
}

/// A line of the token file that is none. Write `token,user,uid` and optionally `,"group1,group2"`.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: expected token,user,uid and optionally \"group1,group2\"")]
pub struct TokenFileError {
    /// Counted from 1.
    pub line: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_file_names_users_and_their_groups() {
        let tokens = StaticTokens::parse("# ours\nabc,ann,u1\nxyz,root,u2,\"system:masters, crew\"\n").unwrap();
        assert_eq!(tokens.authenticate("abc").unwrap().user, "ann");
        let root = tokens.authenticate("xyz").unwrap();
        assert_eq!(root.groups, ["system:masters", "crew", "system:authenticated"]);
        assert_eq!(root.uid, "u2");
        assert_eq!(tokens.authenticate("ab"), None);
        assert_eq!(tokens.authenticate(""), None);
        assert_eq!(tokens.review("abc", &["elsewhere".to_owned()]), None);
    }

    #[test]
    fn a_bad_line_is_named() {
        assert_eq!(StaticTokens::parse("abc,ann,1\nabc\n").unwrap_err(), TokenFileError { line: 2 });
        assert_eq!(StaticTokens::parse(",ann,1\n").unwrap_err(), TokenFileError { line: 1 });
    }

    #[test]
    fn secrets_are_not_printed() {
        let tokens = StaticTokens::parse("hunter2,ann,1").unwrap();
        assert!(!format!("{tokens:?}").contains("hunter2"));
    }
}

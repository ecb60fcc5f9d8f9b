//! Sign-in of browsers, which have no kubeconfig: for a while they act as somebody who has one.
//!
//! ```text
//!  a client with credentials ── POST tickets ──▶ ticket ──▶ in the fragment of the page's address
//!  the page                  ── POST sessions ─▶ token  ──▶ in the memory of one tab, sent as bearer token
//! ```
//!
//! A ticket is good once and for a short while, so it does no harm where addresses are kept (histories, terminals). Token and
//! ticket stand for exactly the user and groups that asked. Only digests are kept, in memory: a restart ends all.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ambient::Ambient;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::{SignedDuration, Timestamp};
use sha2::{Digest as _, Sha256};

use super::Identity;
use super::tokens::{Authenticated, TokenAuthenticator};

/// How long a ticket is good.
const TICKET: Duration = Duration::from_secs(5 * 60);
/// How long a session lasts.
const SESSION: Duration = Duration::from_secs(12 * 3600);
/// Tickets and sessions of one user; one more ends the oldest.
const OF_ONE: usize = 20;
/// Tickets and sessions of all.
const OF_ALL: usize = 2000;
/// What an identity carries that comes from a session: the session's id.
const MARK: &str = "statefuld.io/session";

/// What a secret is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Ticket,
    Session,
}

/// What is known of a secret.
struct Entry {
    kind: Kind,
    identity: Identity,
    /// How many were given before it.
    number: u64,
    /// On the clock that counts suspend.
    ends: Duration,
}

/// Everybody who is signed in, or about to.
pub struct Sessions {
    ambient: Ambient,
    given: AtomicU64,
    by_digest: Mutex<HashMap<[u8; 32], Entry>>,
}

/// A secret, and what it is good for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// To be shown to nobody else.
    pub secret: String,
    /// Who acts with it.
    pub user: String,
    /// When it ends.
    pub ends: Timestamp,
}

impl Sessions {
    /// Nobody is signed in.
    pub fn new(ambient: Ambient) -> Self {
        Self { ambient, given: AtomicU64::new(0), by_digest: Mutex::default() }
    }

    /// A ticket for whoever has credentials of their own.
    pub fn ticket(&self, identity: &Identity) -> Result<Granted, SessionError> {
        let unfit = if identity.extra.contains_key(MARK) {
            Some("a session begins with credentials, not with another session")
        } else if identity.user.starts_with("system:serviceaccount:") {
            Some("a service account has tokens of its own: `kubectl create token` makes one that the page takes")
        } else if identity.user.starts_with("system:node:") || identity.groups.iter().any(|g| g == "system:nodes") {
            Some("a node signs in nowhere")
        } else if !identity.groups.iter().any(|g| g == "system:authenticated") {
            Some("nobody in particular cannot sign in")
        } else {
            None
        };
        match unfit {
            Some(why) => Err(SessionError::Unfit(why)),
            None => self.grant(Kind::Ticket, identity.clone()),
        }
    }

    /// A session for a ticket, which is used up. `None` where it is not good.
    pub fn begin(&self, ticket: &str) -> Option<Result<Granted, SessionError>> {
        let digest = digest(ticket);
        let mut identity = {
            let mut entries = self.lock();
            entries.get(&digest).filter(|entry| entry.kind == Kind::Ticket)?;
            entries.remove(&digest)?.identity
        };
        identity.extra.insert(MARK.to_owned(), vec![self.ambient.uid()]);
        Some(self.grant(Kind::Session, identity))
    }

    /// Ends the session that the identity comes from; whether there was one.
    pub fn end(&self, identity: &Identity) -> bool {
        let Some(mark) = identity.extra.get(MARK) else { return false };
        let mut entries = self.lock();
        let before = entries.len();
        entries.retain(|_, entry| entry.identity.extra.get(MARK) != Some(mark));
        entries.len() < before
    }

    fn grant(&self, kind: Kind, identity: Identity) -> Result<Granted, SessionError> {
        let lasts = if kind == Kind::Ticket { TICKET } else { SESSION };
        let mut bytes = [0; 32];
        self.ambient.fill(&mut bytes);
        let secret = URL_SAFE_NO_PAD.encode(bytes);
        let user = identity.user.clone();
        let ends = self.ambient.boottime() + lasts;
        let mut entries = self.lock();
        let same = |entry: &Entry| entry.kind == kind && entry.identity.user == user;
        if entries.values().filter(|entry| same(entry)).count() >= OF_ONE {
            let own = entries.iter().filter(|(_, entry)| same(entry));
            let oldest = own.min_by_key(|(_, entry)| entry.number).map(|(digest, _)| *digest);
            oldest.map(|digest| entries.remove(&digest));
        }
        if entries.len() >= OF_ALL {
            return Err(SessionError::TooMany);
        }
        let number = self.given.fetch_add(1, Ordering::Relaxed);
        entries.insert(digest(&secret), Entry { kind, identity, number, ends });
        let ends = self.ambient.now() + SignedDuration::try_from(lasts).unwrap_or(SignedDuration::ZERO);
        Ok(Granted { secret, user, ends })
    }

    /// What is known, without what has ended.
    fn lock(&self) -> MutexGuard<'_, HashMap<[u8; 32], Entry>> {
        let mut entries = self.by_digest.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.ambient.boottime();
        entries.retain(|_, entry| entry.ends > now);
        entries
    }
}

impl TokenAuthenticator for Sessions {
    fn review(&self, token: &str, audiences: &[String]) -> Option<Authenticated> {
        let entries = self.lock();
        let entry = entries.get(&digest(token)).filter(|entry| entry.kind == Kind::Session)?;
        Authenticated::for_this_server(entry.identity.clone(), audiences)
    }
}

fn digest(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

/// Why nobody is signed in.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// Not everybody may: use what the sentence names.
    #[error("{0}")]
    Unfit(&'static str),
    /// Too many are signed in: try again when some have ended.
    #[error("too many are signed in; try again later")]
    TooMany,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sessions() -> (Sessions, std::sync::Arc<ambient::ManualClock>) {
        let (ambient, clock) = Ambient::manual("2026-01-01T00:00:00Z".parse().unwrap(), 1);
        (Sessions::new(ambient), clock)
    }

    fn ann() -> Identity {
        Identity::user("ann", &["crew"])
    }

    #[test]
    fn a_ticket_is_good_once_and_its_session_stands_for_who_asked() {
        let (sessions, _) = sessions();
        let ticket = sessions.ticket(&ann()).unwrap();
        assert_eq!(sessions.authenticate(&ticket.secret), None, "a ticket is no token");
        let session = sessions.begin(&ticket.secret).unwrap().unwrap();
        assert!(sessions.begin(&ticket.secret).is_none(), "used up");
        assert!(sessions.begin(&session.secret).is_none(), "a token is no ticket");
        let identity = sessions.authenticate(&session.secret).unwrap();
        assert_eq!((&identity.user, &identity.groups), (&ann().user, &ann().groups));
        assert!(matches!(sessions.ticket(&identity), Err(SessionError::Unfit(_))), "no session out of a session");
        assert!(sessions.end(&identity));
        assert_eq!(sessions.authenticate(&session.secret), None);
        assert!(!sessions.end(&ann()));
    }

    #[test]
    fn tickets_and_sessions_end_with_their_time() {
        let (sessions, clock) = sessions();
        let (late, used) = (sessions.ticket(&ann()).unwrap(), sessions.ticket(&ann()).unwrap());
        let session = sessions.begin(&used.secret).unwrap().unwrap();
        assert_eq!(session.ends.to_string(), "2026-01-01T12:00:00Z");
        clock.advance(TICKET);
        assert!(sessions.begin(&late.secret).is_none());
        assert!(sessions.authenticate(&session.secret).is_some());
        clock.advance(SESSION);
        assert_eq!(sessions.authenticate(&session.secret), None);
    }

    #[test]
    fn who_has_other_ways_gets_no_ticket() {
        let (sessions, _) = sessions();
        for identity in [Identity::anonymous(), Identity::node("n"), Identity::service_account("default", "a")] {
            assert!(matches!(sessions.ticket(&identity), Err(SessionError::Unfit(_))), "{}", identity.user);
        }
    }

    #[test]
    fn one_user_never_keeps_others_out() {
        let (sessions, _) = sessions();
        let first = sessions.ticket(&ann()).unwrap();
        for _ in 0..OF_ONE {
            sessions.ticket(&ann()).unwrap();
        }
        assert!(sessions.begin(&first.secret).is_none(), "the oldest made room");
        assert_eq!(sessions.lock().len(), OF_ONE);
    }
}

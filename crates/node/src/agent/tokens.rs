//! Tokens with which a pod's programs talk to the API server, or to others that trust it.
//!
//! The agent asks for each with its own identity, bound to the pod: the token ends with the pod. It is replaced well
//! before it ends; programs read the file anew.

use std::time::Duration;

use ambient::Ambient;
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount, ServiceAccountTokenProjection};
use kube::api::PostParams;
use kube::{Api, Client};

/// Life of a token where the volume does not say.
const USUAL_LIFE_S: i64 = 3600;
/// A token is replaced when this much of its life is over, at the latest; in percent.
const RENEW_AT: u32 = 80;
/// And this much before, at the earliest, so that pods that start together do not come together.
const SPREAD: u32 = 5;
/// However long a token lives, it is replaced after this.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// A token that a volume names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wish {
    /// Whom it is for; empty for the API server.
    pub audience: String,
    /// How long it is to live.
    pub life_s: i64,
}

impl Wish {
    /// What a source of a projected volume asks for.
    pub fn of(source: &ServiceAccountTokenProjection) -> Self {
        Self {
            audience: source.audience.clone().unwrap_or_default(),
            life_s: source.expiration_seconds.unwrap_or(USUAL_LIFE_S),
        }
    }
}

/// A token.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// What is written into the file.
    pub text: String,
    /// When to come for another, on the monotonic clock.
    pub renew_at: Due,
}

/// Never the token itself: this ends up in logs.
impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token").field("renew_at", &self.renew_at).finish_non_exhaustive()
    }
}

/// Whose tokens, and which pod they end with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holder {
    pub(super) namespace: String,
    pub(super) account: String,
    pub(super) pod: String,
    pub(super) uid: String,
}

impl Holder {
    /// The pod and its account.
    pub fn of(pod: &Pod) -> Self {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let account = pod.spec.as_ref().and_then(|s| s.service_account_name.clone()).filter(|a| !a.is_empty());
        Self {
            namespace: text(&pod.metadata.namespace),
            account: account.unwrap_or_else(|| "default".to_owned()),
            pod: text(&pod.metadata.name),
            uid: text(&pod.metadata.uid),
        }
    }
}

/// Asks for one; the error is a sentence.
pub(super) async fn request(client: &Client, ambient: &Ambient, holder: &Holder, wish: &Wish) -> Result<Token, String> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), &holder.namespace);
    let audiences = if wish.audience.is_empty() { None } else { Some(vec![wish.audience.clone()]) };
    let bound = BoundObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        name: Some(holder.pod.clone()),
        uid: Some(holder.uid.clone()),
    };
    let spec = TokenRequestSpec {
        audiences,
        bound_object_ref: Some(bound),
        expiration_seconds: Some(wish.life_s),
        ..TokenRequestSpec::default()
    };
    let request = TokenRequest { spec: Some(spec), ..TokenRequest::default() };
    let asked = Due::after(ambient, Duration::ZERO);
    let answer: Result<TokenRequest, _> =
        accounts.create_subresource("token", &holder.account, &PostParams::default(), &request).await;
    let answer = answer.map_err(|error| format!("failed to fetch token: {error}"))?;
    let text = answer.status.and_then(|status| status.token).filter(|token| !token.is_empty());
    let text = text.ok_or_else(|| "failed to fetch token: the API server answered without one".to_owned())?;
    let life_s = answer.spec.and_then(|spec| spec.expiration_seconds).unwrap_or(wish.life_s);
    Ok(Token { text, renew_at: asked.later(renew_after(ambient, life_s)) })
}

/// A moment that has come when either clock says so: time goes on while a machine sleeps, which the monotonic one counts;
/// and the server ends tokens by the wall's, which may be set forth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// On the monotonic clock.
    pub boot: Duration,
    /// On the wall's.
    pub wall: Timestamp,
}

impl Due {
    /// After so long from now.
    pub fn after(ambient: &Ambient, pause: Duration) -> Self {
        Self { boot: ambient.boottime(), wall: ambient.now() }.later(pause)
    }

    /// So much later.
    fn later(self, by: Duration) -> Self {
        Self { boot: self.boot.saturating_add(by), wall: self.wall.saturating_add(by).unwrap_or(Timestamp::MAX) }
    }

    /// Whichever comes first, on each clock.
    pub fn first(self, other: Self) -> Self {
        Self { boot: self.boot.min(other.boot), wall: self.wall.min(other.wall) }
    }

    /// How long until then, as far as the clocks can tell.
    pub fn left(self, ambient: &Ambient) -> Duration {
        let by_wall = Duration::try_from(self.wall.duration_since(ambient.now())).unwrap_or_default();
        self.boot.saturating_sub(ambient.boottime()).min(by_wall)
    }
}

/// How long after its beginning a token is replaced.
fn renew_after(ambient: &Ambient, life_s: i64) -> Duration {
    let life = Duration::from_secs(u64::try_from(life_s).unwrap_or(0));
    let earliest = life * (RENEW_AT - SPREAD) / 100;
    ambient.jitter(earliest, f64::from(SPREAD) / f64::from(RENEW_AT - SPREAD)).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_replaced_before_four_fifths_of_its_life_and_every_day() {
        let (ambient, _) = Ambient::manual("2026-01-01T00:00:00Z".parse().expect("a time"), 1);
        for _ in 0..100 {
            let after = renew_after(&ambient, 1000).as_secs_f64();
            assert!((750.0..=800.0).contains(&after), "{after}");
        }
        assert_eq!(renew_after(&ambient, 365 * 24 * 3600), LONGEST);
    }

    #[test]
    fn what_is_due_is_so_by_whichever_clock_says_it_first() {
        let (ambient, clock) = Ambient::manual("2026-01-01T00:00:00Z".parse().expect("a time"), 1);
        let hour = Duration::from_secs(3600);
        let due = Due::after(&ambient, hour);
        assert_eq!(due.left(&ambient), hour);
        clock.jump("2025-12-01T00:00:00Z".parse().expect("a time"));
        assert_eq!(due.left(&ambient), hour, "a clock that is set back keeps nothing");
        clock.advance(hour);
        assert_eq!(due.left(&ambient), Duration::ZERO, "time that is slept through counts");
        let due = Due::after(&ambient, hour);
        clock.jump("2026-02-01T00:00:00Z".parse().expect("a time"));
        assert_eq!(due.left(&ambient), Duration::ZERO, "the server's clock has jumped, too");
        let later = due.later(hour);
        assert_eq!((due.first(later), later.first(due)), (due, due));
    }

    #[test]
    fn tokens_are_not_printed() {
        let token =
            Token { text: "hunter2".to_owned(), renew_at: Due { boot: Duration::ZERO, wall: Timestamp::UNIX_EPOCH } };
        assert!(!format!("{token:?}").contains("hunter2"));
    }
}

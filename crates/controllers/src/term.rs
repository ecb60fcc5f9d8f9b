//! How long a controller may act: until leadership is lost or the process shuts down.

use tokio_util::sync::CancellationToken;

/// The time during which a controller may start requests. Cheap to clone; every clone ends together.
///
/// A controller is `run(client, term)`: no request starts after the term is over, and `run` returns once
/// the requests that it had started are settled. Embedded, the term is held until shutdown; with leader
/// election it ends when leadership is lost.
#[derive(Clone, Debug, Default)]
pub struct Term(CancellationToken);

impl Term {
    /// A term that lasts until [`Term::end`].
    pub fn new() -> Self {
        Self::default()
    }

    /// A term within this one: it ends with this one, or earlier by itself.
    pub fn child(&self) -> Self {
        Self(self.0.child_token())
    }

    /// Ends the term, and every term within it.
    pub fn end(&self) {
        self.0.cancel();
    }

    /// True once the term has ended.
    pub fn is_over(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Waits until the term has ended.
    pub async fn cancelled(&self) {
        self.0.cancelled().await;
    }

    /// Waits for `work`, or gives up on it when the term ends first. Only for work that may be dropped
    /// half way: waiting and reading, never a write.
    pub async fn during<F: Future>(&self, work: F) -> Option<F::Output> {
        self.0.run_until_cancelled(work).await
    }
}

impl From<CancellationToken> for Term {
    fn from(token: CancellationToken) -> Self {
        Self(token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_child_ends_with_its_parent_and_not_the_other_way_round() {
        let parent = Term::new();
        let (one, two) = (parent.child(), parent.child());
        one.end();
        assert!(one.is_over() && !parent.is_over() && !two.is_over());
        parent.end();
        two.cancelled().await;
        assert!(two.is_over());
    }

    #[tokio::test]
    async fn work_is_given_up_when_the_term_ends() {
        let term = Term::new();
        assert_eq!(term.during(async { 1 }).await, Some(1));
        term.end();
        assert_eq!(term.during(std::future::pending::<()>()).await, None);
    }
}

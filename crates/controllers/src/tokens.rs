//! Secrets of the type `kubernetes.io/service-account-token`: filled with a token of the account that they name, and
//! deleted with it.
//!
//! Such a token has no end of its own. People still make these secrets for programs outside of pods.

use std::sync::Arc;

use ambient::Ambient;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, Client};

use crate::Term;
use crate::informer::Informer;
use crate::queue::{Outcome, Queue};
use crate::roster::Trust;
use crate::work::{self, Stop, call_opt, name, namespace, uid};

/// The secrets' type.
const TYPE: &str = "kubernetes.io/service-account-token";
/// The annotation with the account's name.
const ACCOUNT: &str = "kubernetes.io/service-account.name";
/// The annotation with its uid.
const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";
/// Secrets worked on at once.
const WORKERS: usize = 2;

/// Signs the token of a secret: from namespace, account, the account's uid and the secret's name.
pub type Sign = Arc<dyn Fn(&str, &str, &str, &str) -> String + Send + Sync>;

/// Runs until the term ends and its requests are settled.
pub async fn run(client: Client, term: Term, ambient: Ambient, trust: Trust) -> kube::Result<()> {
    let secrets: Informer<Secret> =
        Informer::builder(Api::all(client.clone()), Some).fields(format!("type={TYPE}")).start(&term, &ambient);
    let accounts: Informer<ServiceAccount> = Informer::builder(Api::all(client.clone()), Some).start(&term, &ambient);
    let queue: Queue<(String, String)> = Queue::new(&term, &ambient);
    let own = queue.clone();
    secrets.on_change(move |_, new| {
        if let Some(secret) = new {
            own.add((namespace(&**secret).to_owned(), name(&**secret).to_owned()));
        }
    });
    let (own, all) = (queue.clone(), secrets.clone());
    accounts.on_change(move |old, new| {
        let Some(account) = new.or(old) else { return };
        for secret in all.in_namespace(namespace(&**account)) {
            if account_of(&secret) == Some(name(&**account)) {
                own.add((namespace(&*secret).to_owned(), name(&*secret).to_owned()));
            }
        }
    });
    if !secrets.synced().await || !accounts.synced().await {
        return Ok(());
    }
    let controller = Controller { client, term, secrets, trust };
    work::run(&queue, WORKERS, |key| controller.secret(key)).await;
    Ok(())
}

struct Controller {
    client: Client,
    term: Term,
    secrets: Informer<Secret>,
    trust: Trust,
}

impl Controller {
    async fn secret(&self, (space, key): (String, String)) -> Result<Outcome, Stop> {
        let Some(secret) = self.secrets.get(&space, &key) else { return Ok(Outcome::Done) };
        let Some(account) = account_of(&secret).filter(|account| !account.is_empty()) else {
            return Ok(Outcome::Done);
        };
        // Deleting is for good: the account is looked up, not remembered.
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &space);
        let found = call_opt(&self.term, accounts.get_opt(account)).await?.flatten();
        let noted = annotation(&secret, ACCOUNT_UID).filter(|noted| !noted.is_empty());
        let Some(found) = found.filter(|found| noted.is_none_or(|noted| noted == uid(found))) else {
            return self.delete(&secret).await;
        };
        let Some(filled) = self.filled(&secret, account, uid(&found)) else { return Ok(Outcome::Done) };
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &space);
        match call_opt(&self.term, api.replace(&key, &PostParams::default(), &filled)).await {
            // Changed meanwhile: that change brings us back.
            Err(stop) if stop.code() == Some(409) => Ok(Outcome::Done),
            other => other.map(|_| Outcome::Done),
        }
    }

    /// The secret with what it lacks; `None` where it lacks nothing.
    fn filled(&self, secret: &Secret, account: &str, account_uid: &str) -> Option<Secret> {
        let mut filled = secret.clone();
        let annotations = filled.metadata.annotations.get_or_insert_default();
        annotations.insert(ACCOUNT_UID.to_owned(), account_uid.to_owned());
        let (space, key) = (namespace(secret).to_owned(), name(secret).to_owned());
        let data = filled.data.get_or_insert_default();
        let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
        data.insert("ca.crt".to_owned(), bytes(&self.trust.authority));
        data.insert("namespace".to_owned(), bytes(&space));
        if data.get("token").is_none_or(|token| token.0.is_empty()) {
            data.insert("token".to_owned(), bytes(&(self.trust.sign)(&space, account, account_uid, &key)));
        }
        (filled != *secret).then_some(filled)
    }

    /// The account is gone, or another has its name now.
    async fn delete(&self, secret: &Secret) -> Result<Outcome, Stop> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace(secret));
        let preconditions = Preconditions {
            uid: secret.metadata.uid.clone(),
            resource_version: secret.metadata.resource_version.clone(),
        };
        let params = DeleteParams::default().preconditions(preconditions);
        match call_opt(&self.term, api.delete(name(secret), &params)).await {
            Err(stop) if stop.code() == Some(409) => Ok(Outcome::Done),
            other => other.map(|_| Outcome::Done),
        }
    }
}

fn account_of(secret: &Secret) -> Option<&str> {
    annotation(secret, ACCOUNT)
}

fn annotation<'a>(secret: &'a Secret, key: &str) -> Option<&'a str> {
    secret.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

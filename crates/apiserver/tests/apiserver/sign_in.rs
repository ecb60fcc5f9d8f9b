//! Sign-in of browsers: tickets, sessions, and what an annex answers.

use std::sync::Arc;

use async_trait::async_trait;
use http::{Method, Response};
use serde_json::{Value, json};
use statefuld_apiserver::auth::Identity;
use statefuld_apiserver::{Annex, AnnexRequest, Body};

use crate::support::{Server, admin};

const TICKETS: &str = "/statefuld/v1/tickets";
const SESSIONS: &str = "/statefuld/v1/sessions";

fn ann() -> Identity {
    Identity::user("ann", &["crew"])
}

#[tokio::test]
async fn a_browser_acts_as_who_gave_it_a_ticket_until_it_signs_out() {
    let server = Server::start().await;
    let ticket = server.ask_as(ann(), Method::POST, TICKETS, &[], None).await;
    assert_eq!((ticket.code, &ticket.headers["cache-control"]), (201, &"no-store".parse().unwrap()), "{}", ticket.body);
    let given = json!({"ticket": ticket.body["ticket"]});
    let begin = async || server.ask_as(Identity::anonymous(), Method::POST, SESSIONS, &[], Some(given.clone())).await;
    let session = begin().await;
    assert_eq!((session.code, &session.body["user"]), (201, &json!("ann")));
    assert_eq!(begin().await.code, 401, "a ticket is good once");
    let token = session.body["token"].as_str().unwrap();
    let tokens = server.api.tokens();
    let identity = tokens.authenticate(token).expect("a listener knows it");
    assert_eq!((identity.user.as_str(), identity.groups.contains(&"crew".to_owned())), ("ann", true));
    let again = server.ask_as(identity.clone(), Method::POST, TICKETS, &[], None).await;
    assert_eq!(again.code, 403, "no session comes out of a session: {}", again.body);
    assert_eq!(server.ask_as(identity, Method::DELETE, SESSIONS, &[], None).await.code, 200);
    assert_eq!(tokens.authenticate(token), None);
}

#[tokio::test]
async fn nobody_in_particular_gets_a_ticket_and_no_account_or_node_does() {
    let server = Server::start().await;
    for identity in [Identity::anonymous(), Identity::node("n"), Identity::service_account("default", "default")] {
        let who = identity.user.clone();
        let answer = server.ask_as(identity, Method::POST, TICKETS, &[], None).await;
        assert_eq!((answer.code, answer.body["ticket"].as_str()), (403, None), "{who}: {}", answer.body);
    }
    for body in [json!({}), json!({"ticket": ""}), json!([]), json!({"ticket": "x".repeat(1000)})] {
        let answer = server.ask_as(Identity::anonymous(), Method::POST, SESSIONS, &[], Some(body)).await;
        assert_eq!(answer.code, 401);
    }
    assert_eq!(server.ask(Method::GET, TICKETS, None).await.code, 405);
}

/// Says who asked, and what the API tells them.
struct Echo;

#[async_trait]
impl Annex for Echo {
    async fn answer(&self, asked: AnnexRequest) -> Option<Response<Body>> {
        if asked.path != "/statefuld/v1/overview" {
            return None;
        }
        let (user, parameter) = (asked.identity.user.clone(), asked.parameter("namespace").to_owned());
        let client = kube::Client::new(asked.client, "default");
        let secrets: kube::Api<k8s_openapi::api::core::v1::Secret> = kube::Api::default_namespaced(client);
        let may = secrets.list(&kube::api::ListParams::default()).await.is_ok();
        let text = json!({"user": user, "namespace": parameter, "reads secrets": may}).to_string();
        Some(Response::new(Body::full(text)))
    }

    fn home(&self) -> &'static str {
        "/ui/"
    }
}

#[tokio::test]
async fn an_annex_reads_by_the_right_of_who_asks_and_is_not_asked_by_who_may_not() {
    let server = Server::start_with(|options| options.annex = Some(Arc::new(Echo))).await;
    let path = "/statefuld/v1/overview?namespace=a%2Fb";
    let told = |user: &str, may: bool| json!({"user": user, "namespace": "a/b", "reads secrets": may});
    assert_eq!(server.ask(Method::GET, path, None).await.body, told("admin", true));
    assert_eq!(server.ask_as(ann(), Method::GET, path, &[], None).await.body, told("ann", false));
    let refused = server.ask_as(Identity::anonymous(), Method::GET, path, &[], None).await;
    assert_eq!((refused.code, &refused.body["kind"]), (403, &json!("Status")));
    let as_ann = [("impersonate-user", "ann")];
    assert_eq!(server.ask_as(admin(), Method::GET, path, &as_ann, None).await.body, told("ann", false));
    assert_ne!(server.ask(Method::GET, "/version", None).await.body["gitVersion"], Value::Null, "the rest goes on");
}

#[tokio::test]
async fn a_browser_at_the_servers_own_address_is_led_to_the_page_and_no_other_client_is() {
    let server = Server::start_with(|options| options.annex = Some(Arc::new(Echo))).await;
    let browser = [("accept", "text/html,application/xhtml+xml,*/*;q=0.8")];
    let led = server.ask_as(Identity::anonymous(), Method::GET, "/", &browser, None).await;
    assert_eq!((led.code, &led.headers["location"]), (303, &"/ui/".parse().unwrap()));
    let paths = server.ask_as(admin(), Method::GET, "/", &[("accept", "*/*")], None).await;
    assert_eq!((paths.code, paths.body["paths"].is_array()), (200, true));
    assert_eq!(server.ask_as(Identity::anonymous(), Method::GET, "/", &[], None).await.code, 403);
    assert_eq!(
        Server::start().await.ask_as(admin(), Method::GET, "/", &browser, None).await.code,
        200,
        "no page, no way"
    );
}

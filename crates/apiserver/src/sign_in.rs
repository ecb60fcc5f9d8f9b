//! The paths at which browsers sign in and out: see [`crate::auth::sessions`].

use api::status::Status;
use bytes::Bytes;
use http::header::{CACHE_CONTROL, HeaderValue};
use http::{Method, Response};
use serde_json::{Value, json};

use crate::auth::Identity;
use crate::auth::sessions::{Granted, SessionError};
use crate::body::Body;
use crate::errors::Outcome;
use crate::respond;
use crate::server::Shared;

/// Gives a ticket to who has credentials.
pub(crate) const TICKETS: &str = "/statefuld/v1/tickets";
/// Gives a token for a ticket; ends the session of who deletes it.
pub(crate) const SESSIONS: &str = "/statefuld/v1/sessions";

/// Answers, if the path is one of these.
pub(crate) fn answer(
    shared: &Shared,
    method: &Method,
    path: &str,
    identity: &Identity,
    body: &Bytes,
) -> Option<Outcome<Response<Body>>> {
    let refused = |error: SessionError| match error {
        SessionError::Unfit(why) => Box::new(Status::forbidden("", "", "", why)),
        SessionError::TooMany => Box::new(Status::too_many_requests(error.to_string(), 60)),
    };
    Some(match (path, method) {
        (TICKETS, &Method::POST) => {
            shared.sessions.ticket(identity).map(|ticket| told("ticket", &ticket)).map_err(refused)
        }
        (SESSIONS, &Method::POST) => {
            let given: Value = serde_json::from_slice(body).unwrap_or_default();
            match shared.sessions.begin(given["ticket"].as_str().unwrap_or_default()) {
                Some(begun) => begun.map(|session| told("token", &session)).map_err(refused),
                None => Err(Box::new(Status::unauthorized())),
            }
        }
        (SESSIONS, &Method::DELETE) => {
            shared.sessions.end(identity);
            Ok(respond::json(200, &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"})))
        }
        (TICKETS | SESSIONS, _) => Err(Box::new(Status::method_not_allowed())),
        _ => return None,
    })
}

/// A secret as an answer that nothing on the way keeps.
fn told(what: &str, granted: &Granted) -> Response<Body> {
    let mut value = json!({"user": granted.user, "expirationTimestamp": granted.ends.to_string()});
    value[what] = granted.secret.as_str().into();
    let mut response = respond::json(201, &value);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

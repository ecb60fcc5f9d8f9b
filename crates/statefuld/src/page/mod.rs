//! The page at the API's address: its files, what it shows, and `statefuld page`, which leads there signed in.
//!
//! The files are part of this program and hold no data. All data comes from the API by the right of who has signed in (see
//! `apiserver::auth::sessions`); one document is made for it: the overview, read by the same right, whose sentences are
//! those of `why`.

mod files;

use std::process::ExitCode;

use ambient::Ambient;
use anyhow::{Context as _, Result, bail};
use apiserver::{Annex, AnnexRequest, Body};
use async_trait::async_trait;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{Method, Response};
use kube::Client;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::overview::Overview;
use crate::{cli, connect, say};

/// Where the page is.
const HOME: &str = "/ui/";
/// What it shows.
const OVERVIEW: &str = "/statefuld/v1/overview";
/// Where a ticket is asked for.
const TICKETS: &str = "/statefuld/v1/tickets";

/// Serves the page.
pub struct Page {
    ambient: Ambient,
}

impl Page {
    /// With that clock.
    pub fn new(ambient: Ambient) -> Self {
        Self { ambient }
    }

    async fn overview(&self, asked: AnnexRequest) -> Response<Body> {
        let namespace = Some(asked.parameter("namespace")).filter(|n| !n.is_empty()).unwrap_or("default").to_owned();
        let client = Client::new(asked.client, namespace.clone());
        match Overview::read(&client, &namespace, self.ambient.now()).await {
            Ok(overview) => json_of(200, &overview),
            Err(error) => refusal(&error),
        }
    }
}

#[async_trait]
impl Annex for Page {
    async fn answer(&self, asked: AnnexRequest) -> Option<Response<Body>> {
        if !matches!(asked.method, Method::GET | Method::HEAD) {
            return None;
        }
        match asked.path.as_str() {
            OVERVIEW => Some(self.overview(asked).await),
            path => files::answer(path),
        }
    }

    fn home(&self) -> &'static str {
        HOME
    }
}

fn json_of(code: u16, value: &impl serde::Serialize) -> Response<Body> {
    let bytes = serde_json::to_vec(value).expect("string keys only");
    let answer = Response::builder().status(code).header(CONTENT_TYPE, "application/json");
    answer.header(CACHE_CONTROL, "no-cache, private").body(Body::full(bytes)).expect("constant parts")
}

/// What the API refused, in its own words; anything else is our own fault.
fn refusal(error: &anyhow::Error) -> Response<Body> {
    let said = error.chain().find_map(|cause| match cause.downcast_ref::<kube::Error>() {
        Some(kube::Error::Api(status)) => Some((status.code, status.reason.clone(), status.message.clone())),
        _ => None,
    });
    let (code, reason, message) = said.unwrap_or_else(|| (500, "InternalError".to_owned(), format!("{error:#}")));
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
        "reason": reason, "code": code});
    json_of(code, &status)
}

/// What a ticket's answer holds.
#[derive(Deserialize)]
struct Ticket {
    ticket: String,
}

/// `statefuld page`: prints an address that is good once.
pub async fn run(args: cli::Page) -> Result<ExitCode> {
    let (client, server) = connect::to(&args.server).await?;
    let request = http::Request::post(TICKETS).body(Vec::new()).context("a request cannot be made")?;
    let ticket: Ticket = match client.request(request).await {
        Ok(ticket) => ticket,
        Err(kube::Error::Api(status)) if status.code == 404 => {
            bail!("{server} has no page; `statefuld top` shows the same in a terminal, of any Kubernetes server")
        }
        Err(error) => return Err(error).context("the server gives no ticket"),
    };
    let server = server.trim_end_matches('/');
    let query = if args.namespace == "default" { String::new() } else { format!("?namespace={}", args.namespace) };
    let address = format!("{server}{HOME}{query}#ticket={}", ticket.ticket);
    match args.output {
        cli::Output::Json => say::print(serde_json::to_string_pretty::<Value>(&json!({ "address": address }))?),
        cli::Output::Table => {
            say::print(&address);
            say::note(
                "good once, for five minutes; whoever opens it acts as you for twelve hours, or until signed out",
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}

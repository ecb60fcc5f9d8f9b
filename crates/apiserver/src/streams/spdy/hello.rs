//! The request that turns an HTTP connection into a SPDY one.

use api::status::Status;
use http::Response;
use http::header::{CONNECTION, UPGRADE};
use http::request::Parts;

use super::{Ports, exec, forward};
use crate::body::Body;
use crate::errors::Outcome;
use crate::streams::remote::Remote;
use crate::streams::{Call, upgrade};

/// The header with which versions of what flows inside are offered and chosen.
const VERSIONS: &str = "x-stream-protocol-version";

/// Exec and attach.
pub(in crate::streams) async fn answer_remote(
    call: &Call<'_>,
    remote: Remote,
    mut parts: Parts,
) -> Outcome<Response<Body>> {
    let protocol = choose(&parts, &exec::PROTOCOLS)?;
    let upgrade = upgrade::take(&mut parts)?;
    let node = call.open(remote.request.clone()).await?;
    upgrade::spawn(upgrade, move |io| {
        upgrade::on_bytes(io, move |input, out| exec::remote(protocol, remote, node, input, out))
    });
    Ok(answer(protocol))
}

/// Port-forward.
pub(in crate::streams) fn answer_forward(call: &Call<'_>, mut parts: Parts) -> Outcome<Response<Body>> {
    let protocol = choose(&parts, &[forward::PROTOCOL])?;
    let ports = ports(call)?;
    let upgrade = upgrade::take(&mut parts)?;
    upgrade::spawn(upgrade, move |io| upgrade::on_bytes(io, move |input, out| forward::run(ports, input, out)));
    Ok(answer(protocol))
}

/// The ports of the pod that is asked for.
pub(in crate::streams) fn ports(call: &Call<'_>) -> Outcome<Ports> {
    let target = call.target(String::new());
    Ok(Ports { nodes: call.nodes.clone(), node: call.node()?.to_owned(), target })
}

/// The first version that the client offers and we speak.
fn choose(parts: &Parts, spoken: &[&'static str]) -> Outcome<&'static str> {
    let offered = parts.headers.get_all(VERSIONS).iter().filter_map(|value| value.to_str().ok());
    let offered: Vec<&str> = offered.flat_map(|list| list.split(',')).map(str::trim).collect();
    let chosen = offered.iter().find_map(|name| spoken.iter().find(|spoken| *spoken == name)).copied();
    chosen.ok_or_else(|| {
        let why = format!("unable to negotiate protocol: client supports {offered:?}, server accepts {spoken:?}");
        Box::new(Status::bad_request(why))
    })
}

fn answer(protocol: &'static str) -> Response<Body> {
    Response::builder()
        .status(101)
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "SPDY/3.1")
        .header(VERSIONS, protocol)
        .body(Body::empty())
        .expect("constant parts")
}

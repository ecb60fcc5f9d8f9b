//! Whether the server works: `/healthz`, `/livez`, `/readyz`, each check also on a path of its own.

use std::sync::Arc;

use http::Response;

use crate::body::Body;
use crate::query::Query;
use crate::respond;
use crate::server::Shared;

/// The checks; all three paths make the same.
const CHECKS: [&str; 3] = ["ping", "log", "etcd"];

/// Answers a health path, or `None` if it is none. `path` has no slash at its end.
pub(crate) fn answer(shared: &Arc<Shared>, path: &str, query: &Query) -> Option<Response<Body>> {
    let mut parts = path.trim_start_matches('/').splitn(2, '/');
    let which = parts.next().filter(|p| matches!(*p, "healthz" | "livez" | "readyz"))?;
    if let Some(one) = parts.next() {
        let check = CHECKS.iter().find(|c| **c == one)?;
        return Some(match check_one(shared, check) {
            Ok(()) => respond::text(200, "ok"),
            Err(why) => respond::text(500, format!("internal server error: {why}\n")),
        });
    }
    let excluded: Vec<&str> = query.all("exclude").collect();
    let mut lines = String::new();
    let mut good = true;
    for check in CHECKS {
        let line = if excluded.contains(&check) {
            format!("[+]{check} excluded: ok\n")
        } else {
            match check_one(shared, check) {
                Ok(()) => format!("[+]{check} ok\n"),
                Err(why) => {
                    good = false;
                    format!("[-]{check} failed: {why}\n")
                }
            }
        };
        lines.push_str(&line);
    }
    let unknown: Vec<&str> = excluded.into_iter().filter(|e| !e.is_empty() && !CHECKS.contains(e)).collect();
    if !unknown.is_empty() {
        let names: Vec<String> = unknown.iter().map(|name| format!("{name:?}")).collect();
        lines.push_str(&format!("warn: some health checks cannot be excluded: no matches for {}\n", names.join(",")));
    }
    Some(match (good, query.get("verbose").is_some()) {
        (true, false) => respond::text(200, "ok"),
        (true, true) => respond::text(200, format!("{lines}{which} check passed\n")),
        (false, _) => respond::text(500, format!("{lines}{which} check failed\n")),
    })
}

/// Makes one check.
fn check_one(shared: &Arc<Shared>, check: &str) -> Result<(), String> {
    match check {
        // Named as clients know it: is the store there, and does the cache follow it?
        "etcd" => shared.cache.health(),
        _ => Ok(()),
    }
}

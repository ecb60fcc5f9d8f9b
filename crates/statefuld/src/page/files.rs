//! The page's files, as they are in this program.

use apiserver::Body;
use http::Response;
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};

/// Scripts and styles from these files alone, data from this server alone; in no frame, and nothing is parsed as markup.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; \
                      trusted-types 'none'";

const SCRIPT: &str = "text/javascript; charset=utf-8";

macro_rules! file {
    ($name:literal) => {
        include_bytes!(concat!("../../page/", $name))
    };
}

/// Path, media type, content.
const FILES: &[(&str, &str, &[u8])] = &[
    ("/ui", "text/html; charset=utf-8", file!("index.html")),
    ("/ui/style.css", "text/css; charset=utf-8", file!("style.css")),
    ("/ui/icon.svg", "image/svg+xml", file!("icon.svg")),
    ("/ui/main.js", SCRIPT, file!("main.js")),
    ("/ui/api.js", SCRIPT, file!("api.js")),
    ("/ui/acts.js", SCRIPT, file!("acts.js")),
    ("/ui/detail.js", SCRIPT, file!("detail.js")),
    ("/ui/dom.js", SCRIPT, file!("dom.js")),
    ("/ui/sets.js", SCRIPT, file!("sets.js")),
    ("/ui/words.js", SCRIPT, file!("words.js")),
];

/// The file at a path.
pub fn answer(path: &str) -> Option<Response<Body>> {
    let (_, media, content) = FILES.iter().find(|(at, ..)| *at == path)?;
    let answer = Response::builder()
        .header(CONTENT_TYPE, *media)
        // A newer program may have newer ones.
        .header(CACHE_CONTROL, "no-cache")
        .header(CONTENT_SECURITY_POLICY, POLICY)
        .header(X_FRAME_OPTIONS, "DENY")
        .header(X_CONTENT_TYPE_OPTIONS, "nosniff")
        .header(REFERRER_POLICY, "no-referrer")
        .header("Cross-Origin-Opener-Policy", "same-origin")
        .header("Cross-Origin-Resource-Policy", "same-origin");
    Some(answer.body(Body::full(*content)).expect("constant parts"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the files name is there, and nothing comes from elsewhere.
    #[test]
    fn the_page_names_its_own_files_and_no_others() {
        for (path, _, content) in FILES {
            let text = std::str::from_utf8(content).expect("text");
            for foreign in ["http://", "https://", "//cdn"] {
                assert!(!text.replace("http://www.w3.org/2000/svg", "").contains(foreign), "{path} names {foreign}");
            }
            let named = text.split(['"', '\'']).filter(|part| part.starts_with("/ui/"));
            for name in named {
                assert!(answer(name.trim_end_matches('/')).is_some(), "{path} names {name}, which is not there");
            }
        }
    }

    #[test]
    fn every_file_forbids_what_it_does_not_need() {
        let answer = answer("/ui").expect("the page");
        assert!(answer.headers()[CONTENT_SECURITY_POLICY].to_str().is_ok_and(|p| !p.contains("unsafe")));
        assert_eq!(answer.headers()[X_FRAME_OPTIONS], "DENY");
        assert!(super::answer("/ui/../Cargo.toml").is_none());
    }
}

//! Images from registries: who is let in, what goes wrong on the way, and what is never taken.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ambient::Ambient;
use imagetest::{Built, Compression, Fault, Image, Layer, Options, Registry, index};
use serde_json::{Value, json};
use statefuld_image::registry::auth::Keyring;
use statefuld_image::registry::{PullError, Puller};
use statefuld_image::{Reference, Store};

/// A store, and a puller into it with settings of its own.
struct Place {
    folder: tempfile::TempDir,
    store: Arc<Store>,
    puller: Puller,
}

impl Place {
    fn new(settings: &Value) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("registries.json");
        std::fs::write(&file, settings.to_string()).expect("written");
        let store = Arc::new(Store::open(&folder.path().join("images"), Ambient::system()).expect("a store"));
        let puller = Puller::new(store.clone(), &file, Ambient::system());
        Self { folder, store, puller }
    }

    /// For a registry that is reached without TLS.
    fn plain(registry: &Registry) -> Self {
        Self::new(&json!({"registries": {registry.host(): {"plainHttp": true}}}))
    }

    async fn pull(&self, name: &str) -> Result<PathBuf, PullError> {
        self.pull_as(name, &Keyring::default()).await
    }

    /// Pulls; the folder of the top layer.
    async fn pull_as(&self, name: &str, keyring: &Keyring) -> Result<PathBuf, PullError> {
        let name = Reference::parse(name).expect("a name");
        let pulled = self.puller.pull(&name, keyring, &|_| {}).await?;
        assert_eq!(self.store.find(&name).expect("readable").map(|i| i.id), Some(pulled.image.id));
        Ok(self.store.layer_folder(pulled.image.layers.last().expect("a layer")))
    }
}

fn image(text: &str) -> Built {
    let base = Layer::new().compressed(Compression::Zstd).file("base", 0o644, "base");
    // Bytes that no compression shortens much.
    let noise: Vec<u8> = (0..200_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    Image::new([base, Layer::new().compressed(Compression::None).file("text", 0o644, text).file("noise", 0o644, noise)])
        .built()
}

fn read(folder: &Path) -> String {
    std::fs::read_to_string(folder.join("text")).expect("the image's file")
}

fn keyring(host: &str, name: &str, password: &str) -> Keyring {
    let mut keyring = Keyring::default();
    let text = json!({"auths": {host: {"username": name, "password": password}}}).to_string();
    keyring.add_config_json(text.as_bytes()).expect("credentials");
    keyring
}

#[tokio::test]
async fn tags_digests_and_indexes_are_pulled_and_nothing_is_fetched_twice() {
    let registry = Registry::start(Options::default());
    let place = Place::plain(&registry);
    let ours = image("ours");
    let theirs = Image::new([Layer::new()]).architecture("riscv64").built();
    let both = index(&[&theirs, &ours]);
    let name = registry.put("team/app", "1", &both);
    assert_eq!(read(&place.pull(&name).await.expect("pulled")), "ours");
    registry.requests();
    let by_digest = format!("{}/team/app@{}", registry.host(), both.digest);
    place.pull(&by_digest).await.expect("pulled");
    let asked = registry.requests();
    assert!(
        asked.iter().all(|line| line.contains("/manifests/") || line.contains(&imagetest::digest(&ours.config))),
        "{asked:?}"
    );
    let found = place.store.find(&Reference::parse(&name).expect("a name")).expect("readable").expect("there");
    assert_eq!(found.by_digest(&Reference::parse(&name).expect("a name")), by_digest);
    registry.put("team/app", "1", &image("newer"));
    assert_eq!(read(&place.pull(&name).await.expect("pulled")), "newer", "a tag that moved is followed");
    let foreign = registry.put("team/foreign", "1", &index(&[&theirs]));
    let refused = place.pull(&foreign).await.expect_err("not for this machine").to_string();
    assert_eq!(refused, "no match for platform in manifest: not found");
    let absent = place.pull(&format!("{}/team/app:none", registry.host())).await.expect_err("absent").to_string();
    assert_eq!(
        absent,
        format!("failed to resolve reference \"{0}/team/app:none\": {0}/team/app:none: not found", registry.host())
    );
}

#[tokio::test]
async fn basic_and_bearer_credentials_are_given_where_they_belong_and_wrong_ones_are_told() {
    for (tokens, redirect) in [(false, false), (true, true)] {
        let user = Some(("robot".to_owned(), "secret".to_owned()));
        let registry = Registry::start(Options { user, tokens, redirect, ..Options::default() });
        let place = Place::plain(&registry);
        let name = registry.put("private", "1", &image("private"));
        let denied = place.pull(&name).await.expect_err("nobody is not let in").to_string();
        assert!(denied.contains("pull access denied"), "{denied}");
        let wrong =
            place.pull_as(&name, &keyring(&registry.host(), "robot", "wrong")).await.expect_err("wrong").to_string();
        assert!(wrong.contains("401 Unauthorized"), "{wrong}");
        registry.requests();
        let right = keyring(&registry.host(), "robot", "secret");
        assert_eq!(read(&place.pull_as(&name, &right).await.expect("let in")), "private");
        let asked = registry.requests();
        let elsewhere: Vec<_> = asked.iter().filter(|line| line.contains("/elsewhere/")).collect();
        assert!(elsewhere.iter().all(|line| !line.contains(" as=")), "no credentials go elsewhere: {elsewhere:?}");
        assert_eq!(elsewhere.is_empty(), !redirect);
        let scheme = if tokens { "as=bearer" } else { "as=basic" };
        assert!(asked.iter().any(|line| line.contains("/manifests/1") && line.contains(scheme)), "{asked:?}");
        assert_eq!(
            asked.iter().filter(|line| line.contains("/token")).count(),
            usize::from(tokens),
            "one token serves all"
        );
    }
}

#[tokio::test]
async fn a_private_authority_is_trusted_where_it_is_named_and_plain_http_is_used_where_it_is_allowed() {
    let registry = Registry::start(Options { tls: true, ..Options::default() });
    let name = registry.put("app", "1", &image("tls"));
    let strange = Place::new(&json!({})).pull(&name).await.expect_err("an unknown authority").to_string();
    assert!(strange.contains("UnknownIssuer"), "{strange}");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("ca.pem");
    std::fs::write(&file, registry.authority()).expect("written");
    let place = Place::new(&json!({"registries": {registry.host(): {"caFile": file}}}));
    assert_eq!(read(&place.pull(&name).await.expect("pulled")), "tls");
    let plain = Registry::start(Options::default());
    let name = plain.put("app", "1", &image("plain"));
    assert!(Place::new(&json!({})).pull(&name).await.is_err(), "never without TLS by itself");
    assert!(plain.requests().is_empty());
}

#[tokio::test]
async fn what_is_cut_off_is_taken_up_and_what_fails_for_a_while_is_tried_again() {
    let registry = Registry::start(Options::default());
    let place = Place::plain(&registry);
    let built = image("resumed");
    let layer = built.layer_digests().remove(1);
    let name = registry.put("app", "1", &built);
    registry.fail("/manifests/", Fault::Status(503));
    registry.fail("/manifests/", Fault::Status(429));
    registry.fail(&layer, Fault::Cut(50_000));
    registry.fail(&layer, Fault::Status(500));
    registry.fail(&layer, Fault::Cut(70_000));
    registry.fail(&layer, Fault::Pieces(1000));
    assert_eq!(read(&place.pull(&name).await.expect("pulled")), "resumed");
    let asked: Vec<String> = registry.requests().into_iter().filter(|line| line.contains(&layer)).collect();
    let ranges: Vec<_> = asked.iter().map(|line| line.split("range=").nth(1).unwrap_or("all")).collect();
    assert_eq!(ranges, ["all", "bytes=50000-", "bytes=50000-", "bytes=120000-"]);
    assert_eq!(std::fs::read_dir(place.folder.path().join("images/staging")).expect("a folder").count(), 0);
}

#[tokio::test]
async fn a_download_is_taken_up_by_another_process_and_from_the_start_where_it_has_to() {
    let registry = Registry::start(Options::default());
    let place = Place::plain(&registry);
    let built = image("later");
    let layer = built.layer_digests().remove(1);
    let name = registry.put("app", "1", &built);
    let bytes = &built.blobs[&layer];
    let part = place.store.download(&layer.parse().expect("a digest"));
    std::fs::write(&part, &bytes[..1000]).expect("written");
    registry.fail(&layer, Fault::NoRange);
    assert_eq!(read(&place.pull(&name).await.expect("pulled")), "later");
    assert!(!part.exists());
    // As a crash may leave it: as long as it should be, with other bytes.
    let place = Place::plain(&registry);
    std::fs::write(place.store.download(&layer.parse().expect("a digest")), vec![0; bytes.len()]).expect("written");
    assert_eq!(read(&place.pull(&name).await.expect("pulled")), "later");
}

#[tokio::test]
async fn wrong_content_is_never_taken_and_tries_have_an_end() {
    let registry = Registry::start(Options::default());
    let built = image("good");
    let layer = built.layer_digests().remove(1);
    let name = registry.put("app", "1", &built);
    let place = Place::plain(&registry);
    registry.fail(&layer, Fault::Spoilt);
    let refused = place.pull(&name).await.expect_err("spoilt").to_string();
    assert!(refused.contains("unexpected commit digest"), "{refused}");
    registry.fail(&imagetest::digest(&built.config), Fault::Spoilt);
    assert!(place.pull(&name).await.is_err());
    assert_eq!(place.store.images().expect("readable"), []);
    let digest = format!("{}/app@{}", registry.host(), imagetest::digest(b"another"));
    assert!(place.pull(&digest).await.is_err());
    for _ in 0..5 {
        registry.fail("/manifests/1", Fault::Status(500));
    }
    registry.requests();
    let refused = place.pull(&name).await.expect_err("down").to_string();
    assert!(refused.contains("500 Internal Server Error"), "{refused}");
    assert_eq!(registry.requests().len(), 5);
    assert_eq!(read(&place.pull(&name).await.expect("up again")), "good");
}

#[tokio::test]
async fn mirrors_are_asked_first_and_the_registry_itself_where_they_fail() {
    let (mirror, origin) = (Registry::start(Options::default()), Registry::start(Options::default()));
    let settings = json!({"registries": {
        origin.host(): {"plainHttp": true, "mirrors": [format!("{}/cache", mirror.host())]},
        mirror.host(): {"plainHttp": true}}});
    let name = origin.put("app", "1", &image("origin"));
    mirror.put("cache/app", "1", &image("mirror"));
    assert_eq!(read(&Place::new(&settings).pull(&name).await.expect("pulled")), "mirror");
    assert!(origin.requests().is_empty());
    mirror.fail("/manifests/1", Fault::Status(404));
    assert_eq!(read(&Place::new(&settings).pull(&name).await.expect("pulled")), "origin");
}

#[tokio::test]
async fn an_image_that_many_ask_for_at_once_is_fetched_once() {
    let registry = Registry::start(Options::default());
    let built = image("shared");
    let name = registry.put("app", "1", &built);
    let place = Place::plain(&registry);
    let all = futures::future::join_all((0..8).map(|_| place.pull(&name))).await;
    assert!(all.iter().all(Result::is_ok), "{all:?}");
    let asked = registry.requests();
    for layer in built.layer_digests() {
        assert_eq!(asked.iter().filter(|line| line.contains(&layer)).count(), 1, "{asked:?}");
    }
}

//! An API server with all controllers and no node, for suites that play scheduler and kubelet themselves:
//! `cargo run --example serve -p statefuld-controllers -- FOLDER [ADDRESS:PORT]` keeps its data below FOLDER and
//! writes FOLDER/kubeconfig; it ends with its standard input.
//!
//! Everybody may do everything here, and the kubeconfig's user is the node `suite`: only a pod's own node may
//! say that the pod is gone, and a suite that ends pods must be heard when it does.

use std::path::PathBuf;
use std::sync::Arc;

use ambient::Ambient;
use apiserver::ApiServer;
use apiserver::auth::Identity;
use apiserver::listen::{ListenOptions, serve};
use apiserver::tls;
use kube::Client;
use statefuld_controllers::Term;
use statefuld_controllers::roster::{self, Account, Selection};
use store::embedded::Embedded;
use tokio::io::AsyncReadExt;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let folder = PathBuf::from(args.next().ok_or("give a folder")?);
    let address = args.next().unwrap_or_else(|| "127.0.0.1:0".into());
    std::fs::create_dir_all(&folder)?;
    let ambient = Ambient::system();
    let store = Embedded::open(&folder.join("store"), ambient.clone(), Default::default())?;
    let mut options = apiserver::Options::new(store.clone(), ambient.clone());
    options.authorizer = apiserver::AuthorizerChoice::AllowAll;
    let api = ApiServer::start(options).await?;
    let listener = tokio::net::TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    let authority = tls::Authority::load_or_create(&folder.join("pki"), ambient.clone())?;
    let config = tls::server_config(&authority, &[], &[address.ip()])?;
    let user = tls::Purpose::Client { user: "system:node:suite".into(), group: "system:nodes".into() };
    let user = authority.issue(&user)?;
    let url = format!("https://{address}");
    let kubeconfig = tls::kubeconfig(&url, authority.certificate_pem(), &user.certificate_pem, &user.key_pem);
    tls::write_private(&folder.join("kubeconfig"), kubeconfig.as_bytes())?;
    let stop = CancellationToken::new();
    tokio::spawn(serve(listener, ListenOptions::new(config), api.service(), stop.clone()));
    let term = Term::new();
    let mut controllers = start(&api, &term, &ambient);
    println!("{url}");
    tokio::io::stdin().read_to_end(&mut Vec::new()).await?;
    term.end();
    while controllers.join_next().await.is_some() {}
    stop.cancel();
    drop(api);
    store.close().await;
    Ok(())
}

fn start(api: &Arc<ApiServer>, term: &Term, ambient: &Ambient) -> JoinSet<Result<(), String>> {
    let client = |identity| Client::new(api.client(identity), "default");
    roster::start(&Selection::all(), term, ambient, &|account| match account {
        Account::Service(name) => client(Identity::service_account("kube-system", name)),
        Account::User(name) => client(Identity::user(name, &[])),
    })
}

//! The API alone, over TLS: `serve <folder> <address:port>`. Writes `<folder>/kubeconfig` and serves until killed.

use std::path::PathBuf;
use std::sync::Arc;

use ambient::Ambient;
use statefuld_apiserver::listen::{self, ListenOptions};
use statefuld_apiserver::{ApiServer, Options, tls};
use store::embedded::Embedded;
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let mut arguments = std::env::args().skip(1);
    let folder = PathBuf::from(arguments.next().ok_or("name a folder")?);
    let address = arguments.next().ok_or("name an address, such as 127.0.0.1:6443")?;
    std::fs::create_dir_all(&folder)?;
    let ambient = Ambient::system();
    let store = Embedded::open(&folder.join("store"), ambient.clone(), store::embedded::Options::default())?;
    let mut options = Options::new(store, ambient.clone());
    if let Some(cidr) = arguments.next() {
        let (network, prefix) = cidr.split_once('/').ok_or("a range is network/prefix")?;
        options.service_cidr = (network.parse()?, prefix.parse()?);
    }
    let server = ApiServer::start(options).await?;
    let authority = tls::Authority::load_or_create(&folder.join("pki"), ambient)?;
    let listener = tokio::net::TcpListener::bind(&address).await?;
    let url = format!("https://{}", listener.local_addr()?);
    tls::write_private(&folder.join("kubeconfig"), authority.admin_kubeconfig(&url)?.as_bytes())?;
    let config: Arc<_> = tls::server_config(&authority, &[], &[])?;
    println!("{url}");
    listen::serve(listener, ListenOptions::new(config), server.service(), CancellationToken::new()).await;
    Ok(())
}

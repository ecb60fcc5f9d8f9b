//! TLS of the listener: which certificate it shows, which client certificates it takes, and whom they name.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ambient::Ambient;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider;
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Authority, Error, Issued, Purpose, RENEW_BEFORE};
use crate::auth::Identity;

/// The listener's TLS, and what it makes of client certificates.
#[derive(Clone, Debug)]
pub struct ServerTls {
    pub(crate) config: Arc<ServerConfig>,
    clients: Arc<dyn ClientCertVerifier>,
    ambient: Ambient,
}

/// Who is at the other end of a connection, by the certificate shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// None was shown.
    Nobody,
    /// One that is good.
    Known(Identity),
    /// One that is not: of another authority, out of date, for something else. Requests are answered with 401, as
    /// upstream; the handshake is not refused, since a client may have more to show.
    Unknown,
}

impl ServerTls {
    /// Judges what a client has shown.
    pub fn peer(&self, chain: Option<&[CertificateDer<'_>]>) -> Peer {
        let Some((own, between)) = chain.and_then(<[_]>::split_first) else { return Peer::Nobody };
        let seconds = u64::try_from(self.ambient.now().as_second()).unwrap_or_default();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        if let Err(error) = self.clients.verify_client_cert(own, between, now) {
            tracing::debug!(%error, "a client certificate is not good");
            return Peer::Unknown;
        }
        identity_of(own).map_or(Peer::Unknown, Peer::Known)
    }
}

/// The listener's TLS: a certificate for these names and addresses (and loopback), renewed while the server runs;
/// client certificates are asked for, and judged after the handshake. HTTP/2 and HTTP/1.1.
pub fn server_config(authority: &Arc<Authority>, names: &[String], addresses: &[IpAddr]) -> Result<ServerTls, Error> {
    let provider = Arc::new(ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(authority.ca.clone())?;
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|error| Error::Rustls(rustls::Error::General(error.to_string())))?;
    let purpose = Purpose::Server { names: names.to_vec(), addresses: addresses.to_vec() };
    let certificate = Renewing::new(authority.clone(), purpose, provider.clone())?;
    let time = Arc::new(AmbientTime(authority.ambient.clone()));
    let mut config = ServerConfig::builder_with_details(provider, time)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(Arc::new(Asking(clients.clone())))
        .with_cert_resolver(Arc::new(certificate));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(ServerTls { config: Arc::new(config), clients, ambient: authority.ambient.clone() })
}

/// Asks for a certificate and takes any in the handshake, as long as the client has its key.
#[derive(Debug)]
struct Asking(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for Asking {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// Whom a client certificate names: its common name is the user, its organizations are the groups.
/// `None` where it names nobody.
pub fn identity_of(certificate: &CertificateDer<'_>) -> Option<Identity> {
    let facts = facts(certificate).ok().filter(|facts| !facts.user.is_empty())?;
    let groups: Vec<&str> = facts.groups.iter().map(String::as_str).collect();
    Some(Identity::user(facts.user, &groups))
}

/// The server's certificate, replaced before it expires, also in a server that runs for years.
#[derive(Debug)]
struct Renewing {
    authority: Arc<Authority>,
    purpose: Purpose,
    provider: Arc<CryptoProvider>,
    current: Mutex<Shown>,
}

#[derive(Clone, Debug)]
struct Shown {
    key: Arc<CertifiedKey>,
    /// Seconds of the epoch.
    renew_at: i64,
}

impl Renewing {
    fn new(authority: Arc<Authority>, purpose: Purpose, provider: Arc<CryptoProvider>) -> Result<Self, Error> {
        let current = Mutex::new(show(&authority, &purpose, &provider)?);
        Ok(Self { authority, purpose, provider, current })
    }
}

impl ResolvesServerCert for Renewing {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if self.authority.ambient.now().as_second() >= current.renew_at {
            match show(&self.authority, &self.purpose, &self.provider) {
                Ok(renewed) => *current = renewed,
                // The old one is good for weeks yet; the next handshake tries again.
                Err(error) => tracing::warn!(%error, "the server's certificate could not be renewed"),
            }
        }
        Some(current.key.clone())
    }
}

fn show(authority: &Authority, purpose: &Purpose, provider: &CryptoProvider) -> Result<Shown, Error> {
    let Issued { certificate_pem, key_pem } = authority.load_or_issue("apiserver", purpose)?;
    let general = |why: String| Error::Rustls(rustls::Error::General(why));
    let certificate = CertificateDer::from_pem_slice(certificate_pem.as_bytes()).map_err(|e| general(e.to_string()))?;
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|e| general(e.to_string()))?;
    let renew_at = facts(&certificate).map_err(general)?.not_after - RENEW_BEFORE.as_secs() as i64;
    let key = provider.key_provider.load_private_key(key)?;
    Ok(Shown { key: Arc::new(CertifiedKey::new(vec![certificate], key)), renew_at })
}

/// rustls checks client certificates against this clock.
#[derive(Debug)]
struct AmbientTime(Ambient);

impl TimeProvider for AmbientTime {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = u64::try_from(self.0.now().as_second()).ok()?;
        Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
    }
}

/// What is read out of a certificate.
pub(super) struct Facts {
    pub(super) user: String,
    pub(super) groups: Vec<String>,
    /// Sorted.
    pub(super) names: Vec<String>,
    /// Sorted.
    pub(super) addresses: Vec<IpAddr>,
    /// Seconds of the epoch.
    pub(super) not_after: i64,
    pub(super) subject_key_id: Vec<u8>,
    pub(super) authority_key_id: Vec<u8>,
    /// SubjectPublicKeyInfo, DER.
    pub(super) public_key: Vec<u8>,
}

/// Reads a certificate.
pub(super) fn facts(certificate: &CertificateDer<'_>) -> Result<Facts, String> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| error.to_string())?;
    let subject = parsed.subject();
    let text = |value: &x509_parser::x509::AttributeTypeAndValue<'_>| value.as_str().ok().map(str::to_owned);
    let mut facts = Facts {
        user: subject.iter_common_name().next().and_then(text).unwrap_or_default(),
        groups: subject.iter_organization().filter_map(text).collect(),
        names: Vec::new(),
        addresses: Vec::new(),
        not_after: parsed.validity().not_after.timestamp(),
        subject_key_id: Vec::new(),
        authority_key_id: Vec::new(),
        public_key: parsed.public_key().raw.to_vec(),
    };
    for extension in parsed.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => facts.subject_key_id = id.0.to_vec(),
            ParsedExtension::AuthorityKeyIdentifier(id) => {
                facts.authority_key_id = id.key_identifier.as_ref().map(|id| id.0.to_vec()).unwrap_or_default();
            }
            ParsedExtension::SubjectAlternativeName(names) => {
                for name in &names.general_names {
                    match name {
                        GeneralName::DNSName(name) => facts.names.push((*name).to_owned()),
                        GeneralName::IPAddress(bytes) => facts.addresses.extend(address(bytes)),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    facts.names.sort();
    facts.addresses.sort();
    Ok(facts)
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

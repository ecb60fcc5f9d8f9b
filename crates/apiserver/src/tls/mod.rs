//! The server's own certificate authority, and the certificates that it issues.
//!
//! ```text
//!  pki/ca.key, ca.crt ──▶ server certificate (apiserver.key, .crt): loopback, names, addresses given
//!                    ├──▶ client certificates: the administrator's, nodes' …
//!                    └──▶ ServerTls: asks for client certificates, and says whether they are ours
//! ```
//!
//! All keys are ECDSA P-256, made by ring from the kernel's entropy (not from `Ambient`: a seeded key is no key).
//! Validity and renewal go by `Ambient`'s wall clock. Private files are mode 0600 and appear whole or not at all.

mod files;
mod kubeconfig;
mod server;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ambient::Ambient;
use jiff::Timestamp;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

pub use files::write_private;
pub(crate) use files::{private_dir, read};
pub use kubeconfig::kubeconfig;
pub use server::{Peer, ServerTls, identity_of, server_config};

/// How long the authority lasts: longer than the machine it was made on.
const AUTHORITY_VALIDITY: Duration = Duration::from_secs(10 * 365 * 86_400);

/// How long what it issues lasts.
const VALIDITY: Duration = Duration::from_secs(365 * 86_400);

/// A certificate is replaced when it has less than this left.
const RENEW_BEFORE: Duration = Duration::from_secs(60 * 86_400);

/// Certificates begin in the past by this much, for clients whose clocks are behind.
const CLOCK_SKEW: Duration = Duration::from_secs(3600);

/// The server's certificate authority.
pub struct Authority {
    dir: PathBuf,
    ambient: Ambient,
    ca: CertificateDer<'static>,
    ca_pem: String,
    /// The authority's key identifier, which all its certificates name.
    key_id: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its private key, both PEM.
#[derive(Clone)]
pub struct Issued {
    /// The certificate.
    pub certificate_pem: String,
    /// PKCS#8.
    pub key_pem: String,
}

/// What a certificate is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The API server, under these names and addresses besides the usual ones.
    Server {
        /// DNS names.
        names: Vec<String>,
        /// Addresses.
        addresses: Vec<IpAddr>,
    },
    /// A client: its user and group.
    Client {
        /// Becomes the common name.
        user: String,
        /// Becomes the organization; empty for none.
        group: String,
    },
}

impl Authority {
    /// The authority below `dir`, made on first use. The caller holds the data directory's lock.
    pub fn load_or_create(dir: &Path, ambient: Ambient) -> Result<Arc<Self>, Error> {
        files::private_dir(dir)?;
        let (key_path, cert_path) = (dir.join("ca.key"), dir.join("ca.crt"));
        // The key is written first: a certificate without its key is damage, a key alone an interrupted first start.
        let (key_pem, ca_pem) = match (files::read(&key_path)?, files::read(&cert_path)?) {
            (Some(key), Some(cert)) => (key, cert),
            (None, Some(_)) => return Err(Error::KeyMissing(key_path)),
            (_, None) => {
                let made = create(&ambient)?;
                write_private(&key_path, made.key_pem.as_bytes())?;
                files::write_public(&cert_path, made.certificate_pem.as_bytes())?;
                (made.key_pem, made.certificate_pem)
            }
        };
        let damaged = |path: &Path, why: String| Error::Damaged { path: path.to_owned(), why };
        let key = KeyPair::from_pem(&key_pem).map_err(|e| damaged(&key_path, e.to_string()))?;
        let ca = CertificateDer::from_pem_slice(ca_pem.as_bytes()).map_err(|e| damaged(&cert_path, e.to_string()))?;
        let facts = server::facts(&ca).map_err(|why| damaged(&cert_path, why))?;
        if facts.public_key != rcgen::PublicKeyData::subject_public_key_info(&key) {
            return Err(damaged(&cert_path, "it belongs to another key".to_owned()));
        }
        let issuer = Issuer::from_ca_cert_der(&ca, key).map_err(|e| damaged(&cert_path, e.to_string()))?;
        Ok(Arc::new(Self { dir: dir.to_owned(), ambient, ca, ca_pem, key_id: facts.subject_key_id, issuer }))
    }

    /// The authority's certificate, which clients are given to trust.
    pub fn certificate_pem(&self) -> &str {
        &self.ca_pem
    }

    /// Issues a certificate that is not kept here.
    pub fn issue(&self, purpose: &Purpose) -> Result<Issued, Error> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = validity(CertificateParams::default(), self.ambient.now(), VALIDITY);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let mut name = DistinguishedName::new();
        match purpose {
            Purpose::Server { names, addresses } => {
                name.push(DnType::CommonName, "kube-apiserver");
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
                for dns in server_names(names) {
                    params.subject_alt_names.push(SanType::DnsName(Ia5String::try_from(dns)?));
                }
                params.subject_alt_names.extend(server_addresses(addresses).into_iter().map(SanType::IpAddress));
            }
            Purpose::Client { user, group } => {
                if !group.is_empty() {
                    name.push(DnType::OrganizationName, group.as_str());
                }
                name.push(DnType::CommonName, user.as_str());
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            }
        }
        params.distinguished_name = name;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Issued { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() })
    }

    /// The certificate kept as `<file>.crt` and `<file>.key`; issued anew where there is none, it is for something
    /// else, by another authority, or about to expire.
    pub fn load_or_issue(&self, file: &str, purpose: &Purpose) -> Result<Issued, Error> {
        let (cert_path, key_path) = (self.dir.join(format!("{file}.crt")), self.dir.join(format!("{file}.key")));
        if let (Some(certificate_pem), Some(key_pem)) = (files::read(&cert_path)?, files::read(&key_path)?) {
            let kept = Issued { certificate_pem, key_pem };
            if self.is_good(&kept, purpose) {
                return Ok(kept);
            }
        }
        let issued = self.issue(purpose)?;
        write_private(&key_path, issued.key_pem.as_bytes())?;
        files::write_public(&cert_path, issued.certificate_pem.as_bytes())?;
        Ok(issued)
    }

    /// The administrator's certificate, kept across starts.
    pub fn admin(&self) -> Result<Issued, Error> {
        let purpose = Purpose::Client { user: "kubernetes-admin".to_owned(), group: "system:masters".to_owned() };
        self.load_or_issue("admin", &purpose)
    }

    /// A node agent's certificate.
    pub fn node(&self, name: &str) -> Result<Issued, Error> {
        self.issue(&Purpose::Client { user: format!("system:node:{name}"), group: "system:nodes".to_owned() })
    }

    /// The administrator's kubeconfig for a server at this URL.
    pub fn admin_kubeconfig(&self, server_url: &str) -> Result<String, Error> {
        let admin = self.admin()?;
        Ok(kubeconfig(server_url, &self.ca_pem, &admin.certificate_pem, &admin.key_pem))
    }

    fn is_good(&self, kept: &Issued, purpose: &Purpose) -> bool {
        let Ok(der) = CertificateDer::from_pem_slice(kept.certificate_pem.as_bytes()) else { return false };
        let (Ok(facts), Ok(key)) = (server::facts(&der), KeyPair::from_pem(&kept.key_pem)) else { return false };
        let right = match purpose {
            Purpose::Server { names, addresses } => {
                facts.names == server_names(names) && facts.addresses == server_addresses(addresses)
            }
            Purpose::Client { user, group } => {
                let groups: &[String] = if group.is_empty() { &[] } else { std::slice::from_ref(group) };
                facts.user == *user && facts.groups == groups
            }
        };
        right
            && facts.authority_key_id == self.key_id
            && facts.public_key == rcgen::PublicKeyData::subject_public_key_info(&key)
            && self.ambient.now().as_second() + RENEW_BEFORE.as_secs() as i64 <= facts.not_after
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Authority({})", self.dir.display())
    }
}

impl std::fmt::Debug for Issued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Issued")
    }
}

/// A new authority. Its name has a random part, so that tools that look up issuers by name never mix up two.
fn create(ambient: &Ambient) -> Result<Issued, Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = validity(CertificateParams::default(), ambient.now(), AUTHORITY_VALIDITY);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, format!("statefuld-ca-{}", ambient.suffix(8)));
    params.distinguished_name = name;
    let certificate = params.self_signed(&key)?;
    Ok(Issued { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() })
}

fn validity(mut params: CertificateParams, now: Timestamp, length: Duration) -> CertificateParams {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let seconds = u64::try_from(now.as_second()).unwrap_or_default();
    params.not_before = epoch + Duration::from_secs(seconds.saturating_sub(CLOCK_SKEW.as_secs()));
    params.not_after = epoch + Duration::from_secs(seconds) + length;
    params
}

/// The names of the server inside and outside of pods, sorted.
fn server_names(more: &[String]) -> Vec<String> {
    let usual = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "localhost",
    ];
    let mut names: Vec<String> = usual.iter().map(|name| (*name).to_owned()).chain(more.iter().cloned()).collect();
    names.sort();
    names.dedup();
    names
}

/// The addresses of the server, sorted.
fn server_addresses(more: &[IpAddr]) -> Vec<IpAddr> {
    let loopback = [IpAddr::from([127, 0, 0, 1]), IpAddr::from(std::net::Ipv6Addr::LOCALHOST)];
    let mut addresses: Vec<IpAddr> = loopback.into_iter().chain(more.iter().copied()).collect();
    addresses.sort();
    addresses.dedup();
    addresses
}

/// What can go wrong with keys and certificates.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written. Check the directory's owner and free space.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// read, write …
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// The system's own reason.
        source: std::io::Error,
    },
    /// The authority's certificate is there and its key is not. Restore the key from a backup; or remove the
    /// directory, which makes a new authority that no existing kubeconfig trusts.
    #[error("{} is missing while ca.crt exists: restore it, or remove the directory to begin with a new authority", .0.display())]
    KeyMissing(PathBuf),
    /// A file holds something else than it should. Restore it from a backup.
    #[error("{} is damaged: {why}", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A certificate could not be made: a name is not ASCII, or no entropy.
    #[error("cannot make a certificate: {0}")]
    Issue(#[from] rcgen::Error),
    /// TLS could not be set up from certificates that were just made: a bug.
    #[error("cannot set up TLS: {0}")]
    Rustls(#[from] rustls::Error),
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn start() -> Timestamp {
        "2026-01-01T00:00:00Z".parse().unwrap()
    }

    fn server(addresses: &[[u8; 4]]) -> Purpose {
        Purpose::Server { names: Vec::new(), addresses: addresses.iter().map(|a| IpAddr::from(*a)).collect() }
    }

    #[test]
    fn the_authority_is_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let (ambient, _) = Ambient::manual(start(), 1);
        let first = Authority::load_or_create(dir.path(), ambient.clone()).unwrap();
        let second = Authority::load_or_create(dir.path(), ambient).unwrap();
        assert_eq!(first.certificate_pem(), second.certificate_pem());
        let mode = std::fs::metadata(dir.path().join("ca.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn an_interrupted_first_start_begins_again_and_a_lost_key_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let (ambient, _) = Ambient::manual(start(), 1);
        Authority::load_or_create(dir.path(), ambient.clone()).unwrap();
        std::fs::remove_file(dir.path().join("ca.crt")).unwrap();
        Authority::load_or_create(dir.path(), ambient.clone()).unwrap();
        std::fs::remove_file(dir.path().join("ca.key")).unwrap();
        assert!(matches!(Authority::load_or_create(dir.path(), ambient), Err(Error::KeyMissing(_))));
    }

    #[test]
    fn a_key_of_another_authority_is_damage() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (ambient, _) = Ambient::manual(start(), 1);
        Authority::load_or_create(one.path(), ambient.clone()).unwrap();
        Authority::load_or_create(two.path(), ambient.clone()).unwrap();
        std::fs::copy(two.path().join("ca.key"), one.path().join("ca.key")).unwrap();
        assert!(matches!(Authority::load_or_create(one.path(), ambient), Err(Error::Damaged { .. })));
    }

    #[test]
    fn a_certificate_is_kept_until_its_addresses_change_or_it_nears_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let (ambient, clock) = Ambient::manual(start(), 1);
        let authority = Authority::load_or_create(dir.path(), ambient).unwrap();
        let get = |purpose: &Purpose| authority.load_or_issue("apiserver", purpose).unwrap().certificate_pem;
        let first = get(&server(&[[10, 0, 0, 1]]));
        assert_eq!(get(&server(&[[10, 0, 0, 1], [127, 0, 0, 1]])), first);
        let moved = get(&server(&[[10, 0, 0, 2]]));
        assert_ne!(moved, first);
        clock.advance(VALIDITY - RENEW_BEFORE - Duration::from_secs(60));
        assert_eq!(get(&server(&[[10, 0, 0, 2]])), moved);
        clock.advance(Duration::from_secs(3600));
        assert_ne!(get(&server(&[[10, 0, 0, 2]])), moved);
    }

    #[test]
    fn a_certificate_of_another_authority_is_replaced() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (ambient, _) = Ambient::manual(start(), 1);
        let first = Authority::load_or_create(one.path(), ambient.clone()).unwrap();
        let second = Authority::load_or_create(two.path(), ambient).unwrap();
        let old = first.admin().unwrap();
        for file in ["admin.crt", "admin.key"] {
            std::fs::copy(one.path().join(file), two.path().join(file)).unwrap();
        }
        assert_ne!(second.admin().unwrap().certificate_pem, old.certificate_pem);
    }

    #[test]
    fn a_client_certificate_says_who_it_is_for() {
        let dir = tempfile::tempdir().unwrap();
        let (ambient, _) = Ambient::manual(start(), 1);
        let authority = Authority::load_or_create(dir.path(), ambient).unwrap();
        let der = |issued: Issued| CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).unwrap();
        assert_eq!(
            identity_of(&der(authority.admin().unwrap())),
            Some(crate::auth::Identity::user("kubernetes-admin", &["system:masters"]))
        );
        assert_eq!(identity_of(&der(authority.node("n1").unwrap())), Some(crate::auth::Identity::node("n1")));
    }
}

//! Issues the certificates of a cluster: its CA, its nodes, its clients.
//!
//! `engram cert` calls this and writes the files. The CA's subject is fixed, so that its key alone
//! is enough to sign; clusters are told apart by key, not by name.

use std::time::Duration;

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, date_time_ymd,
};

use super::tls::PEER_NAME;

const CA_SUBJECT: &str = "Engram cluster CA";
/// Clocks of other machines may be behind this one's.
const BACKDATED: Duration = Duration::from_secs(24 * 60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// A certificate that outlives this is an oversight.
pub const VALID_DAYS_MAX: u32 = 3_650;
/// Default of a CA's validity.
pub const CA_VALID_DAYS: u32 = 3_650;
/// Default of a node's or client's validity.
pub const LEAF_VALID_DAYS: u32 = 825;

/// When a certificate begins, and how long it is valid.
#[derive(Clone, Copy, Debug)]
pub struct Validity {
    pub now_millis: u64,
    pub days: u32,
}

/// A certificate and its key, both PEM.
pub struct Issued {
    pub certificate: String,
    pub key: String,
}

/// Why a certificate cannot be issued.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    #[error("a validity of {0} days is not between 1 and {VALID_DAYS_MAX}")]
    Validity(u32),
    #[error("'{0}' is neither a host name nor an address")]
    Host(String),
    #[error("the CA's key is not usable: {0}")]
    CaKey(rcgen::Error),
    #[error("making the certificate: {0}")]
    Make(rcgen::Error),
}

/// A new CA.
///
/// # Errors
/// When the validity is out of bounds, or no key can be made.
pub fn ca(validity: Validity) -> Result<Issued, IssueError> {
    let mut params = ca_params();
    apply(validity, &mut params)?;
    let key = KeyPair::generate().map_err(IssueError::Make)?;
    let certificate = params.self_signed(&key).map_err(IssueError::Make)?;
    Ok(issued(&certificate, &key))
}

/// A node's certificate, for both ports, valid for `hosts` and [`PEER_NAME`].
///
/// # Errors
/// As [`ca`]; also when a host is malformed or the CA's key cannot be read.
pub fn node(
    ca_key: &str,
    name: &str,
    hosts: &[String],
    validity: Validity,
) -> Result<Issued, IssueError> {
    let mut names = vec![PEER_NAME.to_owned()];
    for host in hosts {
        CertificateParams::new([host.clone()]).map_err(|_| IssueError::Host(host.clone()))?;
        names.push(host.clone());
    }
    let uses = [
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    leaf(ca_key, name, names, &uses, validity)
}

/// A client's certificate. It has no host name: it can be shown, never served.
///
/// # Errors
/// As [`node`].
pub fn client(ca_key: &str, name: &str, validity: Validity) -> Result<Issued, IssueError> {
    leaf(
        ca_key,
        name,
        Vec::new(),
        &[ExtendedKeyUsagePurpose::ClientAuth],
        validity,
    )
}

fn leaf(
    ca_key: &str,
    name: &str,
    hosts: Vec<String>,
    uses: &[ExtendedKeyUsagePurpose],
    validity: Validity,
) -> Result<Issued, IssueError> {
    let mut params = CertificateParams::new(hosts).map_err(IssueError::Make)?;
    params.distinguished_name = subject(name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = uses.to_vec();
    params.use_authority_key_identifier_extension = true;
    apply(validity, &mut params)?;

    let issuer = Issuer::new(
        ca_params(),
        KeyPair::from_pem(ca_key).map_err(IssueError::CaKey)?,
    );
    let key = KeyPair::generate().map_err(IssueError::Make)?;
    let certificate = params.signed_by(&key, &issuer).map_err(IssueError::Make)?;
    Ok(issued(&certificate, &key))
}

/// What signing needs to know of a CA, apart from its key.
fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = subject(CA_SUBJECT);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn subject(name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, "Engram");
    subject.push(DnType::CommonName, name);
    subject
}

fn apply(validity: Validity, params: &mut CertificateParams) -> Result<(), IssueError> {
    if validity.days == 0 || validity.days > VALID_DAYS_MAX {
        return Err(IssueError::Validity(validity.days));
    }
    let now = Duration::from_millis(validity.now_millis);
    let epoch = date_time_ymd(1970, 1, 1);
    params.not_before = epoch + now.saturating_sub(BACKDATED);
    params.not_after = epoch + now + DAY * validity.days;
    Ok(())
}

fn issued(certificate: &Certificate, key: &KeyPair) -> Issued {
    Issued {
        certificate: certificate.pem(),
        key: key.serialize_pem(),
    }
}

//! Identities: a certificate authority, certificates, and the kubeconfig files made of them, by `openssl`.
//!
//! All files lie in the machine's directory, which only root can read, and are removed with it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The kind of all keys.
const KEY: [&str; 5] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];

/// The authority, and the directory of its certificates.
#[derive(Debug)]
pub struct Authority {
    directory: PathBuf,
}

impl Authority {
    /// Makes one in a new directory.
    ///
    /// # Panics
    /// With `openssl`'s output.
    pub fn new(directory: PathBuf) -> Self {
        fs::create_dir_all(&directory).expect("the machine's directory is writable");
        let authority = Self { directory };
        authority.openssl("ca", &["-subj", "/CN=hearth-e2e"]);
        // The key that signs the tokens of service accounts, and the certificate that checks them.
        authority.openssl("accounts", &["-subj", "/CN=accounts"]);
        authority
    }

    /// A certificate for both ends of a connection: a user `name` of `group`, or a server at `addresses`
    /// (as in `IP:127.0.0.1,DNS:localhost`).
    pub fn sign(&self, file: &str, group: &str, name: &str, addresses: &str) {
        let subject = format!("/O={group}/CN={name}");
        let (ca, key) = (self.certificate("ca"), self.key("ca"));
        let names = format!("subjectAltName={addresses}");
        let mut arguments = vec!["-CA", &ca, "-CAkey", &key, "-subj", &subject, "-addext", "basicConstraints=CA:FALSE"];
        arguments.extend(["-addext", "extendedKeyUsage=clientAuth,serverAuth"]);
        if !addresses.is_empty() {
            arguments.extend(["-addext", &names]);
        }
        self.openssl(file, &arguments);
    }

    fn openssl(&self, file: &str, more: &[&str]) {
        let mut openssl = Command::new("openssl");
        openssl.args(["req", "-x509", "-sha256", "-days", "2"]).args(KEY);
        openssl.args(["-keyout", &self.key(file), "-out", &self.certificate(file)]).args(more);
        let output = openssl.output().unwrap_or_else(|error| panic!("openssl: {error}"));
        assert!(output.status.success(), "{openssl:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// The path of a certificate.
    pub fn certificate(&self, file: &str) -> String {
        self.path(&format!("{file}.crt"))
    }

    /// The path of its key.
    pub fn key(&self, file: &str) -> String {
        self.path(&format!("{file}.key"))
    }

    fn path(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }

    /// Signs a user's certificate and writes the kubeconfig of that user at the API server `server`.
    pub fn kubeconfig(&self, file: &str, group: &str, name: &str, server: &str) -> String {
        self.sign(file, group, name, "");
        let config = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "e2e", "cluster": {"server": server, "certificate-authority": self.certificate("ca")}}],
            "users": [{
                "name": name,
                "user": {"client-certificate": self.certificate(file), "client-key": self.key(file)},
            }],
            "contexts": [{"name": "e2e", "context": {"cluster": "e2e", "user": name}}],
            "current-context": "e2e",
        });
        let path = self.path(&format!("{file}.conf"));
        fs::write(Path::new(&path), config.to_string()).expect("the machine's directory is writable");
        path
    }
}

use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::mpsc;

use rcgen::{CertificateParams, KeyPair};

use super::*;

/// A certificate and its key in PEM.
fn pair(name: &str) -> [String; 2] {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new([name.to_owned()]).unwrap().self_signed(&key).unwrap();
    [certificate.pem(), key.serialize_pem()]
}

fn files(root: &Path) -> Files {
    Files { root: root.into(), directory: "/tls".into() }
}

/// Writes the files as kubelet does: into a new directory, to which a link is then renamed.
fn write_secret(root: &Path, version: &str, [certificate, key]: &[String; 2]) {
    let directory = root.join("tls");
    std::fs::create_dir_all(directory.join(version)).unwrap();
    std::fs::write(directory.join(version).join(FILES[0]), certificate).unwrap();
    std::fs::write(directory.join(version).join(FILES[1]), key).unwrap();
    symlink(version, directory.join("..data_tmp")).unwrap();
    std::fs::rename(directory.join("..data_tmp"), directory.join("..data")).unwrap();
    for name in FILES.iter().filter(|name| !directory.join(name).exists()) {
        symlink(format!("..data/{name}"), directory.join(name)).unwrap();
    }
}

#[test]
fn each_fault_of_the_files_is_named() {
    let root = tempfile::tempdir().unwrap();
    let fault = |[certificate, key]: [&str; 2]| {
        std::fs::create_dir_all(root.path().join("tls")).unwrap();
        std::fs::write(root.path().join("tls/tls.crt"), certificate).unwrap();
        std::fs::write(root.path().join("tls/tls.key"), key).unwrap();
        files(root.path()).read().expect_err("it cannot be used")
    };
    let missing = files(root.path()).read().expect_err("there is none");
    assert!(missing.contains("/tls/tls.crt does not exist") && missing.contains("kubernetes.io/tls"), "{missing}");
    let ([certificate, key], [_, other_key]) = (pair("a.test"), pair("b.test"));
    for (pair, says) in [
        (["no PEM", key.as_str()], "/tls/tls.crt has no certificate"),
        ([certificate.as_str(), "no PEM"], "/tls/tls.key has no private key"),
        ([certificate.as_str(), certificate.as_str()], "/tls/tls.key has no private key"),
        ([certificate.as_str(), other_key.as_str()], "/tls/tls.key is not the key of the first certificate"),
        (["-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", key.as_str()], "/tls/tls.crt"),
    ] {
        let error = fault(pair);
        assert!(error.contains(says) && !error.contains('\n'), "{error}");
    }
    std::fs::remove_file(root.path().join("tls/tls.key")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, root.path().join("tls/tls.key"), rustix::fs::FileType::Fifo, 0o600.into(), 0)
        .unwrap();
    let error = files(root.path()).read().expect_err("a FIFO");
    assert!(error.contains("/tls/tls.key") && error.contains("not a regular file"), "{error}");
}

#[test]
fn a_link_does_not_lead_out_of_the_container() {
    let (root, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let [certificate, key] = pair("a.test");
    std::fs::create_dir(root.path().join("tls")).unwrap();
    std::fs::write(root.path().join("tls/tls.crt"), certificate).unwrap();
    std::fs::write(outside.path().join("tls.key"), key).unwrap();
    symlink(outside.path().join("tls.key"), root.path().join("tls/tls.key")).unwrap();
    let error = files(root.path()).read().expect_err("it is not in the container");
    assert!(error.contains("/tls/tls.key does not exist"), "{error}");
}

#[tokio::test]
async fn a_renewal_counts_from_the_next_look_on_and_a_bad_one_is_told() {
    let root = tempfile::tempdir().unwrap();
    write_secret(root.path(), "..1", &pair("a.test"));
    let certificate = Certificate::open(&Handle::current(), root.path().into(), "/tls/".into()).await.unwrap();
    let (send, told) = mpsc::channel();
    let look = async || {
        certificate.current.lock().looked_at = Instant::now() - LOOK_INTERVAL;
        let send = send.clone();
        certificate
            .configuration(Box::new(move |renewal| renewal.err().map_or((), |text| send.send(text).unwrap())))
            .await
    };
    let first = look().await;
    assert!(Arc::ptr_eq(&first, &look().await), "nothing has changed");
    write_secret(root.path(), "..2", &pair("a.test"));
    let second = look().await;
    assert!(!Arc::ptr_eq(&first, &second));
    // A key of another certificate: told once it is no longer young, and only once.
    let ([certificate_of_one, _], [_, key_of_other]) = (pair("a.test"), pair("a.test"));
    write_secret(root.path(), "..3", &[certificate_of_one, key_of_other]);
    assert!(Arc::ptr_eq(&second, &look().await));
    assert!(told.try_recv().is_err(), "its other file may still come");
    let text = loop {
        assert!(Arc::ptr_eq(&second, &look().await));
        match told.recv_timeout(Duration::from_millis(50)) {
            Ok(text) => break text,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    assert!(text.contains("/tls/tls.key is not the key"), "{text}");
    look().await;
    assert!(told.try_recv().is_err());
    write_secret(root.path(), "..4", &pair("a.test"));
    assert!(!Arc::ptr_eq(&second, &look().await));
}

#[tokio::test]
async fn the_files_are_looked_at_once_in_an_interval() {
    let root = tempfile::tempdir().unwrap();
    write_secret(root.path(), "..1", &pair("a.test"));
    let certificate = Certificate::open(&Handle::current(), root.path().into(), "/tls".into()).await.unwrap();
    let first = certificate.configuration(Box::new(|_| panic!("it can be used"))).await;
    write_secret(root.path(), "..2", &pair("a.test"));
    let same = certificate.configuration(Box::new(|_| panic!("it can be used"))).await;
    let is_early = certificate.current.lock().looked_at.elapsed() < LOOK_INTERVAL;
    assert!(Arc::ptr_eq(&first, &same) || !is_early);
}

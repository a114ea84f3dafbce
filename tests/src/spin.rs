//! Spin applications as images: artifacts of the shape that `spin registry push` makes.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::images::Image;

/// The media type of a component.
const WASM: &str = "application/vnd.wasm.content.layer.v1+wasm";

/// The media type of a file.
const DATA: &str = "application/vnd.wasm.content.layer.v1+data";

/// The media type of an archive of files.
const ARCHIVE: &str = "application/vnd.wasm.content.bundle.v1.tar+gzip";

/// The media type of the locked application.
const LOCKED: &str = "application/vnd.fermyon.spin.application.v1+config";

/// Files up to so many bytes are in the locked application itself.
const INLINE_BYTES_MAX: usize = 128;

/// An application that is pushed.
#[derive(Clone, Debug)]
pub struct SpinApplication {
    name: String,
    locked: Value,
    layers: Vec<(&'static str, Vec<u8>)>,
    /// Files that go into one archive.
    packed: Vec<(String, Vec<u8>)>,
}

impl SpinApplication {
    /// Without components.
    pub fn new(name: &str) -> Self {
        let locked = json!({
            "spin_lock_version": 0,
            "metadata": {"name": name, "version": "0.1.0"},
            "variables": {},
            "triggers": [],
            "components": [],
        });
        Self { name: name.to_owned(), locked, layers: Vec::new(), packed: Vec::new() }
    }

    /// Adds a component. `more`: other keys of it, such as `env`, `config` and `metadata`.
    pub fn component(mut self, id: &str, wasm: Vec<u8>, more: Value) -> Self {
        let mut component = json!({
            "id": id,
            "source": {"content_type": "application/wasm", "digest": digest(&wasm)},
            "files": [],
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            component[key] = value.clone();
        }
        self.layers.push((WASM, wasm));
        self.list("components").push(component);
        self
    }

    /// Adds a file to the last component: in the locked application if it is small, else in a layer of its own.
    pub fn file(mut self, path: &str, bytes: &[u8]) -> Self {
        let mut file = json!({"path": path, "digest": digest(bytes)});
        if bytes.len() <= INLINE_BYTES_MAX {
            file["inline"] = STANDARD.encode(bytes).into();
        } else {
            self.layers.push((DATA, bytes.to_vec()));
        }
        self.add_file(file);
        self
    }

    /// The same in an archive with other files.
    pub fn packed_file(mut self, path: &str, bytes: &[u8]) -> Self {
        self.packed.push((path.to_owned(), bytes.to_vec()));
        self.add_file(json!({"path": path, "digest": digest(bytes)}));
        self
    }

    fn add_file(&mut self, file: Value) {
        let component = self.list("components").last_mut().expect("a component was added");
        component["files"].as_array_mut().expect("it is a list").push(file);
    }

    /// Adds a trigger with these settings.
    pub fn trigger(mut self, kind: &str, config: Value) -> Self {
        let id = format!("trigger-{}", self.list("triggers").len());
        self.list("triggers").push(json!({"id": id, "trigger_type": kind, "trigger_config": config}));
        self
    }

    /// Adds a route to a component.
    pub fn route(self, route: &str, component: &str) -> Self {
        self.trigger("http", json!({"component": component, "route": route}))
    }

    /// Changes the locked application.
    pub fn edit(mut self, edit: impl FnOnce(&mut Value)) -> Self {
        edit(&mut self.locked);
        self
    }

    /// The image, `hearth.test/NAME:1`.
    pub fn image(&self) -> Image {
        let mut layers = self.layers.clone();
        if !self.packed.is_empty() {
            layers.push((ARCHIVE, self.archive()));
        }
        // It is the last layer.
        layers.push((LOCKED, self.locked.to_string().into_bytes()));
        Image::layers(&format!("hearth.test/{}:1", self.name), layers)
    }

    fn archive(&self) -> Vec<u8> {
        let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
        for (path, bytes) in &self.packed {
            let mut header = tar::Header::new_ustar();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, path, bytes.as_slice()).expect("writing to memory never fails");
        }
        tar.into_inner().and_then(GzEncoder::finish).expect("writing to memory never fails")
    }

    fn list(&mut self, key: &str) -> &mut Vec<Value> {
        self.locked[key].as_array_mut().expect("it is a list")
    }
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

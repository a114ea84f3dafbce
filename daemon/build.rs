//! Makes the server of containerd's sandbox Controller, whose messages the containerd-client crate has.

use tonic_build::manual::{Builder, Method, Service};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    sandbox_controller();
}

/// `containerd.services.sandbox.v1.Controller` (api/services/sandbox/v1/sandbox.proto of containerd).
fn sandbox_controller() {
    let mut controller = Service::builder().name("Controller").package("containerd.services.sandbox.v1");
    for call in ["Create", "Start", "Platform", "Stop", "Wait", "Status", "Shutdown", "Metrics", "Update"] {
        let message = |what: &str| format!("containerd_client::services::v1::sandbox::Controller{call}{what}");
        let method = Method::builder()
            .name(call.to_lowercase())
            .route_name(call)
            .input_type(message("Request"))
            .output_type(message("Response"))
            .codec_path("tonic_prost::ProstCodec");
        controller = controller.method(method.build());
    }
    Builder::new().build_client(false).compile(&[controller.build()]);
}

//! Two differences from wasmtime-wasi-http: methods have a longest length, and the error of a response's body has its
//! code.

use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource};
use wasmtime_wasi_http::p2::bindings::http::types::{ErrorCode, HostOutgoingRequest, IoError, Method, OutgoingRequest};
use wasmtime_wasi_http::p3::bindings::http::types::{HostRequest, Method as MethodP3, Request};
use wasmtime_wasi_http::{Error as HttpError, WasiHttpView};

use crate::state::ComponentState;

/// `wasi:http`'s types, as wasmtime-wasi-http 48 has them; a guest's older 0.2 is linked to them too.
const TYPES: &str = "wasi:http/types@0.2.12";

/// The same of WASI 0.3.
const TYPES_P3: &str = "wasi:http/types@0.3.0";

/// The longest method, in bytes. Registered methods have at most 17 (`UPDATEREDIRECTREF`); a longer text is kept for as
/// long as its request, outside the guest's memory.
const METHOD_BYTES_MAX: usize = 64;

/// Puts the functions in the place of wasmtime-wasi-http's own.
///
/// # Errors
/// If wasmtime-wasi-http has no such interface: a mistake of this module.
pub fn replace(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    tell_body_errors(linker)?;
    bound_methods(linker)?;
    linker.allow_shadowing(false);
    Ok(())
}

/// Replaces the call that tells the code of a stream's error by one that knows those of responses' bodies.
///
/// wasmtime-wasi-http 48 looks for WASI's own type (its `p2/types_impl.rs`), where bodies have the crate's.
fn tell_body_errors(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    linker.instance(TYPES)?.func_wrap(
        "http-error-code",
        |mut store: StoreContextMut<'_, ComponentState>, (error,): (Resource<IoError>,)| {
            let error = store.data_mut().table.get(&error)?;
            let own = error.downcast_ref::<ErrorCode>().cloned();
            Ok((own.or_else(|| error.downcast_ref().and_then(of_body)),))
        },
    )
}

/// Replaces `set-method` by one that refuses a method over [`METHOD_BYTES_MAX`].
///
/// wasmtime-wasi-http 48 keeps a method of any length (its `p2/types_impl.rs` and `p3/host/types.rs`).
fn bound_methods(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    linker.instance(TYPES)?.func_wrap(
        "[method]outgoing-request.set-method",
        |mut store: StoreContextMut<'_, ComponentState>, (request, method): (Resource<OutgoingRequest>, Method)| {
            if matches!(&method, Method::Other(text) if text.len() > METHOD_BYTES_MAX) {
                return Ok((Err(()),));
            }
            Ok((HostOutgoingRequest::set_method(&mut store.data_mut().http(), request, method)?,))
        },
    )?;
    linker.instance(TYPES_P3)?.func_wrap(
        "[method]request.set-method",
        |mut store: StoreContextMut<'_, ComponentState>, (request, method): (Resource<Request>, MethodP3)| {
            if matches!(&method, MethodP3::Other(text) if text.len() > METHOD_BYTES_MAX) {
                return Ok((Err(()),));
            }
            Ok((HostRequest::set_method(&mut store.data_mut().http(), request, method)?,))
        },
    )
}

/// WASI 0.2's code of an error in the middle of a response's body.
fn of_body(error: &HttpError) -> Option<ErrorCode> {
    Some(match error {
        HttpError::ConnectionReadTimeout => ErrorCode::ConnectionReadTimeout,
        HttpError::HttpResponseIncomplete => ErrorCode::HttpResponseIncomplete,
        HttpError::HttpProtocolError => ErrorCode::HttpProtocolError,
        HttpError::TlsProtocolError => ErrorCode::TlsProtocolError,
        _ => return None,
    })
}

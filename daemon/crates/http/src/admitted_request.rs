//! A request on its way from its client's side to a guest.

use std::any::Any;
use std::sync::Arc;

use hyper::Request;

use crate::component::Component;
use crate::request_body::RequestBody;
use crate::request_state::SendHead;
use crate::trace_context::TraceContext;

/// A request that may have an instance.
pub struct AdmittedRequest {
    /// The component that answers it.
    pub component: Arc<Component>,
    /// The request.
    pub request: Request<RequestBody>,
    /// Its client speaks TLS.
    pub secure: bool,
    /// The trace that it belongs to.
    pub trace: Option<TraceContext>,
    /// Where the response's head goes.
    pub send_head: SendHead,
    /// Method and path, for messages.
    pub name: Arc<str>,
    /// The turn, the place and the count that it holds as long as it has its instance.
    pub admitted: Box<dyn Any + Send + Sync>,
}

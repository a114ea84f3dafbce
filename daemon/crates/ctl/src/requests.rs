//! `hearthctl trace --requests` and `hearthctl trace TRACE-ID`: the last slow HTTP requests, and those of one trace, part by
//! part.

use crate::CtlError;
use crate::client::DaemonClient;
use crate::inspect::TaskName;
use crate::output::{Cell, Printer, Table, Tone, printable};
use crate::{ps, trace};
use hearth_base::operator::{PhaseInfo, Question, RequestInfo};
use hearth_base::units::{age_since, seconds};

/// Digits of a trace's id, in hex (W3C Trace Context).
const TRACE_ID_DIGITS: usize = 32;

/// The last slow requests, of one task if it is named.
pub fn list(
    name: Option<&TaskName>,
    (last, slowest): (usize, bool),
    client: &DaemonClient,
    output: &mut Printer,
) -> Result<(), CtlError> {
    let mut requests: Vec<RequestInfo> = client.list(&Question::Requests)?;
    if let Some(name) = name {
        requests = name.choose(requests);
    }
    if slowest {
        requests.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    }
    requests.truncate(last);
    if output.json {
        return Ok(output.json(&requests)?);
    }
    let mut table = Table::new(&[">AGO", "TASK", "POD", "REQUEST", ">STATUS", ">TIME", "SLOWEST PART", "TRACE"]);
    for request in &requests {
        let slowest = request.phases.iter().max_by(|a, b| a.seconds.total_cmp(&b.seconds));
        let phase = |phase: &PhaseInfo| format!("{} {}", phase.name, seconds(phase.seconds));
        table.row(vec![
            age_since(request.at).into(),
            ps::short_id(&request.of.id, false).into(),
            request.of.pod.as_ref().map_or_else(|| "-".into(), ps::pod).into(),
            request.request.as_str().into(),
            status(request),
            seconds(request.seconds).into(),
            slowest.map(phase).unwrap_or_default().into(),
            request.trace_id.as_deref().unwrap_or("-").into(),
        ]);
    }
    Ok(output.table(&table)?)
}

/// Whether the text may be a trace's id.
pub fn is_trace_id(text: &str) -> bool {
    text.len() == TRACE_ID_DIGITS && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Shows the requests of a trace; `false` if there are none.
pub fn show_trace(id: &str, client: &DaemonClient, output: &mut Printer) -> Result<bool, CtlError> {
    let mut requests: Vec<RequestInfo> = client.list(&Question::Requests)?;
    requests.retain(|request| request.trace_id.as_deref().is_some_and(|known| known.eq_ignore_ascii_case(id)));
    if requests.is_empty() {
        return Ok(false);
    }
    if output.json {
        output.json(&requests)?;
        return Ok(true);
    }
    for (number, request) in requests.iter().enumerate() {
        if number > 0 {
            output.line("")?;
        }
        show(request, output)?;
    }
    Ok(true)
}

fn show(request: &RequestInfo, output: &mut Printer) -> Result<(), CtlError> {
    output.line(printable(&request.request))?;
    output.line(format!("{}/{}", request.of.namespace, printable(&request.of.id)))?;
    if let Some(pod) = &request.of.pod {
        output.line(format!("pod {}", printable(&ps::pod(pod))))?;
    }
    if let Some(trace) = &request.trace_id {
        output.line(format!("trace {trace}"))?;
    }
    output.line("")?;
    let row = |phase: &PhaseInfo| trace::TimelineRow::new(phase.began_seconds, phase.seconds, &phase.name);
    trace::timeline(&request.phases.iter().map(row).collect::<Vec<_>>(), output)?;
    output.line("")?;
    let ended = match (request.status, request.cut) {
        (0, _) => "ended without an answer".to_owned(),
        (status, true) => format!("answered with {status}; the client did not get all of it"),
        (status, false) => format!("answered with {status}"),
    };
    output.line(format!("{ended}, {} after the request's head", seconds(request.seconds)))?;
    Ok(())
}

fn status(request: &RequestInfo) -> Cell {
    match (request.status, request.cut) {
        (0, _) => Cell::toned(Tone::Bad, "-"),
        (status, true) => Cell::toned(Tone::Bad, format!("{status}, cut")),
        (status, false) if status >= 500 => Cell::toned(Tone::Bad, status.to_string()),
        (status, false) => status.to_string().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traces_id_has_32_digits() {
        assert!(is_trace_id("0af7651916cd43dd8448eb211c80319c") && is_trace_id("0AF7651916CD43DD8448EB211C80319C"));
        assert!(!is_trace_id("0af7651916cd43dd8448eb211c80319") && !is_trace_id("0af7651916cd43dd8448eb211c80319x"));
    }
}

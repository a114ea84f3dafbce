//! Handles of guests on connections, each of which counts as an open file of the container.

use wasmtime::component::Resource;

use hearth_wasm::state::ComponentState;

/// The answer of a host function. The inner error is the interface's own; the outer one ends the guest.
pub(crate) type HostResult<T, E> = wasmtime::Result<Result<T, E>>;

/// The error of a connection for which the container has no open file left.
pub(crate) const TOO_MANY: &str = "the container has as many files and connections open as it may";

/// Keeps a new connection, whose place among the open files was taken, or gives the place back.
///
/// # Errors
/// The guest has as many handles as it may. The inner error: there is no connection.
pub(crate) fn keep<C: Send + 'static, E>(
    state: &mut ComponentState,
    opened: Result<C, E>,
) -> HostResult<Resource<C>, E> {
    let kept = opened.map(|connection| state.table.push(connection));
    if !matches!(kept, Ok(Ok(_))) {
        state.descriptors.give_back();
    }
    Ok(match kept {
        Ok(handle) => Ok(handle?),
        Err(error) => Err(error),
    })
}

/// Drops a connection, and gives its place back.
///
/// # Errors
/// There is no such handle.
pub(crate) fn close<C: 'static>(state: &mut ComponentState, connection: Resource<C>) -> wasmtime::Result<()> {
    drop(state.table.delete(connection)?);
    state.descriptors.give_back();
    Ok(())
}

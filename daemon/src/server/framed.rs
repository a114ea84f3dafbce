//! Reading the messages of the daemon's own sockets, in the frames of [`hearth_shim`].

use std::io;

use hearth_shim::{decode, frame_length};
use prost::Message;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

/// The next message, of at most `bytes_max`.
///
/// # Errors
/// As [`hearth_shim::read_frame`].
pub async fn read<M: Message + Default>(stream: &mut UnixStream, bytes_max: usize) -> io::Result<M> {
    let mut prefix = [0; 4];
    stream.read_exact(&mut prefix).await?;
    let mut bytes = vec![0; frame_length(prefix, bytes_max)?];
    stream.read_exact(&mut bytes).await?;
    decode(&bytes)
}

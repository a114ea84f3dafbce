//! Questions to another generation, or to a cell, on its own socket; the wait for its end.

use std::path::PathBuf;
use std::time::Duration;

use hearth_shim::{MAX_FRAME_BYTES, encode_frame};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::server::framed;
use hearth_base::generation::directory;
use hearth_base::generation::wire::{Answer, Nothing, Question, answer, question};

/// How long a generation, or a cell, may take to answer.
const ANSWER_TIME: Duration = Duration::from_secs(2);

/// How often to check whether a process lives whose connection has ended: the first pause, and the longest. Each is twice
/// the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// The longest text of metrics that is taken, in bytes.
const METRICS_BYTES_MAX: u64 = 16 << 20;

/// Asks the processes whose directories are in a state directory.
#[derive(Debug, Clone)]
pub struct Asking {
    /// The state directory.
    pub state_dir: PathBuf,
}

impl Asking {
    /// The metrics of a generation.
    ///
    /// # Errors
    /// It does not answer in time, or with something else.
    pub async fn metrics_of(&self, id: &str) -> std::io::Result<String> {
        let (answer::Body::Metrics(size), stream) = self.ask(id, question::Body::Metrics(Nothing {})).await? else {
            return Err(std::io::Error::other("it answered another question"));
        };
        let mut text = String::new();
        let mut stream = stream.take(size.bytes.min(METRICS_BYTES_MAX));
        tokio::time::timeout(ANSWER_TIME, stream.read_to_string(&mut text)).await??;
        Ok(text)
    }

    /// The answer of a process to a question, and the connection, on which more may follow.
    ///
    /// # Errors
    /// It does not answer in time, or with an error.
    pub async fn ask(&self, id: &str, body: question::Body) -> std::io::Result<(answer::Body, UnixStream)> {
        let asked = async {
            let mut stream = UnixStream::connect(directory::socket(&self.state_dir, id)).await?;
            stream.write_all(&encode_frame(&Question { body: Some(body) })?).await?;
            let answer: Answer = framed::read(&mut stream, MAX_FRAME_BYTES).await?;
            match answer.body {
                Some(answer::Body::Error(text)) => Err(std::io::Error::other(text)),
                Some(body) => Ok((body, stream)),
                None => Err(std::io::Error::other("it answered in words this release does not know")),
            }
        };
        tokio::time::timeout(ANSWER_TIME, asked).await?
    }

    /// Holds a connection until the process has ended.
    pub async fn wait_for_end(&self, id: &str) {
        let watch = async {
            let mut stream = UnixStream::connect(directory::socket(&self.state_dir, id)).await?;
            stream.write_all(&encode_frame(&Question { body: Some(question::Body::Watch(Nothing {})) })?).await?;
            tokio::io::copy(&mut stream, &mut tokio::io::sink()).await
        };
        if let Err(error) = watch.await {
            tracing::debug!(generation = id, %error, "cannot watch a generation or a cell");
        }
        // Its socket goes before it does.
        let mut pause = FIRST_PAUSE;
        while directory::is_alive(&self.state_dir, id) {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

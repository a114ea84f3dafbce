//! A generation's own socket, for root alone: calls of the next generation and of `hearthctl`: status, hand-over, stop,
//! reload, the owner of a task, metrics.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hearth_shim::{MAX_FRAME_BYTES, encode_frame};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};

use crate::generation::leadership::Leadership;
use crate::server::framed;
use crate::server::operator_calls::Operator;
use crate::server::task_sockets::TaskSockets;
use hearth_base::generation::directory::SOCKET;
use hearth_base::generation::wire::{
    self, Answer, HandOver, Metrics, Question, Status, TAKEN, TOO_LATE, TakeOver, answer, question, send_descriptors,
};
use hearth_os::accept::Acceptor;
use hearth_os::sockets;

/// Connections at once; more wait in the socket's backlog. Each younger generation holds one.
const CONNECTIONS_MAX: usize = 64;

/// How long a peer may take to ask.
const QUESTION_TIME: Duration = Duration::from_secs(5);

/// How long a new generation may take from the hand-over until it serves.
const TAKE_TIME: Duration = Duration::from_secs(10);

/// An order to the daemon. Each is answered once it is done, or with the reason why not.
pub enum Order {
    /// Another generation has taken over: take nothing new, and end with the last task. The answer is `false` if this
    /// generation did not lead any more.
    Drain(oneshot::Sender<bool>),
    /// End the guests and go.
    Stop(oneshot::Sender<()>),
    /// Read the configuration again.
    Reload(oneshot::Sender<Result<(), String>>),
}

/// The parts that an answer needs.
pub struct Server {
    /// The name of this generation.
    pub id: String,
    /// When it began.
    pub began: Instant,
    /// Its tasks.
    pub task_sockets: Arc<TaskSockets>,
    /// Its leadership.
    pub leadership: Arc<Leadership>,
    /// Makes the text of its metrics.
    pub operator: Arc<Operator>,
    /// To the daemon, which carries orders out.
    pub orders: mpsc::Sender<Order>,
}

/// Binds the socket in a generation's directory.
///
/// # Errors
/// As [`sockets::bind`].
pub fn bind(directory: &Path) -> std::io::Result<UnixListener> {
    sockets::bind(&directory.join(SOCKET))
}

impl Server {
    /// Serves for ever; cancel by dropping.
    pub async fn serve(self: Arc<Self>, listener: UnixListener) {
        let acceptor = Acceptor::new(listener, CONNECTIONS_MAX, "generation's socket");
        let answer = |stream| {
            let server = self.clone();
            async move { server.answer(stream).await }
        };
        acceptor.serve(answer).await;
    }

    async fn answer(&self, mut stream: UnixStream) -> std::io::Result<()> {
        if stream.peer_cred()?.uid() != 0 {
            return say(&mut stream, &wire::error("only root may ask")).await;
        }
        let question =
            tokio::time::timeout(QUESTION_TIME, framed::read::<Question>(&mut stream, MAX_FRAME_BYTES)).await??;
        let answer = match question.body {
            Some(question::Body::Status(_)) => self.status(),
            Some(question::Body::TakeOver(by)) => return self.hand_over(stream, by).await,
            Some(question::Body::Owner(task)) => {
                let owned = self.task_sockets.owned(&task).unwrap_or_default();
                Answer { body: Some(answer::Body::Owned(owned)) }
            }
            Some(question::Body::Metrics(_)) => {
                let operator = self.operator.clone();
                let text = self.operator.background.spawn_blocking(move || operator.scrape()).await?;
                let size = Answer { body: Some(answer::Body::Metrics(Metrics { bytes: text.len() as u64 })) };
                say(&mut stream, &size).await?;
                return stream.write_all(text.as_bytes()).await;
            }
            Some(question::Body::Stop(_)) => {
                let status = self.status();
                say(&mut stream, &status).await?;
                self.order(Order::Stop).await;
                return Ok(());
            }
            Some(question::Body::Reload(_)) => self.obeyed(self.order(Order::Reload).await),
            Some(question::Body::Watch(_)) => {
                tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
                return Ok(());
            }
            None => wire::error(format!("hearthd {} does not know the question", env!("CARGO_PKG_VERSION"))),
        };
        say(&mut stream, &answer).await
    }

    fn status(&self) -> Answer {
        let status = Status {
            generation: self.id.clone(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").into(),
            in_charge: self.leadership.is_held(),
            tasks: self.task_sockets.count().used() as u64,
            up_seconds: self.began.elapsed().as_secs(),
            stop_drain_seconds: self.operator.config.now().upgrade.stop_drain_seconds,
        };
        Answer { body: Some(answer::Body::Status(status)) }
    }

    /// Hands over the lock and the sockets, and serves on until the other generation says that it serves.
    async fn hand_over(&self, mut stream: UnixStream, to: TakeOver) -> std::io::Result<()> {
        let sent = self.leadership.hand_on(|over, descriptors| {
            let copies: std::io::Result<Vec<_>> = descriptors.iter().map(|fd| fd.try_clone_to_owned()).collect();
            let over = HandOver { draining: self.task_sockets.is_draining(), ..over };
            (Answer { body: Some(answer::Body::HandOver(over)) }, copies)
        });
        let Some((answer, copies)) = sent else {
            return say(&mut stream, &wire::error("it is not in charge any more")).await;
        };
        let copies = copies?;
        say(&mut stream, &answer).await?;
        let borrowed: Vec<_> = copies.iter().map(std::os::fd::AsFd::as_fd).collect();
        stream.async_io(Interest::WRITABLE, || send_descriptors(&stream, &borrowed)).await?;
        drop(copies);
        tracing::info!(to = to.generation, version = to.version, "a new hearthd asks for the new pods");
        let mut said = [0];
        match tokio::time::timeout(TAKE_TIME, stream.read_exact(&mut said)).await {
            Ok(Ok(_)) if said[0] == TAKEN => {
                // None: it stops, and so hands over all the same.
                let drains = self.order(Order::Drain).await.unwrap_or(true);
                stream.write_all(&[if drains { TAKEN } else { TOO_LATE }]).await
            }
            _ => {
                tracing::warn!(
                    to = to.generation,
                    "the new hearthd did not get as far as serving; this one stays in charge"
                );
                Ok(())
            }
        }
    }

    fn obeyed(&self, done: Option<Result<(), String>>) -> Answer {
        match done {
            Some(Ok(())) => self.status(),
            Some(Err(why)) => wire::error(why),
            None => wire::error("it is stopping"),
        }
    }

    /// Gives the daemon an order; `None` if it is about to end.
    async fn order<T>(&self, order: impl FnOnce(oneshot::Sender<T>) -> Order) -> Option<T> {
        let (done, wait) = oneshot::channel();
        self.orders.send(order(done)).await.ok()?;
        wait.await.ok()
    }
}

async fn say(stream: &mut UnixStream, answer: &Answer) -> std::io::Result<()> {
    stream.write_all(&encode_frame(answer)?).await
}

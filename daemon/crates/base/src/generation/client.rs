//! The blocking client of a generation's socket, for a daemon at its start, `hearthctl`, and a unit's ExecStop.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use hearth_shim::{read_frame, write_frame};

use crate::generation::directory;
use crate::generation::wire::{
    Answer, HandOver, Nothing, Question, Status, TAKEN, TOO_LATE, TakeOver, answer, question,
};
use crate::generation::wire::{Passed, receive_descriptors};

/// The time-out of an answer.
pub const ANSWER_TIME: Duration = Duration::from_secs(10);

/// The time-out of the old generation's farewell, once the new one serves.
const LET_GO_TIME: Duration = Duration::from_secs(10);

/// Asks one question. Returns the answer and the connection, on which more bytes may follow.
///
/// # Errors
/// One line: it cannot be reached, or does not answer, or the answer is an error.
pub fn ask(state_dir: &Path, generation: &str, body: question::Body) -> Result<(answer::Body, UnixStream), String> {
    let asked = || -> io::Result<(Answer, UnixStream)> {
        let mut stream = UnixStream::connect(directory::socket(state_dir, generation))?;
        stream.set_read_timeout(Some(ANSWER_TIME))?;
        stream.set_write_timeout(Some(ANSWER_TIME))?;
        write_frame(&mut stream, &Question { body: Some(body) })?;
        let answer = read_frame(&mut stream)?;
        Ok((answer, stream))
    };
    match asked() {
        Ok((Answer { body: Some(answer::Body::Error(text)) }, _)) => Err(text),
        Ok((Answer { body: Some(body) }, stream)) => Ok((body, stream)),
        Ok((Answer { body: None }, _)) => {
            Err(format!("generation {generation} answered in words this release does not know"))
        }
        Err(e) => Err(format!("generation {generation} does not answer: {e}")),
    }
}

/// Asks a question whose answer is a [`Status`].
///
/// # Errors
/// As [`ask`].
pub fn ask_status(state_dir: &Path, generation: &str, body: question::Body) -> Result<Status, String> {
    match ask(state_dir, generation, body)?.0 {
        answer::Body::Status(status) => Ok(status),
        _ => Err(format!("generation {generation} answered another question")),
    }
}

/// The status of each generation that lives, without generations that do not answer.
///
/// # Errors
/// The state directory cannot be read.
pub fn statuses(state_dir: &Path) -> io::Result<Vec<Status>> {
    let living = directory::living(state_dir)?;
    let status = |id: &String| ask_status(state_dir, id, question::Body::Status(Nothing {})).ok();
    Ok(living.iter().filter_map(status).collect())
}

/// The text of a generation's metrics.
///
/// # Errors
/// As [`ask`].
pub fn metrics(state_dir: &Path, generation: &str) -> Result<String, String> {
    let (answer::Body::Metrics(size), stream) = ask(state_dir, generation, question::Body::Metrics(Nothing {}))? else {
        return Err(format!("generation {generation} answered another question"));
    };
    let mut text = String::new();
    let read = stream.take(size.bytes).read_to_string(&mut text);
    read.map_err(|e| format!("generation {generation} does not answer: {e}"))?;
    Ok(text)
}

/// The sockets and locks that the generation in charge has handed over. It serves until [`HandedOver::taken`].
#[derive(Debug)]
pub struct HandedOver {
    /// The descriptors, each with its purpose.
    pub descriptors: Vec<(Passed, OwnedFd)>,
    /// As [`HandOver::removes_control`].
    pub removes_control: bool,
    /// As [`HandOver::draining`].
    pub draining: bool,
    from: UnixStream,
}

impl HandedOver {
    /// Takes one descriptor of this purpose out.
    pub fn take(&mut self, what: Passed) -> Option<OwnedFd> {
        let place = self.descriptors.iter().position(|(passed, _)| *passed == what)?;
        Some(self.descriptors.swap_remove(place).1)
    }

    /// Takes all descriptors of this purpose out.
    pub fn take_all(&mut self, what: Passed) -> Vec<OwnedFd> {
        std::iter::from_fn(|| self.take(what)).collect()
    }

    /// Tells the old generation that this one serves, and waits until the old one takes no new tasks.
    ///
    /// # Errors
    /// A third generation was faster and is in charge.
    pub fn taken(mut self) -> Result<(), String> {
        let mut said = [0];
        let told = (|| {
            self.from.set_read_timeout(Some(LET_GO_TIME))?;
            self.from.write_all(&[TAKEN])?;
            self.from.read_exact(&mut said)
        })();
        match told {
            Ok(()) if said[0] == TOO_LATE => {
                Err("another hearthd was faster and has taken over; it is in charge".into())
            }
            Ok(()) => Ok(()),
            Err(error) => {
                // It has ended, or hangs: this process has its lock and its sockets in either case.
                tracing::warn!(%error, "the old hearthd did not say that it takes nothing new any more");
                Ok(())
            }
        }
    }
}

/// Asks the generation in charge for its sockets and locks.
///
/// # Errors
/// As [`ask`]; then the old generation stays in charge.
pub fn hand_over(state_dir: &Path, from: &str, to: TakeOver) -> Result<HandedOver, String> {
    let (answer::Body::HandOver(over), from) = ask(state_dir, from, question::Body::TakeOver(to))? else {
        return Err(format!("generation {from} answered another question"));
    };
    let HandOver { passed, removes_control, draining } = over;
    let descriptors = receive_descriptors(&from).map_err(|e| format!("the old hearthd hands nothing over: {e}"))?;
    let known = passed.iter().map(|number| Passed::try_from(*number).unwrap_or(Passed::Unknown));
    Ok(HandedOver { descriptors: known.zip(descriptors).collect(), removes_control, draining, from })
}

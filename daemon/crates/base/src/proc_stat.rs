//! The one parser of `/proc/PID/stat` (proc_pid_stat(5)): state, flags, times and sizes of a process or thread.
//!
//! Our own, since the scheduler's ticker reads the state of its worker threads all the time and wants one field: the
//! crate procfs parses all 52 into a structure.

use std::io;
use std::str::FromStr;

/// The content of a `stat` file.
#[derive(Debug)]
pub struct ProcStat {
    text: String,
    /// The place of field 3. Field 2, the command in parentheses, may contain any character, also parentheses.
    after_command: usize,
}

impl ProcStat {
    /// Field 9, a set of the kernel's `PF_*` flags.
    pub const FLAGS: usize = 9;
    /// Field 14, the CPU time in user mode, in clock ticks.
    pub const USER_TICKS: usize = 14;
    /// Field 15, the CPU time in kernel mode, in clock ticks.
    pub const SYSTEM_TICKS: usize = 15;
    /// Field 20, the number of threads.
    pub const THREADS: usize = 20;
    /// Field 22, the start, in clock ticks after the boot.
    pub const STARTED_TICKS: usize = 22;
    /// Field 23, the address space, in bytes.
    pub const VIRTUAL_BYTES: usize = 23;
    /// Field 24, the resident memory, in pages.
    pub const RESIDENT_PAGES: usize = 24;

    /// Reads the file of this process.
    ///
    /// # Errors
    /// procfs is not mounted.
    pub fn of_this_process() -> io::Result<ProcStat> {
        ProcStat::read("/proc/self/stat")
    }

    /// Reads the file of the process `pid`.
    ///
    /// # Errors
    /// `NotFound` if there is no such process.
    pub fn of_process(pid: i32) -> io::Result<ProcStat> {
        ProcStat::read(&format!("/proc/{pid}/stat"))
    }

    /// Reads the file of a thread of this process.
    ///
    /// # Errors
    /// `NotFound` if there is no such thread.
    pub fn of_thread(thread_id: i32) -> io::Result<ProcStat> {
        ProcStat::read(&format!("/proc/self/task/{thread_id}/stat"))
    }

    fn read(path: &str) -> io::Result<ProcStat> {
        ProcStat::parse(std::fs::read_to_string(path)?)
    }

    fn parse(text: String) -> io::Result<ProcStat> {
        match text.rfind(") ") {
            Some(place) => Ok(ProcStat { after_command: place + 2, text }),
            None => Err(io::Error::new(io::ErrorKind::InvalidData, "a stat file of procfs without a command")),
        }
    }

    /// Field 3: `R` runs or waits for a core, `S` and `D` sleep, `Z` has ended.
    pub fn state(&self) -> Option<char> {
        self.text[self.after_command..].chars().next()
    }

    /// The field with this number of proc_pid_stat(5), from 3 on. `None` if the kernel does not have it, or if it is no
    /// `T`.
    pub fn field<T: FromStr>(&self, number: usize) -> Option<T> {
        let fields = &self.text[self.after_command..];
        fields.split_ascii_whitespace().nth(number.checked_sub(3)?)?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_may_contain_anything() {
        let text = "7 (a) S 1 (b ) R 2 3 4 5 6 77 8\n".to_owned();
        let stat = ProcStat::parse(text).unwrap();
        assert_eq!((stat.state(), stat.field(ProcStat::FLAGS)), (Some('R'), Some(77)));
        assert_eq!((stat.field::<u64>(11), stat.field::<u64>(2), stat.field::<u64>(3)), (None, None, None));
        assert!(ProcStat::parse(String::new()).is_err());
    }

    #[test]
    fn this_process_runs() {
        let stat = ProcStat::of_this_process().unwrap();
        assert!(stat.field::<u64>(ProcStat::THREADS).unwrap() >= 1);
        let pid = std::process::id().try_into().unwrap();
        let started = |stat: &ProcStat| stat.field::<u64>(ProcStat::STARTED_TICKS).unwrap();
        assert_eq!(started(&ProcStat::of_process(pid).unwrap()), started(&stat));
        assert!(ProcStat::of_thread(pid).unwrap().field::<u64>(ProcStat::VIRTUAL_BYTES).is_some());
        assert_eq!(ProcStat::of_thread(i32::MAX).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}

//! systemd's notification protocol (`sd_notify(3)`): readiness, state and the watchdog, as datagrams to `NOTIFY_SOCKET`.
//!
//! By hand, because it is one datagram of text: a dependency would be longer than this.

use std::ffi::OsString;
use std::io;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::time::Duration;

/// Names the socket; a name that begins with '@' is of Linux's abstract kind.
const SOCKET_VARIABLE: &str = "NOTIFY_SOCKET";
/// Microseconds within which a sign of life is expected.
const WATCHDOG_VARIABLE: &str = "WATCHDOG_USEC";
/// The process that the watchdog is meant for.
const WATCHDOG_PID_VARIABLE: &str = "WATCHDOG_PID";
/// How often the state is told where no watchdog waits for it.
const USUAL_PERIOD: Duration = Duration::from_secs(20);
/// Signs of life within the watchdog's time: one may be late, and another lost.
const SIGNS_PER_WATCHDOG: u32 = 3;

/// The way to whoever started this process as a service; without one every message goes nowhere.
#[derive(Debug)]
pub struct Notifier {
    socket: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// Reads the environment. A socket that cannot be used is logged, and the service runs without it.
    pub fn from_env() -> Self {
        let socket = std::env::var_os(SOCKET_VARIABLE).filter(|name| !name.is_empty());
        let socket = socket.and_then(|name| match connect(&name) {
            Ok(socket) => Some(socket),
            Err(error) => {
                tracing::warn!(%error, ?name, "{SOCKET_VARIABLE} cannot be used");
                None
            }
        });
        let number = |name| std::env::var(name).ok()?.parse::<u64>().ok();
        let ours =
            number(WATCHDOG_PID_VARIABLE).is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number(WATCHDOG_VARIABLE).filter(|micros| ours && *micros > 0);
        Self { socket, watchdog: watchdog.map(Duration::from_micros) }
    }

    /// Whether anybody listens.
    pub fn is_connected(&self) -> bool {
        self.socket.is_some()
    }

    /// How often a sign of life is due.
    pub fn period(&self) -> Duration {
        self.watchdog.map_or(USUAL_PERIOD, |watchdog| watchdog / SIGNS_PER_WATCHDOG)
    }

    /// Says that the service is up (again).
    pub fn ready(&self) {
        self.send("READY=1");
    }

    /// Says that it lives, and what it does.
    pub fn alive(&self, status: &str) {
        self.send(&format!("WATCHDOG=1\nSTATUS={}", status.replace('\n', " ")));
    }

    /// Says that it reads its configuration again; [`Notifier::ready`] ends that.
    pub fn reloading(&self) {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        /// Microseconds in a second, nanoseconds in a microsecond.
        const UNITS: (i64, i64) = (1_000_000, 1000);
        let micros = now.tv_sec.saturating_mul(UNITS.0) + now.tv_nsec / UNITS.1;
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={micros}"));
    }

    /// Says that it ends.
    pub fn stopping(&self) {
        self.send("STOPPING=1");
    }

    fn send(&self, state: &str) {
        let Some((socket, address)) = &self.socket else { return };
        if let Err(error) = socket.send_to_addr(state.as_bytes(), address) {
            tracing::debug!(%error, "the service manager was not told");
        }
    }
}

fn connect(name: &OsString) -> io::Result<(UnixDatagram, SocketAddr)> {
    let socket = UnixDatagram::unbound()?;
    // A manager that does not read must not hold up the queue.
    socket.set_nonblocking(true)?;
    Ok((socket, address(name)?))
}

fn address(name: &OsString) -> io::Result<SocketAddr> {
    #[cfg(target_os = "linux")]
    {
        use std::os::linux::net::SocketAddrExt;
        use std::os::unix::ffi::OsStrExt;
        if let Some(rest) = name.as_bytes().strip_prefix(b"@") {
            return SocketAddr::from_abstract_name(rest);
        }
    }
    SocketAddr::from_pathname(Path::new(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_reach_a_path_and_an_abstract_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let mut names = vec![(path.clone().into_os_string(), UnixDatagram::bind(&path).unwrap())];
        #[cfg(target_os = "linux")]
        {
            let name = OsString::from(format!("@shammah-test-{}", std::process::id()));
            let address = address(&name).unwrap();
            names.push((name, UnixDatagram::bind_addr(&address).unwrap()));
        }
        for (name, manager) in names {
            let socket = Some(connect(&name).unwrap());
            Notifier { socket, watchdog: None }.alive("two\nlines");
            let mut text = [0; 100];
            let count = manager.recv(&mut text).unwrap();
            assert_eq!(&text[..count], b"WATCHDOG=1\nSTATUS=two lines");
        }
    }

    #[test]
    fn signs_of_life_come_three_times_as_often_as_the_watchdog_wants() {
        let watchdog = Some(Duration::from_secs(30));
        assert_eq!(Notifier { socket: None, watchdog }.period(), Duration::from_secs(10));
        assert_eq!(Notifier { socket: None, watchdog: None }.period(), USUAL_PERIOD);
    }
}

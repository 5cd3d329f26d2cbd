//! Jobs that fail on purpose, and workers that do not even speak the protocol.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{self, ExitCode};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Resource, Signal, getpgrp, getpid, getpriority_process, getrlimit};
use serde::{Deserialize, Serialize};
use shammah::worker::child::{Job, JobFailure, Report};
use shammah::worker::codec;
use shammah::worker::protocol::Event;
use shammah::worker::{JobRequest, Needs};

/// What the job does.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Fault {
    /// Nothing wrong: so many steps, then the result.
    Work(usize),
    Panic,
    PanicElsewhere,
    Abort,
    StackOverflow,
    Allocate(usize),
    Signal(i32),
    Hang,
    FreezeProcess,
    Exit(i32),
    Noise,
    Fail(String),
    HugeResult,
    /// Stops at once when cancelled, after a checkpoint.
    Obey,
    /// Finishes when cancelled.
    FinishAnyway,
    /// Sends as many notes as it can, for ever.
    Flood,
    /// Tells what the process is allowed to.
    Describe,
    /// Tries to get at things, and tells which it got.
    Probe {
        given: Vec<PathBuf>,
        tries: Vec<Try>,
    },
    /// Tells its oom_score_adj.
    Oom,
    /// Does nothing; the payload only makes the request large.
    Payload(String),
}

/// Something that a worker may or may not do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Try {
    Read(PathBuf),
    List(PathBuf),
    Write(PathBuf),
    /// Makes a directory with a file in it, renames and removes it.
    Publish(PathBuf),
    Remove(PathBuf),
    Execute(PathBuf),
    Connect(u16),
    Listen,
    Signal(i32),
}

impl Try {
    fn run(&self) -> io::Result<()> {
        match self {
            Try::Read(path) => fs::read(path).map(drop),
            Try::List(path) => fs::read_dir(path).map(drop),
            Try::Write(path) => fs::write(path, "x"),
            Try::Publish(path) => {
                let partial = path.with_extension("partial");
                fs::create_dir(&partial)?;
                fs::write(partial.join("weights"), "x")?;
                fs::rename(&partial, path)?;
                fs::File::open(path.parent().expect("a parent"))?.sync_all()?;
                fs::remove_dir_all(path)
            }
            Try::Remove(path) => fs::remove_file(path),
            Try::Execute(path) => process::Command::new(path).status().map(drop),
            Try::Connect(port) => TcpStream::connect(("127.0.0.1", *port)).map(drop),
            Try::Listen => TcpListener::bind("127.0.0.1:0").map(drop),
            Try::Signal(pid) => {
                let pid = Pid::from_raw(*pid).expect("a pid");
                Ok(rustix::process::kill_process(pid, Signal::URG)?)
            }
        }
    }
}

pub struct Faulty;

impl Job for Faulty {
    type Input = Fault;
    type Output = String;

    fn needs(&self, input: &Fault) -> Needs {
        match input {
            Fault::Probe { given, .. } => Needs { read: given.clone(), ..Needs::default() },
            _ => Needs::default(),
        }
    }

    fn run(
        &self,
        request: &JobRequest<Fault>,
        report: &mut dyn FnMut(Report),
        cancelled: &dyn Fn() -> bool,
    ) -> Result<String, JobFailure> {
        match &request.input {
            Fault::Work(steps) => work(*steps, report),
            Fault::Panic => panic!("the loss is not finite"),
            Fault::PanicElsewhere => {
                thread::spawn(|| panic!("a helper thread fell")).join().ok();
                hang()
            }
            Fault::Abort => process::abort(),
            Fault::StackOverflow => println!("{}", deep(1)),
            Fault::Allocate(bytes) => println!("{}", vec![1_u8; *bytes].len()),
            Fault::Signal(number) => {
                let signal = Signal::from_named_raw(*number).expect("a signal");
                // Again and again: Rust's own handler takes the first fault signal that no fault caused.
                loop {
                    rustix::process::kill_process(getpid(), signal).expect("a signal to oneself");
                    thread::sleep(Duration::from_millis(20));
                }
            }
            Fault::Hang => hang(),
            Fault::FreezeProcess => {
                rustix::process::kill_process(getpid(), Signal::STOP).expect("a stop");
                hang()
            }
            Fault::Exit(code) => process::exit(*code),
            Fault::Noise => return noisy_work(report),
            Fault::Fail(reason) => return Err(JobFailure::Failed(reason.clone())),
            Fault::HugeResult => return Ok("x".repeat(codec::MAX_FRAME_BYTES + 1)),
            Fault::Obey => return obey(report, cancelled),
            Fault::FinishAnyway => {
                report(Report::Evaluating);
                wait_for(cancelled);
            }
            Fault::Flood => loop {
                report(Report::Note("and another thing".to_owned()));
            },
            Fault::Describe => return Ok(describe()),
            Fault::Probe { tries, .. } => {
                let told = |one: &Try| match one.run() {
                    Ok(()) => "done".to_owned(),
                    Err(error) => format!("{:?}", error.kind()),
                };
                return Ok(tries.iter().map(told).collect::<Vec<_>>().join(" "));
            }
            Fault::Oom => {
                let score = fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
                return Ok(score.trim().to_owned());
            }
            Fault::Payload(_) => {}
        }
        Ok("done".to_owned())
    }
}

fn work(steps: usize, report: &mut dyn FnMut(Report)) {
    for step in 1..=steps {
        thread::sleep(Duration::from_millis(20));
        report(Report::Step {
            epoch: 1,
            epochs: 1,
            step,
            total_steps: steps,
            loss: 1.0 / step as f64,
        });
    }
    report(Report::Checkpointed { step: steps });
    report(Report::Evaluating);
    report(Report::Note("one row was too long".to_owned()));
}

/// Prints through every way that leads to stdout: none may reach the frames.
fn noisy_work(report: &mut dyn FnMut(Report)) -> Result<String, JobFailure> {
    for _ in 0..100 {
        println!("a stray print of some library");
        io::stdout().write_all(&[0xFF; 64]).and_then(|()| io::stdout().flush()).ok();
    }
    let shell = process::Command::new("sh").args(["-c", "echo a stray child"]).status();
    if !shell.is_ok_and(|status| status.success()) {
        return Err(JobFailure::Failed("no shell".to_owned()));
    }
    work(2, report);
    Ok("done".to_owned())
}

fn obey(
    report: &mut dyn FnMut(Report),
    cancelled: &dyn Fn() -> bool,
) -> Result<String, JobFailure> {
    report(Report::Evaluating);
    wait_for(cancelled);
    report(Report::Checkpointed { step: 7 });
    Err(JobFailure::Cancelled)
}

fn wait_for(cancelled: &dyn Fn() -> bool) {
    while !cancelled() {
        thread::sleep(Duration::from_millis(5));
    }
}

fn describe() -> String {
    let nice = getpriority_process(None).expect("a priority");
    // The pool's threads are made later and must be as low as the rest.
    let pool = rayon::join(|| (), || getpriority_process(None).expect("a priority")).1;
    let (idle, pool_idle) = (is_idle(), rayon::join(|| (), is_idle).1);
    let session = session();
    let own_group = getpgrp() == getpid();
    let (core, data) = (getrlimit(Resource::Core).current, getrlimit(Resource::Data).current);
    let threads = rayon::current_num_threads();
    let wanted = std::env::var("RAYON_NUM_THREADS").unwrap_or_default();
    format!(
        "nice {nice} {pool}, idle {idle} {pool_idle}, session {session}, own group {own_group}, core {core:?}, data {data:?}, threads {threads} \
         {wanted}"
    )
}

/// Whether this thread computes only while a core has nothing else to do.
#[cfg(target_os = "linux")]
fn is_idle() -> bool {
    use thread_priority::{NormalThreadSchedulePolicy, ThreadSchedulePolicy};
    let policy = thread_priority::thread_schedule_policy().expect("a policy");
    policy == ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle)
}

#[cfg(not(target_os = "linux"))]
fn is_idle() -> bool {
    false
}

/// The session of this process; 0 if its leader is outside of this PID namespace, where rustix's `getsid` panics.
#[cfg(target_os = "linux")]
pub fn session() -> i32 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("/proc/self/stat");
    // The name in brackets may hold anything; state, parent, group and session follow it (proc_pid_stat(5)).
    let (_, fields) = stat.rsplit_once(')').expect("a name in brackets");
    fields.split_whitespace().nth(3).and_then(|field| field.parse().ok()).expect("a session")
}

/// The session of this process.
#[cfg(not(target_os = "linux"))]
pub fn session() -> i32 {
    rustix::process::getsid(None).expect("a session").as_raw_nonzero().get()
}

fn hang() -> ! {
    loop {
        thread::sleep(Duration::from_secs(60));
    }
}

#[expect(unconditional_recursion, reason = "that is the fault")]
fn deep(n: u64) -> u64 {
    let room = std::hint::black_box([n; 512]);
    deep(n + 1) + room[n as usize % 512]
}

/// The worker that does not speak the protocol; `fault` says how.
pub fn speak_badly(fault: &str) -> ExitCode {
    let mut out = io::stdout();
    let version = codec::PROTOCOL_VERSION + u32::from(fault == "wrong-version");
    if !matches!(fault, "garbage" | "mute" | "leave") {
        codec::write_hello_of(&mut out, version).expect("a hello");
    }
    let bytes: &[u8] = match fault {
        "garbage" => b"error while loading shared libraries: libfoo.so.1: cannot open\n",
        "garbage-later" => b"\x05\0\0\0\xFF\xFF\xFF\xFF\xFF",
        "oversized" => b"\xFF\xFF\xFF\xFF",
        "cut" => b"\x05\0\0\0\x01",
        _ => b"",
    };
    out.write_all(bytes).and_then(|()| out.flush()).expect("a write");
    if fault == "unasked-cancel" {
        codec::write_frame(&mut out, &Event::<String>::Cancelled).expect("a frame");
    }
    match fault {
        "cut" | "leave" => ExitCode::SUCCESS,
        "drip" => drip(&mut out),
        "close-and-stay" => {
            // From here on nothing but this process's end would tell that it lives.
            rustix::stdio::dup2_stdout(io::stderr()).expect("a closed stdout");
            hang()
        }
        "mute" => hang(),
        _ => {
            // Whoever breaks the protocol and stays must be killed, also when it reads on.
            io::stdin().read_to_end(&mut Vec::new()).ok();
            hang()
        }
    }
}

/// A frame that comes one byte at a time and never ends.
fn drip(out: &mut impl Write) -> ! {
    out.write_all(&1_000_000_u32.to_le_bytes()).expect("a length");
    loop {
        out.write_all(b"x").and_then(|()| out.flush()).expect("a byte");
        thread::sleep(Duration::from_millis(50));
    }
}

//! `/run` and `/eval`: the program's other commands, each in a process of its own beside the chat.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use actix::{ActorFutureExt, AsyncContext, Context, WrapFuture};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;

use super::act::show_piece;
use super::{ConsoleActor, Output, Ticket};
use crate::text::printable;

/// The variable that tells the program that a console started it: it ends with the console, and is none itself.
pub const BESIDE: &str = "SHAMMAH_BESIDE";
/// How long a command may take to end when it is asked to.
const PATIENCE: Duration = Duration::from_secs(5);

/// How the program is called again, for the same data directory, configuration and model.
#[derive(Debug, Clone)]
pub struct Program {
    /// The executable.
    pub path: PathBuf,
    /// The options before the command, but for the model's.
    pub options: Vec<OsString>,
    /// What `--model` was, or what `/model` changed it to.
    pub model: Option<String>,
}

/// A command that runs.
pub(super) struct Beside {
    name: String,
    stop: Arc<Notify>,
}

impl Beside {
    /// Asks it to end; it is there until it has.
    pub(super) fn stop(&self) {
        self.stop.notify_one();
    }
}

impl Program {
    fn command(&self, words: &[String]) -> Command {
        let mut command = Command::new(&self.path);
        command.args(&self.options);
        if let Some(model) = &self.model {
            command.arg("--model").arg(model);
        }
        command.args(words).env(BESIDE, "1").kill_on_drop(true);
        // It gets nothing to read: what is typed is the console's.
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

impl ConsoleActor {
    /// Runs beside everything else, so that a person can go on; a script waits by its ticket.
    pub(super) fn run_beside(
        &mut self,
        words: &[String],
        ticket: Option<Ticket>,
        ctx: &mut Context<Self>,
    ) {
        if let Some(running) = &self.beside {
            let problem =
                format!("\"{}\" runs already: wait, or stop it with Ctrl-C", running.name);
            return self.error(&problem);
        }
        let child = match self.options.program.command(words).spawn() {
            Ok(child) => child,
            Err(error) => {
                let path = self.options.program.path.display();
                return self.error(&format!("cannot start {path} again: {error}"));
            }
        };
        let (name, stop) = (words.join(" "), Arc::new(Notify::new()));
        self.beside = Some(Beside { name: name.clone(), stop: Arc::clone(&stop) });
        let running = follow(child, stop, self.frontend.outputs.clone());
        ctx.spawn(running.into_actor(self).map(move |result, this, ctx| {
            this.beside = None;
            match result {
                Ok(None) => this.say(format!("Stopped \"{name}\".")),
                Ok(Some(status)) if status.success() => {}
                Ok(Some(status)) => this.error(&format!("\"{name}\" ended with {status}")),
                Err(error) => this.error(&format!("\"{name}\": {error}")),
            }
            drop(ticket);
            this.go_on(ctx);
        }));
    }
}

/// Says what a process writes, at the screen's pace, until it ends or was asked to, which is `None`. When this is dropped
/// the process is killed.
async fn follow(
    mut child: Child,
    stop: Arc<Notify>,
    outputs: mpsc::Sender<Output>,
) -> std::io::Result<Option<ExitStatus>> {
    let out = lines(child.stdout.take(), &outputs, Output::Say);
    let err = lines(child.stderr.take(), &outputs, Output::Complaint);
    tokio::select! {
        said = async { futures::try_join!(out, err) } => {
            said?;
            return child.wait().await.map(Some);
        }
        () = stop.notified() => {}
    }
    // As Ctrl-C in a shell: it may have something to put in order.
    if let Some(pid) = child.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
        // It may have ended just now.
        let _ = kill_process(pid, Signal::TERM);
    }
    if timeout(PATIENCE, child.wait()).await.is_err() {
        child.kill().await?;
    }
    Ok(None)
}

async fn lines(
    from: Option<impl AsyncRead + Unpin>,
    outputs: &mpsc::Sender<Output>,
    show: impl Fn(String) -> Output,
) -> std::io::Result<()> {
    let Some(from) = from else { return Ok(()) };
    let mut from = BufReader::new(from);
    while let Some(line) = line(&mut from).await? {
        if !show_piece(outputs, show(printable(&line).into_owned())).await {
            break;
        }
    }
    Ok(())
}

/// Reads a line, whatever its bytes are.
async fn line(from: &mut (impl AsyncBufRead + Unpin)) -> std::io::Result<Option<String>> {
    let mut bytes = Vec::new();
    if from.read_until(b'\n', &mut bytes).await? == 0 {
        return Ok(None);
    }
    let text = String::from_utf8_lossy(&bytes);
    Ok(Some(text.trim_end_matches(['\n', '\r']).to_owned()))
}

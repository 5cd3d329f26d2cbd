//! `/run` and `/eval`: the program's other commands, each in a process of its own beside the chat.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};

use actix::{ActorFutureExt, AsyncContext, Context, WrapFuture};
use futures::future::{Aborted, abortable};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

use super::act::show_piece;
use super::{ConsoleActor, Output, Ticket};
use crate::text::printable;

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

impl Program {
    fn command(&self, words: &[String]) -> Command {
        let mut command = Command::new(&self.path);
        command.args(&self.options);
        if let Some(model) = &self.model {
            command.arg("--model").arg(model);
        }
        command.args(words).kill_on_drop(true);
        // It gets nothing to read: what is typed is the console's.
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

impl ConsoleActor {
    /// Runs beside everything else, so that a person can go on; a script waits by its ticket.
    pub(super) fn run_beside(
        &mut self,
        words: Vec<String>,
        ticket: Option<Ticket>,
        ctx: &mut Context<Self>,
    ) {
        if self.beside.is_some() {
            return self.error("a command runs already: wait for it, or Ctrl-C stops it");
        }
        let child = match self.options.program.command(&words).spawn() {
            Ok(child) => child,
            Err(error) => {
                let path = self.options.program.path.display();
                return self.error(&format!("cannot start {path} again: {error}"));
            }
        };
        let (running, abort) = abortable(follow(child, self.frontend.outputs.clone()));
        self.beside = Some(abort);
        let name = words.first().cloned().unwrap_or_default();
        ctx.spawn(running.into_actor(self).map(move |result, this, ctx| {
            // After Ctrl-C the handle may belong to another command already.
            if !matches!(result, Err(Aborted)) {
                this.beside = None;
            }
            match result {
                Ok(Ok(status)) if status.success() => {}
                Ok(Ok(status)) => this.error(&format!("{name}: {status}")),
                Ok(Err(error)) => this.error(&format!("{name}: {error}")),
                Err(Aborted) => this.say(format!("Stopped {name}.")),
            }
            drop(ticket);
            this.go_on(ctx);
        }));
    }
}

/// Says what a process writes, at the screen's pace, until it ends. When this is dropped the process is killed.
async fn follow(mut child: Child, outputs: mpsc::Sender<Output>) -> std::io::Result<ExitStatus> {
    let (out, err) = (child.stdout.take(), child.stderr.take());
    futures::try_join!(lines(out, &outputs), lines(err, &outputs))?;
    child.wait().await
}

async fn lines(
    from: Option<impl AsyncRead + Unpin>,
    outputs: &mpsc::Sender<Output>,
) -> std::io::Result<()> {
    let Some(from) = from else { return Ok(()) };
    let mut from = BufReader::new(from);
    while let Some(line) = line(&mut from).await? {
        if !show_piece(outputs, Output::Say(printable(&line).into_owned())).await {
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

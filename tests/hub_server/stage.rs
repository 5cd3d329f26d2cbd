//! The program and a hub of its own.
#![allow(dead_code, reason = "each test uses some of it")]

use std::path::PathBuf;
use std::process::Command;

use super::{COMMIT, REPO, Server};
use crate::support::{Program, Run};

/// The program, and the hub it is to ask.
pub struct Stage {
    pub program: Program,
    pub server: Server,
}

impl Stage {
    pub fn new() -> Self {
        Self::with(Server::start())
    }

    pub fn with(server: Server) -> Self {
        Self { program: Program::new(), server }
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = self.program.command(args);
        for (name, _) in std::env::vars() {
            let upper = name.to_ascii_uppercase();
            if upper.starts_with("HF_") || upper.ends_with("_PROXY") || upper == "XDG_CACHE_HOME" {
                command.env_remove(name);
            }
        }
        command.env("HF_ENDPOINT", &self.server.url).env("HF_HOME", self.program.path("hf"));
        command
    }

    pub fn run(&self, args: &[&str]) -> Run {
        self.run_with(args, &[])
    }

    pub fn run_with(&self, args: &[&str], env: &[(&str, &str)]) -> Run {
        Run::of(self.command(args).envs(env.iter().copied()).output().unwrap())
    }

    #[track_caller]
    pub fn pull(&self) -> Run {
        let run = self.run(&["models", "pull", REPO]);
        assert_eq!(run.code, 0, "{run:?}");
        run
    }

    /// The last line on stderr of a command that failed.
    #[track_caller]
    pub fn refused(run: &Run, code: i32) -> String {
        assert_eq!((run.code, run.stdout.as_str()), (code, ""), "{run:?}");
        run.stderr.lines().last().unwrap().strip_prefix("shammah: ").unwrap().to_owned()
    }

    pub fn repo(&self) -> PathBuf {
        self.program.path("hf/hub/models--acme--tiny")
    }

    pub fn snapshot(&self) -> PathBuf {
        self.repo().join("snapshots").join(COMMIT)
    }

    pub fn ask(model: &str) -> [&str; 8] {
        ["ask", "hello", "--max-tokens", "4", "--model", model, "--set", "generation.temperature=0"]
    }
}

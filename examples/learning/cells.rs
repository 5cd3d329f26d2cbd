//! What an experiment found: one line of JSON a cell, kept in a file, so that an interrupted run goes on.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// What was found for one experiment, setting and seed.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Cell {
    pub experiment: String,
    pub setting: String,
    pub seed: u64,
    /// Unseen questions answered right, or as the rule wants; of `asked`.
    pub right: usize,
    pub right_before: usize,
    pub asked: usize,
    /// Style alone: those whose content is right besides.
    pub content: Option<usize>,
    /// Facts and rounds alone: the questions about what nobody taught that got the words of a fact, with the answers.
    #[serde(default)]
    pub strangers: Option<Vec<(String, String)>>,
    /// Of the gate's questions like the taught ones about something else, those that a taught answer takes over, of how many.
    #[serde(default)]
    pub taken_over: Option<(usize, usize)>,
    /// Facts alone: the unseen questions that were answered wrongly, with the answers.
    #[serde(default)]
    pub wrong: Vec<(String, String)>,
    /// Rounds alone: after each round, how many of the questions of each earlier round are right.
    pub rounds: Vec<Vec<usize>>,
    /// Loss on the regression set, base and after, nats per token.
    pub general_before: f64,
    pub general_after: f64,
    /// KL(base ‖ adapter) on it.
    pub kl: f64,
    /// Of 100 questions about other things, right before and after.
    pub score_before: usize,
    pub score: usize,
    pub steps: usize,
    pub final_loss: f64,
    pub minutes: f64,
    /// Poison alone: why the job was refused before it trained.
    #[serde(default)]
    pub refused: Option<String>,
    /// Why the gate rejected it, for each job; empty lists passed.
    pub gate: Vec<Vec<String>>,
}

impl Cell {
    /// Change of the loss on the regression set, percent.
    pub fn forgetting(&self) -> f64 {
        match self.general_before {
            0.0 => 0.0,
            before => (self.general_after / before - 1.0) * 100.0,
        }
    }

    /// Jobs that passed the gate.
    pub fn passed(&self) -> usize {
        self.gate.iter().filter(|reasons| reasons.is_empty()).count()
    }

    /// One line for whoever watches.
    pub fn line(&self) -> String {
        format!(
            "{} {} {}: {}/{} (before {}) content {:?} strangers {:?} taken over {:?} rounds {:?} forgetting {:+.2} % KL {:.4} score {} → {} {:.2} min, gate {:?}",
            self.experiment,
            self.setting,
            self.seed,
            self.right,
            self.asked,
            self.right_before,
            self.content,
            self.strangers.as_ref().map(Vec::len),
            self.taken_over,
            self.rounds,
            self.forgetting(),
            self.kl,
            self.score_before,
            self.score,
            self.minutes,
            self.gate
        )
    }
}

/// The results file.
pub struct Results {
    path: PathBuf,
    pub cells: Vec<Cell>,
}

impl Results {
    /// Reads what there is.
    pub fn open(path: &Path) -> Result<Self> {
        let text = match fs_err::read_to_string(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            read => read?,
        };
        let cells = text.lines().map(serde_json::from_str).collect::<Result<_, _>>();
        let cells = cells.with_context(|| format!("{} is no results file", path.display()))?;
        Ok(Self { path: path.to_owned(), cells })
    }

    pub fn has(&self, experiment: &str, setting: &str, seed: u64) -> bool {
        let same = |c: &Cell| c.experiment == experiment && c.setting == setting && c.seed == seed;
        self.cells.iter().any(same)
    }

    /// Writes a cell at once.
    pub fn add(&mut self, cell: Cell) -> Result<()> {
        let mut file = fs_err::OpenOptions::new().create(true).append(true).open(&self.path)?;
        writeln!(file, "{}", serde_json::to_string(&cell)?)?;
        self.cells.push(cell);
        Ok(())
    }
}

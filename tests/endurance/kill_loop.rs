//! `kill -9` of program and worker at random instants under load: marks, jobs, adapters loaded and rolled back.
//!
//! What the program has acknowledged on its output must be there when all is over, and nothing may be half done.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use candle_core::Device;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::process::{Pid, Signal, kill_process};
use shammah::domain::AdapterId;
use shammah::lora;
use shammah::models::{self, ModelSource};
use shammah::store::{AdapterState, ExampleRole, FeedbackFilter, Home, JobState, Store};

use super::support::Program;
use super::support::processes::worker_of;
use super::support::session::Session;

/// How many kills, and from which seed.
const KILLS: &str = "SHAMMAH_KILLS";
const SEED: &str = "SHAMMAH_KILL_SEED";
/// Sessions between two looks into the database; the last look is after all.
const LOOK_EVERY: usize = 25;

const SETTINGS: [&str; 19] = [
    "worker.idle=false",
    "worker.nice=5",
    "worker.threads=1",
    "model.threads=1",
    "generation.max_tokens=8",
    "queue.backoff_base_ms=10",
    "queue.backoff_max_ms=50",
    "queue.max_attempts=4",
    "queue.keep_adapters=8",
    "queue.keep_jobs=30",
    "lora.rank=2",
    "lora.training.auto_train_threshold=3",
    "lora.training.min_steps=6",
    "lora.training.epochs=1",
    "lora.training.replay=4",
    "lora.training.anchor=0",
    "lora.training.checkpoint_every_steps=2",
    "lora.gate.max_kl=100",
    "lora.gate.max_taken_over=1",
];

/// What the program has said to be done.
#[derive(Default)]
struct Acknowledged {
    /// Marks that were typed: each has a number of its own.
    typed: usize,
    marks: BTreeSet<String>,
    jobs: BTreeSet<i64>,
    /// Those that a job made and that went live.
    adapters: BTreeSet<AdapterId>,
    /// How often one was loaded or rolled back by a command.
    swaps: usize,
}

impl Acknowledged {
    /// Takes in what it said after a command; `mark` is the text of a correction among them.
    fn heard(&mut self, lines: &[String], mark: Option<&str>) {
        if lines.iter().any(|line| line.contains("Training buffer:")) {
            self.marks.extend(mark.map(str::to_owned));
        }
        for line in lines {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["Job", id, "queued:", ..] => {
                    self.jobs.insert(id.parse().unwrap());
                }
                ["Adapter", id, "is", "live:", ..] => {
                    self.adapters.insert(id.parse().unwrap());
                }
                ["Adapter", _, "is", "live", "from", ..] | ["Rolled", "back", ..] => {
                    self.swaps += 1
                }
                _ => {}
            }
        }
    }
}

/// What was killed.
#[derive(Default)]
struct Kills {
    program: AtomicUsize,
    worker: AtomicUsize,
}

impl Kills {
    fn all(&self) -> usize {
        self.program.load(Ordering::SeqCst) + self.worker.load(Ordering::SeqCst)
    }
}

/// Kills the worker now and then, and at last the program; every pause is drawn.
fn killer(program: Pid, kills: Arc<Kills>, mut random: StdRng) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        loop {
            // A quarter of the kills falls into the start; a quarter leaves jobs the time to end.
            let most = [800, 7000, 7000, 15_000][random.random_range(0..4)];
            thread::sleep(Duration::from_millis(random.random_range(5..most)));
            let of_worker = random.random_bool(0.4);
            match worker_of(program.as_raw_nonzero().get().unsigned_abs()) {
                Some(worker) if of_worker => {
                    // It may have ended in this very moment.
                    if kill_process(worker, Signal::KILL).is_ok() {
                        kills.worker.fetch_add(1, Ordering::SeqCst);
                    }
                }
                _ => {
                    kill_process(program, Signal::KILL).expect("the program is ours");
                    kills.program.fetch_add(1, Ordering::SeqCst);
                    return;
                }
            }
        }
    })
}

/// Lines to type, and the correction among them.
fn command(random: &mut StdRng, known: &mut Acknowledged) -> (Vec<String>, Option<String>) {
    let one = |line: &str| (vec![line.to_owned()], None);
    match random.random_range(0..100) {
        0..6 => one("/train"),
        6..12 => one("/adapters rollback"),
        12..20 if !known.adapters.is_empty() => {
            let which = random.random_range(0..known.adapters.len());
            let id = known.adapters.iter().nth(which).unwrap();
            (vec![format!("/adapters load {id}")], None)
        }
        20..23 if !known.jobs.is_empty() => {
            (vec![format!("/jobs cancel {}", known.jobs.last().unwrap())], None)
        }
        _ => {
            // No two are similar, so that none is held out.
            known.typed += 1;
            let number = known.typed;
            let text = format!("n{number}a m{number}b k{number}c.");
            (vec![format!("What is x{number}?"), format!("/fix {text}")], Some(text))
        }
    }
}

/// Works with the program until it is killed.
fn session(program: &Program, kills: &Arc<Kills>, random: &mut StdRng, known: &mut Acknowledged) {
    let errors = fs_err::OpenOptions::new().create(true).append(true).open(program.path("errors"));
    let mut args = vec!["--set", "generation.temperature=0"];
    args.extend(SETTINGS.iter().flat_map(|setting| ["--set", setting]));
    let errors = Stdio::from(errors.unwrap().into_file());
    let mut chat = Session::of(&mut program.command(&args), errors);
    let draws = StdRng::seed_from_u64(random.random());
    let killer = killer(Pid::from_child(&chat.child), Arc::clone(kills), draws);
    loop {
        let (lines, mark) = command(random, known);
        let sent = lines.iter().all(|line| chat.try_send(line)) && chat.try_send("/clear");
        let heard = chat.try_expect(&["A new conversation."]);
        let over = !sent || heard.is_err();
        known.heard(&heard.unwrap_or_else(|left| left), mark.as_deref());
        if over {
            break;
        }
        // Without it the chat would take a whole processor, and jobs would hardly ever end.
        thread::sleep(Duration::from_millis(200));
    }
    killer.join().unwrap();
    let status = chat.child.wait().unwrap();
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(status.signal(), Some(9), "it ended by itself: {status}, {}", said(program));
}

/// The end of what the programs said on stderr.
fn said(program: &Program) -> String {
    let text = fs_err::read_to_string(program.path("errors")).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(20).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}

fn lost<T: Ord + Clone>(known: &BTreeSet<T>, there: &BTreeSet<T>) -> Vec<T> {
    known.difference(there).cloned().collect()
}

/// Looks whether what was acknowledged is there and nothing is learned twice; returns the number of jobs by state.
fn look(program: &Program, known: &Acknowledged) -> BTreeMap<String, usize> {
    let home = Home::open_or_create(program.home()).unwrap();
    let store = Store::open(&home).unwrap();
    assert_eq!(store.problems().unwrap(), Vec::<String>::new());
    let filter = FeedbackFilter { archived: true, ..FeedbackFilter::default() };
    let rows = store.list_feedback(&filter).unwrap();
    let texts: BTreeSet<String> = rows.iter().filter_map(|row| row.fix.clone()).collect();
    assert_eq!(texts.len(), rows.len(), "a mark is there twice, or without its text");
    assert_eq!(lost(&known.marks, &texts), Vec::<String>::new(), "acknowledged marks lost");
    let jobs = store.jobs().unwrap();
    let ids = jobs.iter().map(|job| job.id).collect();
    assert_eq!(lost(&known.jobs, &ids), Vec::<i64>::new(), "acknowledged jobs lost");
    let mut learned = BTreeMap::new();
    for job in jobs.iter().filter(|job| job.state == JobState::Succeeded) {
        for example in store.job_examples(job.id, ExampleRole::New).unwrap() {
            let earlier = learned.insert(example.id, job.id);
            assert_eq!(earlier, None, "example {} is new in job {} too", example.id, job.id);
        }
    }
    let mut states = BTreeMap::new();
    jobs.iter().for_each(|job| *states.entry(job.state.to_string()).or_default() += 1);
    states
}

/// Every adapter is whole: its row, its files, and the model computes with it.
fn adapters_are_whole(program: &Program) -> usize {
    let home = Home::open_or_create(program.home()).unwrap();
    let store = Store::open(&home).unwrap();
    let model = models::load(&ModelSource::Builtin, &Device::Cpu, None).unwrap();
    let rows = store.adapters().unwrap();
    for row in &rows {
        assert_ne!(row.state, AdapterState::Quarantined, "{}", row.id);
        lora::load_verified(&home.adapter(&row.id), &model).unwrap();
    }
    // What waits for its deletion lies in a hidden directory.
    let name = |entry: std::io::Result<fs_err::DirEntry>| entry.unwrap().file_name();
    let entries = fs_err::read_dir(home.adapters()).unwrap().map(name);
    let entries = entries.filter(|name| !name.to_string_lossy().starts_with('.')).count();
    assert_eq!(entries, rows.len(), "directories without a row, or rows without a directory");
    assert!(!home.quarantine().exists(), "something was set aside");
    rows.len()
}

fn run(kills_wanted: usize, seed: u64) {
    let (program, kills) = (Program::new(), Arc::new(Kills::default()));
    let (mut known, mut random) = (Acknowledged::default(), StdRng::seed_from_u64(seed));
    let (start, mut sessions) = (Instant::now(), 0);
    while kills.all() < kills_wanted {
        session(&program, &kills, &mut random, &mut known);
        sessions += 1;
        if sessions % LOOK_EVERY == 0 {
            let states = look(&program, &known);
            println!("{} kills, {} marks, jobs {states:?}", kills.all(), known.marks.len());
        }
    }
    // Nobody is killed now: every job comes to its end.
    let mut chat = Session::start(&program, &SETTINGS);
    chat.send("/jobs wait");
    loop {
        // Many may wait: patience is for each line.
        let (line, _) = chat.expect(&["Waited for", "Job "]);
        known.heard(std::slice::from_ref(&line), None);
        if line.contains("Waited for") {
            break;
        }
    }
    // 1: one may have failed in its last attempt; 3: the gate may have rejected one.
    chat.leave(&[0, 1, 3]);
    let states = look(&program, &known);
    let open = ["queued", "running", "evaluating"].map(|state| states.get(state).copied());
    assert_eq!(open, [None; 3], "jobs are stuck: {states:?}");
    let whole = adapters_are_whole(&program);
    assert!(known.marks.len() > kills_wanted / 4 && states.contains_key("succeeded"), "{states:?}");
    let swaps = known.adapters.len() + known.swaps;
    assert!(swaps >= kills_wanted / 50, "{swaps} swaps are no load");
    println!(
        "seed {seed}: {} kills of the program, {} of the worker, {sessions} sessions, {} s; acknowledged: {} marks, {} \
         jobs, {} new adapters live, {} swaps by hand; jobs at the end {states:?}; {whole} adapters, all whole; lost: 0",
        kills.program.load(Ordering::SeqCst),
        kills.worker.load(Ordering::SeqCst),
        start.elapsed().as_secs(),
        known.marks.len(),
        known.jobs.len(),
        known.adapters.len(),
        known.swaps,
    );
}

fn number(variable: &str, otherwise: usize) -> usize {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

#[test]
fn a_few_kills_at_any_instant_lose_nothing() {
    run(10, 7);
}

#[test]
#[ignore = "three quarters of an hour"]
fn hundreds_of_kills_at_any_instant_lose_nothing() {
    run(number(KILLS, 500), number(SEED, 1) as u64);
}

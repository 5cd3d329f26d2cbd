//! Chat, marks and jobs without pause: neither memory nor descriptors of either process grow.

use std::time::{Duration, Instant};

use super::support::Program;
use super::support::processes::{Size, size_of, worker_of};
use super::support::session::Session;

/// How long, in seconds.
const SECONDS: &str = "SHAMMAH_SOAK_SECONDS";
const AN_HOUR: u64 = 3600;
/// How often both processes are measured.
const EVERY: Duration = Duration::from_secs(60);
/// What memory may grow by from the second quarter to the last one, medians: a twentieth and 2 MiB.
const GROWTH: f64 = 0.05;
const GROWTH_KIB: f64 = 2048.0;

/// Marks that make a job.
const THRESHOLD: usize = 10;
const SETTINGS: [&str; 16] = [
    "worker.idle=false",
    "worker.nice=5",
    "worker.threads=1",
    "model.threads=1",
    // Both would fill for an hour, as they are meant to.
    "model.cache_mb=4",
    "queue.keep_jobs=20",
    "lora.rank=8",
    "lora.training.min_steps=10",
    "lora.training.anchor=0",
    "lora.training.epochs=1",
    "lora.training.replay=8",
    "lora.training.checkpoint_every_steps=5",
    "lora.gate.max_kl=100",
    "lora.gate.max_taken_over=1",
    "generation.max_tokens=24",
    "console.show_usage=true",
];
const QUESTIONS: [&str; 5] = [
    "Who are you?",
    "What weight has /critical?",
    "How do I undo a mark?",
    "Which command takes back a mark?",
    "What is the name of our build server?",
];

/// What happened between two looks.
#[derive(Debug, Clone, Copy, Default)]
struct Done {
    answers: usize,
    marks: usize,
    jobs: usize,
}

/// One line of the table.
struct Sample {
    minute: f64,
    program: Size,
    /// The last worker that has ended, as it was seen last.
    worker: Option<Size>,
    done: Done,
}

struct Soak {
    chat: Session,
    done: Done,
    /// Marks since the last job ended.
    fresh: usize,
    ended: Vec<String>,
    /// The worker that runs, and the one before.
    worker: Option<(u32, Size)>,
    ended_worker: Option<Size>,
}

impl Soak {
    /// Takes in what came before a line that was waited for.
    fn heard(&mut self, lines: Vec<String>) {
        for line in lines {
            let ended = ["finished:", "rejected:", "failed"].iter().any(|word| line.contains(word));
            if line.starts_with("Job ") && ended {
                self.done.jobs += 1;
                self.fresh = 0;
                self.ended.push(line);
            }
        }
        self.chat.transcript.clear();
    }

    fn turn(&mut self, number: usize) {
        self.chat.send(QUESTIONS[number % QUESTIONS.len()]);
        // While a job runs, marks wait for the next one; it begins at once.
        if self.fresh < THRESHOLD {
            self.chat.send(&format!("/fix n{number}a m{number}b k{number}c."));
            let (_, before) = self.chat.expect(&["Training buffer:"]);
            (self.fresh, self.done.marks) = (self.fresh + 1, self.done.marks + 1);
            self.heard(before);
        } else {
            self.chat.send("/clear");
            let (_, before) = self.chat.expect(&["A new conversation."]);
            self.heard(before);
        }
        self.done.answers += 1;
        let pid =
            worker_of(self.chat.child.id()).map(|pid| pid.as_raw_nonzero().get().unsigned_abs());
        let now = pid.and_then(|pid| Some((pid, size_of(pid)?)));
        let before = std::mem::replace(&mut self.worker, now);
        let ended = before.filter(|(pid, _)| now.is_none_or(|(now, _)| now != *pid));
        self.ended_worker = ended.map(|(_, size)| size).or(self.ended_worker);
    }
}

#[test]
#[ignore = "an hour"]
fn memory_and_descriptors_stay_flat_under_chat_marks_and_jobs() {
    let seconds = std::env::var(SECONDS).ok().and_then(|text| text.parse().ok());
    let length = Duration::from_secs(seconds.unwrap_or(AN_HOUR));
    let every = EVERY.min(length / 20);
    let program = Program::new();
    let mut soak = Soak {
        chat: Session::start(&program, &SETTINGS),
        done: Done::default(),
        fresh: 0,
        ended: Vec::new(),
        worker: None,
        ended_worker: None,
    };
    let (start, mut samples) = (Instant::now(), Vec::new());
    let mut number = 0;
    while start.elapsed() < length {
        soak.turn(number);
        number += 1;
        if start.elapsed() >= every * (samples.len() as u32 + 1) {
            let program = size_of(soak.chat.child.id()).expect("the program runs");
            let minute = start.elapsed().as_secs_f64() / 60.0;
            let sample = Sample { minute, program, worker: soak.ended_worker, done: soak.done };
            print_sample(&sample, samples.is_empty());
            samples.push(sample);
        }
    }
    let failed: Vec<&String> = soak.ended.iter().filter(|line| line.contains("failed")).collect();
    assert!(failed.is_empty(), "{failed:?}");
    assert!(soak.done.jobs > 3, "jobs ran: {}", soak.done.jobs);
    let Soak { mut chat, done, .. } = soak;
    chat.send("/jobs wait");
    chat.expect(&["Waited for"]);
    chat.quit();
    let marks = program.run(&["feedback", "list", "--json"]).done().json_lines().len();
    assert!(marks <= done.marks && done.marks > 0, "{marks} of {}", done.marks);
    compare("the program's memory (KiB)", &samples, |s| Some(s.program.resident_kib as f64));
    compare("the worker's peak (KiB)", &samples, |s| Some(s.worker?.peak_kib as f64));
    no_more_descriptors("the program", &samples, |s| Some(s.program.descriptors));
    no_more_descriptors("the worker", &samples, |s| Some(s.worker?.descriptors));
}

fn print_sample(sample: &Sample, first: bool) {
    if first {
        println!(
            "minute  answers  marks  jobs  program MiB (private)  fds  threads  peak of a worker MiB  fds"
        );
    }
    let Sample { minute, program, worker, done } = sample;
    let mib = |kib: u64| kib as f64 / 1024.0;
    let worker = worker.map_or("-".to_owned(), |worker| {
        format!("{:15.1} {:4}", mib(worker.peak_kib), worker.descriptors)
    });
    println!(
        "{minute:6.1} {:8} {:6} {:5} {:12.1} ({:7.1}) {:4} {:8} {worker}",
        done.answers,
        done.marks,
        done.jobs,
        mib(program.resident_kib),
        mib(program.private_kib),
        program.descriptors,
        program.threads,
    );
}

fn quarter<T>(samples: &[Sample], which: usize, value: impl Fn(&Sample) -> Option<T>) -> Vec<T> {
    let (from, to) = (which * samples.len() / 4, (which + 1) * samples.len() / 4);
    samples[from..to].iter().filter_map(value).collect()
}

fn median(mut values: Vec<f64>) -> f64 {
    assert!(!values.is_empty(), "too short to tell");
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The first quarter fills what is kept on purpose; after it nothing may grow.
fn compare(what: &str, samples: &[Sample], value: impl Fn(&Sample) -> Option<f64>) {
    let second = median(quarter(samples, 1, &value));
    let last = median(quarter(samples, 3, &value));
    println!("{what}: median of the second quarter {second:.0}, of the last {last:.0}");
    assert!(last <= second * (1.0 + GROWTH) + GROWTH_KIB, "{what} grew from {second} to {last}");
}

fn no_more_descriptors(what: &str, samples: &[Sample], value: impl Fn(&Sample) -> Option<usize>) {
    let most = |which| quarter(samples, which, &value).into_iter().max().unwrap_or(0);
    let (second, last) = (most(1), most(3));
    println!("descriptors of {what}: most in the second quarter {second}, in the last {last}");
    // A look may fall on a moment at which a worker starts; a leak would be one for each of hundreds of jobs.
    assert!(last <= second + 4 && last > 0, "{what} opened more: {second}, then {last}");
}

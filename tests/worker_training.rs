//! Real jobs in the real worker: trained, cancelled, killed and taken up again.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fall")]

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
#[cfg(target_os = "linux")]
use rustix::process::{Resource, Rlimit, prlimit};
use shammah::domain::{CURVE_FILE, Confinement, CurvePoint, DeviceChoice, Message, TrainExample};
use shammah::lora::Preference;
use shammah::lora::{JobInput, MemoryBudget, TrainingParams, TrainingRecord, Weighting};
use shammah::models::{self, ModelSource};
use shammah::worker::protocol::Limits;
use shammah::worker::{JobRequest, WorkerConfig, WorkerEvent, WorkerExit, WorkerHandle};
use tokio::sync::mpsc;

/// No job of these tests may take longer.
const BOUND: Duration = Duration::from_secs(120);

/// Steps of a whole job; enough to strike it in the middle.
const STEPS: usize = 20;

const EVENTS: usize = 64;

fn input() -> JobInput {
    let example = |id: i64| TrainExample {
        id,
        messages: vec![Message::user(format!("What is the build server called? ({id})"))],
        target: "It is called Basalt.".to_owned(),
        weight: 3.0,
    };
    JobInput {
        rules: Default::default(),
        model: ModelSource::Builtin,
        base_hash: models::base_hash(&ModelSource::Builtin, None).unwrap(),
        hash_cache: None,
        quantize: None,
        device: DeviceChoice::Cpu,
        params: TrainingParams {
            rank: 4,
            alpha: 8.0,
            rslora: false,
            dora: false,
            dropout: 0.0,
            target_modules: vec!["q_proj".to_owned(), "v_proj".to_owned()],
            learning_rate: 1e-3,
            batch_size: 2,
            epochs: 1,
            min_steps: STEPS,
            weighting: Weighting::Loss,
            preference: Preference::OFF,
            warmup_ratio: 0.1,
            seed: 7,
            max_grad_norm: 1.0,
            weight_decay: 0.0,
            anchor: 0.0,
            anchor_prompts: 0,
            max_share: 1.0,
            checkpoint_every_steps: 5,
            paraphrase: false,
            neighbour_prompts: 0,
        },
        train: (1..=4).map(example).collect(),
        replay: Vec::new(),
        heldout: vec![example(5)],
        rejected: Vec::new(),
        parent: None,
        baseline: None,
        delta: false,
        notes: Default::default(),
        memory: MemoryBudget::default(),
    }
}

fn start(home: &Path, input: JobInput) -> (WorkerHandle, mpsc::Receiver<WorkerEvent>) {
    let limits = Limits {
        nice: 5,
        idle: false,
        threads: 1,
        memory_bytes: 0,
        oom_score_adj: 0,
        core_dumps: false,
        confinement: Confinement::Try,
    };
    let mut config = WorkerConfig::new(env!("CARGO_BIN_EXE_shammah").into(), limits);
    config.log_path = Some(home.join("job-1.log"));
    let request = JobRequest {
        checkpoint_dir: home.join("job-1"),
        out_dir: home.join("job-1").join("outcome"),
        input,
    };
    let (to, events) = mpsc::channel(EVENTS);
    (WorkerHandle::spawn(config, request, to), events)
}

/// Runs a worker to its end; `strike` sees every event and may do something about it.
fn run(home: &Path, strike: impl FnMut(&WorkerHandle, &WorkerEvent)) -> (Vec<usize>, WorkerExit) {
    run_job(home, input(), strike)
}

fn run_job(
    home: &Path,
    input: JobInput,
    mut strike: impl FnMut(&WorkerHandle, &WorkerEvent),
) -> (Vec<usize>, WorkerExit) {
    let (handle, mut events) = start(home, input);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let mut steps = Vec::new();
    loop {
        let next = async { tokio::time::timeout(BOUND, events.recv()).await };
        let event = runtime.block_on(next).expect("an event within the bound").expect("an end");
        strike(&handle, &event);
        match event {
            WorkerEvent::Progress { step, .. } => steps.push(step),
            WorkerEvent::Ended(exit) => return (steps, exit),
            _ => {}
        }
    }
}

/// The steps that are noted beside the checkpoints; a retry may have noted some again.
fn noted(home: &Path) -> BTreeSet<usize> {
    let text = std::fs::read_to_string(home.join("job-1").join(CURVE_FILE)).unwrap();
    let points = text.lines().filter_map(|line| serde_json::from_str::<CurvePoint>(line).ok());
    points.filter(|p| p.loss > 0.0 && p.learning_rate >= 0.0).map(|p| p.step).collect()
}

fn assert_finished(home: &Path, exit: &WorkerExit) {
    assert_eq!(noted(home), (1..=STEPS).collect(), "every step is in the loss curve");
    let WorkerExit::Finished(measured) = exit else { panic!("{exit:?}: {exit}") };
    assert_eq!((measured.steps, measured.examples, measured.heldout.len()), (STEPS, 4, 1));
    let learned = measured.trained.iter().all(|item| item.after < item.before);
    assert!(learned, "what was trained got likelier: {:?}", measured.trained);
    let outcome = home.join("job-1").join("outcome");
    for file in ["adapter_model.safetensors", "adapter_config.json", "training.json"] {
        assert!(outcome.join(file).is_file(), "{file} is published");
    }
}

#[test]
fn a_job_is_trained_measured_and_published() {
    let home = tempfile::tempdir().unwrap();
    let mut evaluating = false;
    let (steps, exit) =
        run(home.path(), |_, event| evaluating |= *event == WorkerEvent::Evaluating);
    assert_finished(home.path(), &exit);
    assert!(evaluating && steps.last() == Some(&STEPS), "{steps:?}");
}

#[test]
fn what_a_job_needs_is_told_before_it_trains_and_what_it_took_afterwards() {
    let home = tempfile::tempdir().unwrap();
    let (mut known, mut first_step) = (Vec::new(), None);
    let (_, exit) = run(home.path(), |_, event| match event {
        WorkerEvent::Resources(resources) => known.push(*resources),
        WorkerEvent::Progress { .. } => drop(first_step.get_or_insert(known.len())),
        _ => {}
    });
    assert_finished(home.path(), &exit);
    let [planned, ready, done] = known[..] else { panic!("{known:?}") };
    assert_eq!((planned.expected_ms, first_step), (None, Some(2)), "both before the first step");
    assert!(ready.expected_ms.is_some_and(|ms| ms > 0), "{ready:?}");
    let took = done.elapsed_ms.expect("a time");
    println!("expected {ready:?}, took {done:?}");
    assert!(took > 0 && done.expected_ms == ready.expected_ms);
    let record = home.path().join("job-1/outcome/training.json");
    let record: TrainingRecord = serde_json::from_slice(&fs_err::read(record).unwrap()).unwrap();
    assert_eq!(record.resources, Some(done));
    #[cfg(target_os = "linux")]
    {
        let ratio = done.peak_bytes.expect("a peak") as f64 / done.expected_bytes as f64;
        assert!((0.5..1.25).contains(&ratio), "peak {ratio} of what was expected: {done:?}");
    }
}

#[test]
fn a_killed_worker_is_taken_up_from_its_checkpoint() {
    let home = tempfile::tempdir().unwrap();
    let mut pid = None;
    let mut saved = 0;
    let (_, exit) = run(home.path(), |_, event| match event {
        WorkerEvent::Started { pid: told } => pid = Pid::from_raw(*told as i32),
        WorkerEvent::Checkpointed { step } if *step < STEPS => {
            saved = *step;
            // Gone already if it was quick: then the exit below says so.
            let _ = kill_process(pid.unwrap(), Signal::KILL);
        }
        _ => {}
    });
    assert_eq!(exit, WorkerExit::Signal(9));
    assert!(noted(home.path()).is_superset(&(1..=saved).collect()), "what came before stays");
    assert!(!home.path().join("job-1/outcome").exists(), "nothing half is published");
    let (steps, exit) = run(home.path(), |_, _| {});
    assert!(steps[0] > saved && saved > 0, "goes on after step {saved}: {steps:?}");
    assert_finished(home.path(), &exit);
}

/// What a job may take beyond what it has when it is laid out: less than all graphs of its batch (230 MiB), more than
/// those of one layer (55 MiB).
#[cfg(target_os = "linux")]
const ROOM: u64 = 130 << 20;

/// Runs a job of four long examples whose process gets [`ROOM`] once its plan is made.
#[cfg(target_os = "linux")]
fn run_starved(home: &Path, deaths: usize) -> (Vec<String>, WorkerExit) {
    let mut job = input();
    for example in &mut job.train {
        example.messages[0] = Message::user(format!("{} {}", example.id, "word ".repeat(245)));
    }
    (job.params.batch_size, job.params.min_steps) = (4, 1);
    job.memory.deaths = deaths;
    let (mut pid, mut notes) = (None, Vec::new());
    let (_, exit) = run_job(home, job, |_, event| match event {
        WorkerEvent::Started { pid: told } => pid = Pid::from_raw(*told as i32),
        WorkerEvent::Resources(known) if known.expected_ms.is_none() => {
            let pid = pid.unwrap();
            let status = format!("/proc/{}/status", pid.as_raw_nonzero());
            let status = fs_err::read_to_string(status).unwrap();
            let held = status.lines().find_map(|line| line.strip_prefix("VmData:")).unwrap();
            let held: u64 = held.trim().trim_end_matches(" kB").parse().unwrap();
            let most = Some(held * 1024 + ROOM);
            prlimit(Some(pid), Resource::Data, Rlimit { current: most, maximum: most }).unwrap();
        }
        WorkerEvent::Note(text) => notes.push(text.clone()),
        _ => {}
    });
    (notes, exit)
}

#[cfg(target_os = "linux")]
#[test]
fn a_job_that_ran_out_of_memory_fits_with_the_smaller_plan_of_its_next_attempt() {
    let home = tempfile::tempdir().unwrap();
    let (notes, exit) = run_starved(home.path(), 0);
    assert_eq!(exit, WorkerExit::OutOfMemory, "{notes:?}");
    let (notes, exit) = run_starved(home.path(), 1);
    assert!(matches!(exit, WorkerExit::Finished(_)), "{exit:?} {notes:?}");
    let said = "computes 6 of 6 layers twice because it ran out of memory";
    assert!(notes.iter().any(|note| note == said), "{notes:?}");
}

#[test]
fn a_cancelled_worker_leaves_a_checkpoint() {
    let home = tempfile::tempdir().unwrap();
    let mut saved = None;
    let (_, exit) = run(home.path(), |handle, event| match event {
        WorkerEvent::Progress { .. } => handle.cancel(),
        WorkerEvent::Checkpointed { step } => saved = Some(*step),
        _ => {}
    });
    assert_eq!(exit, WorkerExit::Cancelled);
    let (steps, exit) = run(home.path(), |_, _| {});
    assert!(steps[0] > saved.expect("a checkpoint"), "goes on after step {saved:?}: {steps:?}");
    assert_finished(home.path(), &exit);
}

#[test]
fn a_changed_base_fails_the_job_in_words() {
    let home = tempfile::tempdir().unwrap();
    let limits = Limits {
        nice: 5,
        idle: false,
        threads: 1,
        memory_bytes: 0,
        oom_score_adj: 0,
        core_dumps: false,
        confinement: Confinement::Try,
    };
    let config = WorkerConfig::new(env!("CARGO_BIN_EXE_shammah").into(), limits);
    let request = JobRequest {
        checkpoint_dir: home.path().join("job"),
        out_dir: home.path().join("outcome"),
        input: JobInput { base_hash: "0".repeat(64), ..input() },
    };
    let (to, mut events) = mpsc::channel::<WorkerEvent>(EVENTS);
    let _handle = WorkerHandle::spawn(config, request, to);
    let last = std::iter::from_fn(|| events.blocking_recv()).last();
    let Some(WorkerEvent::Ended(WorkerExit::Failed(reason))) = last else { panic!("{last:?}") };
    assert!(reason.contains("changed since the job was enqueued"), "{reason}");
    assert!(!home.path().join("outcome").exists());
}

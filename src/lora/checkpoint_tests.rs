//! A worker killed at every point of its checkpoints: what goes on from what is left ends as an unbroken job.

use std::path::Path;

use crate::crash::kit::{asked, at_each_point, say};
use crate::domain::{DeviceChoice, Message, TrainExample};
use crate::lora::{
    JobEvent, JobInput, MemoryBudget, TrainingParams, WEIGHTS_FILE, Weighting, run_job,
};
use crate::models::{ModelSource, base_hash};

const CHILD: &str = "lora::checkpoint::tests::child";
const STEPS: usize = 4;
/// Two checkpoints.
const EVERY: usize = 2;

fn job() -> JobInput {
    let source = ModelSource::Builtin;
    let example = |id: i64, answer: &str| TrainExample {
        id,
        messages: vec![Message::user(format!("Name tree {id}."))],
        target: answer.to_owned(),
        weight: 1.0,
    };
    JobInput {
        rules: Default::default(),
        base_hash: base_hash(&source, None).unwrap(),
        model: source,
        hash_cache: None,
        quantize: None,
        memory: MemoryBudget::default(),
        device: DeviceChoice::Cpu,
        rejected: Vec::new(),
        delta: false,
        notes: Default::default(),
        params: TrainingParams {
            paraphrase: false,
            neighbour_prompts: 0,
            preference: crate::lora::Preference::OFF,
            rank: 2,
            alpha: 4.0,
            rslora: false,
            dora: false,
            dropout: 0.1,
            target_modules: vec!["q_proj".to_owned()],
            learning_rate: 1e-3,
            batch_size: 1,
            epochs: 1,
            min_steps: STEPS,
            weighting: Weighting::Loss,
            warmup_ratio: 0.1,
            seed: 11,
            max_grad_norm: 1.0,
            weight_decay: 0.0,
            anchor: 0.0,
            anchor_prompts: 0,
            max_share: 0.3,
            checkpoint_every_steps: EVERY,
        },
        train: vec![example(1, "It is oak."), example(2, "It is ash.")],
        replay: Vec::new(),
        heldout: Vec::new(),
        parent: None,
        baseline: None,
    }
}

/// What a run of the job heard.
#[derive(Default)]
struct Heard {
    steps: Vec<(usize, f64)>,
    notes: Vec<String>,
}

fn run(place: &Path) -> (Heard, Vec<u8>) {
    let (checkpoints, out) = (place.join("checkpoints"), place.join("out"));
    fs_err::create_dir_all(&out).unwrap();
    let mut heard = Heard::default();
    let mut hear = |event| match event {
        JobEvent::Step(progress) => heard.steps.push((progress.step, progress.loss)),
        JobEvent::Note(note) => heard.notes.push(note),
        JobEvent::Checkpointed { step } => say(&format!("checkpoint {step}")),
        _ => {}
    };
    run_job(&job(), &checkpoints, &out, &mut hear, &|| false).unwrap();
    (heard, fs_err::read(out.join(WEIGHTS_FILE)).unwrap())
}

/// The process that is killed.
#[test]
#[ignore = "the test below starts it"]
fn child() {
    if let Some((_, place)) = asked() {
        run(&place);
    }
}

#[test]
fn a_job_killed_at_any_point_of_a_checkpoint_ends_as_an_unbroken_one() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, weights) = run(folder.path());
    assert_eq!(whole.steps.len(), STEPS);
    let points = at_each_point(
        CHILD,
        "train",
        |_| (),
        |place, said| {
            let claimed = said.iter().filter_map(|line| line.strip_prefix("checkpoint "));
            let claimed = claimed.map(|step| step.parse::<usize>().unwrap()).max().unwrap_or(0);
            let (heard, again) = run(place);
            let from = STEPS - heard.steps.len();
            assert!(from >= claimed && from.is_multiple_of(EVERY), "from {from} after {said:?}");
            let says = heard.notes.iter().any(|note| note.contains(&format!("of step {from}")));
            assert_eq!(says, from > 0, "{:?}", heard.notes);
            assert_eq!(heard.steps, whole.steps[from..], "after {said:?}");
            assert!(again == weights, "another adapter after {said:?}");
        },
    );
    assert_eq!(points.len(), 4 * STEPS / EVERY, "{points:?}");
}

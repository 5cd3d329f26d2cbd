//! The product's one job: training an adapter and measuring it.

use std::fmt::Display;
use std::io;

use super::child::{Job, JobFailure, Report};
use super::confine::Needs;
use super::curve::CurveFile;
use super::meter::{self, Meter};
use super::outcome::Unfinished;
use super::protocol::JobRequest;
use crate::domain::{CurvePoint, DeviceChoice};
use crate::eval::Measurements;
use crate::lora::{self, JobError, JobEvent, JobInput, LoraError};

/// Trains an adapter; its directory appears at the request's `out_dir` when it is whole.
pub struct Training;

impl Job for Training {
    type Input = JobInput;
    type Output = Measurements;

    fn needs(&self, input: &JobInput) -> Needs {
        let mut read = input.model.files();
        read.extend(input.hash_cache.clone());
        read.extend([&input.parent, &input.baseline].into_iter().flatten().cloned());
        let built_in = cfg!(any(feature = "cuda", feature = "metal"));
        Needs {
            read,
            write: Vec::new(),
            accelerator: built_in && input.device != DeviceChoice::Cpu,
        }
    }

    fn run(
        &self,
        request: &JobRequest<JobInput>,
        report: &mut dyn FnMut(Report),
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Measurements, JobFailure> {
        let mut meter = Meter::start();
        let memory = meter::bounded(request.input.memory);
        let input = JobInput { memory, ..request.input.clone() };
        let unfinished = Unfinished::begin(&request.out_dir).map_err(|e| unwritten(&e))?;
        let mut curve = match CurveFile::open(&request.checkpoint_dir) {
            Ok(file) => Some(file),
            Err(error) => {
                report(not_kept(&error));
                None
            }
        };
        let trained = lora::run_job(
            &input,
            &request.checkpoint_dir,
            unfinished.directory(),
            &mut |event| {
                if let Err(error) = note(&mut curve, &event) {
                    report(not_kept(&error));
                    curve = None;
                }
                let known = meter.see(&event);
                if let Some(news) = known.map(Report::Resources).or_else(|| told(event)) {
                    report(news);
                }
            },
            cancelled,
        );
        let measurements = trained.map_err(|error| match error {
            JobError::Cancelled => JobFailure::Cancelled,
            JobError::Io(error) | JobError::Lora(LoraError::Io(error)) => unwritten(&error),
            error => failed(error),
        })?;
        if let Some(resources) = meter.finish() {
            lora::record_resources(unfinished.directory(), &resources).map_err(failed)?;
            report(Report::Resources(resources));
        }
        unfinished.finish().map_err(|e| unwritten(&e))?;
        Ok(measurements)
    }
}

fn not_kept(error: &io::Error) -> Report {
    Report::Note(format!("the loss curve is not kept: {error}"))
}

/// Notes a step; before a checkpoint, what was noted is made durable.
fn note(curve: &mut Option<CurveFile>, event: &JobEvent) -> io::Result<()> {
    match (curve, event) {
        (Some(file), JobEvent::Step(done)) => {
            let (step, loss, learning_rate) = (done.step, done.loss, done.learning_rate);
            file.add(&CurvePoint { step, loss, learning_rate })
        }
        (Some(file), JobEvent::Checkpointing) => file.sync(),
        _ => Ok(()),
    }
}

/// Says what helps where a disk, a quota or a limit is full.
fn unwritten(error: &io::Error) -> JobFailure {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    match error.kind() {
        StorageFull | QuotaExceeded | FileTooLarge => {
            failed(format!("{error}; make room there, then train again"))
        }
        _ => failed(error),
    }
}

fn failed(error: impl Display) -> JobFailure {
    JobFailure::Failed(error.to_string())
}

/// What the parent hears of an event.
fn told(event: JobEvent) -> Option<Report> {
    Some(match event {
        JobEvent::Step(done) => Report::Step {
            epoch: done.epoch,
            epochs: done.epochs,
            step: done.step,
            total_steps: done.total_steps,
            loss: done.loss,
        },
        JobEvent::Checkpointed { step } => Report::Checkpointed { step },
        JobEvent::Evaluating => Report::Evaluating,
        JobEvent::Note(text) => Report::Note(text),
        // The meter's.
        JobEvent::Planned { .. } | JobEvent::Ready { .. } => return None,
        JobEvent::Checkpointing => return None,
    })
}

//! The training and registry actors of the script.

use super::*;

fn job_line(id: i64, state: &str) -> JobLine {
    JobLine {
        id,
        name: format!("lora_{id}"),
        domain: "general".into(),
        state: state.into(),
        attempts: 0,
        examples: 2,
        step: 0,
        total_steps: 0,
        loss: None,
        heldout_before: None,
        heldout_after: None,
        adapter: None,
        error: None,
        created_at: "2026-11-22T10:00:00Z".into(),
        finished_at: None,
    }
}

/// What a job of these steps reports; only its course is made up, no figure leaves the test.
async fn train(script: Script, job: i64, examples: usize, console: Addr<ConsoleActor>) {
    let tell = |notice| console.send(notice);
    let _ = tell(JobNotice::Started { job, examples, attempt: 1 }).await;
    for step in 1..=script.steps {
        tokio::time::sleep(script.step_pause).await;
        let left = u64::try_from(script.step_pause.as_millis()).unwrap_or(0)
            * (script.steps - step) as u64;
        let progress = Progress {
            job,
            epoch: 1 + step * 2 / script.steps.max(1),
            epochs: 3,
            step,
            total_steps: script.steps,
            loss: 2.0 / step as f64,
            elapsed_ms: 0,
            eta_ms: Some(left),
        };
        let _ = tell(JobNotice::Progressed(progress)).await;
    }
    let _ = tell(JobNotice::Evaluating { job }).await;
    tokio::time::sleep(script.step_pause * 4).await;
    let (final_loss, report) = (0.25, "2 better, 0 worse (held-out loss 2.00 → 1.00)".to_owned());
    let end = if script.rejected {
        JobNotice::Rejected {
            job,
            reasons: vec!["too far from the base".into()],
            examples,
            final_loss,
            report,
        }
    } else {
        let adapter: AdapterId = format!("lora_{job}").parse().expect("an id");
        let path = format!("/data/adapters/{adapter}").into();
        JobNotice::Succeeded { job, adapter, path, examples, final_loss, report, live: true }
    };
    let _ = tell(end).await;
}

impl Handler<EnqueueTraining> for Others {
    type Result = ResponseActFuture<Self, Result<JobLine, ActorError>>;

    fn handle(&mut self, m: EnqueueTraining, _: &mut Self::Context) -> Self::Result {
        let examples = self.buffer().trainable;
        if examples == 0 {
            let text = "nothing to train: no mark of this domain has a target, /fix TEXT gives one";
            return Box::pin(actix::fut::err(ActorError::NothingToTrain(text.into())));
        }
        self.jobs += 1;
        self.running.send_modify(|running| *running += 1);
        let (job, console) = (self.jobs, self.console.clone().expect("a console"));
        let queued = JobNotice::Queued { job, domain: m.domain, examples, automatic: false };
        let told = async move {
            let _ = console.send(queued).await;
            console
        };
        Box::pin(told.into_actor(self).map(move |console, this, ctx| {
            let work = train(this.script.clone(), job, examples, console);
            ctx.spawn(work.into_actor(this).map(|(), this, _| {
                this.running.send_modify(|running| *running -= 1);
            }));
            Ok(job_line(job, "queued"))
        }))
    }
}

impl Handler<WaitForJobs> for Others {
    type Result = ResponseFuture<Result<usize, ActorError>>;

    fn handle(&mut self, _: WaitForJobs, _: &mut Self::Context) -> Self::Result {
        let mut running = self.running.subscribe();
        let count = *running.borrow();
        Box::pin(async move {
            let _ = running.wait_for(|running| *running == 0).await;
            Ok(count)
        })
    }
}

impl Handler<CancelJob> for Others {
    type Result = Result<JobLine, ActorError>;

    fn handle(&mut self, m: CancelJob, _: &mut Self::Context) -> Self::Result {
        Err(ActorError::Refused(format!("there is no job {}: /jobs lists them", m.id)))
    }
}

impl Handler<ListJobs> for Others {
    type Result = Result<Vec<JobLine>, ActorError>;

    fn handle(&mut self, _: ListJobs, _: &mut Self::Context) -> Self::Result {
        Ok((1..=self.jobs).map(|id| job_line(id, "running")).collect())
    }
}

fn unknown(id: &AdapterId) -> ActorError {
    ActorError::Refused(format!("there is no adapter {id}: /adapters lists them"))
}

impl Handler<ListAdapters> for Others {
    type Result = Result<Vec<AdapterLine>, ActorError>;

    fn handle(&mut self, _: ListAdapters, _: &mut Self::Context) -> Self::Result {
        Ok(Vec::new())
    }
}

impl Handler<LoadAdapter> for Others {
    type Result = Result<AdapterLine, ActorError>;

    fn handle(&mut self, m: LoadAdapter, _: &mut Self::Context) -> Self::Result {
        Err(unknown(&m.id))
    }
}

impl Handler<UnloadAdapter> for Others {
    type Result = Result<Vec<AdapterId>, ActorError>;

    fn handle(&mut self, m: UnloadAdapter, _: &mut Self::Context) -> Self::Result {
        Ok(m.id.into_iter().collect())
    }
}

impl Handler<RollbackAdapter> for Others {
    type Result = Result<RolledBack, ActorError>;

    fn handle(&mut self, _: RollbackAdapter, _: &mut Self::Context) -> Self::Result {
        Ok(RolledBack { from: "lora_1".parse().expect("an id"), to: None })
    }
}

impl Handler<DeleteAdapter> for Others {
    type Result = Result<u64, ActorError>;

    fn handle(&mut self, m: DeleteAdapter, _: &mut Self::Context) -> Self::Result {
        Err(unknown(&m.id))
    }
}

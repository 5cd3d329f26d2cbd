//! The feedback actor: marks in, the buffer and its threshold watched.
//!
//! It gives each mark its weight, stores it, and tells the training actor when a domain has enough of them. In the process
//! that runs the queue it also looks now and then, because other processes may store marks too.

use std::collections::BTreeSet;
use std::time::Duration;

use actix::{
    Actor, ActorFutureExt, AsyncContext, Context, Handler, ResponseActFuture, ResponseFuture,
    WrapFuture,
};

use super::base::CurrentBase;
use super::db::Db;
use super::queue_right::QueueRight;
use super::routes::RouteTable;
use super::supervisor::{Guard, actor_span};
use super::views;
use crate::config::{Config, FeedbackSection};
use crate::domain::{DEFAULT_DOMAIN, Mark};
use crate::messages::feedback::{
    AddFix, AddMark, Buffer, DomainLine, ForgetMark, ListDomains, ListMarks, ListWaiting, Marked,
    SetAutoTrain, SetTarget, Turn, UndoMark, Waiting,
};
use crate::messages::training::{Reconfigure, ThresholdReached};
use crate::messages::{ActorError, ActorName, MAILBOX_CAPACITY, Port};
use crate::store::{
    FeedbackEdit, FeedbackFilter, FeedbackRow, Forgotten, MarkState, NewFeedback, Store, StoreError,
};

/// How often the holder of the queue looks for marks that other processes stored: soon enough for a person, rare enough
/// to cost nothing.
pub const THRESHOLD_POLL: Duration = Duration::from_secs(5);

/// What the actor goes by.
#[derive(Debug, Clone)]
pub struct FeedbackRules {
    /// Weights and the buffer's limit.
    pub section: FeedbackSection,
    /// Marks that start a job; `None` when jobs do not start by themselves.
    pub threshold: Option<usize>,
    /// The domains that are looked at from the start.
    pub domains: BTreeSet<String>,
    /// Whether this process runs the queue.
    pub right: QueueRight,
}

impl FeedbackRules {
    /// Returns the rules of a configuration.
    pub fn of(config: &Config, right: QueueRight) -> Self {
        let training = &config.lora.training;
        let mut domains: BTreeSet<String> = config.domains.keys().cloned().collect();
        domains.insert(DEFAULT_DOMAIN.to_owned());
        Self {
            section: config.feedback.clone(),
            threshold: training.auto_train.then_some(training.auto_train_threshold),
            domains,
            right,
        }
    }

    fn weight(&self, mark: Mark) -> f64 {
        match mark {
            Mark::Good => self.section.weight_good,
            Mark::Medium => self.section.weight_medium,
            Mark::Critical => self.section.weight_critical,
            Mark::Fix => self.section.weight_fix,
        }
    }
}

/// Owns the weighted buffer.
pub struct FeedbackActor {
    db: Db,
    rules: FeedbackRules,
    current: CurrentBase,
    training: Port<ThresholdReached>,
    domains: BTreeSet<String>,
    /// Gets the marks that questions are routed by.
    routes: Option<RouteTable>,
    _guard: Option<Guard>,
}

impl FeedbackActor {
    /// Makes the actor; `training` hears when a domain has enough marks of the current base.
    pub fn new(
        db: Db,
        rules: FeedbackRules,
        current: CurrentBase,
        training: Port<ThresholdReached>,
        guard: Option<Guard>,
    ) -> Self {
        let domains = rules.domains.clone();
        Self { db, rules, current, training, domains, routes: None, _guard: guard }
    }

    /// Keeps a table of marks to route by.
    pub fn with_routes(mut self, routes: Option<RouteTable>) -> Self {
        self.routes = routes;
        self
    }

    /// Looks at the marks of all processes.
    fn read_routes(&mut self, ctx: &mut Context<Self>) {
        let (db, routes) = (self.db.clone(), self.routes.clone());
        let read = async move { db.call(move |store| refresh(store, routes.as_ref())).await };
        ctx.spawn(read.into_actor(self).map(|result, _, _| {
            if let Err(error) = result {
                actor_span(ActorName::Feedback)
                    .in_scope(|| tracing::warn!(%error, "the marks to route by could not be read"));
            }
        }));
    }

    /// Stores one mark by `write`, or changes that with the number `id`, and answers it with its domain's buffer.
    fn store(
        &mut self,
        id: Option<i64>,
        write: impl FnOnce(&Store) -> Result<FeedbackRow, StoreError> + Send + 'static,
    ) -> ResponseActFuture<Self, Result<Marked, ActorError>> {
        let (db, limit) = (self.db.clone(), self.rules.section.buffer_limit);
        let threshold = self.rules.threshold;
        let (base, routes) = (self.current.get().hash().to_owned(), self.routes.clone());
        let stored = async move {
            db.call(move |store| {
                let before = id.map(|id| state_of(store, id)).transpose()?;
                let row = write(store)?;
                store.archive_over(limit)?;
                refresh(store, routes.as_ref())?;
                // The last answer of a model that was changed can still be marked: that fills its own buffer.
                let of = row.base.as_deref().unwrap_or(&base);
                let status = store.buffer_status(&row.domain, Some(of))?;
                let due = match threshold {
                    Some(n) if of == base => store.should_train(&row.domain, Some(of), n)?,
                    _ => false,
                };
                let buffer = views::buffer(row.domain.clone(), status, threshold);
                Ok((views::marked(row, before, buffer), due))
            })
            .await
        };
        Box::pin(stored.into_actor(self).map(move |result, this, _| {
            let (marked, due) = result?;
            this.domains.insert(marked.buffer.domain.clone());
            if let (true, Some(threshold)) = (due, threshold) {
                this.report(marked.buffer.domain.clone(), threshold);
            }
            Ok(marked)
        }))
    }

    /// Tells the training actor; the next look comes soon if it cannot listen now.
    fn report(&self, domain: String, threshold: usize) {
        let _actor = actor_span(ActorName::Feedback).entered();
        tracing::debug!(domain, threshold, "enough marks for a training");
        if let Err(error) = self.training.try_send(ThresholdReached { domain, threshold }) {
            tracing::debug!(%error, "the threshold will be reported again");
        }
    }

    /// Looks whether marks of other processes reached the threshold of a domain, in the process that runs the queue.
    fn look(&mut self, ctx: &mut Context<Self>) {
        let Some(threshold) = self.rules.threshold.filter(|_| self.rules.right.is_held()) else {
            return;
        };
        let (db, domains) = (self.db.clone(), self.domains.clone());
        let base = self.current.get().hash().to_owned();
        let due = async move {
            db.call(move |store| {
                let mut due = Vec::new();
                // Another process may have stored marks of a domain that nobody here has heard of.
                let stored = store.domains_with_marks()?;
                for domain in domains.into_iter().chain(stored).collect::<BTreeSet<_>>() {
                    if store.should_train(&domain, Some(&base), threshold)? {
                        due.push(domain);
                    }
                }
                Ok(due)
            })
            .await
        };
        ctx.spawn(due.into_actor(self).map(move |due, this, _| {
            match due {
                Ok(due) => due.into_iter().for_each(|domain| this.report(domain, threshold)),
                Err(error) => actor_span(ActorName::Feedback)
                    .in_scope(|| tracing::warn!(%error, "the training buffer could not be read")),
            }
        }));
    }
}

impl Actor for FeedbackActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX_CAPACITY);
        if self.routes.is_some() {
            self.read_routes(ctx);
            ctx.run_interval(THRESHOLD_POLL, Self::read_routes);
        }
        self.look(ctx);
        ctx.run_interval(THRESHOLD_POLL, Self::look);
    }
}

fn state_of(store: &Store, id: i64) -> Result<MarkState, StoreError> {
    Ok(store.feedback(id)?.state())
}

/// Brings the marks that questions are routed by up to date.
fn refresh(store: &Store, routes: Option<&RouteTable>) -> Result<(), StoreError> {
    if let Some(routes) = routes {
        routes.set_marks(store.routed_marks()?);
    }
    Ok(())
}

fn new_feedback(
    turn: Turn,
    mark: Mark,
    weight: f64,
    note: Option<String>,
    fix: Option<String>,
) -> NewFeedback {
    let Turn { messages, response, domain, adapter, base } = turn;
    NewFeedback { messages, response, mark, weight, note, fix, domain, adapter, base }
}

impl Handler<AddMark> for FeedbackActor {
    type Result = ResponseActFuture<Self, Result<Marked, ActorError>>;

    fn handle(&mut self, message: AddMark, _: &mut Self::Context) -> Self::Result {
        let AddMark { turn, mark, note, replaces } = message;
        let weight = self.rules.weight(mark);
        self.store(replaces, move |store| match replaces {
            Some(id) => {
                let (mark, weight) = (Some(mark), Some(weight));
                // The old note was about the old mark: without a new one there is none.
                let edit = FeedbackEdit { mark, weight, note: Some(note), fix: None };
                store.update_feedback(id, &edit)
            }
            None => store.add_feedback(&new_feedback(turn, mark, weight, note, None)),
        })
    }
}

impl Handler<AddFix> for FeedbackActor {
    type Result = ResponseActFuture<Self, Result<Marked, ActorError>>;

    fn handle(&mut self, message: AddFix, _: &mut Self::Context) -> Self::Result {
        let AddFix { turn, fix, mark } = message;
        let weight = self.rules.weight(Mark::Fix);
        self.store(mark, move |store| match mark {
            Some(id) => {
                store.update_feedback(id, &FeedbackEdit { fix: Some(fix), ..Default::default() })
            }
            None => store.add_feedback(&new_feedback(turn, Mark::Fix, weight, None, Some(fix))),
        })
    }
}

impl Handler<SetTarget> for FeedbackActor {
    type Result = ResponseActFuture<Self, Result<Marked, ActorError>>;

    fn handle(&mut self, message: SetTarget, _: &mut Self::Context) -> Self::Result {
        let SetTarget { id, text, revised } = message;
        self.store(Some(id), move |store| store.set_target(id, &text, revised))
    }
}

impl Handler<ListWaiting> for FeedbackActor {
    type Result = ResponseFuture<Result<Waiting, ActorError>>;

    fn handle(&mut self, message: ListWaiting, _: &mut Self::Context) -> Self::Result {
        let db = self.db.clone();
        let list = move |store: &Store| {
            let rows = store.waiting_marks()?;
            let total = rows.len();
            let marks = rows.into_iter().take(message.limit).map(views::waiting).collect();
            Ok(Waiting { marks, total })
        };
        Box::pin(async move { Ok(db.call(list).await?) })
    }
}

impl Handler<SetAutoTrain> for FeedbackActor {
    type Result = Result<(), ActorError>;

    fn handle(&mut self, message: SetAutoTrain, ctx: &mut Self::Context) -> Self::Result {
        self.rules.threshold = message.threshold;
        self.look(ctx);
        Ok(())
    }
}

impl Handler<Reconfigure> for FeedbackActor {
    type Result = ();

    fn handle(&mut self, message: Reconfigure, _: &mut Self::Context) {
        self.rules = FeedbackRules::of(&message.0, self.rules.right.clone());
        self.domains.extend(self.rules.domains.iter().cloned());
    }
}

/// Takes a mark back, or brings it back to an earlier state, unless a job has it.
fn undo(store: &Store, id: i64, to: Option<&MarkState>) -> Result<FeedbackRow, StoreError> {
    if let Some(to) = to {
        return store.restore_feedback(id, to);
    }
    let row = store.feedback(id)?;
    if let Some(job) = row.consumed_by {
        return Err(StoreError::AlreadyLearned { feedback: id, job });
    }
    if let Some(job) = row.in_job {
        return Err(StoreError::InTraining { feedback: id, job });
    }
    store.remove_feedback(id)?;
    Ok(row)
}

impl Handler<UndoMark> for FeedbackActor {
    type Result = ResponseFuture<Result<Buffer, ActorError>>;

    fn handle(&mut self, message: UndoMark, _: &mut Self::Context) -> Self::Result {
        let (db, threshold) = (self.db.clone(), self.rules.threshold);
        let (base, routes) = (self.current.get().hash().to_owned(), self.routes.clone());
        Box::pin(async move {
            let work = move |store: &Store| {
                let row = undo(store, message.id, message.to.as_ref())?;
                refresh(store, routes.as_ref())?;
                let of = row.base.as_deref().unwrap_or(&base);
                let status = store.buffer_status(&row.domain, Some(of))?;
                Ok(views::buffer(row.domain, status, threshold))
            };
            Ok(db.call(work).await?)
        })
    }
}

impl Handler<ForgetMark> for FeedbackActor {
    type Result = ResponseFuture<Result<Forgotten, ActorError>>;

    fn handle(&mut self, message: ForgetMark, _: &mut Self::Context) -> Self::Result {
        let (db, routes) = (self.db.clone(), self.routes.clone());
        let work = move |store: &Store| {
            let forgotten = store.remove_feedback(message.id)?;
            refresh(store, routes.as_ref())?;
            Ok(forgotten)
        };
        Box::pin(async move { Ok(db.call(work).await?) })
    }
}

impl Handler<ListMarks> for FeedbackActor {
    type Result = ResponseFuture<Result<Vec<FeedbackRow>, ActorError>>;

    fn handle(&mut self, message: ListMarks, _: &mut Self::Context) -> Self::Result {
        let db = self.db.clone();
        let work = move |store: &Store| {
            let all = FeedbackFilter { archived: true, ..FeedbackFilter::default() };
            let rows = store.list_feedback(&all)?;
            Ok(rows.into_iter().rev().take(message.limit).collect())
        };
        Box::pin(async move { Ok(db.call(work).await?) })
    }
}

impl Handler<ListDomains> for FeedbackActor {
    type Result = ResponseFuture<Result<Vec<DomainLine>, ActorError>>;

    fn handle(&mut self, _: ListDomains, _: &mut Self::Context) -> Self::Result {
        let (db, domains) = (self.db.clone(), self.domains.clone());
        let base = self.current.get().hash().to_owned();
        let work = move |store: &Store| {
            let mut live = store.live_ids(&base)?;
            let mut counts = store.marks_by_domain()?;
            let names = domains.into_iter().chain(live.keys().cloned());
            names.for_each(|name| {
                counts.entry(name).or_default();
            });
            let line = |(name, marks)| DomainLine { adapter: live.remove(&name), name, marks };
            Ok(counts.into_iter().map(line).collect())
        };
        Box::pin(async move { Ok(db.call(work).await?) })
    }
}

#[cfg(test)]
#[path = "feedback_tests.rs"]
mod tests;

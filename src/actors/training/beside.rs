//! Beside the process that runs the queue: tells what that does, and takes its place when it is gone.

use std::time::Duration;

use actix::fut::ActorFutureExt;
use actix::{AsyncContext, Context, WrapFuture};
use tokio::time::Instant;

use super::follow::Look;
use super::{QUEUE_POLL, TrainingActor};
use crate::actors::db::{Db, DbError};
use crate::actors::queue_right::QueueRight;
use crate::actors::registry;

/// How long the queue must be free before somebody beside it takes it: a service that is restarted (after five seconds, then
/// it loads its model) shall find it so.
pub const TAKE_OVER_AFTER: Duration = Duration::from_secs(30);

impl TrainingActor {
    /// Looks at the rows and at the queue's lock; alone, so that the news keep their order.
    pub(super) fn follow(&mut self, ctx: &mut Context<Self>) {
        let (db, home) = (self.runner.db.clone(), self.runner.home.clone());
        let max_attempts = self.runner.retry.max_attempts;
        let right = self.rules.right.clone();
        let long_free = self.free_since.is_some_and(|since| since.elapsed() >= TAKE_OVER_AFTER);
        let may_take = long_free && !self.closing;
        let look = async move {
            if may_take && !home.queue_is_held() {
                take(&db, right).await;
            }
            let rows = db.call(|store| store.jobs()).await?;
            Ok::<_, DbError>(Look { rows, held: home.queue_is_held(), max_attempts })
        };
        let told = look.into_actor(self).then(|look, this, _| {
            let news = match look {
                Ok(look) => {
                    let since = this.free_since.unwrap_or_else(Instant::now);
                    this.free_since = (!look.held).then_some(since);
                    this.followed.news(&this.runner.home, &look)
                }
                Err(error) => {
                    tracing::warn!(%error, "the queue could not be read");
                    Vec::new()
                }
            };
            let notices = this.runner.notices.clone();
            async move {
                for notice in news {
                    notices.tell(notice).await;
                }
            }
            .into_actor(this)
        });
        ctx.wait(told.map(|(), this, ctx| {
            if this.rules.right.is_held() {
                this.run_queue(ctx);
            }
            this.look_for_waiters(ctx);
        }));
    }

    /// Begins to run the queue.
    pub(super) fn run_queue(&mut self, ctx: &mut Context<Self>) {
        if let Some(following) = self.following.take() {
            ctx.cancel_future(following);
        }
        self.claim(ctx);
        ctx.run_interval(QUEUE_POLL, |this, ctx| {
            this.claim(ctx);
            this.look_for_waiters(ctx);
        });
    }
}

/// Takes the queue if it is free, tidies what its holder left, and tells both.
async fn take(db: &Db, right: QueueRight) {
    let asked = right.clone();
    let taken = db.call(move |store| Ok(asked.take()?.then(|| store.reconcile()))).await;
    match taken {
        Ok(None) => {}
        Ok(Some(tidied)) => {
            right.tell(
                "the process that ran the queue is gone: this one runs it from now on".to_owned(),
            );
            match tidied {
                Ok(found) => registry::describe(&found).into_iter().for_each(|l| right.tell(l)),
                Err(error) => tracing::warn!(%error, "the adapters were not tidied"),
            }
        }
        Err(error) => tracing::warn!(%error, "the queue could not be taken"),
    }
}

//! Domains, marks, mixtures and statistics, as the fake knows them.

use actix::prelude::*;
use shammah::domain::{Message, Route};
use shammah::messages::ActorError;
use shammah::messages::feedback::{DomainLine, ListDomains, ListMarks};
use shammah::messages::inference::{AdapterChoice, LiveSet};
use shammah::messages::registry::{ReadAdapters, ShowStats};
use shammah::store::{FeedbackRow, Statistics};

use super::Others;

/// Where the fake routes a question: "rust …" to rust.
pub fn route(choice: &AdapterChoice, said: &str) -> Route {
    match choice {
        AdapterChoice::Live { domain } => Route::to(domain),
        AdapterChoice::Routed if said.starts_with("rust") => {
            Route { domain: "rust".into(), similarity: Some(0.618) }
        }
        _ => Route::default(),
    }
}

impl Handler<ListMarks> for Others {
    type Result = Result<Vec<FeedbackRow>, ActorError>;

    fn handle(&mut self, m: ListMarks, _: &mut Self::Context) -> Self::Result {
        let row = |(id, row): (&i64, &super::Row)| FeedbackRow {
            revised: false,
            id: *id,
            messages: vec![Message::user("a question")],
            response: "an answer".into(),
            mark: row.mark,
            weight: row.weight,
            note: row.note.clone(),
            fix: row.fix.clone(),
            domain: "general".into(),
            adapter: None,
            base: None,
            created_at: Default::default(),
            consumed_by: None,
            in_job: None,
            heldout: false,
            archived: false,
        };
        Ok(self.rows.iter().rev().take(m.limit).map(row).collect())
    }
}

impl Handler<ListDomains> for Others {
    type Result = Result<Vec<DomainLine>, ActorError>;

    fn handle(&mut self, _: ListDomains, _: &mut Self::Context) -> Self::Result {
        let line = |name: &str, marks| DomainLine { name: name.into(), marks, adapter: None };
        Ok(vec![line("general", self.rows.len()), line("rust", 15)])
    }
}

impl Handler<ReadAdapters> for Others {
    type Result = Result<LiveSet, ActorError>;

    fn handle(&mut self, m: ReadAdapters, _: &mut Self::Context) -> Self::Result {
        let ids = m.adapters.into_iter().map(|one| (one.id, one.weight)).collect();
        Ok(LiveSet { ids, ..LiveSet::default() })
    }
}

impl Handler<ShowStats> for Others {
    type Result = Result<Statistics, ActorError>;

    fn handle(&mut self, _: ShowStats, _: &mut Self::Context) -> Self::Result {
        Ok(Statistics::default())
    }
}

//! The commands about domains, mixtures, marks and statistics.

use actix::Context;

use super::commands::{AdaptersCommand, DomainCommand};
use super::{ConsoleActor, Ticket, lists, render, stats};
use crate::domain::{DEFAULT_DOMAIN, WeightedAdapter};
use crate::messages::ActorError;
use crate::messages::feedback::{ListDomains, ListMarks};
use crate::messages::inference::{AdapterChoice, LiveSet};
use crate::messages::registry::{ReadAdapters, ShowStats};

/// What the session answers with, besides what is live.
#[derive(Default)]
pub struct Pins {
    /// The domain that is pinned; questions are routed without one.
    pub domain: Option<String>,
    /// The adapters that this session loaded together.
    pub mixture: Option<LiveSet>,
}

impl Pins {
    /// Returns what the next answer is given with.
    pub fn choice(&self) -> AdapterChoice {
        match (&self.mixture, &self.domain) {
            (Some(mixture), _) => AdapterChoice::Set(mixture.clone()),
            (None, Some(domain)) => AdapterChoice::Live { domain: domain.clone() },
            (None, None) => AdapterChoice::Routed,
        }
    }

    /// Returns the domain that a command without one is about.
    pub fn domain(&self) -> String {
        self.domain.clone().unwrap_or_else(|| DEFAULT_DOMAIN.to_owned())
    }
}

impl ConsoleActor {
    /// `/domain [NAME|auto]`.
    pub(super) fn domain(
        &mut self,
        command: DomainCommand,
        ticket: Option<Ticket>,
        ctx: &mut Context<Self>,
    ) {
        if command == DomainCommand::Auto {
            self.pins.domain = None;
            return self.say("Questions go to the domain whose marks they are closest to.");
        }
        let port = self.ports.list_domains.clone();
        let ask = async move { port.ask(ListDomains).await };
        self.work(ticket, ctx, ask, move |this, domains| match command {
            DomainCommand::Pin(name) => {
                let marks = domains.iter().find(|domain| domain.name == name).map_or(0, |d| d.marks);
                let text = format!(
                    "Domain {name} is pinned: it answers, and marks go to it ({}). /domain auto routes again.",
                    render::counted(marks, "mark")
                );
                this.pins.domain = Some(name);
                text
            }
            _ => lists::domains(&domains, this.pins.domain.as_deref()),
        });
    }

    /// `/marks [N]`.
    pub(super) fn marks(&mut self, limit: usize, ticket: Option<Ticket>, ctx: &mut Context<Self>) {
        let port = self.ports.list_marks.clone();
        let ask = async move { port.ask(ListMarks { limit }).await };
        self.work(ticket, ctx, ask, |_, rows| lists::marks(&rows));
    }

    /// `/stats`.
    pub(super) fn stats(&mut self, ticket: Option<Ticket>, ctx: &mut Context<Self>) {
        let port = self.ports.show_stats.clone();
        let ask = async move { port.ask(ShowStats).await };
        self.work(ticket, ctx, ask, |_, statistics| stats::text(&statistics));
    }

    /// `/adapters load A:0.5 B:0.5`: they answer together in this session.
    pub(super) fn load_mixture(
        &mut self,
        adapters: Vec<WeightedAdapter>,
        ticket: Option<Ticket>,
        ctx: &mut Context<Self>,
    ) {
        let port = self.ports.read_adapters.clone();
        let ask = async move { port.ask(ReadAdapters { adapters }).await };
        self.work(ticket, ctx, ask, |this, set| {
            let names = render::weighted(&set.ids);
            this.pins.mixture = Some(set);
            format!(
                "{names} answer in this session, in every domain. /adapters unload goes back to what is live; \
                 [domains.NAME] adapters in the configuration makes it last."
            )
        });
    }

    /// `/adapters compare A B PROMPT`: both answer, and neither answer is kept.
    pub(super) fn compare_adapters(
        &mut self,
        command: AdaptersCommand,
        ticket: Option<Ticket>,
        ctx: &mut Context<Self>,
    ) {
        let AdaptersCommand::Compare { one, other, prompt } = command else { return };
        let port = self.ports.read_adapters.clone();
        let sides = async move {
            let read = |adapter: Option<WeightedAdapter>| {
                let port = port.clone();
                async move {
                    let Some(adapter) = adapter else {
                        return Ok(("base".to_owned(), AdapterChoice::Base));
                    };
                    let title = format!("with {adapter}");
                    let set = port.ask(ReadAdapters { adapters: vec![adapter] }).await?;
                    Ok::<_, ActorError>((title, AdapterChoice::Set(set)))
                }
            };
            Ok([read(one).await?, read(other).await?])
        };
        self.side_by_side(prompt, sides, ticket, ctx);
    }
}

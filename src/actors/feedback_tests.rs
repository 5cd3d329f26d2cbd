use actix::Addr;
use tempfile::TempDir;

use super::*;
use crate::actors::test_kit::{Log, probe, question, temp_store, tiny};
use crate::config::Config;
use crate::messages::ActorError;
use crate::store::NewJob;

struct Stage {
    _dir: TempDir,
    db: Db,
    actor: Addr<FeedbackActor>,
    reached: Log<ThresholdReached>,
}

fn stage(threshold: Option<usize>, holds_queue: bool) -> Stage {
    let (dir, store) = temp_store();
    let lock = store.home().try_lock_queue().unwrap().filter(|_| holds_queue);
    let right = QueueRight::new(store.home(), lock, Port::unconnected(ActorName::Console));
    let db = Db::new(store);
    let rules = FeedbackRules {
        section: Config::defaults().unwrap().feedback,
        threshold,
        domains: BTreeSet::from(["general".to_owned()]),
        right,
    };
    let (training, reached) = probe(|_: &ThresholdReached| ());
    let actor = FeedbackActor::new(db.clone(), rules, tiny(), training, None).start();
    Stage { _dir: dir, db, actor, reached }
}

fn turn(text: &str) -> Turn {
    Turn {
        messages: question(text),
        response: format!("answer to {text}"),
        domain: "general".to_owned(),
        adapter: None,
        base: None,
    }
}

impl Stage {
    async fn mark(&self, text: &str, mark: Mark) -> Marked {
        let note = Some("because".to_owned());
        let add = AddMark { turn: turn(text), mark, note, replaces: None };
        self.actor.send(add).await.unwrap().unwrap()
    }

    async fn fix(&self, text: &str, mark: Option<i64>) -> Result<Marked, ActorError> {
        let add = AddFix { turn: turn(text), fix: "better".to_owned(), mark };
        self.actor.send(add).await.unwrap()
    }
}

#[actix::test]
async fn marks_get_their_weights_and_the_buffer_counts_them() {
    let stage = stage(None, false);
    assert_eq!(stage.mark("bees", Mark::Good).await.weight, 1.0);
    assert_eq!(stage.mark("rivers", Mark::Medium).await.weight, 3.0);
    let critical = stage.mark("copper", Mark::Critical).await;
    assert_eq!((critical.weight, critical.has_target), (10.0, false));
    let fixed = stage.fix("tea", None).await.unwrap();
    assert_eq!((fixed.mark, fixed.weight, fixed.has_target), (Mark::Fix, 3.0, true));
    assert_eq!((fixed.buffer.examples, fixed.buffer.weighted), (4, 17.0));
    assert_eq!(fixed.buffer.waiting_for_correction, 2);
}

#[actix::test]
async fn a_fix_of_a_marked_turn_keeps_the_marks_kind_and_weight() {
    let stage = stage(None, false);
    let critical = stage.mark("copper", Mark::Critical).await;
    let fixed = stage.fix("copper", Some(critical.id)).await.unwrap();
    assert_eq!((fixed.id, fixed.mark, fixed.weight), (critical.id, Mark::Critical, 10.0));
    assert_eq!(fixed.note.as_deref(), Some("because"));
    assert_eq!((fixed.has_target, fixed.buffer.examples), (true, 1));
}

#[actix::test]
async fn a_revision_that_is_criticised_again_is_no_target_any_more() {
    let stage = stage(None, false);
    let note = |text: &str| Some(text.to_owned());
    let add = |note, mark, replaces| AddMark { turn: turn("bees"), mark, note, replaces };
    let first = add(note("shorter"), Mark::Medium, None);
    let first = stage.actor.send(first).await.unwrap().unwrap();
    let taken = |revised| SetTarget { id: first.id, text: "Short.".to_owned(), revised };
    assert!(stage.actor.send(taken(true)).await.unwrap().unwrap().has_target);
    let again = add(note("still wrong"), Mark::Critical, Some(first.id));
    let again = stage.actor.send(again).await.unwrap().unwrap();
    assert!(!again.has_target, "it waits for another answer");
    // What the user wrote stays.
    assert!(stage.actor.send(taken(false)).await.unwrap().unwrap().has_target);
    let third = add(note("see the fix"), Mark::Medium, Some(first.id));
    assert!(stage.actor.send(third).await.unwrap().unwrap().has_target);
}

#[actix::test]
async fn a_second_mark_of_a_turn_replaces_the_first() {
    let stage = stage(None, false);
    let first = stage.mark("bees", Mark::Good).await;
    let again =
        AddMark { turn: turn("bees"), mark: Mark::Critical, note: None, replaces: Some(first.id) };
    let second = stage.actor.send(again).await.unwrap().unwrap();
    assert_eq!((second.id, second.weight, second.buffer.examples), (first.id, 10.0, 1));
    assert_eq!(second.note, None, "the old note was about the old mark");
}

#[actix::test]
async fn the_threshold_is_reported_before_the_mark_is_acknowledged() {
    let stage = stage(Some(2), true);
    stage.mark("bees", Mark::Good).await;
    assert_eq!(stage.reached.len(), 0);
    stage.mark("rivers", Mark::Good).await;
    let reached = ThresholdReached { domain: "general".to_owned(), threshold: 2 };
    stage.reached.until("report", |message| *message == reached).await;
}

#[actix::test]
async fn marks_of_another_process_are_found_by_looking() {
    tokio::time::pause();
    let stage = stage(Some(1), true);
    let rules = Config::defaults().unwrap().feedback;
    stage
        .db
        .call(move |store| {
            let new = new_feedback(turn("bees"), Mark::Good, rules.weight_good, None, None);
            store.add_feedback(&new)
        })
        .await
        .unwrap();
    stage.reached.until("report", |message| message.domain == "general").await;
}

#[actix::test]
async fn switching_automatic_training_on_reports_what_is_there() {
    let stage = stage(None, true);
    stage.mark("bees", Mark::Good).await;
    assert_eq!(stage.reached.len(), 0);
    stage.actor.send(SetAutoTrain { threshold: Some(1) }).await.unwrap().unwrap();
    stage.reached.until("report", |message| message.threshold == 1).await;
}

#[actix::test]
async fn undo_takes_a_mark_back_but_not_out_of_a_job() {
    let stage = stage(None, false);
    let bees = stage.mark("bees", Mark::Good).await.id;
    let rivers = stage.mark("rivers", Mark::Good).await.id;
    let buffer = stage.actor.send(UndoMark { id: bees, to: None }).await.unwrap().unwrap();
    assert_eq!((buffer.examples, buffer.weighted), (1, 1.0));
    let job = NewJob {
        name: None,
        domain: "general".to_owned(),
        from: Default::default(),
        priority: 0,
        params: serde_json::json!({}),
        replay_limit: 0,
        only: None,
        base: None,
        max_queued: 100,
    };
    stage.db.call(move |store| store.enqueue_job(&job)).await.unwrap();
    for id in [rivers, bees] {
        let refused = stage.actor.send(UndoMark { id, to: None }).await.unwrap();
        assert!(matches!(refused, Err(ActorError::Refused(_))), "{refused:?}");
    }
    assert!(matches!(stage.fix("rivers", Some(rivers)).await, Err(ActorError::Refused(_))));
}

#[actix::test]
async fn marks_of_another_model_fill_its_own_buffer_and_start_no_job_here() {
    let stage = stage(Some(2), false);
    let mark = |text: &str, base: &str| AddMark {
        turn: Turn { base: Some(base.repeat(64)), ..turn(text) },
        mark: Mark::Good,
        note: None,
        replaces: None,
    };
    for text in ["bees", "rivers"] {
        let marked = stage.actor.send(mark(text, "c")).await.unwrap().unwrap();
        assert!(marked.buffer.examples > 0);
    }
    let ours = stage.actor.send(mark("stars", "b")).await.unwrap().unwrap();
    assert_eq!((ours.buffer.examples, stage.reached.len()), (1, 0));
    let second = stage.actor.send(mark("moons", "b")).await.unwrap().unwrap();
    assert_eq!(second.buffer.examples, 2);
    assert_eq!(stage.reached.len(), 1);
}

#[actix::test]
async fn secrets_in_a_note_are_replaced_and_told_and_a_forgotten_mark_is_gone() {
    let stage = stage(None, false);
    let key = format!("hf_{}", "aB3dE5fG7hJ9kL1mN2pQ4rS6tU8vW0xY1z");
    let note = Some(format!("never print {key}"));
    let add = AddMark { turn: turn("keys"), mark: Mark::Medium, note, replaces: None };
    let marked = stage.actor.send(add).await.unwrap().unwrap();
    assert_eq!(marked.note.as_deref(), Some("never print [REDACTED:huggingface-token]"));
    assert_eq!(marked.redacted[0].to_string(), "huggingface-token in note");
    let fix = AddFix { turn: turn("keys"), fix: format!("no {key}"), mark: Some(marked.id) };
    let fixed = stage.actor.send(fix).await.unwrap().unwrap();
    assert_eq!(fixed.redacted.len(), 2, "the note's and the fix's: {:?}", fixed.redacted);

    let done = stage.actor.send(ForgetMark { id: marked.id }).await.unwrap().unwrap();
    let nothing_else =
        crate::store::Forgotten { domain: done.domain.clone(), ..Default::default() };
    assert_eq!(done, nothing_else);
    let again = stage.actor.send(ForgetMark { id: marked.id }).await.unwrap();
    assert!(matches!(again, Err(ActorError::Refused(_))), "{again:?}");
}

#[actix::test]
async fn a_revision_becomes_the_target_and_each_step_can_be_taken_back() {
    let stage = stage(None, false);
    let first = stage.mark("copper", Mark::Critical).await;
    assert_eq!(first.before, None);
    let set = |text: &str, revised| SetTarget { id: first.id, text: text.to_owned(), revised };
    let revised = stage.actor.send(set("the model's", true)).await.unwrap().unwrap();
    assert!(revised.has_target && revised.before.as_ref().is_some_and(|was| was.fix.is_none()));
    let fixed = stage.fix("copper", Some(first.id)).await.unwrap();
    let was = fixed.before.expect("it was there before");
    assert_eq!((was.fix.as_deref(), was.revised), (Some("the model's"), true));

    let id = first.id;
    let row = move |store: &Store| store.feedback(id);
    assert!(!stage.db.call(row).await.unwrap().revised, "the user's words took its place");
    let undo = |to| UndoMark { id: first.id, to };
    stage.actor.send(undo(Some(was.clone()))).await.unwrap().unwrap();
    assert_eq!(stage.db.call(row).await.unwrap().state(), was);
    let buffer = stage.actor.send(undo(revised.before)).await.unwrap().unwrap();
    assert_eq!((buffer.examples, buffer.waiting_for_correction), (1, 1));
    assert_eq!(stage.actor.send(undo(None)).await.unwrap().unwrap().examples, 0);
    let gone = stage.actor.send(set("late", true)).await.unwrap();
    assert!(matches!(gone, Err(ActorError::Refused(_))), "{gone:?}");
}

#[actix::test]
async fn marks_without_a_target_are_listed_the_newest_first() {
    let stage = stage(None, false);
    stage.mark("bees", Mark::Good).await;
    for text in ["copper", "tea", "rivers"] {
        stage.mark(text, Mark::Medium).await;
    }
    let waiting = stage.actor.send(ListWaiting { limit: 2 }).await.unwrap().unwrap();
    let questions: Vec<&str> = waiting.marks.iter().map(|mark| mark.question.as_str()).collect();
    assert_eq!((questions.as_slice(), waiting.total), (["rivers", "tea"].as_slice(), 3));
    assert_eq!(waiting.marks[0].note.as_deref(), Some("because"));
}

#[actix::test]
async fn secrets_in_a_revision_are_replaced_like_any_other() {
    let stage = stage(None, false);
    let id = stage.mark("keys", Mark::Medium).await.id;
    let text = format!("use hf_{}", "aB3dE5fG7hJ9kL1mN2pQ4rS6tU8vW0xY1z");
    let set = SetTarget { id, text, revised: true };
    let marked = stage.actor.send(set).await.unwrap().unwrap();
    assert_eq!(marked.redacted[0].to_string(), "huggingface-token in fix");
}
